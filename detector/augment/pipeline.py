"""The augmentation of training images, drawn anew for every image and epoch.

To add an augmentation: write one pure function `(image, params, rng) -> image` in a file of its own, name it in
`STEPS`, and add its parameter, 0 for off, to `AugmentParams`.
"""

from collections.abc import Callable

import numpy as np

from detector.augment import corruption, cutout, geometry
from detector.images import resize
from detector.params import AugmentParams, Section

# Each takes and returns uint8 (side, side, 3), in this order: framing and light, a covered part, corruptions.
STEPS: tuple[Callable[[np.ndarray, AugmentParams, np.random.Generator], np.ndarray], ...] = (
    geometry.augment,
    cutout.augment,
    corruption.augment,
)
# An image is corrupted at no more than this many times the network's image size, because larger images take long.
LARGEST_SCALE = 2


def augment(image: np.ndarray, size: int, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """One random variant of an image: uint8 (h, w, 3) as stored -> uint8 (size, size, 3)."""
    image = resize(image, working_size(image, size, params))
    for step in STEPS:
        image = step(image, params, rng)
    return resize(image, size)


def working_size(image: np.ndarray, size: int, params: AugmentParams) -> int:
    """The side in pixels at which `augment` works on an image of any shape.

    Images are corrupted on their way before a network scales them down, and so are those of an evaluation. So with
    corruptions it is the longer side of the image itself, up to `LARGEST_SCALE` times `size`; without, it is `size`.
    """
    if not params.corruption.probabilities:
        return size
    return min(max(image.shape[:2]), LARGEST_SCALE * size)


def weakened(params: AugmentParams, factor: float) -> AugmentParams:
    """The same augmentation with every range and probability times `factor`, in 0..1; flips and strengths stay.

    Progressive training strengthens augmentation with the image size: Tan and Le, "EfficientNetV2" (ICML 2021),
    section 4.2.
    """
    return params.model_copy(
        update={
            **_scaled(params, factor),
            "brightness": [1 + factor * (value - 1) for value in params.brightness],
            "corruption": params.corruption.model_copy(update=_scaled(params.corruption, factor)),
        }
    )


def _scaled(section: Section, factor: float) -> dict[str, float]:
    """The numbers of a section, but not its switches and lists, times `factor`."""
    numbers = {name: value for name, value in section if isinstance(value, int | float) and not isinstance(value, bool)}
    return {name: factor * value for name, value in numbers.items()}
