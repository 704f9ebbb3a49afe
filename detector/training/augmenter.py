"""What the network sees of a training image: the augmented image or, in place of some fakes, a self-blended one."""

import numpy as np

from detector.augment.pipeline import augment, working_size
from detector.augment.self_blend import self_blend
from detector.images import resize
from detector.params import AugmentParams
from detector.training.sampling import Draw
from detector.training.split import Split


class Augmenter:
    """Augments the images of a training split.

    A self-blended fake replaces a fake of the data, so that the shares of real and fake images stay the same. It is
    made of a real training image of the same source, if the source has one, and so is its donor, if the source has two.
    """

    def __init__(self, training: Split):
        self._reader, self._labels, self._sources = training.reader, training.labels, training.sources
        self._real = np.flatnonzero(training.labels == 0)
        self._real_of = {name: self._real[training.sources[self._real] == name] for name in set(training.sources)}

    def draws(self, params: AugmentParams, size: int) -> Draw:
        """The function that draws one augmented image of `size` pixels a side, under `params`."""
        rate = params.self_blend.rate

        def draw(index: int, rng: np.random.Generator) -> np.ndarray:
            blends = rate and self._labels[index] and rng.random() < rate
            image = self._self_blended(index, size, params, rng) if blends else self._reader.image(index)
            return augment(image, size, params, rng)

        return draw

    def _self_blended(self, index: int, size: int, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
        """A self-blended fake to replace the fake `index`: uint8 (side, side, 3), at the size of the augmentation."""
        of_source = self._real_of[self._sources[index]]
        pool = of_source if len(of_source) else self._real
        chosen, donor = rng.choice(pool), None
        face = self._reader.image(chosen)
        side = working_size(face, size, params)
        others = pool[pool != chosen] if len(pool) > 1 else self._real[self._real != chosen]
        if rng.random() < params.self_blend.donor and len(others):
            donor = resize(self._reader.image(rng.choice(others)), side)
        return self_blend(resize(face, side), rng, donor)
