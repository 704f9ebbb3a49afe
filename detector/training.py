"""The training loop, in the order it happens, and the checkpoint from which a killed run goes on."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from detector.augment.recipe import augment, working_size
from detector.augment.self_blend import self_blend
from detector.calibration import p_fake
from detector.data.decode import resize
from detector.data.pipeline import Draw, epoch_order, stored_batches, training_batches
from detector.data.shards import ShardReader, class_indices, class_names
from detector.errors import UserError
from detector.model.backend import keras
from detector.model.weights import InitialWeights
from detector.optimizer import averaged_weights, make_optimizer, plateau_learning_rate
from detector.params import AugmentParams, Params, TrainParams
from detector.predict import network_outputs
from detector.scoring import EPSILON, score

MOST_SOURCES = 20
HEAD = ("head_", "p_fake", "p_class")  # how the names of the layers begin that no backbone has


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        labels: int (n,), the class of each, 0 = real, from 1 on the kinds of fake.
        sources: text (n,), where each comes from, all "" where the data does not say.
    """

    reader: ShardReader
    labels: np.ndarray
    sources: np.ndarray

    @classmethod
    def of(cls, manifest: pd.DataFrame, name: str, folder: Path) -> "Split":
        """The split `name` of the prepared data in `folder`."""
        rows = manifest[manifest["split"] == name]
        sources = rows["source"] if "source" in rows else pd.Series("", rows.index)
        return cls(ShardReader(folder, rows), class_indices(rows, class_names(manifest)), sources.to_numpy(object))


def train(
    model: "keras.Model",
    params: Params,
    training: Split,
    validation: Split,
    checkpoint: "Checkpoint",
    on_epoch: Callable[[dict, float], None],
) -> tuple["keras.Model", list[dict]]:
    """Adam on the cross-entropy, in one phase or two (the head alone, then all); the best epoch is returned.

    Every choice is made by the validation split. With the same arguments, the same machine and
    `make_deterministic`, the result is the same, also when the run was killed and resumed from `checkpoint`.

    Args:
        model: the untrained network; not used when `checkpoint` holds a later state.
        on_epoch: called after each epoch with its row of the history and its duration in seconds.

    Returns:
        The model with the weights (their average, if `train.average` is set) of the epoch with the lowest validation
        loss, and the history: for each epoch, from 1 on, its loss, accuracy, val_loss, val_accuracy, val_auc (of
        P(fake)), val_auc_<source> of several sources, and learning_rate at its end.

    Raises:
        UserError: the loss is no longer finite, or params do not fit the data.
    """
    settings, classes = params.train, max(2, model.output_shape[1])
    if params.augment.self_blend.rate and classes > 2:
        raise UserError("augment.self_blend.rate: a self-blended fake is of no kind; set it to 0 for kinds of fake")
    shares = source_shares(training, validation, settings.source_weights)
    history = checkpoint.history
    if history:
        model = checkpoint.load_last()
    targets = training.labels if classes == 2 else np.eye(classes)[training.labels]
    targets = targets.astype(np.float32).reshape(len(training.labels), -1)
    weights = image_weights(training.labels, settings.class_weights, _frequency(training.sources, shares))
    size = model.input_shape[1]
    batch_size = min(settings.batch_size, len(training.reader))
    steps = len(training.reader) // batch_size
    draw = example(training, params.augment, size)

    for epoch in range(len(history) + 1, settings.epochs + 1):
        # A cosine is made for its length, and what the head reached alone says nothing of the rest.
        if settings.schedule == "plateau" and (
            epochs_since_best(history[settings.head_epochs :]) >= settings.early_stopping_patience
        ):
            break
        started = time.perf_counter()
        if epoch in (1, settings.head_epochs + 1):
            begin_phase(model, settings, steps, head_alone=epoch <= settings.head_epochs)
        if settings.schedule == "plateau" and epoch > settings.head_epochs:
            model.optimizer.learning_rate.assign(plateau_learning_rate(history[settings.head_epochs :], settings))
        _seed_dropout(model, params.seed, epoch)
        order = epoch_order(training.sources, shares, params.seed, epoch)
        batches = training_batches(draw, order, targets, batch_size, params.seed, epoch, weights)
        with tqdm(total=steps, desc=f"epoch {epoch}/{settings.epochs}", disable=None, leave=False) as bar:
            fitted = _fit(model, batches, steps, bar)

        with averaged_weights(model):
            outputs = network_outputs(model, stored_batches(validation.reader, size, batch_size))
        if not (math.isfinite(fitted["loss"][-1]) and np.isfinite(outputs).all()):
            rate = "head_learning_rate" if epoch <= settings.head_epochs else "learning_rate"
            raise UserError(
                f"train.{rate}: the loss is no longer finite in epoch {epoch}; "
                f"set it lower than {getattr(settings, rate)}"
            )
        row = {
            "epoch": epoch,
            "loss": fitted["loss"][-1],
            "accuracy": fitted["accuracy"][-1],
            **_validated(validation, outputs, shares),
            "learning_rate": float(str(np.float32(model.optimizer.learning_rate))),  # 0.001, not its float32's digits
        }
        history = [*history, row]
        checkpoint.save(model, history)
        on_epoch(row, time.perf_counter() - started)

    with warnings.catch_warnings(action="ignore"):  # the file holds an optimizer, too, which may be another phase's
        model.load_weights(checkpoint.best_weights)
    return model, history


def _fit(model: "keras.Model", batches: Iterator[tuple[np.ndarray, ...]], steps: int, bar: tqdm) -> dict[str, list]:
    """One epoch; Keras's history. A UserError of the batches comes through, which TensorFlow would make its own."""
    failed: list[UserError] = []

    def watched() -> Iterator[tuple[np.ndarray, ...]]:
        try:
            yield from batches
        except UserError as error:
            failed.append(error)
            raise

    try:
        return model.fit(watched(), steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[_Progress(bar)]).history
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def example(training: Split, params: AugmentParams, size: int) -> Draw:
    """What the network gets to see of a training image: its augmented self or, of some fakes, a self-blended one.

    A self-blended fake stands in the place of one of the data, so that real and fake keep their shares. It is made of a
    real training image of the same source, if it has any, and so is its donor, if it has two.
    """
    reader, labels, blend = training.reader, training.labels, params.self_blend
    real = {name: np.flatnonzero((labels == 0) & (training.sources == name)) for name in set(training.sources)}
    any_real = np.flatnonzero(labels == 0)

    def draw(index: int, rng: np.random.Generator) -> np.ndarray:
        if not (blend.rate and labels[index] and rng.random() < blend.rate):
            return augment(reader.image(index), size, params, rng)
        pool = real[training.sources[index]] if len(real[training.sources[index]]) else any_real
        chosen, donor = rng.choice(pool), None
        face = reader.image(chosen)
        side = working_size(face, size, params)
        others = pool[pool != chosen] if len(pool) > 1 else any_real[any_real != chosen]
        if rng.random() < blend.donor and len(others):
            donor = resize(reader.image(rng.choice(others)), side)
        return augment(self_blend(resize(face, side), rng, donor), size, params, rng)

    return draw


def source_shares(training: Split, validation: Split, weights: dict[str, float] | None) -> dict[str, float] | None:
    """What part of an epoch comes from each source, by `train.source_weights`; None where all images count alike.

    Raises:
        UserError: the weights name other sources than the data has.
    """
    if weights is None:
        return None
    present, validated = sorted(set(training.sources)), set(validation.sources)
    if sorted(weights) != present or not validated <= set(present):
        named = ", ".join(name or "unnamed" for name in present)
        stray = sorted(validated - set(present))
        more = f"; {stray[0] or 'unnamed'} is in validation alone" if stray else ""
        raise UserError(
            f"train.source_weights: names {', '.join(weights)}, but the sources of the training images are "
            f"{named}{more}; give each of these a weight, or set it to null"
        )
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def begin_phase(model: "keras.Model", params: TrainParams, steps: int, head_alone: bool) -> None:
    """Say which layers learn, and compile; `steps` are those of an epoch."""
    if params.head_epochs or params.batch_norm == "frozen":
        for layer in model.layers:
            of_head = layer.name.startswith(HEAD)
            frozen = params.batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = of_head or not (head_alone or frozen)
    epochs = params.head_epochs if head_alone else params.epochs - params.head_epochs
    rate = params.head_learning_rate if head_alone else params.learning_rate
    binary = model.output_shape[1] == 1
    loss = keras.losses.BinaryCrossentropy if binary else keras.losses.CategoricalCrossentropy
    accuracy = keras.metrics.BinaryAccuracy if binary else keras.metrics.CategoricalAccuracy
    optimizer = make_optimizer(params, rate, epochs * steps)
    # TensorFlow traces a step twice if the first trace makes variables: here the metric and the optimizer have theirs.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss(label_smoothing=params.label_smoothing), metrics=[accuracy("accuracy")])


def image_weights(labels: np.ndarray, how: str, frequency: np.ndarray | None = None) -> np.ndarray | None:
    """What each image counts in the loss, float (n,), 1 on average; None where all count alike.

    Args:
        labels: int (n,), the classes.
        how: balanced (n / (classes * images of the class), so that each class counts alike), none, or auto: balanced
            of more than two classes.
        frequency: float (n,), how often each comes in an epoch; once where it is None.
    """
    _, place = np.unique(labels, return_inverse=True)
    counts = np.bincount(place, frequency)
    if how == "none" or (how == "auto" and len(counts) == 2) or np.ptp(counts) < 1e-9 * len(labels):
        return None
    return counts.sum() / (len(counts) * counts[place])


def _frequency(sources: np.ndarray, shares: Mapping[str, float] | None) -> np.ndarray | None:
    """How often each image comes in an epoch, float (n,), where the sources have shares."""
    if shares is None:
        return None
    names, place, counts = np.unique(sources.astype(str), return_inverse=True, return_counts=True)
    return (np.array([shares[name] for name in names]) * len(sources) / counts)[place]


def _validated(validation: Split, outputs: np.ndarray, shares: Mapping[str, float] | None) -> dict[str, float | None]:
    """The scores of an epoch; with `shares`, loss and accuracy count each source as training does."""
    labels, fake = validation.labels, (validation.labels > 0).astype(int)
    found = {name: score(fake, p_fake(outputs))[name] for name in ("loss", "accuracy", "auc")}
    if outputs.ndim == 2 or shares:
        of_classes = np.column_stack([1 - outputs, outputs]) if outputs.ndim == 1 else outputs
        losses = -np.log(of_classes[np.arange(len(labels)), labels].clip(EPSILON))
        right = of_classes.argmax(axis=1) == labels
        counts = dict(zip(*np.unique(validation.sources.astype(str), return_counts=True), strict=True))
        weights = [shares[name] / counts[name] for name in validation.sources] if shares else None
        found["loss"] = float(np.average(losses, weights=weights))
        found["accuracy"] = float(np.average(right, weights=weights))
    for name in _telling(validation):
        own = validation.sources == name
        found[f"auc_{name}"] = score(fake[own], p_fake(outputs)[own])["auc"]
    return {f"val_{name}": value for name, value in found.items()}


def _telling(split: Split) -> list[str]:
    """The sources that hold both real images and fakes, where there are several such and not too many to look at."""
    names = sorted(set(split.sources) - {""})
    if not 2 <= len(names) <= MOST_SOURCES:
        return []
    return [name for name in names if len(set(split.labels[split.sources == name] > 0)) == 2]


def best_epoch(history: list[dict]) -> int:
    """The epoch, counted from 1, with the lowest validation loss; the first of several."""
    return min(history, key=lambda row: row["val_loss"])["epoch"]


def epochs_since_best(history: list[dict]) -> int:
    """Epochs without a better validation loss, what EarlyStopping counts; 0 before the first epoch."""
    return history[-1]["epoch"] - best_epoch(history) if history else 0


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
            with averaged_weights(model):
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
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
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
