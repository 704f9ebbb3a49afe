"""What a training image goes through, drawn anew for every image and epoch: framing and light, then damage."""

import numpy as np

from detector.augment import geometry
from detector.augment.corruption import perturb
from detector.data.decode import resize
from detector.params import AugmentParams

COUNT = (1, 2)  # corruptions of an arm on one image, from and to
FINEST = 2  # times the network's input: the most at which an image is damaged, for the time that it takes


def augment(image: np.ndarray, size: int, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """One random variant of an image: uint8 (h, w, 3) as stored -> uint8 (size, size, 3).

    Each arm of corruptions comes with its own probability, independently of the other, in an order drawn for the image.
    """
    image = geometry.augment(resize(image, working_size(image, size, params)), params, rng)
    damage = params.corruption
    odds = {arm: p for arm, p in (("generic", damage.generic), ("matched", damage.matched)) if p}
    if not odds:  # and nothing drawn: without damage an image is what it was before there was any
        return image
    arms = [arm for arm, p in odds.items() if rng.random() < p]
    for i in rng.permutation(len(arms)):
        image = perturb(image, rng, (arms[i],), COUNT, tuple(damage.strength))
    return resize(image, size)


def working_size(image: np.ndarray, size: int, params: AugmentParams) -> int:
    """The side in pixels at which `augment` works on an image of any shape.

    Images of the world are damaged before a network scales them down, and so are those of an evaluation: with damage
    it is the longer side of the image itself, up to `FINEST` times `size`. Without, it is `size`.
    """
    if not (params.corruption.generic or params.corruption.matched):
        return size
    return min(max(image.shape[:2]), FINEST * size)
