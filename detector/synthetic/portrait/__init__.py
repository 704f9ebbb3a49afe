"""Drawn portraits: people who do not exist, so that a first run needs no download and nobody's face.

A portrait is made the way a painter works: background, back hair, body, head, features, front hair, each in flat
colours with some texture, in face units on a head that can turn; then one light falls on a relief of the whole subject.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from detector.synthetic.portrait import figure, hair
from detector.synthetic.portrait.canvas import Canvas, closed, mirrored
from detector.synthetic.portrait.light import illuminate
from detector.synthetic.portrait.pose import Pose, Sitting
from detector.synthetic.portrait.scenery import backdrop
from detector.synthetic.portrait.sitter import Identity, Scene

SUPERSAMPLING = 2  # painted larger than asked for, then averaged down


@dataclass(frozen=True)
class Drawing:
    """A drawn portrait.

    pixels: float32 (size, size, 3), RGB 0..1. landmarks: float32 (7, 2), x and y in pixels of both eyes, nose tip, both
    mouth corners, chin and the point between the brows. face: float32 (size, size), 1 on the inner face, from the brows
    to the chin, 0 elsewhere. head: 1 on the head, less its ears, whatever hair is in front of it.
    """

    pixels: np.ndarray
    landmarks: np.ndarray
    face: np.ndarray
    head: np.ndarray


def render(who: Identity, scene: Scene, size: int) -> Drawing:
    """Draw `who` at `scene`, `size` x `size` pixels. The same arguments give the same picture."""
    side = size * SUPERSAMPLING
    rng = np.random.default_rng(scene.seed)
    pose = Pose(scene, side)
    place = backdrop(scene.place, rng, size, scene.defocus * pose.unit / SUPERSAMPLING)
    place *= np.float32(0.75 + 0.35 * scene.key_colour.mean())
    s = Sitting(who, scene, pose, Canvas(np.stack([cv2.resize(plane, (side, side)) for plane in place])), rng)

    hair.behind(s)
    figure.body(s)
    head = figure.head(s)
    figure.nose(s, head)
    figure.mouth(s)
    figure.beard(s, head)
    figure.eyes(s, head)
    hair.front(s, head)
    figure.glasses(s)
    figure.earrings(s)

    def small(plane: np.ndarray) -> np.ndarray:
        return cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA).clip(0, 1)

    subject = small(np.maximum.reduce(list(s.parts.values())))
    pixels = illuminate(s, np.stack([small(plane) for plane in s.canvas.planes]), subject)
    x, m, y = who.eye_gap, who.mouth_width, who.mouth_height
    points = [(-x, 0), (x, 0), (0, who.nose_length), (-m, y), (m, y), (0, 0.98), (0, -who.brow_height)]
    landmarks = pose(points, (0.66, 0.66, 0.9, 0.62, 0.62, 0.31, 0.7)) / SUPERSAMPLING
    face = s.canvas.mask(pose(_inner_face(who), 0.45))
    return Drawing(pixels, landmarks, small(face), small(head))


def _inner_face(who: Identity) -> np.ndarray:
    """The part of a face that shows who it is, brows to chin, (n, 2) face units."""
    w, top = who.width, -who.brow_height - 0.10
    upper = [(0, top - 0.02), (0.3, top - 0.03), (w * 0.80, top + 0.12), (w * 0.84, 0.1)]
    lower = [(w * 0.74, 0.42), (who.jaw * 0.8, 0.66), (who.chin + 0.03, 0.87), (0, 0.93)]
    return closed(mirrored([*upper, *lower]))
