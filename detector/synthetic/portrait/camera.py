"""The camera: what a lens and a sensor do to a scene, and no forger does quite alike."""

from dataclasses import replace

import cv2
import numpy as np

from detector.synthetic.portrait import Drawing


def photograph(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """A slightly soft lens, vignetting, and a sensor with shot and read noise, a little of it in colour."""
    size = len(drawing.pixels)
    image = cv2.GaussianBlur(drawing.pixels, (0, 0), rng.uniform(0.3, 0.55) * size / 128)
    image *= vignette(size, rng)
    shot, read = rng.uniform(0.008, 0.026), rng.uniform(0.002, 0.006)
    image += grain(rng, size) * np.sqrt(shot**2 * image + read**2)
    return replace(drawing, pixels=image.clip(0, 1))


def vignette(size: int, rng: np.random.Generator) -> np.ndarray:
    """How much of the light a lens lets through, float32 (size, size, 1), 1 in the middle."""
    at = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    return 1 - rng.uniform(0, 0.16) * (at[:, None] + at)[..., None] / 2


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit noise, float32 (size, size, 3), mostly in brightness; demosaicing has mixed the neighbours."""
    grey, colour = (rng.standard_normal((size, size, n), np.float32) for n in (1, 3))
    return cv2.GaussianBlur(grey + 0.6 * colour, (0, 0), 0.45) * 1.5
