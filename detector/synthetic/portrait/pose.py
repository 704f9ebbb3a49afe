"""A head that turns, and the portrait of it in the making."""

from dataclasses import dataclass, field
from math import cos, sin

import numpy as np

from detector.synthetic.portrait.canvas import Canvas
from detector.synthetic.portrait.sitter import Identity, Scene


class Pose:
    """Where a point of the face falls in the picture: a turn of the head, then an orthographic view.

    Face units: x right, y down, the crown at y = -1, the eyes at 0, the chin at 1; z towards the viewer.
    """

    def __init__(self, scene: Scene, side: int):
        self.unit = 0.335 * scene.zoom * side  # pixels in one face unit
        self.centre = np.array((0.5 + scene.shift[0], 0.515 + scene.shift[1]), np.float32) * side
        self.side = side
        cy, sy, cp, sp = cos(scene.yaw), sin(scene.yaw), cos(scene.pitch), sin(scene.pitch)
        self._turn = np.array([(cy, -sy * sp), (0, cp), (sy, cy * sp)], np.float32)  # (x, y, z) -> (u, v)
        c, s = cos(scene.roll), sin(scene.roll)
        self._roll = np.array([(c, s), (-s, c)], np.float32)
        self._view = self._turn @ self._roll * self.unit

    def __call__(self, points, depth=None) -> np.ndarray:
        """(n, 2) face units -> (n, 2) pixels. `depth` is their z, one or (n,); None is the face's surface."""
        return self._lift(points, depth) @ self._view + self.centre

    def turn(self, points) -> np.ndarray:
        """(n, 2) points on the face -> (n, 2) turned ones (u, v), in face units."""
        return self._lift(points, None) @ self._turn

    def grid(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The (u, v) of every pixel of the picture at `side` x `side`, float32 each."""
        at = (np.arange(side, dtype=np.float32) + 0.5) * (self.side / side)
        x, y = (at - self.centre[0])[None] / self.unit, (at - self.centre[1])[:, None] / self.unit
        c, s = self._roll[0]
        return x * c + y * s, y * c - x * s

    @staticmethod
    def _lift(points, depth) -> np.ndarray:
        p = np.asarray(points, np.float32)
        xyz = np.empty((len(p), 3), np.float32)
        xyz[:, :2] = p
        if depth is None:
            x, y = p[:, 0] / 0.95, p[:, 1] / 1.35
            depth = 0.8 * np.sqrt(np.maximum(1 - x * x - y * y, 0.02))
        xyz[:, 2] = depth
        return xyz


@dataclass
class Sitting:
    """One portrait in the making: who, when, from where, and what is on the canvas so far."""

    who: Identity
    scene: Scene
    pose: Pose
    canvas: Canvas
    rng: np.random.Generator  # of the scene's details
    # Masks of neck, body, head and hair: the light needs them.
    parts: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def px(self) -> float:
        """Pixels in one face unit."""
        return self.pose.unit

    def cover(self, part: str, mask: np.ndarray) -> None:
        """Note that a part of the subject now covers `mask`."""
        self.parts[part] = np.maximum(self.parts[part], mask) if part in self.parts else mask
