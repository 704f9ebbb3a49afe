"""The training loop, in the order it happens, and the checkpoint from which a killed run goes on."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from detector.augment.pipeline import augment, weakened, working_size
from detector.augment.self_blend import self_blend
from detector.data.loader import stored_batches
from detector.data.shards import ShardReader, class_indices, class_names
from detector.errors import UserError
from detector.images import resize
from detector.models.backend import keras
from detector.models.outputs import EPSILON, network_outputs, p_fake
from detector.params import AugmentParams, Params, TrainParams
from detector.training.checkpoint import Checkpoint
from detector.training.optimizer import averaged_weights, make_optimizer, plateau_learning_rate
from detector.training.sampling import Draw, epoch_order, paired_order, training_batches

MOST_SOURCES = 20
HEAD = ("head_", "p_fake", "p_class")  # how the names of the layers begin that no backbone has


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        labels: int (n,), the class of each, 0 = real, from 1 on the kinds of fake.
        sources: text (n,), where each comes from, all "" where the data does not say.
        groups: text (n,), the group of each: a person, a photo, a video.
    """

    reader: ShardReader
    labels: np.ndarray
    sources: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, manifest: pd.DataFrame, name: str, folder: Path) -> "Split":
        """The split `name` of the prepared data in `folder`."""
        rows = manifest[manifest["split"] == name]
        sources = rows["source"] if "source" in rows else pd.Series("", rows.index)
        return cls(
            ShardReader(folder, rows),
            class_indices(rows, class_names(manifest)),
            sources.to_numpy(object),
            rows["group"].to_numpy(object),
        )

    @property
    def pairs(self) -> int:
        """How many groups hold a real and a fake image."""
        fake = self.labels > 0
        return len(set(self.groups[fake]) & set(self.groups[~fake]))


@dataclass(frozen=True)
class Phase:
    """What one epoch trains, and on what.

    Attributes:
        head_alone: whether the backbone stays as it is.
        image_size: pixels.
        augment: what training images go through.
    """

    head_alone: bool
    image_size: int
    augment: AugmentParams


def phase(epoch: int, params: Params) -> Phase:
    """The phase of an epoch, counted from 1: first the head alone, then all; first small images, then large ones."""
    settings, augmentation = params.train, params.augment
    small = settings.progressive.image_size if epoch <= _small_epochs(settings) else None
    if small:
        augmentation = weakened(augmentation, settings.progressive.augment)
    if epoch < augmentation.self_blend.start_epoch:
        blend = augmentation.self_blend.model_copy(update={"rate": 0})
        augmentation = augmentation.model_copy(update={"self_blend": blend})
    return Phase(epoch <= settings.head_epochs, small or params.model.image_size, augmentation)


def _small_epochs(settings: TrainParams) -> int:
    progressive = settings.progressive
    return settings.epochs - progressive.final_epochs if progressive.image_size else 0


def train(
    build: Callable[[int], "keras.Model"],
    params: Params,
    training: Split,
    validation: Split,
    checkpoint: "Checkpoint",
    on_epoch: Callable[[dict, float], None],
) -> tuple["keras.Model", list[dict]]:
    """Adam on the cross-entropy, phase by phase; the best epoch is returned.

    Every choice is made by the validation split. With the same arguments, the same machine and
    `make_deterministic`, the result is the same, also when the run was killed and resumed from `checkpoint`.

    Args:
        build: image size in pixels -> the untrained network for it, with the same weights for every size.
        on_epoch: called after each epoch with its row of the history and its duration in seconds.

    Returns:
        The model with the weights (their average, if `train.ema_decay` is set) of the best epoch, as `best_epoch` has
        it, and the history: for each epoch, from 1 on, its loss, accuracy, val_loss, val_accuracy, val_auc (of
        P(fake)), val_auc_<source> of several sources, learning_rate at its end and, of progressive training,
        image_size.

    Raises:
        UserError: the loss is no longer finite, or params do not fit the data.
    """
    settings, history = params.train, checkpoint.history
    shares = source_shares(training, validation, settings.source_weights)
    model = checkpoint.load_last() if history else build(phase(1, params).image_size)
    classes = max(2, model.output_shape[1])
    if params.augment.self_blend.rate and classes > 2:
        raise UserError("augment.self_blend.rate: a self-blended fake is of no kind; set it to 0 for kinds of fake")
    targets = training.labels if classes == 2 else np.eye(classes)[training.labels]
    targets = targets.astype(np.float32).reshape(len(training.labels), -1)
    weights = sample_weights(training.labels, settings.class_weights, _frequency(training.sources, shares))
    batch_size = min(settings.batch_size, len(training.reader))
    steps = len(training.reader) // batch_size

    for epoch in range(len(history) + 1, settings.epochs + 1):
        last_phase = history[max(settings.head_epochs, _small_epochs(settings)) :]
        # A cosine is made for its length, and what former phases reached says nothing of the last.
        if settings.schedule == "plateau" and (
            epochs_since_best(last_phase, settings.monitor) >= settings.early_stopping_patience
        ):
            break
        started = time.perf_counter()
        now, before = phase(epoch, params), phase(epoch - 1, params) if epoch > 1 else None
        if before is None or (now.head_alone, now.image_size) != (before.head_alone, before.image_size):
            former = model.optimizer if before and before.head_alone == now.head_alone else None
            model = begin_phase(model, build, now, settings, steps, former)
        if settings.schedule == "plateau" and not now.head_alone:
            model.optimizer.learning_rate.assign(plateau_learning_rate(history[settings.head_epochs :], settings))
        _seed_dropout(model, params.seed, epoch)
        draw = example(training, now.augment, now.image_size)
        order, paired = epoch_order(training.sources, shares, params.seed, epoch), None
        if settings.paired_batches and training.pairs:
            order, paired = paired_order(order, training.labels, training.groups, params.seed, epoch)
        batches = training_batches(
            draw, order, targets, batch_size, params.seed, epoch, weights, paired, settings.mixup
        )
        with tqdm(total=steps, desc=f"epoch {epoch}/{settings.epochs}", disable=None, leave=False) as bar:
            fitted = _fit(model, batches, steps, bar)

        seen = max(batch_size, settings.ema_norm_images) if settings.ema_norm_images else 0
        again = training_batches(draw, order[:seen], targets, batch_size, params.seed, epoch)
        with averaged_weights(model, (images for images, _ in again)):
            outputs = network_outputs(model, stored_batches(validation.reader, now.image_size, batch_size))
            if not (math.isfinite(fitted["loss"][-1]) and np.isfinite(outputs).all()):
                rate = "head_learning_rate" if now.head_alone else "learning_rate"
                raise UserError(
                    f"train.{rate}: the loss is no longer finite in epoch {epoch}; "
                    f"set it lower than {getattr(settings, rate)}"
                )
            row = {
                "epoch": epoch,
                "loss": fitted["loss"][-1],
                "accuracy": fitted["accuracy"][-1],
                **_validated(validation, outputs, shares),
                "learning_rate": float(str(np.float32(model.optimizer.learning_rate))),  # 0.001, not 0.0010000000475
            }
            if settings.progressive.image_size:
                row["image_size"] = now.image_size
            history = [*history, row]
            best = best_epoch(history, settings.monitor)
            if best == epoch:
                checkpoint.save_best(model, epoch)
        checkpoint.save(model, history, best)
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


def begin_phase(
    model: "keras.Model",
    build: Callable[[int], "keras.Model"],
    now: Phase,
    params: TrainParams,
    steps: int,
    former: "keras.optimizers.Optimizer | None",
) -> "keras.Model":
    """The model at the phase's image size, compiled.

    Args:
        steps: of an epoch.
        former: the optimizer whose state the phase goes on with; None: it begins afresh.
    """
    if model.input_shape[1] != now.image_size:
        weights, model = model.get_weights(), build(now.image_size)
        model.set_weights(weights)
    if params.head_epochs or params.batch_norm == "frozen":
        for layer in model.layers:
            of_head = layer.name.startswith(HEAD)
            frozen = params.batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = of_head or not (now.head_alone or frozen)
    epochs = params.head_epochs if now.head_alone else params.epochs - params.head_epochs
    rate = params.head_learning_rate if now.head_alone else params.learning_rate
    kind = keras.losses.BinaryCrossentropy if model.output_shape[1] == 1 else keras.losses.CategoricalCrossentropy
    optimizer = make_optimizer(params, rate, epochs * steps)
    binary = model.output_shape[1] == 1
    right = keras.metrics.MeanMetricWrapper(accuracy) if binary else keras.metrics.CategoricalAccuracy()
    right.name = "accuracy"
    # TensorFlow traces a step twice if the first trace makes variables: here the metric and the optimizer have theirs.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, kind(label_smoothing=params.label_smoothing), metrics=[right])
    if former is not None:
        for variable, value in zip(optimizer.variables, former.variables, strict=True):
            variable.assign(value)
    return model


@keras.saving.register_keras_serializable("detector")
def accuracy(targets: "keras.KerasTensor", outputs: "keras.KerasTensor") -> "keras.KerasTensor":
    """The share of images on the right side of 0.5, also of mixed ones, whose targets are neither 0 nor 1."""
    return keras.ops.mean(keras.ops.equal(targets > 0.5, outputs > 0.5), axis=-1)


def sample_weights(labels: np.ndarray, how: str, frequency: np.ndarray | None = None) -> np.ndarray | None:
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
    """Loss, accuracy and AUC of an epoch; with `shares`, loss and accuracy count each source as training does."""
    labels, scores = validation.labels, p_fake(outputs)
    of_classes = np.column_stack([1 - outputs, outputs]) if outputs.ndim == 1 else outputs
    losses = -np.log(of_classes[np.arange(len(labels)), labels].clip(EPSILON, 1 - EPSILON))
    right = of_classes.argmax(axis=1) == labels if outputs.ndim == 2 else (scores >= 0.5) == labels
    weights = None
    if shares:
        counts = dict(zip(*np.unique(validation.sources.astype(str), return_counts=True), strict=True))
        weights = [shares[name] / counts[name] for name in validation.sources]
    found = {
        "val_loss": float(np.average(losses, weights=weights)),
        "val_accuracy": float(np.average(right, weights=weights)),
        "val_auc": _auc(labels > 0, scores),
    }
    for name in _sources_with_both_classes(validation):
        own = validation.sources == name
        found[f"val_auc_{name}"] = _auc(labels[own] > 0, scores[own])
    return found


def _auc(fake: np.ndarray, scores: np.ndarray) -> float | None:
    """The area under the ROC curve of P(fake); None of one class alone."""
    return float(roc_auc_score(fake, scores)) if 0 < fake.sum() < len(fake) else None


def _sources_with_both_classes(split: Split) -> list[str]:
    """The sources that hold both real images and fakes, where there are several such and not too many to look at."""
    names = sorted(set(split.sources) - {""})
    if not 2 <= len(names) <= MOST_SOURCES:
        return []
    return [name for name in names if len(set(split.labels[split.sources == name] > 0)) == 2]


def best_epoch(history: list[dict], monitor: str = "loss") -> int:
    """The epoch, counted from 1, that validation shows to be the best; the first of several.

    Args:
        history: rows of `train`; of progressive training the epochs at the largest image size so far count alone.
        monitor: `train.monitor`: loss, accuracy, auc or worst_source_auc, the lowest AUC of a source. Where no two
            sources have one, that is the AUC of all.
    """
    largest = max(row.get("image_size", 0) for row in history)
    rows = [row for row in history if row.get("image_size", 0) == largest]
    return max(rows, key=lambda row: _quality(row, monitor))["epoch"]


def _quality(row: dict, monitor: str) -> float:
    if monitor == "loss":
        return -row["val_loss"]
    values = [row["val_auc" if monitor == "worst_source_auc" else f"val_{monitor}"]]
    if monitor == "worst_source_auc":
        values = [value for name, value in row.items() if name.startswith("val_auc_")] or values
    return min(-math.inf if value is None else value for value in values)


def epochs_since_best(history: list[dict], monitor: str = "loss") -> int:
    """Epochs without a better value of `monitor`, what EarlyStopping counts; 0 before the first epoch."""
    return history[-1]["epoch"] - best_epoch(history, monitor) if history else 0


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
