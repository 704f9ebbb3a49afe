"""What a training image goes through, drawn anew for every image and epoch: framing and light, then damage."""

import numpy as np

from detector.augment import geometry
from detector.augment.corruption import perturb
from detector.params import AugmentParams

COUNT = (1, 2)  # corruptions of an arm on one image, from and to


def augment(image: np.ndarray, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """One random variant of a square image: uint8 (size, size, 3) -> uint8 (size, size, 3).

    Each arm of corruptions comes with its own probability, independently of the other, in an order drawn for the image.
    """
    image = geometry.augment(image, params, rng)
    damage = params.corruption
    odds = {arm: p for arm, p in (("generic", damage.generic), ("matched", damage.matched)) if p}
    if not odds:  # and nothing drawn: without damage an image is what it was before there was any
        return image
    arms = [arm for arm, p in odds.items() if rng.random() < p]
    for i in rng.permutation(len(arms)):
        image = perturb(image, rng, (arms[i],), COUNT, tuple(damage.strength))
    return image
