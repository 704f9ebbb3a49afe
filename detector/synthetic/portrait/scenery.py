"""Backgrounds for drawn portraits: places out of focus."""

from collections.abc import Callable

import cv2
import numpy as np

from detector.synthetic.portrait.canvas import Canvas, blur, box, ellipse, mix, noise


def backdrop(kind: str, rng: np.random.Generator, side: int, defocus: float) -> np.ndarray:
    """A place of `PLACES`, blurred by `defocus` pixels: float32 (3, side, side), RGB 0..1."""
    return np.stack([blur(plane, defocus) for plane in PLACES[kind](rng, side).planes.clip(0, 1)])


def _ramp(side: int, top, bottom) -> Canvas:
    t = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    top, bottom = (np.asarray(colour, np.float32)[:, None, None] for colour in (top, bottom))
    return Canvas(np.repeat(mix(top, bottom, t), side, axis=2))


def _any_hue(rng: np.random.Generator, saturation, value) -> np.ndarray:
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _bokeh(rng: np.random.Generator, n: int) -> Canvas:
    base = _any_hue(rng, (0.3, 0.7), (0.08, 0.3))
    c = _ramp(n, base, base * rng.uniform(0.5, 1.6))
    lamp = _any_hue(rng, (0.3, 0.8), (0.8, 1.0))
    for _ in range(rng.integers(14, 30)):
        disc = ellipse(rng.uniform(0, n, 2), *[rng.uniform(0.02, 0.075) * n] * 2)
        colour, alpha = mix(lamp, (1, 0.85, 0.6), rng.random()), rng.uniform(0.15, 0.6)
        c.paint(disc, colour, alpha)
        c.loop(disc, colour, 1, alpha * 0.6)
    return c


def _wall(rng: np.random.Generator, n: int) -> Canvas:
    base = _any_hue(rng, (0.05, 0.45), (0.4, 0.9))
    c = _ramp(n, base * 1.05, base * 0.8)
    c.planes *= 1 + 0.03 * noise(rng, n, n // 3)
    lamp = ellipse((rng.uniform(0.1, 0.9) * n, 0.35 * n), 0.5 * n, 0.4 * n)
    c.paint(lamp, np.minimum(base * 1.3, 1), 0.6, 0.15 * n)
    if rng.random() < 0.5:  # a picture
        frame = box(rng.choice((0.02, 0.72)), 0.08, 0.28, 0.37) * n
        middle = frame.mean(0)
        c.paint(frame, base * 0.35)
        c.paint((frame - middle) * 0.84 + middle, (0.93, 0.92, 0.88))
        c.paint((frame - middle) * 0.5 + middle, _any_hue(rng, (0.4, 0.8), (0.4, 0.9)))
    return c


def _studio(rng: np.random.Generator, n: int) -> Canvas:
    base = _any_hue(rng, (0.1, 0.6), (0.25, 0.7))
    c = _ramp(n, base, base * 0.75)
    c.planes *= 1 + 0.16 * noise(rng, n, 5, 3)
    light = ellipse((0.5 * n, 0.45 * n), 0.42 * n, 0.42 * n)
    c.paint(light, np.minimum(base * 1.5 + 0.05, 1), 0.65, 0.14 * n)
    return c


def _window(rng: np.random.Generator, n: int) -> Canvas:
    base = _any_hue(rng, (0.1, 0.4), (0.3, 0.65))
    c = _ramp(n, base, base * 0.7)
    x0, x1 = rng.choice(((-0.2, 0.36), (0.62, 1.25), (-0.1, 1.1), (0.05, 0.8)))
    outside = _ramp(n, (0.72, 0.86, 0.98), (0.98, 0.97, 0.9))
    outside.paint(box(0, 0.55, 1, 0.45) * n, (0.45, 0.6, 0.35), 0.7)
    pane = box(x0, 0.06, x1 - x0, 0.74) * n
    c.planes += (outside.planes - c.planes) * c.mask(pane)
    frame = (0.93, 0.92, 0.9) if rng.random() < 0.6 else (0.3, 0.2, 0.14)
    c.loop(pane, frame, 0.03 * n)
    middle = (x0 + x1) / 2
    c.lines(np.array([[(middle, 0.06), (middle, 0.8)], [(x0, 0.4), (x1, 0.4)]]) * n, frame, 0.018 * n)
    if rng.random() < 0.6:
        curtain = _any_hue(rng, (0.2, 0.6), (0.5, 0.95))
        for x in (x0, x1):
            c.paint(np.array([(x - 0.09, 0), (x + 0.09, 0), (x + 0.06, 1), (x - 0.1, 1)]) * n, curtain)
            folds = np.array([[(x + d, 0), (x + d * 0.8, 1)] for d in (-0.06, -0.02, 0.03)])
            c.lines(folds * n, curtain * 0.7, 0.012 * n, 0.7)
    return c


def _landscape(rng: np.random.Generator, n: int) -> Canvas:
    c = _ramp(n, (0.36, 0.60, 0.90), (0.85, 0.92, 0.98))
    for cloud in rng.uniform((0, 0.05), (1, 0.4), (rng.integers(2, 6), 2)):
        for puff in rng.normal(0, 0.05, (4, 2)) * (1, 0.2):
            puff = ellipse((cloud + puff) * n, rng.uniform(0.04, 0.09) * n, 0.028 * n)
            c.paint(puff, (1, 1, 1), 0.6, 0.01 * n)
    green, haze = np.array((rng.uniform(0.35, 0.65), 0.55, 0.3)), (0.6, 0.72, 0.85)
    start = rng.uniform(0.4, 0.6)
    x = np.linspace(0, 1, 40)
    for k, colour in enumerate((mix(green, haze, 0.6), mix(green, haze, 0.25), green, green * 0.8)):
        swell = 0.06 * np.sin(x * rng.uniform(3, 8) + rng.uniform(0, 6))
        swell += 0.02 * np.sin(x * rng.uniform(15, 25))
        ridge = np.stack([x, start + k * (1 - start) / 4 + swell], 1)
        c.paint(np.vstack([ridge, [(1, 1), (0, 1)]]) * n, colour)
    return c


def _forest(rng: np.random.Generator, n: int) -> Canvas:
    base = np.array((rng.uniform(0.15, 0.4), 0.36, 0.16), np.float32)
    c = _ramp(n, base * 1.3, base * 0.7)
    trunks = [box(x - w, 0, 2 * w, 1) * n for x, w in rng.uniform((0, 0.015), (1, 0.04), (5, 2))]
    leaves = [
        ellipse((x * n, y * n), r * n, r * n * 0.7, tilt)
        for x, y, r, tilt in rng.uniform((0, 0, 0.012, 0), (1, 0.85, 0.05, 3), (130, 4))
    ]
    shades = base * rng.uniform(0.5, 2.0, (len(leaves), 1))
    c.tiles([*trunks, *leaves], [*([(0.22, 0.16, 0.11)] * len(trunks)), *shades])
    for x, y, r in rng.uniform((0, 0, 0.01), (1, 0.6, 0.04), (10, 3)) * n:
        c.paint(ellipse((x, y), r, r), (0.97, 0.97, 0.75), 0.5, 0.4)
    return c


def _shelf(rng: np.random.Generator, n: int) -> Canvas:
    wood = np.array((0.42, 0.28, 0.17), np.float32) * rng.uniform(0.6, 1.5)
    c = _ramp(n, wood * 0.5, wood * 0.4)
    books, colours, boards = [], [], []
    for y in np.arange(rng.uniform(-0.1, 0.1), 1.1, 0.27):
        x = -0.05
        while x < 1.05:
            w, h = rng.uniform(0.02, 0.055), rng.uniform(0.15, 0.235)
            if rng.random() < 0.88:
                book = _any_hue(rng, (0.2, 0.75), (0.25, 0.85))
                books += [box(x, y + 0.25 - h, w, h) * n, box(x + 0.2 * w, y + 0.27 - h, 0.6 * w, 0.012) * n]
                colours += [book, mix(book, (0.9, 0.85, 0.7), 0.7)]
            x += w + 0.004
        boards.append(box(0, y + 0.25, 1, 0.03) * n)
    c.tiles([*books, *boards], [*colours, *([wood] * len(boards))])
    return c


def _bricks(rng: np.random.Generator, n: int) -> Canvas:
    base = np.array(((0.62, 0.32, 0.25), (0.75, 0.70, 0.64), (0.45, 0.42, 0.40))[rng.integers(3)], np.float32)
    c = _ramp(n, base * 0.75, base * 0.6)
    h, w = 0.065, 0.16
    bricks = [
        box(x, y, w - 0.012, h - 0.01) * n
        for row, y in enumerate(np.arange(-0.02, 1, h))
        for x in np.arange(-w * (1 + 0.5 * (row % 2)), 1, w)
    ]
    c.tiles(bricks, base * rng.uniform(0.85, 1.2, (len(bricks), 1)))
    return c


def _sunset(rng: np.random.Generator, n: int) -> Canvas:
    c = _ramp(n, (0.25, 0.27, 0.52), (0.99, 0.66, 0.36))
    c.paint(ellipse((rng.uniform(0.05, 0.95) * n, 0.5 * n), 0.07 * n, 0.07 * n), (1, 0.93, 0.7), 1, 0.02 * n)
    c.paint(box(0, 0.62, 1, 0.38) * n, (0.36, 0.36, 0.5))
    glitter = rng.uniform((0, 0.63, 0.02), (1, 1, 0.12), (40, 3))
    glitter = [np.array([(x, y), (x + w, y)]) * n for x, y, w in glitter]
    c.lines(glitter, (0.98, 0.74, 0.5), 1, 0.5)
    return c


def _city(rng: np.random.Generator, n: int) -> Canvas:
    night = rng.random() < 0.5
    sky = ((0.06, 0.08, 0.18), (0.28, 0.2, 0.33)) if night else ((0.6, 0.76, 0.93), (0.93, 0.93, 0.92))
    c = _ramp(n, *sky)
    boxes, colours = [], []
    for depth in (0.5, 0.85):
        x = -0.05
        while x < 1:
            w, top = rng.uniform(0.08, 0.2), rng.uniform(0.1, 0.5) * depth + 0.12
            day = _any_hue(rng, (0.05, 0.25), (0.5, 0.8)) * (1.3 - 0.45 * depth)
            front = np.array((0.18, 0.2, 0.31)) * depth if night else day
            panes = [
                box(a, b, 0.015, 0.025) * n
                for a in np.arange(x + 0.015, x + w - 0.02, 0.033)
                for b in np.arange(top + 0.03, 1, 0.055)
                if rng.random() < 0.55
            ]
            boxes += [box(x, top, w, 1) * n, *panes]
            colours += [front, *([(0.99, 0.85, 0.5) if night else front * 0.65] * len(panes))]
            x += w + 0.01
    c.tiles(boxes, colours)
    return c


_PLACES = (_bokeh, _wall, _studio, _window, _landscape, _forest, _shelf, _bricks, _sunset, _city)
PLACES: dict[str, Callable[[np.random.Generator, int], Canvas]] = {draw.__name__[1:]: draw for draw in _PLACES}
