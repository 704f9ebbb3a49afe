"""Hair and headwear: a cut is an outline and a hairline, matched point by point, with strands between."""

from dataclasses import dataclass
from math import pi

import cv2
import numpy as np

from detector.synthetic.portrait.canvas import blur, closed, curve, ellipse, mirrored, mix, noise, ribbon
from detector.synthetic.portrait.pose import Sitting
from detector.synthetic.portrait.sitter import Identity

WARM = (1.0, 0.95, 0.85)
SHADE = (0.42, 0.31, 0.28)  # of hair on skin


@dataclass(frozen=True)
class Cut:
    """A hair style. Lengths are in face units."""

    top: float  # how far it stands off the skull
    side: float
    low: float = 0.12  # y of its lower end
    flow: str = "across"  # of the strands: across from the parting, back from the hairline, down from the crown
    edge: str = "smooth"
    line: float = -0.6  # y of the hairline
    texture: str = "strands"

    @property
    def long(self) -> bool:
        return self.low > 0.5


CUTS = {
    "buzz": Cut(0.03, 0.012, 0.1, "back", texture="stubble"),
    "crop": Cut(0.12, 0.05, 0.1, "down", line=-0.5),
    "side part": Cut(0.15, 0.055, 0.14),
    "quiff": Cut(0.27, 0.04, 0.08, "back", line=-0.66),
    "spikes": Cut(0.13, 0.05, 0.1, "back", "spikes"),
    "curls": Cut(0.22, 0.16, 0.22, "down", "scallops", -0.5, "curls"),
    "afro": Cut(0.46, 0.42, 0.3, "back", "scallops", -0.56, "curls"),
    "bob": Cut(0.15, 0.17, 0.72),
    "long": Cut(0.12, 0.14, 1.75),
    "waves": Cut(0.17, 0.22, 1.65, edge="waves"),
    "bun": Cut(0.06, 0.02, 0.06, "back"),
    "ponytail": Cut(0.08, 0.02, 0.08, "back"),
    "braids": Cut(0.08, 0.03),
}


def behind(s: Sitting) -> None:
    """What lies behind the head and the shoulders."""
    who, c, p = s.who, s.canvas, s.pose
    cut, w = _cut(who), who.width
    if cut and cut.long:
        low = cut.low + 0.1
        x = w + cut.side
        half = [(0, -1.0), (w * 0.8, -0.8), (x, -0.2), (x + 0.08, low * 0.5), (x + 0.02, low), (0, low)]
        outline, colour = p(closed(mirrored(half)), -0.25), who.hair * 0.55
    elif who.style == "afro":
        mass = ellipse((0, -0.3), w + cut.side * who.volume * 0.9, 0.95 + 0.2 * who.volume)
        outline, colour = p(mass, -0.2), who.hair * 0.55
    elif who.style == "bun":
        mass = ellipse((0.12 * who.parting, -1.16), 0.27 * who.volume, 0.25 * who.volume)
        outline, colour = p(mass, -0.2), who.hair * 0.85
    elif who.style == "ponytail":
        tail = [(0.3, -0.85), (0.85, -0.75), (1.08, -0.2), (1.02, 0.7), (0.85, 1.5)]
        tail += [(0.7, 0.9), (0.72, 0.2), (0.6, -0.4)]
        outline, colour = p(closed(np.array(tail) * (np.sign(who.parting), 1)), -0.45), who.hair * 0.85
    else:
        return
    mask = c.mask(outline)
    c.paint(outline, colour)
    s.cover("hair", mask)
    rng = np.random.default_rng(who.seed + 3)
    if who.style == "bun":
        r, turn = rng.uniform(0.15, 0.48, (24, 1)), rng.uniform(0, 6, (24, 1)) + np.linspace(0, 2.5, 8)
        strands = outline.mean(0) + np.stack([np.cos(turn) * r, np.sin(turn) * r], 2) * np.ptp(outline, 0)
    elif who.style == "ponytail":
        d, half = rng.random((24, 1, 1)), len(outline) // 2
        strands = (outline[:half] * (1 - d) + outline[::-1][:half] * d)[:, 4:]
    else:
        return
    c.lines(strands[::2], who.hair * 0.45, 0.016 * s.px, 0.6, 0.3, mask)
    c.lines(strands[1::2], mix(who.hair, WARM, 0.3), 0.016 * s.px, 0.6, 0.3, mask)


def front(s: Sitting, head: np.ndarray) -> None:
    """What lies over the head, with its shadow on the skin (`head` is the skin's mask)."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    cut = _cut(who)
    if cut:
        outer, inner = _outlines(who, cut)
        outline = np.vstack([p(outer, -0.05), p(inner, 0.2 + 0.3 * (np.abs(inner[:, 0]) < 0.5))[::-1]])
        mask = c.mask(outline, 0.012 * px)
        if cut.texture == "stubble":
            mask *= 0.8
        else:
            drop = np.float32([[1, 0, -s.scene.key[0] * 0.05 * px], [0, 1, 0.05 * px]])
            shadow = cv2.warpAffine(mask, drop, (c.side, c.side))
            c.tint(blur(shadow, 0.035 * px) * head, who.skin * SHADE, 0.55)
        c.tint(mask, who.hair)
        s.cover("hair", mask)
        _texture(s, cut, outer, inner, mask)
    extra = {"fringe of a bald head": _tufts, "braids": _braids, "beanie": _beanie, "headscarf": _headscarf}
    if who.style in extra:
        extra[who.style](s)


def _cut(who: Identity) -> Cut | None:
    """The cut that shows, under a hat too."""
    style = ("long" if who.feminine else "buzz") if who.style == "beanie" else who.style
    return CUTS.get(style)


def _outlines(who: Identity, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """A cut's outline and its hairline, (n, 2) face units each, matched point by point, left to right."""
    rng = np.random.default_rng(who.seed + 1)
    w, top, low = who.width, cut.top * who.volume, cut.low
    wide = w + cut.side * who.volume
    fringe = cut.flow == "down" or (cut.long and who.fringe > 0.6)
    line = cut.line + (0.22 * who.fringe if fringe else -0.05 * who.age)
    if cut.long:
        outer = [(wide + 0.06, low), (wide + 0.06, (low + min(low, 0.3)) / 2 - 0.05)]
        inner = [(w - (0.14 if low > 1 else 0.05), low), (w - 0.05, (low + min(low, 0.3)) / 2)]
    else:
        outer = [(0.4 * w + 0.6 * wide, low), (wide + 0.02, 0.0)]
        inner = [(w - 0.03, low), (w - 0.035, -0.06)]
    outer += [(wide, -0.28), (0.80 * wide, -0.74 - 0.45 * top), (0.43 * wide, -0.97 - 0.8 * top)]
    inner += [(w - 0.10, -0.22), (0.56, -0.5 if cut.flow == "back" else -0.44), (0.34, line + 0.05)]
    part = 0.33 * who.parting
    across = cut.flow == "across"
    inner = [*((-x, y) for x, y in inner), (part, line - 0.06 * across), *inner[::-1]]
    outer = [*((-x, y) for x, y in outer), (part * 0.4, -1.0 - top), *outer[::-1]]
    if across:  # swept from the parting, it covers more of the forehead on the far side
        inner = [(x, y - 0.10 * who.parting * np.sign(x) * (abs(x) < 0.6 and y < -0.3)) for x, y in inner]
    return _edge(cut, curve(outer), curve(inner), rng)


def _edge(cut: Cut, outer: np.ndarray, inner: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spikes, scallops or waves along the two outlines of a cut."""
    if cut.edge == "scallops":  # too fine for so few points
        at, known = np.linspace(0, len(outer) - 1, 4 * len(outer)), np.arange(len(outer))
        outer, inner = (np.stack([np.interp(at, known, q[:, k]) for k in (0, 1)], 1) for q in (outer, inner))
    t = np.linspace(0, 1, len(outer))
    away = np.add(outer, (0, 0.1))
    away /= np.hypot(*away.T)[:, None]
    over_brow = np.abs(inner[:, 0]) < 0.58
    lower = 0 * t
    if cut.edge == "spikes":
        spike = np.abs((t * 15) % 1 - 0.5) * 2 * np.clip(1.2 - np.abs(t - 0.5) * 3.2, 0, 1)
        outer = outer + away * 0.22 * spike[:, None]
    elif cut.edge == "scallops":
        bumps = np.abs(np.sin(t * pi * 13 + rng.uniform(0, 3))) + 0.4 * np.abs(np.sin(t * pi * 29))
        outer = outer + away * 0.07 * bumps[:, None]
        lower = 0.035 * np.abs(np.sin(t * pi * 15)) * over_brow
    elif cut.edge == "waves":
        fall = np.clip((outer[:, 1] + 0.2) / 0.6, 0, 1)
        wave = 0.055 * np.sin(outer[:, 1] * 9 + rng.uniform(0, 6)) * fall
        outer = outer + np.stack([np.sign(outer[:, 0]) * (wave + 0.1 * fall), 0 * t], 1)
        inner = inner + np.stack([np.sign(inner[:, 0]) * wave * 0.8, 0 * t], 1)
    if cut.flow == "down":
        lower = lower + 0.05 * np.abs((t * 11) % 1 - 0.5) * over_brow
    return outer, inner + np.stack([0 * t, lower], 1)


def _texture(s: Sitting, cut: Cut, outer: np.ndarray, inner: np.ndarray, mask: np.ndarray) -> None:
    """Stubble, curls, or strands with a sheen."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    rng = np.random.default_rng(who.seed + 2)
    light, dark, n = mix(who.hair, (1.0, 0.93, 0.80), 0.20) + 0.02, who.hair * 0.45, len(outer)
    if cut.texture == "stubble":
        c.tint(mask * np.clip(noise(rng, c.side, c.side // 2), 0, 1), mix(who.hair, who.skin, 0.5), 0.5)
        return
    if cut.texture == "curls":
        i, d, r = rng.integers(0, n, 170), rng.random((170, 1)), rng.uniform(0.03, 0.07, (170, 1, 1))
        middle = p(outer[i] * (1 - d) + inner[i] * d * 0.9, 0.1)
        turn = rng.uniform(0, 2 * pi, (170, 1)) + np.linspace(0, 4, 8)
        arcs = middle[:, None] + np.stack([np.cos(turn), np.sin(turn)], 2) * r * px
        c.lines(arcs[::2], dark, 0.02 * px, 0.65, 0.3, mask)
        c.lines(arcs[1::2], light, 0.014 * px, 0.5, 0.3, mask)
        return
    strands = _strands(who, cut, outer, inner, rng)
    strands = p(strands.reshape(-1, 2), 0.0).reshape(strands.shape)
    c.lines(strands[::3], light, 0.012 * px, 0.5, 0.3, mask)
    c.lines(strands[1::3], dark, 0.012 * px, 0.55, 0.3, mask)
    c.lines(strands[2::3], who.hair * 0.72, 0.03 * px, 0.5, 0.5, mask)
    lit = n // 2 + int(0.2 * n * s.scene.key[0])
    sheen = p(outer * 0.55 + inner * 0.45, 0.0)[max(0, lit - n // 6) : lit + n // 6]
    c.paint(ribbon(sheen, 0.13 * px), mix(who.hair, WARM, 0.5), 0.35, 0.04 * px, mask)


def _strands(
    who: Identity, cut: Cut, outer: np.ndarray, inner: np.ndarray, rng: np.random.Generator, count: int = 90
) -> np.ndarray:
    """Strands between a cut's outlines, (count, k, 2) face units."""
    n = len(outer)
    if cut.flow == "across":  # along the outlines, either way from the parting
        middle = n // 2 + int(0.12 * n * who.parting)
        a, b = np.sort(rng.random((2, count, 1)), 0)
        t = a * 0.6 + (b - a * 0.6) * np.linspace(0, 1, 14)
        i = np.int32(np.where(rng.random((count, 1)) < 0.5, t * (middle - 1), middle + t * (n - 1 - middle)))
        d = rng.random((count, 1, 1))
        strands = outer[i] * (1 - d) + inner[i] * d
    else:
        i = rng.integers(0, n, count)
        start, end = outer[i], inner[i]
        bend = (start + end) / 2 + (0.05 * who.parting, 0)
        if cut.flow == "down":
            start = np.broadcast_to((0.06 * who.parting, -1.0 - cut.top * 0.8), end.shape)
            bend = (start + end) / 2 + np.add(end, (0, 0.3)) * 0.22
        t = rng.uniform(0, 0.5, (count, 1)) + rng.uniform(0.4, 0.7, (count, 1)) * np.linspace(0, 1, 9)
        t = t[..., None]
        strands = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * bend[:, None] + t**2 * end[:, None]
    return strands + rng.normal(0, 0.012, (count, 1, 2))


def _tufts(s: Sitting) -> None:
    """What is left above the ears of a bald man."""
    who, c, px, w = s.who, s.canvas, s.px, s.who.width
    rng = np.random.default_rng(who.seed + 4)
    for side in (-1, 1):
        tuft = [(-0.02, 0.1), (0.06, 0.0), (0.09, -0.25), (0.02, -0.5), (-0.08, -0.52), (-0.09, -0.3), (-0.05, -0.1)]
        outline = s.pose(closed(np.add(tuft, (w, 0)) * (side, 1)), -0.02)
        mask = c.mask(outline, 0.03 * px)
        c.tint(mask, who.hair, 0.92)
        s.cover("hair", mask)
        roots = rng.uniform(outline.min(0), outline.max(0), (40, 2))
        tips = np.add(roots, (side * 0.03 * px, 0.09 * px))
        c.lines(np.stack([roots, tips], 1), who.hair * 0.5, 1, 0.6, 0, mask)


def _braids(s: Sitting) -> None:
    who, c, px, w = s.who, s.canvas, s.px, s.who.width
    for side in (-1, 1):
        path = np.array([(w + 0.02, 0.1), (w + 0.06, 0.55), (w - 0.02, 1.1), (w - 0.12, 1.8)]) * (side, 1)
        knots = s.pose(curve(path), -0.05)[::2]
        for k, q in enumerate(knots):
            tilt = 0.7 * side * (-1) ** (k + 1)
            c.paint(ellipse(q, 0.10 * px, 0.085 * px, tilt), who.hair * 0.4)
            c.paint(ellipse(q, 0.085 * px, 0.068 * px, tilt), who.hair)
            c.paint(ellipse(q - 0.02 * px, 0.05 * px, 0.02 * px, tilt), mix(who.hair, WARM, 0.35), 0.6, 0.5)
        s.cover("hair", c.mask(ribbon(knots, 0.2 * px, (1, 1))))


def _headscarf(s: Sitting) -> None:
    who, c, p, px, w, cloth = s.who, s.canvas, s.pose, s.px, s.who.width, s.who.accessory
    hood = [(0, -1.14), (0.5, -1.06), (w + 0.08, -0.6), (w + 0.17, 0.0), (w + 0.12, 0.6)]
    outer = closed(mirrored([*hood, (0.75, 1.1), (0.95, 1.6), (0.7, 1.9), (0, 1.95)]))
    brow = [(0, -0.62), (0.36, -0.56), (w - 0.13, -0.25), (w - 0.07, 0.2)]
    inner = closed(mirrored([*brow, (who.jaw, 0.64), (who.chin + 0.06, 0.93), (0, 1.0)]))
    opening = c.mask(p(inner, 0.3))
    c.tint(opening * (1 - blur(opening, 0.04 * px)), who.skin * SHADE, 0.55)
    mask = c.mask(p(outer, -0.05)) * (1 - opening)
    c.tint(mask, cloth)
    s.cover("body", mask)
    k = np.sign(who.parting)
    below, above = [], []
    for d in np.linspace(0.15, 0.9, 7) + np.random.default_rng(who.seed + 5).normal(0, 0.03, 7):
        left = [(-k * (w + 0.1 * d), 0.3), (-k * 0.6, 0.85 + 0.2 * d), (0, 1.05 + 0.35 * d)]
        below.append(p(curve([*left, (k * 0.7, 0.95 + 0.6 * d), (k * 0.9, 0.7 + d)]), 0.1))
        left = [(-w - 0.05 * d, 0.1), (-w - 0.02, -0.4 - 0.1 * d), (-0.4, -0.72 - 0.25 * d), (0, -0.72 - 0.35 * d)]
        above.append(p(curve([*left, (0.4, -0.72 - 0.25 * d), (w + 0.02, -0.4 - 0.1 * d)]), 0.0))
    c.lines(below, cloth * 0.55, 0.03 * px, 0.6, 0.015 * px, mask)
    c.lines(above, cloth * 0.7, 0.02 * px, 0.4, 0.015 * px, mask)
    shine = [fold + 0.03 * px for fold in [*below, *above]]
    c.lines(shine, mix(cloth, (1, 1, 1), 0.35), 0.02 * px, 0.4, 0.015 * px, mask)


def _beanie(s: Sitting) -> None:
    who, c, p, px, w, cloth = s.who, s.canvas, s.pose, s.px, s.who.width, s.who.accessory
    half = [(0.42, -1.22), (w + 0.02, -0.85), (w + 0.06, -0.42)]
    dome = p(closed([(0, -1.30), *half, (0, -0.52), *((-x, y) for x, y in reversed(half))]), -0.02)
    half = [(0.4, -0.70), (w + 0.08, -0.56), (w + 0.08, -0.30), (0.4, -0.43)]
    brim = p(closed([(0, -0.73), *half, (0, -0.46), *((-x, y) for x, y in reversed(half))]), 0.12)
    mask, band = c.mask(dome), c.mask(brim)
    c.paint(dome, cloth)
    ribs = [p(curve([(x * 0.25, -1.3), (x * 0.8, -1.0), (x, -0.5)]), 0.05) for x in np.linspace(-0.8, 0.8, 15)]
    c.lines(ribs, cloth * 0.55, 0.02 * px, 0.6, 0.4, mask)
    c.paint(brim, mix(cloth, (1, 1, 1), 0.18))
    ribs = [p([(x, -0.75), (x, -0.28)], 0.12) for x in np.linspace(-0.85, 0.85, 23)]
    c.lines(ribs, cloth * 0.6, 0.018 * px, 0.6, 0.3, band)
    s.cover("hair", np.maximum(mask, band))
    if who.seed % 2:
        ball = p(ellipse((0, -1.38), 0.17, 0.16), -0.02)
        c.paint(ball, mix(cloth, (1, 1, 1), 0.5), 1, 0.02 * px)
        s.cover("hair", c.mask(ball))
