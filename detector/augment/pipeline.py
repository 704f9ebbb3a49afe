"""What a training image goes through, drawn anew for every image and epoch: framing and light, a cover, then damage."""

import numpy as np

from detector.augment import geometry
from detector.augment.corruption import perturb
from detector.augment.cutout import cut_out
from detector.images import resize
from detector.params import AugmentParams

COUNT = (1, 2)  # corruptions of a corruption set on one image, from and to
FINEST = 2  # times the network's input: the most at which an image is damaged, for the time that it takes


def augment(image: np.ndarray, size: int, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """One random variant of an image: uint8 (h, w, 3) as stored -> uint8 (size, size, 3).

    Each corruption set comes with its own probability, independently of the other, in an order drawn for the image.
    """
    image = geometry.augment(resize(image, working_size(image, size, params)), params, rng)
    if params.cutout and rng.random() < params.cutout:
        image = cut_out(image, rng)
    damage = params.corruption
    odds = {corruption_set: p for corruption_set, p in (("generic", damage.generic), ("matched", damage.matched)) if p}
    if not odds:  # and nothing drawn: without damage an image is what it was before there was any
        return image
    corruption_sets = [corruption_set for corruption_set, p in odds.items() if rng.random() < p]
    for i in rng.permutation(len(corruption_sets)):
        image = perturb(image, rng, (corruption_sets[i],), COUNT, tuple(damage.strength))
    return resize(image, size)


def working_size(image: np.ndarray, size: int, params: AugmentParams) -> int:
    """The side in pixels at which `augment` works on an image of any shape.

    Images of the world are damaged before a network scales them down, and so are those of an evaluation: with damage
    it is the longer side of the image itself, up to `FINEST` times `size`. Without, it is `size`.
    """
    if not (params.corruption.generic or params.corruption.matched):
        return size
    return min(max(image.shape[:2]), FINEST * size)


def weakened(params: AugmentParams, factor: float) -> AugmentParams:
    """The same augmentation with every range and probability times `factor`, in 0..1; flips and strengths stay.

    What grows with the image size in progressive training: Tan and Le, "EfficientNetV2" (ICML 2021), section 4.2.
    """
    damage = params.corruption
    corruption = damage.model_copy(
        update={corruption_set: factor * getattr(damage, corruption_set) for corruption_set in ("generic", "matched")}
    )
    ranges = ("rotation", "width_shift", "height_shift", "shear", "zoom", "cutout")
    return params.model_copy(
        update={
            **{name: factor * getattr(params, name) for name in ranges},
            "brightness": [1 + factor * (value - 1) for value in params.brightness],
            "corruption": corruption,
        }
    )
