"""Painting tools: smooth curves and a canvas that blends anti-aliased shapes onto itself.

Curves are (n, 2) arrays of x and y; the canvas takes them in pixels. Colours are RGB, 0..1.
"""

from itertools import accumulate, pairwise
from math import cos, pi, sin

import cv2
import numpy as np


class Canvas:
    """A picture to paint on: `planes`, float32 (3, side, side), RGB 0..1, plane by plane for speed."""

    def __init__(self, planes: np.ndarray):
        self.planes = planes
        self.side = planes.shape[1]

    def paint(self, outlines, colour, alpha=1.0, soft=0.0, clip=None) -> None:
        """Paint the inside of closed outlines, blurred by `soft` pixels, inside a mask `clip` if given."""
        self._blend(outlines, lambda m, q: cv2.fillPoly(m, q, 255, cv2.LINE_AA, 4), colour, alpha, soft, clip, 0)

    def lines(self, curves, colour, width=1.0, alpha=1.0, soft=0.0, clip=None) -> None:
        """Draw one or more open curves, `width` pixels wide."""
        thick = max(1, round(width))

        def draw(mask: np.ndarray, points: list[np.ndarray]) -> None:
            cv2.polylines(mask, points, False, 255, thick, cv2.LINE_AA, 4)

        self._blend(curves, draw, colour, alpha, soft, clip, thick)

    def loop(self, outline, colour, width=1.0, alpha=1.0) -> None:
        """Draw a closed outline's edge, `width` pixels wide."""
        self.lines(np.vstack([outline, outline[:1]]), colour, width, alpha)

    def tiles(self, outlines, colours) -> None:
        """Paint many opaque outlines, each in its own colour."""
        picture = cv2.merge(list(np.uint8(self.planes.clip(0, 1) * 255)))
        for outline, colour in zip(outlines, colours, strict=True):
            points = np.int32(outline * 16 + 0.5)
            cv2.fillPoly(picture, [points], [255 * min(float(v), 1) for v in colour], cv2.LINE_AA, 4)
        self.planes[:] = np.float32(cv2.split(picture)) / 255

    def tint(self, mask: np.ndarray, colour, alpha=1.0) -> None:
        """Blend one colour in by a mask (side, side) of 0..1."""
        rows, columns = np.flatnonzero(mask.max(1)), np.flatnonzero(mask.max(0))
        if len(rows):
            y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            self._mix(y, x, colour, mask[y, x] * np.float32(alpha))

    def mask(self, outlines, soft=0.0) -> np.ndarray:
        """float32 (side, side): 1 inside the outlines, 0 outside."""
        m = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(m, _fixed(outlines)[0], 255, cv2.LINE_AA, 4)
        return blur(m * np.float32(1 / 255), soft)

    def _blend(self, curves, draw, colour, alpha, soft, clip, margin) -> None:
        points, flat = _fixed(curves)
        (x0, y0), (x1, y1) = flat.min(0).tolist(), flat.max(0).tolist()
        pad = int(2.5 * soft) + margin + 3
        x0, y0 = max((x0 >> 4) - pad, 0), max((y0 >> 4) - pad, 0)
        x1, y1 = min((x1 >> 4) + pad, self.side), min((y1 >> 4) + pad, self.side)
        if x1 <= x0 or y1 <= y0:
            return
        flat -= (x0 << 4, y0 << 4)  # `points` are views of it
        m = np.zeros((y1 - y0, x1 - x0), np.uint8)
        draw(m, points)
        a = blur(m * np.float32(alpha / 255), soft)
        if clip is not None:
            a *= clip[y0:y1, x0:x1]
        self._mix(slice(y0, y1), slice(x0, x1), colour, a)

    def _mix(self, y: slice, x: slice, colour, alpha: np.ndarray) -> None:
        for plane, value in zip(self.planes, colour, strict=True):
            region = plane[y, x]
            region += (np.float32(value) - region) * alpha


def _fixed(curves) -> tuple[list[np.ndarray], np.ndarray]:
    """One or more curves in OpenCV's fixed point (4 fractional bits), apart and as one (n, 2) array."""
    if isinstance(curves, np.ndarray):
        flat = np.int32(curves.reshape(-1, 2) * 16 + 0.5)
        return list(flat.reshape(-1, *curves.shape[-2:])), flat
    flat = np.int32(np.concatenate(curves) * 16 + 0.5)
    ends = [0, *accumulate(map(len, curves))]
    return [flat[a:b] for a, b in pairwise(ends)], flat


def mix(a, b, t) -> np.ndarray:
    """From `a` (t = 0) to `b` (t = 1), float32."""
    return (np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by `sigma` pixels; too little to see is none."""
    if sigma <= 0.3:
        return image
    reach = 2 * round(2.5 * sigma) + 1  # OpenCV's own reach is 4 sigma, at nearly twice the cost
    return cv2.GaussianBlur(image, (reach, reach), sigma, borderType=cv2.BORDER_REPLICATE)


def noise(rng: np.random.Generator, side: int, cells: int, octaves: int = 1) -> np.ndarray:
    """Smooth noise of `cells` cells across, float32 (side, side), about -1..1."""
    total = np.zeros((side, side), np.float32)
    for k in range(octaves):
        n = min(cells * 2**k, side)
        grid = rng.uniform(-1, 1, (n, n)).astype(np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) / 2**k
    return total


# --- Curves ---------------------------------------------------------------------------------------

_T = np.arange(8) / 8
_BASIS = np.stack([-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2], 1)
_BASIS = (0.5 * _BASIS).astype(np.float32)
_CIRCLE = np.stack([f(np.arange(24) * (2 * pi / 24)) for f in (np.cos, np.sin)], 1)


def closed(points) -> np.ndarray:
    """A smooth closed curve through `points` (Catmull and Rom 1974), 8 points for each."""
    p = np.asarray(points, np.float32)
    quad = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)], 1)
    return np.einsum("tk,nkd->ntd", _BASIS, quad).reshape(-1, 2)


def curve(points) -> np.ndarray:
    """A smooth open curve through `points`."""
    p = np.asarray(points, np.float32)
    p = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    quad = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]], 1)
    return np.vstack([np.einsum("tk,nkd->ntd", _BASIS, quad).reshape(-1, 2), p[-2:-1]])


def mirrored(points) -> list[tuple[float, float]]:
    """The right half of an outline, from its top to its bottom -> the whole outline."""
    return [*points, *((-x, y) for x, y in reversed(points) if x != 0)]


def ribbon(path: np.ndarray, width: float, ends=(0.0, 0.0)) -> np.ndarray:
    """The outline of a brush stroke, `width` wide in the middle, a part of that at its two `ends`."""
    t = np.arange(len(path)) / (len(path) - 1)
    half = width / 2 * np.maximum(np.sqrt(np.sin(pi * t).clip(0)), ends[0] + (ends[1] - ends[0]) * t)
    d = np.empty_like(path)
    d[1:-1], d[0], d[-1] = path[2:] - path[:-2], path[1] - path[0], path[-1] - path[-2]
    n = d[:, ::-1] * ((-1, 1) * (half / (np.hypot(d[:, 0], d[:, 1]) + 1e-6))[:, None])
    return np.vstack([path + n, (path - n)[::-1]])


def ellipse(centre, rx: float, ry: float, tilt: float = 0.0) -> np.ndarray:
    """An ellipse of half-axes rx and ry, turned by `tilt` radians."""
    c, s = cos(tilt), sin(tilt)
    return _CIRCLE @ np.array([(rx * c, rx * s), (-ry * s, ry * c)]) + centre


def box(x: float, y: float, w: float, h: float) -> np.ndarray:
    """An upright rectangle from its upper left corner, its width and its height."""
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
