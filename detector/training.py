"""The training loop, in the order it happens, and the checkpoint from which a killed run goes on."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from detector.augment.recipe import augment
from detector.calibration import p_fake
from detector.data.pipeline import stored_batches, training_batches
from detector.data.shards import ShardReader, class_indices, class_names
from detector.errors import UserError
from detector.model.backend import keras
from detector.model.weights import InitialWeights
from detector.params import Params, TrainParams
from detector.predict import network_outputs
from detector.scoring import EPSILON, score


@dataclass(frozen=True)
class Split:
    """The images of one split, and the class of each, int (n,), 0 = real, from 1 on the kinds of fake."""

    reader: ShardReader
    labels: np.ndarray

    @classmethod
    def of(cls, manifest: pd.DataFrame, name: str, folder: Path) -> "Split":
        """The split `name` of the prepared data in `folder`."""
        rows = manifest[manifest["split"] == name]
        return cls(ShardReader(folder, rows), class_indices(rows, class_names(manifest)))


def train(
    model: "keras.Model",
    params: Params,
    training: Split,
    validation: Split,
    checkpoint: "Checkpoint",
    on_epoch: Callable[[dict, float], None],
) -> tuple["keras.Model", list[dict]]:
    """Adam on the cross-entropy, learning rate cut on a plateau, stopped early; the best epoch is returned.

    Every choice is made by the validation split. With the same arguments, the same machine and
    `make_deterministic`, the result is the same, also when the run was killed and resumed from `checkpoint`.

    Args:
        model: the untrained network; not used when `checkpoint` holds a later state.
        on_epoch: called after each epoch with its row of the history and its duration in seconds.

    Returns:
        The model with the weights of the epoch with the lowest validation loss, and the history: for each
        epoch, from 1 on, its loss, accuracy, val_loss, val_accuracy, val_auc (of P(fake)) and learning_rate.

    Raises:
        UserError: the loss is no longer finite.
    """
    history = checkpoint.history
    if history:
        model = checkpoint.load_last()
    else:
        loss = "binary_crossentropy" if model.output_shape[1] == 1 else "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.Adam(params.train.learning_rate), loss, metrics=["accuracy"])
    weights = image_weights(training.labels, params.train.class_weights)
    size = model.input_shape[1]
    batch_size = min(params.train.batch_size, len(training.reader))

    for epoch in range(len(history) + 1, params.train.epochs + 1):
        if epochs_since_best(history) >= params.train.early_stopping_patience:
            break
        started = time.perf_counter()
        learning_rate = plateau_learning_rate(history, params.train)
        model.optimizer.learning_rate.assign(learning_rate)
        _seed_dropout(model, params.seed, epoch)
        batches = training_batches(
            training.reader,
            training.labels,
            size,
            batch_size,
            lambda image, rng: augment(image, params.augment, rng),
            params.seed,
            epoch,
            weights,
        )
        steps = len(training.reader) // batch_size
        with tqdm(total=steps, desc=f"epoch {epoch}/{params.train.epochs}", disable=None, leave=False) as bar:
            fitted = model.fit(
                batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[_Progress(bar)]
            ).history

        outputs = network_outputs(model, stored_batches(validation.reader, size, batch_size))
        if not (math.isfinite(fitted["loss"][-1]) and np.isfinite(outputs).all()):
            raise UserError(
                f"train.learning_rate: the loss is no longer finite in epoch {epoch}; "
                f"set it lower than {params.train.learning_rate}"
            )
        row = {
            "epoch": epoch,
            "loss": fitted["loss"][-1],
            "accuracy": fitted["accuracy"][-1],
            **_validated(validation.labels, outputs),
            "learning_rate": learning_rate,
        }
        history = [*history, row]
        checkpoint.save(model, history)
        on_epoch(row, time.perf_counter() - started)

    model.load_weights(checkpoint.best_weights)
    return model, history


def image_weights(labels: np.ndarray, how: str) -> np.ndarray | None:
    """What each image counts in the loss, float (n,), 1 on average; None where all count alike.

    Args:
        labels: int (n,), the classes.
        how: balanced (n / (classes * images of the class), so that each class counts alike), none, or auto: balanced
            of more than two classes.
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if how == "none" or (how == "auto" and len(counts) == 2) or len(set(counts.tolist())) == 1:
        return None
    return len(labels) / (len(counts) * counts[place])


def _validated(labels: np.ndarray, outputs: np.ndarray) -> dict[str, float | None]:
    found = score((labels > 0).astype(int), p_fake(outputs))
    if outputs.ndim == 2:
        of_classes = outputs.argmax(axis=1)
        own = outputs[np.arange(len(labels)), labels]
        found |= {"loss": float(-np.log(own.clip(EPSILON)).mean()), "accuracy": float((of_classes == labels).mean())}
    return {f"val_{name}": found[name] for name in ("loss", "accuracy", "auc")}


def best_epoch(history: list[dict]) -> int:
    """The epoch, counted from 1, with the lowest validation loss; the first of several."""
    return min(history, key=lambda row: row["val_loss"])["epoch"]


def epochs_since_best(history: list[dict]) -> int:
    """Epochs without a better validation loss, what EarlyStopping counts; 0 before the first epoch."""
    return len(history) - best_epoch(history) if history else 0


def plateau_learning_rate(history: list[dict], params: TrainParams, min_delta: float = 1e-4) -> float:
    """The next epoch's learning rate by the rule of Keras's ReduceLROnPlateau, as a function of the history.

    (As a function it needs no state of its own, so a resumed run goes on with the right rate.)
    """
    best, waited, rate = math.inf, 0, params.learning_rate
    for row in history:
        if row["val_loss"] < best - min_delta:
            best, waited = row["val_loss"], 0
        else:
            waited += 1
            if waited >= params.reduce_lr_patience:
                rate, waited = rate * params.reduce_lr_factor, 0
    return rate


def fingerprint(params: Params, digest: str, initial: InitialWeights, precision: str) -> str:
    """What a checkpoint is good for: with another value of any of these, or other code, training starts afresh."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        code.update(file.read_bytes())
    state = [
        params.model_dump(include={"seed", "model", "augment", "train"}),
        digest,
        [initial.origin, str(initial.path)],
        precision,
        keras.backend.backend(),
        keras.__version__,
        code.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoint:
    """The state of one training on disk: `folder`/state.json names the last and the best epoch's weights.

    state.json is replaced in one step after the files it names are whole, so a kill at any moment leaves either the
    former epoch or this one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._state_file = folder / "state.json"
        self._state = {"history": [], "run_id": None}
        if self._state_file.exists():
            self._state = json.loads(self._state_file.read_text())

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator["Checkpoint"]:
        """The checkpoint in `folder`, held by one process at a time and deleted when the block ends well."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            folder.mkdir(exist_ok=True)
            yield cls(folder)
            shutil.rmtree(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)

    @property
    def history(self) -> list[dict]:
        """The rows of the epochs that are done."""
        return self._state["history"]

    @property
    def run_id(self) -> str | None:
        """The MLflow run that the training belongs to."""
        return self._state["run_id"]

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._write({**self._state, "run_id": run_id})

    @property
    def best_weights(self) -> Path:
        return self.folder / f"best-{best_epoch(self.history)}.weights.h5"

    def load_last(self) -> "keras.Model":
        """The model as it was after the last epoch, optimizer and random state included."""
        return keras.saving.load_model(self.folder / f"last-{len(self.history)}.keras")

    def save(self, model: "keras.Model", history: list[dict]) -> None:
        """Keep `model` as the last epoch's and, if its validation loss is the lowest, as the best."""
        epoch = len(history)
        model.save(self.folder / f"last-{epoch}.keras")
        if best_epoch(history) == epoch:
            model.save_weights(self.folder / f"best-{epoch}.weights.h5")
        self._write({**self._state, "history": history})
        keep = {f"last-{epoch}.keras", self.best_weights.name, self._state_file.name}
        for file in self.folder.iterdir():
            if file.name not in keep:
                file.unlink()

    def _write(self, state: dict) -> None:
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps(state))
        os.replace(part, self._state_file)
        self._state = state


def _seed_dropout(model: "keras.Model", seed: int, epoch: int) -> None:
    """Draw an epoch's dropout from (seed, epoch): Keras stores no random state, a resumed run would draw another."""
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    for index, layer in enumerate(reversed(dropouts)):  # each another draw; the head's, the last, (seed, epoch) itself
        state = np.array([(seed + index * 0x9E3779B1) % 2**32, epoch], layer.seed_generator.state.dtype)
        layer.seed_generator.state.assign(state)


class _Progress(keras.callbacks.Callback):
    def __init__(self, bar: tqdm):
        super().__init__()
        self._bar = bar

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._bar.update()
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.3f}", refresh=False)
