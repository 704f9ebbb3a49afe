"""Where the model looked: Grad-CAM (Selvaraju et al., ICCV 2017)."""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from detector.errors import UserError
from detector.model.backbones import BACKBONES
from detector.model.backend import keras

BATCH = 32


def grad_cam(
    model: "keras.Model", images: np.ndarray, output: int | None = None, layer: str | None = None
) -> np.ndarray:
    """Heatmaps of what in each image speaks for an output.

    The layer's maps are weighted with the mean gradient of the output over the image, summed, and what is negative is
    left out (equations 1 and 2). The gradient is taken before sigmoid or softmax, where a score of 0.9999 has one too.

    Args:
        model: a network of `detector.model.network`, on the TensorFlow or the JAX backend.
        images: uint8 (n, size, size, 3) RGB of the model's size.
        output: the class that is explained, in the order of the labels (0 is real); None is fake of any kind, by its
            log-odds.
        layer: the layer whose maps are weighted, one that all of the network passes through, such as the end of a
            residual block; None is the last convolution.

    Returns:
        float32 (n, size, size), 0..1, 1 where the evidence is strongest in that image; all 0 where nothing in it
        speaks for the output. Maps of different images or outputs share no scale.

    Raises:
        UserError: there is no such layer or output, or part of the network goes round the layer.
    """
    classes = max(2, model.output_shape[-1])
    if output is not None and not 0 <= output < classes:
        raise UserError(f"output {output} is none of the model's; name one from 0 to {classes - 1}")
    if layer is None and model.name not in BACKBONES:
        raise UserError(f"{model.name} is no backbone of this project; name the layer to explain")
    size = images.shape[1]
    trunk, head = _cut(model, layer or BACKBONES[model.name].last_conv)
    last = model.layers[-1]

    def evidence(maps):
        logits = keras.ops.cast(head(maps, training=False), "float32") @ last.kernel + last.bias
        if classes == 2:
            return logits[:, 0] if output in (None, 1) else -logits[:, 0]
        if output is not None:
            return logits[:, output]
        return keras.ops.logsumexp(logits[:, 1:], axis=1) - logits[:, 0]

    heat = [np.empty((0, size, size), np.float32)]
    for start in range(0, len(images), BATCH):
        maps = trunk(images[start : start + BATCH], training=False)
        gradient = _gradient(evidence, maps)
        maps, gradient = (keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in (maps, gradient))
        coarse = np.maximum(np.einsum("nhwc,nc->nhw", maps, gradient.mean((1, 2))), 0)
        fine = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR) for image in coarse])
        strongest = fine.max((1, 2), keepdims=True)
        heat.append(np.divide(fine, strongest, out=np.zeros_like(fine), where=strongest > 0))
    return np.concatenate(heat)


@lru_cache(maxsize=2)  # the parts share the model's weights, so they never grow stale
def _cut(model: "keras.Model", layer: str) -> tuple["keras.Model", "keras.Model"]:
    """The model up to a layer, and from there to what its last layer takes in."""
    try:
        maps = model.get_layer(layer).output
        parts = keras.Model(model.input, maps), keras.Model(maps, model.layers[-1].input)
    except ValueError:
        parts = None
    if parts is None or len(maps.shape) != 4:
        raise UserError(f"{model.name} has no layer {layer} of maps that all of the network passes through") from None
    return parts


def _gradient(function: Callable, x):
    """d sum(function(x)) / dx, of the shape of x."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            total = keras.ops.sum(function(x))
        return tape.gradient(total, x)
    import jax

    return jax.grad(lambda x: keras.ops.sum(function(x)))(x)
