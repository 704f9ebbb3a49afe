"""Adam with weight decay, the schedule of its learning rate, and the moving average of the weights."""

import contextlib
import math
from collections.abc import Iterable, Iterator

import numpy as np

from detector.models.backend import keras
from detector.params import TrainParams

FINAL_SHARE = 0.01  # of the learning rate, at the end of the cosine
UNDECAYED = ["bias", "gamma", "beta"]  # weight decay applies to kernels only


@keras.saving.register_keras_serializable("detector")
class AveragingAdam(keras.optimizers.Adam):
    """Adam without weight decay of biases and norms, and with an exponential moving average of the weights.

    The average starts at the first step with a low decay: after t steps it is min(average, (1 + t) / (10 + t)).
    (With Keras's own `use_ema` the weights of the first step stay in it for 1 / (1 - decay) steps, and the average
    replaces the weights at the end of every `fit`.) It does not include the statistics of batch normalisation; see
    `averaged_weights`.

    Args:
        average: the decay, in 0..1; 0 keeps no average.
    """

    def __init__(self, *args, average: float = 0.999, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = average
        self.exclude_from_weight_decay(var_names=UNDECAYED)

    def build(self, variables):
        if not self.built and self.average:
            self.averages = [self.add_variable_from_reference(v, name="average") for v in variables]
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        if not self.average:
            return
        average = self.averages[self._get_variable_index(variable)]
        t = keras.ops.cast(self.iterations + 1, variable.dtype)  # this step's number
        decay = keras.ops.minimum(self.average, (1 + t) / (10 + t)) * keras.ops.cast(t > 1, variable.dtype)
        self.assign_add(average, (1 - decay) * (keras.ops.convert_to_tensor(variable) - average))

    def get_config(self):
        return {**super().get_config(), "average": self.average}


def make_optimizer(params: TrainParams, learning_rate: float, steps: int) -> "keras.optimizers.Optimizer":
    """The optimizer of one phase of training.

    Args:
        learning_rate: the highest of the phase.
        steps: of the whole phase, over which a cosine schedule extends.
    """
    rate = learning_rate
    if params.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if params.warmup else learning_rate,
            decay_steps=max(1, steps - math.ceil(params.warmup * steps)),
            alpha=FINAL_SHARE,
            warmup_target=learning_rate if params.warmup else None,
            warmup_steps=math.ceil(params.warmup * steps),
        )
    options = {"weight_decay": params.weight_decay or None, "global_clipnorm": params.clip_norm}
    if params.ema_decay or params.weight_decay:
        return AveragingAdam(rate, average=params.ema_decay, **options)
    return keras.optimizers.Adam(rate, **options)


def plateau_learning_rate(history: list[dict], params: TrainParams, min_delta: float = 1e-4) -> float:
    """The next epoch's learning rate by the rule of Keras's ReduceLROnPlateau, as a function of the history.

    (A function of the history needs no state, so a resumed training goes on with the right rate.)
    """
    best, waited, rate = math.inf, 0, params.learning_rate
    for row in history:
        if row["val_loss"] < best - min_delta:
            best, waited = row["val_loss"], 0
        else:
            waited += 1
            if waited >= params.reduce_lr_patience:
                rate, waited = max(rate * params.reduce_lr_factor, params.min_learning_rate), 0
    return rate


@contextlib.contextmanager
def averaged_weights(model: "keras.Model", batches: Iterable[np.ndarray] = ()) -> Iterator[None]:
    """Within the block the model has its averaged weights, if its optimizer has any; afterwards its own again.

    Args:
        batches: training images, uint8 (batch, size, size, 3), on which the statistics of batch normalisation are
            estimated anew for the averaged weights, all batches with the same weight, after Izmailov et al.,
            "Averaging weights leads to wider optima and better generalization" (UAI 2018, section 3.2). Without any
            the statistics stay.
    """
    if not getattr(model.optimizer, "average", 0):
        yield
        return
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    statistics = [v for layer in norms for v in (layer.moving_mean, layer.moving_variance)]
    variables = [*model.trainable_variables, *statistics]
    # Copies: JAX shares an assigned array, and a training step may use the memory of each array only once.
    own = [np.array(v) for v in variables]
    averages = [np.array(v) for v in model.optimizer.averages]
    try:
        for variable, average in zip(model.trainable_variables, averages, strict=True):
            variable.assign(average)
        _estimate_statistics(model, norms, batches)
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


def _estimate_statistics(
    model: "keras.Model", norms: list["keras.layers.BatchNormalization"], batches: Iterable[np.ndarray]
) -> None:
    """Set the statistics of `norms` to the mean of those of the batches."""
    momenta = [layer.momentum for layer in norms]
    try:
        for number, images in enumerate(batches):
            for layer in norms:
                layer.momentum = number / (number + 1)  # read at each call, because the call is not compiled
            model(images, training=True)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
