"""The training loop, in the order in which things happen."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from detector.data.loader import stored_batches
from detector.errors import UserError
from detector.models.backend import keras
from detector.models.outputs import EPSILON, network_outputs, p_fake
from detector.params import Params, TrainParams
from detector.training.augmenter import Augmenter
from detector.training.checkpoint import Checkpoint
from detector.training.optimizer import averaged_weights, plateau_learning_rate
from detector.training.phases import enter_phase, phase
from detector.training.sampling import Sampler, source_shares
from detector.training.selection import best_epoch, is_finished
from detector.training.split import Split


def train(
    build: Callable[[int], "keras.Model"],
    params: Params,
    training: Split,
    validation: Split,
    checkpoint: Checkpoint,
    on_epoch: Callable[[dict, float], None],
) -> tuple["keras.Model", list[dict]]:
    """Minimise the cross-entropy with Adam, phase by phase, and return the best epoch.

    Every choice is made by the validation split. With the same arguments, machine and `make_deterministic`, the result
    is the same, also when the training was killed and resumed from `checkpoint`.

    Args:
        build: image size in pixels -> the untrained network for it, with the same weights for every size.
        on_epoch: called after each epoch with its row of the history and its duration in seconds.

    Returns:
        The model with the weights (with `train.ema_decay`, their average) of the best epoch, and the history: a row for
        each epoch, counted from 1, with epoch, loss, accuracy, val_loss, val_accuracy, val_auc (of P(fake)),
        val_auc_<source> of several sources, learning_rate at its end and, with progressive training, image_size.

    Raises:
        UserError: the loss is no longer finite, or params do not fit the data.
    """
    settings, history = params.train, checkpoint.history
    shares = source_shares(training, validation, settings.source_weights)
    model = checkpoint.load_last() if history else build(phase(1, params).image_size)
    classes = max(2, model.output_shape[1])
    if params.augment.self_blend.rate and classes > 2:
        raise UserError("augment.self_blend.rate: a self-blended fake is of no kind; set it to 0 for kinds of fake")
    augmenter, sampler = Augmenter(training), Sampler(training, classes, shares, settings, params.seed)

    while len(history) < settings.epochs and not is_finished(history, settings):
        started, epoch = time.perf_counter(), len(history) + 1
        now = phase(epoch, params)
        model = enter_phase(model, build, epoch, params, sampler.steps)
        if settings.schedule == "plateau" and not now.head_alone:
            model.optimizer.learning_rate.assign(plateau_learning_rate(history[settings.head_epochs :], settings))
        _seed_dropout(model, params.seed, epoch)
        draw = augmenter.draws(now.augment, now.image_size)
        fitted = _fit(model, sampler.batches(draw, epoch), sampler.steps, f"epoch {epoch}/{settings.epochs}")

        with averaged_weights(model, sampler.images(draw, epoch, settings.ema_norm_images)):
            outputs = network_outputs(model, stored_batches(validation.reader, now.image_size, sampler.batch_size))
            _check_finite(fitted["loss"], outputs, epoch, settings)
            row = {"epoch": epoch, **fitted, **_validation_metrics(validation, outputs, shares)}
            row["learning_rate"] = float(str(np.float32(model.optimizer.learning_rate)))  # 0.001, not 0.0010000000475
            if settings.progressive.image_size:
                row["image_size"] = now.image_size
            history = [*history, row]
            best = best_epoch(history, settings.monitor)
            if best == epoch:
                checkpoint.save_best(model, epoch)
        checkpoint.save(model, history, best)
        on_epoch(row, time.perf_counter() - started)

    with warnings.catch_warnings(action="ignore"):  # the file also holds an optimizer, perhaps of another phase
        model.load_weights(checkpoint.best_weights)
    return model, history


def _fit(model: "keras.Model", batches: Iterator[tuple[np.ndarray, ...]], steps: int, title: str) -> dict[str, float]:
    """Train for one epoch, with a progress bar of this title, and return its loss and accuracy.

    Raises:
        UserError: as raised by `batches`; TensorFlow would turn it into an error of its own.
    """
    errors: list[UserError] = []

    def watched() -> Iterator[tuple[np.ndarray, ...]]:
        try:
            yield from batches
        except UserError as error:
            errors.append(error)
            raise

    try:
        with tqdm(total=steps, desc=title, disable=None, leave=False) as bar:
            fitted = model.fit(watched(), steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[_Progress(bar)])
    except Exception:
        if errors:
            raise errors[0] from None
        raise
    return {name: fitted.history[name][-1] for name in ("loss", "accuracy")}


def _check_finite(loss: float, outputs: np.ndarray, epoch: int, params: TrainParams) -> None:
    """Raise UserError if the training has diverged."""
    if math.isfinite(loss) and np.isfinite(outputs).all():
        return
    key = "head_learning_rate" if epoch <= params.head_epochs else "learning_rate"
    raise UserError(
        f"train.{key}: the loss is no longer finite in epoch {epoch}; set it lower than {getattr(params, key)}"
    )


def _validation_metrics(
    validation: Split, outputs: np.ndarray, shares: Mapping[str, float] | None
) -> dict[str, float | None]:
    """Loss, accuracy and AUC of an epoch; with `shares`, each source has the weight in loss and accuracy that it has
    in training."""
    labels, scores = validation.labels, p_fake(outputs)
    probabilities = np.column_stack([1 - outputs, outputs]) if outputs.ndim == 1 else outputs
    losses = -np.log(probabilities[np.arange(len(labels)), labels].clip(EPSILON, 1 - EPSILON))
    right = outputs.argmax(axis=1) == labels if outputs.ndim == 2 else (scores >= 0.5) == labels
    weights = None
    if shares:
        counts = dict(zip(*np.unique(validation.sources.astype(str), return_counts=True), strict=True))
        weights = [shares[name] / counts[name] for name in validation.sources]
    metrics = {
        "val_loss": float(np.average(losses, weights=weights)),
        "val_accuracy": float(np.average(right, weights=weights)),
        "val_auc": _auc(labels > 0, scores),
    }
    for name in validation.validated_sources:
        own = validation.sources == name
        metrics[f"val_auc_{name}"] = _auc(labels[own] > 0, scores[own])
    return metrics


def _auc(fake: np.ndarray, scores: np.ndarray) -> float | None:
    """The area under the ROC curve of P(fake); None if there is one class alone."""
    return float(roc_auc_score(fake, scores)) if 0 < fake.sum() < len(fake) else None


def _seed_dropout(model: "keras.Model", seed: int, epoch: int) -> None:
    """Seed the dropout of an epoch with (seed, epoch): Keras stores no random state from which a run could resume."""
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
    for index, layer in enumerate(reversed(dropouts)):  # the head's, which is the last one, gets (seed, epoch) itself
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
