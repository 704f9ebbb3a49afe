"""The figure: clothes, neck, head, features and what people wear on them. A function paints one thing."""

from math import pi

import numpy as np

from detector.synthetic.portrait.canvas import closed, curve, ellipse, mirrored, mix, noise, ribbon
from detector.synthetic.portrait.pose import Sitting

WHITE = (1.0, 1.0, 1.0)
GOLD = (0.88, 0.70, 0.34)


# --- Body -----------------------------------------------------------------------------------------


def body(s: Sitting) -> None:
    """Neck, shoulders and clothes."""
    who, scene, c, px = s.who, s.scene, s.canvas, s.px
    w = (0.36 if who.feminine else 0.44) * (0.9 + who.width / 7)  # half the neck
    half = [(w, 0.45), (w * 0.98, 1.0), (w * 1.25, 1.3), (0.3, 1.6)]
    neck = _torso(s, closed([(-w, 0.45), *half, *((-x, y) for x, y in half[:0:-1])]))
    c.paint(neck, who.skin * 0.93)
    s.cover("neck", c.mask(neck))
    for x in (-0.11, 0.11):  # sinews
        sinew = curve([(x * 2.6, 0.95), (x * 1.5, 1.25), (x * 0.7, 1.42)])
        c.lines(_torso(s, sinew), who.skin * 0.7, 0.03 * px, 0.35, 0.03 * px)
    garment = _garment(s, w)
    dark = scene.cloth * 0.62
    if scene.clothes in ("shirt", "suit"):
        _collar(s, w)
    elif scene.clothes == "turtleneck":
        roll = [(-w * 1.05, 0.98), (0, 1.08), (w * 1.05, 0.98), (w * 1.2, 1.3), (0, 1.45), (-w * 1.2, 1.3)]
        roll = _torso(s, closed(roll))
        c.paint(roll, mix(scene.cloth, WHITE, 0.06))
        s.cover("body", c.mask(roll))
        ribs = [_torso(s, curve([(x, 1.03), (x * 1.05, 1.2), (x * 1.12, 1.38)])) for x in np.linspace(-w, w, 13)]
        c.lines(ribs, dark, 0.012 * px, 0.5)
    elif scene.clothes == "hoodie":
        _hood(s, w)
    folds = [
        _torso(s, curve([(x, 2.4), (x * 0.93 + s.rng.normal(0, 0.03), 2.0), (x * 0.8, 1.72)]))
        for x in (-0.85, -0.45, 0.45, 0.85)
    ]
    c.lines(folds, dark, 0.03 * px, 0.35, 0.02 * px, garment)
    if who.feminine and scene.clothes in ("tee", "v-neck", "dress") and s.rng.random() < 0.4:
        _necklace(s, w)
    # The head's shadow on the neck.
    shadow = s.pose(ellipse((-scene.key[0] * 0.18, 0.93 + 0.1 * scene.key[1]), who.width * 0.78, 0.34), 0.1)
    c.paint(shadow, who.skin * (0.5, 0.38, 0.35), 0.55, 0.09 * px, s.parts["neck"])


def _torso(s: Sitting, points) -> np.ndarray:
    """Points of the body -> pixels: the neck follows the head, the shoulders stay."""
    q = np.asarray(points, np.float32)
    up = np.clip((1.3 - q[:, 1:]) / 0.6, 0, 1)  # 1 at the head's base
    return (q * s.px + s.pose.centre) * (1 - up) + s.pose(q, -0.15) * up


def _garment(s: Sitting, w: float) -> np.ndarray:
    """What covers the shoulders; returns its mask."""
    who, scene, c, px = s.who, s.scene, s.canvas, s.px
    broad = 1.12 if who.feminine else 1.32
    low = {"tee": 1.42, "v-neck": 1.72, "shirt": 1.5, "suit": 1.62, "turtleneck": 1.2, "hoodie": 1.42, "dress": 1.62}
    dip = low[scene.clothes]
    wide = {"dress": 1.9, "tee": 1.15}.get(scene.clothes, 1.0) * w
    shoulder = [(w * 0.75, 1.12), (w * 1.3, 1.24), (broad * 0.72, 1.36), (broad, 1.58), (broad * 1.12, 2.2)]
    if scene.clothes == "dress":
        half = [*shoulder, (broad * 1.1, 2.3)]
        bare = _torso(s, closed([*((-x, y) for x, y in reversed(half)), *half]))
        c.paint(bare, who.skin * 0.95)
        s.cover("body", c.mask(bare))
        shoulder = [(wide, 1.27), *shoulder[2:]]
    round_neck = [] if scene.clothes in ("v-neck", "suit") else [(wide / 2, dip - 0.06)]
    half = [*round_neck, *shoulder]
    top = [*((-x, y) for x, y in reversed(half)), (0, dip), *half]
    outline = _torso(s, np.vstack([curve(top), [(broad * 1.2, 2.6), (-broad * 1.2, 2.6)]]))
    mask = c.mask(outline)
    c.paint(outline, scene.cloth)
    s.cover("body", mask)
    if scene.clothes not in ("suit", "shirt"):
        _pattern(s, mask)
    if scene.clothes in ("tee", "v-neck", "dress"):
        hem = [q for q in top if abs(q[0]) < max(wide, w) * 1.25]
        c.lines(_torso(s, curve(hem)), scene.cloth * 0.62, 0.045 * px, 0.7)
    return mask


def _pattern(s: Sitting, mask: np.ndarray) -> None:
    """Stripes, checks or dots on cloth."""
    if s.scene.pattern == "plain":
        return
    u, v = s.pose.grid(s.canvas.side)
    pitch = s.rng.uniform(0.10, 0.2)
    # Cloth curves on a chest.
    down, across = np.cos(2 * pi * (v + 0.12 * u * u) / pitch), np.cos(2 * pi * u / pitch)
    wave = {"stripes": down, "check": np.maximum(down, across) - 0.4, "dots": down * across - 0.55}
    wave = wave[s.scene.pattern]
    s.canvas.tint(mask * np.clip(wave * 4 + 0.5, 0, 1), s.scene.cloth2, 0.8)


def _collar(s: Sitting, w: float) -> None:
    """A shirt's collar, or a suit's with the shirt, lapels and perhaps a tie."""
    who, scene, c, px = s.who, s.scene, s.canvas, s.px
    suit = scene.clothes == "suit"
    shirt = mix(scene.cloth2, WHITE, 0.75) if suit else scene.cloth
    if not suit:
        c.paint(_torso(s, [(-w * 0.8, 1.2), (w * 0.8, 1.2), (0, 1.66)]), who.skin * 0.92)
        c.lines(_torso(s, [(0, 1.64), (0, 2.6)]), shirt * 0.62, 0.02 * px, 0.6)
        c.paint([_torso(s, ellipse((0.035, y), 0.022, 0.022)) for y in (1.8, 2.05)], mix(shirt, WHITE, 0.22))
    else:
        c.paint(_torso(s, [(-w * 1.1, 1.16), (w * 1.1, 1.16), (0, 2.35)]), shirt)
        if who.feminine and s.rng.random() < 0.8:
            c.paint(_torso(s, [(-0.16, 1.3), (0.16, 1.3), (0, 1.75)]), who.skin * 0.95)
        else:
            tie = [(-0.07, 1.42), (0.07, 1.42), (0.06, 1.52), (0.13, 2.4), (-0.13, 2.4), (-0.06, 1.52)]
            c.paint(_torso(s, tie), scene.cloth2 * 0.8)
            c.lines(_torso(s, [(-0.07, 1.53), (0.07, 1.53)]), scene.cloth2 * 0.5, 0.02 * px, 0.8)
    for side in (-1, 1):
        flap = _torso(s, np.array([(w * 0.92, 1.02), (w * 1.22, 1.2), (0.30, 1.74), (0.03, 1.62)]) * (side, 1))
        c.paint(flap, mix(shirt, WHITE, 0.25))
        c.loop(flap, shirt * 0.6, 1, 0.7)
        if suit:
            lapel = np.array([(w * 1.15, 1.2), (w * 1.7, 1.36), (0.62, 1.82), (0.02, 2.5)])
            lapel = _torso(s, lapel * (side, 1))
            c.paint(lapel, mix(scene.cloth, WHITE, 0.1))
            c.loop(lapel, scene.cloth * 0.62, 0.015 * px, 0.8)


def _hood(s: Sitting, w: float) -> None:
    c, cloth = s.canvas, s.scene.cloth
    for side in (-1, 1):
        hood = [(w * 0.9, 1.0), (w * 1.55, 0.98), (w * 1.75, 1.28), (0.25, 1.6), (0.06, 1.56), (w * 0.8, 1.28)]
        hood = _torso(s, closed(np.array(hood) * (side, 1)))
        c.paint(hood, mix(cloth, WHITE, 0.22))
        c.loop(hood, cloth * 0.62, 1, 0.6)
        s.cover("body", c.mask(hood))
        cord = curve([(side * 0.13, 1.55), (side * 0.15, 1.8), (side * 0.13, 2.0)])
        c.lines(_torso(s, cord), (0.92, 0.91, 0.88), 0.03 * s.px)


def _necklace(s: Sitting, w: float) -> None:
    c, px = s.canvas, s.px
    chain = [(-w * 0.95, 1.18), (-w * 0.6, 1.36), (0, 1.46), (w * 0.6, 1.36), (w * 0.95, 1.18)]
    chain = _torso(s, curve(chain))
    if s.rng.random() < 0.5:
        for q in chain[::3]:
            c.paint(ellipse(q, 0.032 * px, 0.032 * px), (0.95, 0.92, 0.87))
            c.paint(ellipse(q - 0.01 * px, 0.012 * px, 0.012 * px), WHITE)
    else:
        c.lines(chain, GOLD, 0.016 * px)
        c.paint(ellipse(_torso(s, [(0, 1.48)])[0], 0.035 * px, 0.045 * px), GOLD)


# --- Head -----------------------------------------------------------------------------------------


def head(s: Sitting) -> np.ndarray:
    """Ears and bare skin with its blushes, marks and age; returns the mask of the head without the ears."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    _ears(s)
    w, j, ch = who.width, who.jaw, who.chin
    skull = [(0, -1.0), (0.51 * w, -0.93), (0.84 * w, -0.68), (w * 0.97, -0.3), (w, 0.0), (w * 0.96, 0.26)]
    lower = [(j * 0.5 + w * 0.46, 0.48), (j, 0.7), (ch + 0.1, 0.9), (ch * 0.45, 1.0)]
    outline = closed(mirrored([*skull, *lower]))
    outline = p(outline, 0.08 + 0.3 * np.clip(outline[:, 1] - 0.2, 0, 1))  # the chin stands out
    mask = c.mask(outline)
    c.paint(outline, who.skin)
    s.cover("head", mask)
    blush = who.skin * (1.0, 0.74, 0.70)
    for side in (-1, 1):
        c.paint(p(ellipse((side * 0.42, 0.27), 0.2, 0.15)), blush, 0.45 + 0.2 * who.feminine, 0.08 * px, mask)
        socket = p(ellipse((side * who.eye_gap, 0.0), 0.21, 0.14))
        c.paint(socket, who.skin * (0.72, 0.60, 0.60), 0.4, 0.06 * px, mask)
    c.paint(p(ellipse((0, who.nose_length), 0.13, 0.09)), blush, 0.5, 0.05 * px, mask)
    c.paint(p(ellipse((0, 0.9), 0.17, 0.08)), blush, 0.25, 0.06 * px, mask)
    blotches = np.clip(noise(np.random.default_rng(who.seed), c.side, 7, 3), 0, 1)
    c.tint(mask * blotches, who.skin * (0.85, 0.72, 0.68), 0.16)
    if len(who.marks):
        spots = [p(ellipse((x, y), r, r)) for x, y, r in who.marks]
        c.paint(spots, who.skin * (0.66, 0.50, 0.42), 0.6, 0, mask)
    if who.age > 0.3:
        _wrinkles(s, mask)
    return mask


def _ears(s: Sitting) -> None:
    who, c, p = s.who, s.canvas, s.pose
    shape = np.array([(0, -0.14), (0.07, -0.19), (0.12, -0.12), (0.10, 0.04), (0.06, 0.17), (0.0, 0.2), (-0.06, 0.1)])
    for side in (-1, 1):
        at = (side * (who.width + 0.035), 0.1)
        ear = p(closed(shape * (side * who.ear, who.ear) + at), -0.08)
        c.paint(ear, who.skin * (0.98, 0.90, 0.88))
        s.cover("head", c.mask(ear))
        fold = p(curve(shape[1:5] * (side * who.ear * 0.62, who.ear * 0.7) + at), -0.08)
        c.lines(fold, who.skin * (0.66, 0.5, 0.46), 0.03 * s.px, 0.7, 0.008 * s.px)


def _wrinkles(s: Sitting, mask: np.ndarray) -> None:
    """Folds beside the mouth, bags under the eyes, crow's feet, lines on the forehead."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    deep = who.skin * (0.62, 0.47, 0.43)
    k = min(1.0, (who.age - 0.25) * 1.5)
    x = who.eye_gap
    for side in (-1, 1):
        fold = [(who.nose_width + 0.03, who.nose_length - 0.01), (0.27, 0.5), (0.33, who.mouth_height)]
        c.paint(ribbon(p(curve(np.array(fold) * (side, 1))), 0.05 * px), deep, 0.6 * k, 0.015 * px)
        bag = np.array([(x - 0.13, 0.11), (x, 0.17), (x + 0.15, 0.1)])
        c.paint(ribbon(p(curve(bag * (side, 1))), 0.04 * px), deep, 0.5 * k, 0.012 * px)
        feet = [p([(side * (x + 0.21), 0.02 + dy), (side * (x + 0.27), 0.03 + 1.9 * dy)]) for dy in (-0.05, 0, 0.05)]
        c.lines(feet, deep, 0.014 * px, 0.5 * k, 0.3, mask)
    for y in (-0.46, -0.39, -0.53)[: 1 + int(k * 2.5)]:
        line = p(curve([(-0.36, y + 0.02), (-0.15, y), (0.15, y), (0.36, y + 0.02)]))
        c.paint(ribbon(line, 0.03 * px), deep, 0.5 * k, 0.008 * px, mask)


# --- Features -------------------------------------------------------------------------------------


def eyes(s: Sitting, head: np.ndarray) -> None:
    """Both eyes and brows."""
    for side in (-1, 1):
        _eye(s, side)
        _brow(s, side, head)


def _eye(s: Sitting, side: int) -> None:
    who, scene, c, p, px, skin, w = s.who, s.scene, s.canvas, s.pose, s.px, s.who.skin, s.who.eye_size
    h = w * who.eye_open * max(0.35, 1 - scene.squint - 0.25 * max(0, scene.smile)) * 1.35

    def at(points) -> np.ndarray:  # from the eye's own units: -1 and 1 are its inner and outer corner
        q = np.asarray(points, np.float32)
        x, y = side * (who.eye_gap + q[:, 0] * w), q[:, 1] * h - q[:, 0] * who.eye_tilt * w
        return p(np.stack([x, y], 1), 0.66)

    upper = at(curve([(-1, 0.18), (-0.55, -0.72), (0.05, -1.0), (0.62, -0.66), (1.0, 0.0)]))
    lower = at(curve([(1.0, 0.0), (0.55, 0.62), (0.0, 0.78), (-0.6, 0.55), (-1, 0.18)]))
    eye = np.vstack([upper, lower])
    white = c.mask(eye)
    c.paint(eye, mix((0.90, 0.885, 0.87), skin, 0.18))
    c.paint(at(ellipse((-0.92, 0.2), 0.14, 0.3)), (0.80, 0.52, 0.48), 0.8, 0.3, white)
    gx, gy = np.clip(scene.gaze, -0.5, 0.5)
    centre = p([(side * who.eye_gap + gx * w * 0.7, (gy * 0.6 - 0.12) * h)], 0.66)[0]
    r = 0.088 * (0.92 + 0.5 * (w - 0.15)) * px
    c.paint(ellipse(centre, r, r), who.iris * 0.42, 1, 0, white)
    c.paint(ellipse(centre, r * 0.84, r * 0.84), who.iris, 1, 0.3, white)
    glow = ellipse(np.add(centre, (-scene.key[0] * r * 0.25, r * 0.35)), r * 0.5, r * 0.36)
    c.paint(glow, mix(who.iris, (1, 0.95, 0.85), 0.35), 0.7, 0.6, white)
    c.paint(ellipse(centre, r * 0.42, r * 0.42), (0.03, 0.025, 0.025), 1, 0, white)
    lid = ribbon(np.add(upper, (0, 0.022 * px)), 0.06 * px)
    c.paint(lid, (0.2, 0.13, 0.12), 0.45, 0.012 * px, white)  # its shadow
    c.paint(ellipse(centre + np.array((scene.key[0] * 0.42, -0.45)) * r, r * 0.25, r * 0.25), WHITE, 0.95)
    lash = mix(who.hair * 0.4, (0.05, 0.035, 0.03), 0.7)
    c.paint(ribbon(upper, (0.042 if who.lashes else 0.03) * px, (0.3, 0.9)), lash, 0.95)
    if who.lashes:
        roots = upper[len(upper) // 3 :: 4]
        x = side * np.linspace(0.02, 0.07, len(roots))
        tips = roots + np.stack([x, np.full(len(x), -0.05)], 1) * px
        c.lines(np.stack([roots, tips], 1), lash, 1, 0.9)
    c.paint(ribbon(lower, 0.016 * px), skin * (0.55, 0.38, 0.36), 0.75)
    crease = at(curve([(-0.9, -0.35), (-0.5, -1.35), (0.1, -1.65), (0.7, -1.25), (1.12, -0.45)]))
    c.paint(ribbon(crease, 0.022 * px), skin * (0.52, 0.38, 0.35), 0.6, 0.005 * px)


def _brow(s: Sitting, side: int, head: np.ndarray) -> None:
    who, scene, c, px = s.who, s.scene, s.canvas, s.px
    x, arch, weight = who.eye_gap, who.brow_arch, who.brow_weight
    y = -who.brow_height - scene.brow_raise - 0.02 * max(0, scene.smile)
    arc = [
        (x - 0.19, y + 0.015),
        (x - 0.05, y - 0.015 - arch * 0.6),
        (x + 0.11, y - 0.01 - arch),
        (x + 0.24, y + 0.075),
    ]
    brow = s.pose(curve(np.array(arc) * (side, 1)), 0.66)
    colour = mix(who.hair, (0.12, 0.08, 0.06), 0.45)
    c.paint(ribbon(brow, weight * px, (0.75, 0.1)), colour, 0.72, 0.008 * px, head)
    rng = np.random.default_rng(who.seed + side + 1)
    k = rng.integers(0, len(brow), 26)
    roots = brow[k] + rng.normal(0, weight * 0.22 * px, (26, 2)) * (0.3, 1)
    slope = -0.055 + 0.075 * k / len(brow)
    tips = roots + np.stack([np.full(26, side * 0.045), slope], 1) * px
    c.lines(np.stack([roots, tips], 1), colour * 0.7, 1, 0.7, 0, head)


def nose(s: Sitting, head: np.ndarray) -> None:
    """What light alone does not draw of a nose: shaded flank, wings, nostrils and the shine on its tip."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    w, y = who.nose_width, who.nose_length
    dark = who.skin * (0.50, 0.34, 0.30)
    lit = np.sign(s.scene.key[0]) or 1.0
    flank = curve([(-lit * 0.075, -0.12), (-lit * 0.06, 0.1), (-lit * w * 0.62, y - 0.1), (-lit * w, y)])
    c.paint(ribbon(p(flank, 0.78), 0.07 * px), dark, 0.3, 0.025 * px, head)
    under = [(-w, y - 0.01), (-w * 0.75, y + 0.055), (0, y + 0.075), (w * 0.75, y + 0.055), (w, y - 0.01)]
    c.paint(ribbon(p(curve(under), 0.82), 0.05 * px, (0.3, 0.3)), dark, 0.5, 0.014 * px, head)
    for k in (-1, 1):
        wing = curve([(k * w * 0.82, y - 0.07), (k * w * 1.04, y - 0.01), (k * w * 0.8, y + 0.045)])
        c.paint(ribbon(p(wing, 0.78), 0.026 * px), dark, 0.65, 0.005 * px)
        nostril = p(ellipse((k * w * 0.48, y + 0.035), w * 0.26, 0.022, k * -0.25), 0.84)
        c.paint(nostril, dark * 0.42, 0.85, 0.004 * px)
    c.paint(p(ellipse((lit * 0.02, y - 0.07), 0.035, 0.03), 0.95), (1, 0.97, 0.93), 0.22, 0.014 * px)


def _opening(s: Sitting) -> float:
    """How far the lips part."""
    gap = 0.13 * min(s.scene.mouth_open, 1) * (0.5 + 0.5 * max(0, s.scene.smile))
    return gap if gap > 0.025 else 0.0


def mouth(s: Sitting) -> None:
    """Lips, teeth when they part, and the dimples of a smile."""
    who, scene, c, px = s.who, s.scene, s.canvas, s.px
    smile, y, f, gap = scene.smile, who.mouth_height, who.lip_fullness, _opening(s)
    w = who.mouth_width * (1 + 0.28 * max(0, smile))
    corner, sag = y - 0.07 * smile, 0.03 * smile

    def at(points) -> np.ndarray:
        return s.pose(points, 0.62)

    seam = _lip(w, corner, [(0.5, y + sag * 0.5), (0, y + sag * 0.6 + 0.008)])
    top = _lip(w, corner, [(0.5, y - f * 0.62), (0.16, y - f * 0.95), (0, y - f * 0.72)])
    low = _lip(w, corner, [(0.55, y + gap * 0.8 + sag + f * 0.75), (0, y + gap + sag + f * 1.25)])

    def parted(by: float) -> np.ndarray:
        return at(curve([(u, v + by * (1 - (u / w) ** 2)) for u, v in seam]))

    upper, closed_lips, below, lower = at(curve(top)), parted(0), parted(gap), at(curve(low))
    dark = who.skin * (0.36, 0.18, 0.17)
    if gap:
        inside = np.vstack([closed_lips, below[::-1]])
        hole = c.mask(inside)
        c.paint(inside, (0.26, 0.07, 0.07))
        c.paint(np.vstack([closed_lips, parted(min(gap, 0.075))[::-1]]), (0.95, 0.93, 0.88), 0.97, 0, hole)
        teeth = [at([(x, y - 0.02), (x, y + 0.12)]) for x in np.arange(-0.24, 0.25, 0.06)]
        c.lines(teeth, (0.6, 0.52, 0.46), 1, 0.22, 0, hole)
    c.paint(np.vstack([upper, closed_lips[::-1]]), who.lips * 0.82, 0.92, 0.004 * px)
    c.paint(np.vstack([below, lower[::-1]]), who.lips, 0.92, 0.004 * px)
    shine = at(ellipse((scene.key[0] * 0.06, y + gap + sag + f * 0.62), w * 0.36, f * 0.2))
    c.paint(shine, (1, 0.93, 0.90), 0.3, 0.012 * px)
    c.paint(ribbon(closed_lips, 0.022 * px, (0.6, 0.6)), dark, 0.85)
    if gap:
        c.paint(ribbon(below, 0.012 * px), dark, 0.5)
    for k in (-1, 1):
        c.paint(at(ellipse((k * (w + 0.008), corner), 0.025, 0.02)), dark, 0.5, 0.008 * px)
        if smile > 0.35:
            dimple = np.array([(w + 0.05, corner - 0.1), (w + 0.085, corner), (w + 0.05, corner + 0.09)])
            c.paint(ribbon(s.pose(curve(dimple * (k, 1))), 0.032 * px), dark * 1.4, 0.35 * smile, 0.01 * px)
    shade = at(ellipse((0, y + gap + sag + f * 1.5 + 0.035), w * 0.6, 0.03))
    c.paint(shade, who.skin * (0.6, 0.45, 0.42), 0.45, 0.018 * px)


def _lip(w: float, corner: float, left_to_middle: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A lip's line from corner to corner; x is a part of `w`, given from the corner to the middle."""
    return mirrored([(-w, corner), *((-x * w, y) for x, y in left_to_middle)])


def beard(s: Sitting, head: np.ndarray) -> None:
    """Stubble, moustache, goatee, short or long beard."""
    who, c, p, px, rng = s.who, s.canvas, s.pose, s.px, np.random.default_rng(s.who.seed + 7)
    if who.beard == "none":
        return
    colour = mix(who.hair, (0.10, 0.07, 0.05), 0.25)
    y, w, j = who.mouth_height, who.width, who.jaw
    lip = y - who.lip_fullness * 0.85
    low = y + who.lip_fullness * 1.2 + 1.1 * _opening(s) + 0.02
    long = {"long": 0.32, "short": 0.06}.get(who.beard, 0.0)
    above = [(0, lip - 0.10), (0.14, lip - 0.10), (0.28, lip + 0.05), (0.34, y + 0.06)]
    moustache = closed(mirrored([*above, (0.24, y + 0.02), (0.1, lip + 0.02), (0, lip + 0.01)]))
    upper = [(w * 0.99, 0.08), (w * 0.88, 0.2), (w * 0.72, 0.42)]
    upper += [(0.36, 0.56), (0.345, y), (0.22, low), (0, low + 0.03)]
    outer = [(0.0, 1.02 + long), (0.22, 1.0 + long * 0.9), (j * 0.85, 0.86 + long * 0.5)]
    outer += [(j + 0.07 + long * 0.1, 0.66 + long * 0.2), (w * 0.98, 0.4), (w * 1.01, 0.1)]
    whole = closed([*mirrored(upper), *((-x, v) for x, v in reversed(outer[1:])), *outer])
    chin = closed(mirrored([(0, low + 0.02), (0.14, low), (0.2, low + 0.1), (0.17, 0.98), (0, 1.05)]))
    shapes = {"moustache": [moustache], "goatee": [chin, moustache]}.get(who.beard, [whole, moustache])
    for shape in shapes:
        across = np.abs(shape[:, 0])
        outline = p(shape, 0.45 + 0.15 * (across < 0.36) - 0.3 * (across > 0.55))
        mask = c.mask(outline, 0.018 * px)
        if who.beard == "stubble":
            c.tint(mask * head * np.clip(0.8 + 0.5 * noise(rng, c.side, c.side // 2), 0, 1.2), colour, 0.3)
            continue
        c.tint(mask if long > 0.1 else mask * np.maximum(head, 0.6), colour, 0.93)
        s.cover("hair", mask)
        (x0, y0), (x1, y1) = outline.min(0), outline.max(0)
        n = int(60 + 25 * (x1 - x0) * (y1 - y0) / px**2)
        roots = rng.uniform((x0, y0), (x1, y1), (n, 2))
        lean = 0.1 * (roots[:, 0] - (x0 + x1) / 2) / (x1 - x0)
        strands = np.stack([roots, roots + np.stack([lean, np.full(n, 0.1)], 1) * px], 1)
        c.lines(strands[::2], mix(colour, (1, 0.95, 0.85), 0.22), 1, 0.55, 0, mask)
        c.lines(strands[1::2], colour * 0.45, 1, 0.6, 0, mask)


# --- What people wear on their heads --------------------------------------------------------------

_LENSES = {
    "round": ellipse((0, 0), 0.215, 0.2),
    "square": closed(
        [(-0.22, -0.14), (0, -0.16), (0.22, -0.14), (0.235, 0), (0.2, 0.14), (0, 0.16), (-0.2, 0.14), (-0.225, 0)]
    ),
    "cat": closed([(-0.2, -0.1), (0.05, -0.15), (0.27, -0.2), (0.235, 0.02), (0.12, 0.15), (-0.1, 0.14), (-0.2, 0.04)]),
    "sun": closed([(-0.22, -0.15), (0, -0.17), (0.23, -0.15), (0.22, 0.05), (0.12, 0.19), (-0.06, 0.19), (-0.2, 0.08)]),
}


def glasses(s: Sitting) -> None:
    """Spectacles or sunglasses, if the person wears any."""
    who, c, p, px = s.who, s.canvas, s.pose, s.px
    if who.glasses == "none":
        return
    dark = who.glasses == "sun"
    frame = who.accessory * 0.5 if who.seed % 3 else (0.62, 0.5, 0.3)
    thick = (0.022, 0.04)[who.seed % 2] * px
    z = 0.72
    for side in (-1, 1):
        temple = p([(side * (who.eye_gap + 0.22), -0.05), (side * who.width, -0.02)], (z - 0.05, 0.05))
        c.lines(temple, frame, thick, 0.9, 0, s.parts["head"])
        rim = p(_LENSES[who.glasses] * (side, 1) + (side * who.eye_gap * 1.02, 0.02), z)
        lens = c.mask(rim)
        c.paint(rim, (0.07, 0.06, 0.07) if dark else (0.9, 0.95, 1.0), 0.9 if dark else 0.06)
        (x, y), (w, h) = rim.min(0), np.ptp(rim, 0)
        at = s.scene.key[0] * 0.25
        glare = np.array([(at + 0.25, 0), (at + 0.45, 0), (at + 0.2, 1), (at, 1)])
        c.paint(glare * (w, h) + (x, y), WHITE, 0.28 if dark else 0.16, 0.01 * px, lens)
        c.loop(rim, frame, thick, 0.95)
    bridge = curve([(-who.eye_gap + 0.2, -0.03), (0, -0.07), (who.eye_gap - 0.2, -0.03)])
    c.lines(p(bridge, z + 0.1), frame, thick, 0.95)


def earrings(s: Sitting) -> None:
    """Studs, hoops or drops on the ears that show."""
    who, c, px = s.who, s.canvas, s.px
    if who.earrings == "none" or who.style in ("headscarf", "bob", "long", "waves"):
        return
    metal = GOLD if who.seed % 3 else (0.86, 0.87, 0.9)
    for side in (-1, 1):
        if s.scene.yaw * side > 0.18:  # behind the cheek
            continue
        lobe = s.pose([(side * (who.width + 0.05), 0.1 + 0.2 * who.ear)], -0.05)[0]
        if who.earrings == "hoop":
            c.loop(ellipse(np.add(lobe, (0, 0.12 * px)), 0.09 * px, 0.12 * px), metal, 0.03 * px)
        elif who.earrings == "drop":
            c.lines(np.vstack([lobe, np.add(lobe, (0, 0.14 * px))]), metal, 0.016 * px)
            c.paint(ellipse(np.add(lobe, (0, 0.2 * px)), 0.045 * px, 0.07 * px), who.accessory * 0.5 + 0.3)
            c.paint(ellipse(np.add(lobe, (-0.012 * px, 0.18 * px)), 0.014 * px, 0.02 * px), WHITE, 0.8)
        else:
            c.paint(ellipse(lobe, 0.04 * px, 0.04 * px), metal)
            c.paint(ellipse(lobe - 0.012 * px, 0.014 * px, 0.014 * px), WHITE)
