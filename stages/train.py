"""Stage 2: train the network on the prepared data, log every epoch to MLflow, and save the best epoch."""

import sys
from dataclasses import dataclass, field
from functools import cache

import pandas as pd

from detector.data.shards import class_names, dataset_digest, read_manifest
from detector.errors import exit_on_user_error
from detector.files import read_json, write_json
from detector.models.backend import keras, make_deterministic
from detector.models.file import ModelCard, save_model
from detector.models.network import build_network, in_float32, resolve_precision
from detector.models.weights import find_weights
from detector.params import Params, flatten, load_params
from detector.paths import DATA_SUMMARY, HISTORY, MODEL, PREPARED, TRAIN_SUMMARY, TRAINING_RUN, project_root
from detector.tracking import runs, store
from detector.training.checkpoint import Checkpoint, fingerprint
from detector.training.loop import train
from detector.training.phases import phase
from detector.training.selection import best_epoch
from detector.training.split import Split


@dataclass
class EpochLog:
    """Writes every epoch to MLflow, metrics/history.csv and the console.

    Attributes:
        durations: seconds of each epoch that trained the whole network at its full size.
    """

    params: Params
    checkpoint: Checkpoint
    run_id: str
    durations: list[float] = field(default_factory=list)

    def __call__(self, row: dict, seconds: float) -> None:
        epochs, full_size = self.params.train.epochs, self.params.model.image_size
        now = phase(row["epoch"], self.params)
        if not now.head_alone and now.image_size == full_size:
            self.durations.append(seconds)
        runs.log_metrics(self.run_id, {**row, "seconds": seconds}, step=row["epoch"])
        pd.DataFrame(self.checkpoint.history).to_csv(HISTORY, index=False)
        print(
            f"epoch {row['epoch']}/{epochs}"
            f"{'  (head alone)' if now.head_alone else ''}"
            f"{f'  ({now.image_size} px)' if now.image_size != full_size else ''}"
            f"  loss {row['loss']:.3f}  accuracy {row['accuracy']:.3f}"
            f"  |  validation loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.3f}"
            f"  AUC {row['val_auc']:.3f}  |  {seconds:.0f} s",
            flush=True,
        )


def read_splits(manifest: pd.DataFrame, params: Params) -> tuple[Split, Split]:
    """The training and the validation images."""
    training, validation = (Split.of(manifest, name, PREPARED) for name in ("train", "validation"))
    if params.train.paired_batches:
        if training.pairs:
            print(f"{training.pairs:,} groups of training images hold real and fake images, which come in pairs")
        else:
            print("WARNING: train.paired_batches does nothing: no group holds a real and a fake training image")
    return training, validation


def main() -> None:
    params = load_params()
    store.connect()  # a training that cannot be recorded does not start
    manifest = read_manifest(PREPARED)
    digest, classes = dataset_digest(manifest), class_names(manifest)
    initial = find_weights(params.model.weights, params.model.backbone)
    if initial.note:
        print(f"WARNING: {initial.note}: training starts from RANDOM weights, less accurate", file=sys.stderr)
    precision = resolve_precision(params.train.precision)
    make_deterministic(params.seed)

    @cache
    def build(size: int) -> keras.Model:
        return build_network(params.model.model_copy(update={"image_size": size}), initial, precision, len(classes))

    build(params.model.image_size)  # unsuitable weights are refused before there is a run
    facts = {"weights": initial.origin, "precision": precision, "backend": keras.backend.backend()}
    print(f"{params.model.backbone}, {params.model.image_size} px, " + ", ".join(f"{v} {k}" for k, v in facts.items()))

    folder = project_root() / "models" / "checkpoints" / fingerprint(params, digest, initial, precision)
    logged = {key: value for key, value in flatten(params).items() if not key.startswith("evaluate.")}
    with (
        Checkpoint.open(folder) as checkpoint,
        runs.training_run(logged, {**facts, "data.digest": digest}, checkpoint.run_id) as run_id,
    ):
        checkpoint.run_id = run_id
        if checkpoint.history:
            runs.log_missing_epochs(run_id, checkpoint.history)
            print(f"going on after epoch {len(checkpoint.history)} of {params.train.epochs}, from {folder}")
        HISTORY.parent.mkdir(exist_ok=True)
        training, validation = read_splits(manifest, params)
        log = EpochLog(params, checkpoint, run_id)
        model, history = train(build, params, training, validation, checkpoint, log)

        best = history[best_epoch(history, params.train.monitor) - 1]
        source = read_json(DATA_SUMMARY)["source"]
        card = ModelCard(
            classes, params.model.image_size, params.model.backbone, initial.origin, digest, trained_on=source
        )
        save_model(in_float32(model), card, MODEL)
        TRAINING_RUN.write_text(run_id + "\n")
        pd.DataFrame(history).to_csv(HISTORY, index=False)
        write_json(TRAIN_SUMMARY, {**facts, "weights_note": initial.note, "epochs": len(history), "best": best})
        runs.log_metrics(run_id, {"best": best})
        if log.durations:  # none if the training was killed after its last epoch
            speed = len(training.reader) / min(log.durations)
            runs.log_metrics(run_id, {"speed.training_images_per_second": speed})
        runs.log_artifacts(run_id, {path: "metrics" for path in (DATA_SUMMARY, TRAIN_SUMMARY, HISTORY)})
    print(f"best epoch {best['epoch']}: {MODEL}, {TRAIN_SUMMARY}, {HISTORY}; MLflow run {run_id}")


if __name__ == "__main__":
    exit_on_user_error(main)
