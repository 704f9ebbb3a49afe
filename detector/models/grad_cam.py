"""Where the model looked: Grad-CAM (Selvaraju et al., ICCV 2017; HiResCAM, Draelos and Carin, 2020), laid over images.

Light to import: Keras is loaded when the first map is made.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from detector.errors import UserError

if TYPE_CHECKING:
    import keras

BATCH = 32
OPACITY = 0.6  # of the colour where the heat is 1


def grad_cam(
    model: "keras.Model", images: np.ndarray, output: int | None = None, layer: str | None = None
) -> np.ndarray:
    """Heatmaps of what in each image speaks for an output.

    The layer's maps are multiplied with the gradient of the output, place by place, summed over the maps, and what is
    negative is left out. Grad-CAM takes the gradient's mean over the image instead (Selvaraju et al., ICCV 2017), which
    blurs what speaks for the output with what speaks against it; kept in its place (HiResCAM, Draelos and Carin, 2020)
    it can be used where the maps are finer. At the last convolution the two are the same here, as all places count
    alike in what follows. The gradient is taken before sigmoid or softmax, where a score of 0.9999 has one too.

    Args:
        model: a network of `detector.models.network` or another that ends in a dense layer with a sigmoid or a softmax,
            on the TensorFlow or the JAX backend.
        images: uint8 (n, size, size, 3) RGB of the model's size.
        output: the class that is explained, in the order of the labels (0 is real); None is fake of any kind, by its
            log-odds.
        layer: the layer whose maps are weighted, one that all of the network passes through, such as the end of a
            residual block; None is the last one of maps about twice as fine as the last convolution's, which on the
            smallest images are of 3 x 3 cells.

    Returns:
        float32 (n, size, size), 0..1, 1 where the evidence is strongest in that image; all 0 where nothing in it
        speaks for the output. Maps of different images or outputs share no scale.

    Raises:
        UserError: there is no such layer or output, or part of the network goes round the layer.
    """
    classes = max(2, model.output_shape[-1])
    if output is not None and not 0 <= output < classes:
        raise UserError(f"output {output} is none of the model's; name one from 0 to {classes - 1}")
    from detector.models.backend import keras

    size = images.shape[1]
    trunk, head = _cut(model, layer or _before_last_reduction(model))
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
        coarse = np.maximum((maps * gradient).sum(-1), 0)
        fine = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR) for image in coarse])
        strongest = fine.max((1, 2), keepdims=True)
        heat.append(np.divide(fine, strongest, out=np.zeros_like(fine), where=strongest > 0))
    return np.concatenate(heat)


def at_size(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map of the model's square input at the size of the image that was stretched to it.

    Args:
        heat: float (size, size), 0..1.

    Returns:
        float32 (height, width), 0..1, bilinear.
    """
    return cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey under its heat.

    Where there is no heat the grey image is left alone; more heat is more colour, from viridis's violet to its yellow,
    which grows lighter all the way and is read alike with the common colour-vision deficiencies. It never covers
    more than `OPACITY`, so that the face stays to be seen.

    Args:
        image: uint8 (h, w, 3) RGB. heat: float (h, w), 0..1 (`at_size`).

    Returns:
        uint8 (h, w, 3) RGB.
    """
    heat = np.clip(heat, 0, 1).astype(np.float32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    colour = cv2.applyColorMap(np.uint8(heat * 255 + 0.5), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.uint8(grey + (colour - grey) * (OPACITY * np.sqrt(heat[..., None])) + 0.5)


@lru_cache(maxsize=2)  # the parts share the model's weights, so they never grow stale
def _cut(model: "keras.Model", layer: str) -> tuple["keras.Model", "keras.Model"]:
    """The model up to a layer, and from there to what its last layer takes in."""
    from detector.models.backend import keras

    try:
        maps = model.get_layer(layer).output
        parts = keras.Model(model.input, maps), keras.Model(maps, model.layers[-1].input)
    except ValueError:
        parts = None
    if parts is None or len(maps.shape) != 4:
        raise UserError(f"{model.name} has no layer {layer} of maps that all of the network passes through") from None
    return parts


@lru_cache(maxsize=2)
def _before_last_reduction(model: "keras.Model") -> str:
    """The last layer of maps about twice as fine as the last convolution's that all of the network passes through.

    Where there is none, the last convolution: the last layer of maps at all that all of it passes through. Padded maps
    are passed over: their cells lie beside the image's.
    """
    from detector.models.backend import keras

    maps = [
        (layer.name, layer.output.shape[1])
        for layer in reversed(model.layers)
        if len(layer.output.shape) == 4 and layer.output.shape[1] > 1  # one cell alone is pooled
        if not isinstance(layer, keras.layers.ZeroPadding2D)
    ]

    def first_passed(names: Iterable[str]) -> str | None:
        for name in names:
            with suppress(UserError):
                _cut(model, name)
                return name
        return None

    last = first_passed(name for name, _ in maps)
    side = dict(maps)[last]
    return first_passed(name for name, finer in maps if side < finer <= 2 * side + 1) or last


def _gradient(function: Callable, x):
    """d sum(function(x)) / dx, of the shape of x."""
    from detector.models.backend import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            total = keras.ops.sum(function(x))
        return tape.gradient(total, x)
    import jax

    return jax.grad(lambda x: keras.ops.sum(function(x)))(x)
