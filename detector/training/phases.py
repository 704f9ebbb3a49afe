"""The phases of a training: the head alone, then the whole network; small images, then large ones."""

from collections.abc import Callable
from dataclasses import dataclass

from detector.augment.pipeline import weakened
from detector.models.backend import keras
from detector.params import AugmentParams, Params, TrainParams
from detector.training.optimizer import make_optimizer

HEAD_LAYERS = ("head_", "p_fake", "p_class")  # how the names of the layers begin that belong to no backbone


@dataclass(frozen=True)
class Phase:
    """What one epoch trains, and on what.

    Attributes:
        head_alone: whether the head alone is trained.
        image_size: pixels.
        augment: the augmentation of training images.
    """

    head_alone: bool
    image_size: int
    augment: AugmentParams


def phase(epoch: int, params: Params) -> Phase:
    """The phase of an epoch, counted from 1."""
    settings, augmentation = params.train, params.augment
    small = settings.progressive.image_size if epoch <= small_epochs(settings) else None
    if small:
        augmentation = weakened(augmentation, settings.progressive.augment)
    if epoch < augmentation.self_blend.start_epoch:
        blend = augmentation.self_blend.model_copy(update={"rate": 0})
        augmentation = augmentation.model_copy(update={"self_blend": blend})
    return Phase(epoch <= settings.head_epochs, small or params.model.image_size, augmentation)


def small_epochs(settings: TrainParams) -> int:
    """How many epochs, the first ones, train on smaller images."""
    progressive = settings.progressive
    return settings.epochs - progressive.final_epochs if progressive.image_size else 0


def enter_phase(
    model: "keras.Model", build: Callable[[int], "keras.Model"], epoch: int, params: Params, steps: int
) -> "keras.Model":
    """The model, ready to train the epoch: as it is, or, where the epoch begins a phase, as of `begin_phase`.

    Args:
        build: image size in pixels -> the untrained network for it.
        steps: batches in an epoch.
    """
    now, before = phase(epoch, params), phase(epoch - 1, params) if epoch > 1 else None
    if before and (now.head_alone, now.image_size) == (before.head_alone, before.image_size):
        return model
    former = model.optimizer if before and before.head_alone == now.head_alone else None
    return begin_phase(model, build, now, params.train, steps, former)


def begin_phase(
    model: "keras.Model",
    build: Callable[[int], "keras.Model"],
    now: Phase,
    params: TrainParams,
    steps: int,
    former: "keras.optimizers.Optimizer | None" = None,
) -> "keras.Model":
    """The model at the image size of the phase, compiled.

    Args:
        steps: batches in an epoch.
        former: the optimizer whose state the phase goes on with; None: a new state.
    """
    if model.input_shape[1] != now.image_size:
        weights, model = model.get_weights(), build(now.image_size)
        model.set_weights(weights)
    if params.head_epochs or params.batch_norm == "frozen":
        for layer in model.layers:
            in_head = layer.name.startswith(HEAD_LAYERS)
            frozen = params.batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = in_head or not (now.head_alone or frozen)
    epochs = params.head_epochs if now.head_alone else params.epochs - params.head_epochs
    learning_rate = params.head_learning_rate if now.head_alone else params.learning_rate
    optimizer = make_optimizer(params, learning_rate, epochs * steps)
    binary = model.output_shape[1] == 1
    loss = keras.losses.BinaryCrossentropy if binary else keras.losses.CategoricalCrossentropy
    metric = keras.metrics.MeanMetricWrapper(accuracy) if binary else keras.metrics.CategoricalAccuracy()
    metric.name = "accuracy"
    # TensorFlow traces a step twice if the first trace makes variables, so the optimizer makes its own here.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss(label_smoothing=params.label_smoothing), metrics=[metric])
    if former is not None:
        for variable, value in zip(optimizer.variables, former.variables, strict=True):
            variable.assign(value)
    return model


@keras.saving.register_keras_serializable("detector")
def accuracy(targets: "keras.KerasTensor", outputs: "keras.KerasTensor") -> "keras.KerasTensor":
    """The share of images on the right side of 0.5; of mixed images, too, whose targets are neither 0 nor 1."""
    return keras.ops.mean(keras.ops.equal(targets > 0.5, outputs > 0.5), axis=-1)
