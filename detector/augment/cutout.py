"""Cut-out on the face: a part of it is covered, so that a detector cannot rely on one place alone.

After DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017), and Das et al.,
"Towards solving the deepfake problem: an analysis on improving deepfake detection using dynamic face augmentation"
(ICCV Workshops 2021), who cover parts of the face that landmarks find. Here the part is drawn about the middle of a
face crop, as for self-blended images, and no landmarks are needed.
"""

import numpy as np

from detector.augment.self_blend import face_region
from detector.params import AugmentParams


def augment(image: np.ndarray, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """The image, with the probability `cutout` cut out."""
    return cut_out(image, rng) if params.cutout and rng.random() < params.cutout else image


def cut_out(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with a part of the face, as large as an eye, a nose, a mouth or both eyes, covered: uint8, same shape.

    With probability 0.5 the cover is the image's mean colour, else noise.

    Args:
        image: uint8 (height, width, 3), a crop with the face about its middle.
    """
    covered = face_region(image.shape[:2], rng, part=True) > 0.5
    noise = rng.integers(0, 256, (np.count_nonzero(covered), 3))
    image = image.copy()
    image[covered] = noise if rng.random() < 0.5 else image.mean(axis=(0, 1))
    return image
