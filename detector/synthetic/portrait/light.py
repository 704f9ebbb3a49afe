"""Light on a drawn portrait: a relief of the subject, and how a scene's lights fall on it."""

import cv2
import numpy as np

from detector.synthetic.portrait.canvas import blur
from detector.synthetic.portrait.pose import Sitting


def illuminate(s: Sitting, planes: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """Light a flat picture (3, side, side) where `subject` (side, side) is 1: float32 (side, side, 3), 0..1.

    Sky, ground and a wrapped key multiply the colours, gloss and rim are added, in linear light (gamma 2).
    """
    scene, side = s.scene, len(subject)
    scale = s.px * side / s.canvas.side
    height = _relief(s, side) * scale
    gx, gy = (cv2.Sobel(height, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    limit = 1 / np.sqrt(1 + (gx * gx + gy * gy) / 4)  # no slope beyond 2, or every outline would be a crease
    gx, gy = gx * limit, gy * limit
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    nx, ny = -gx * nz, -gy * nz
    facing = nx * scene.key[0] + ny * scene.key[1] + nz * scene.key[2]
    half = scene.key + np.float32((0, 0, 1))
    half /= np.linalg.norm(half)
    gloss = 0.05 * np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1) ** 24
    # The rim: what of the subject's edge faces away from the key.
    away = np.float32([[1, 0, 0.06 * scale * np.sign(scene.key[0])], [0, 1, 0.03 * scale]])
    shifted = cv2.warpAffine(subject, away, (side, side), borderMode=cv2.BORDER_REPLICATE)
    gloss += 0.5 * scene.rim * blur(np.clip(subject - shifted, 0, 1), 0.02 * scale)
    up = 0.5 - 0.5 * ny
    lit = np.empty((side, side, 3), np.float32)
    # Red light bleeds furthest round the edge of a shadow, as it does on skin.
    for k, wrap in enumerate((0.34, 0.24, 0.18)):
        key = np.clip((facing + wrap) / (1 + wrap), 0, None) * (scene.key_colour[k] * 1.12)
        light = key + scene.sky[k] * up + scene.ground[k] * (1 - up)
        colour = np.sqrt(planes[k] ** 2 * light + gloss * scene.key_colour[k])
        lit[..., k] = planes[k] + (colour - planes[k]) * subject
    return lit.clip(0, 1)


def _relief(s: Sitting, side: int) -> np.ndarray:
    """The subject's height towards the viewer, float32 (side, side), face units."""
    who, smile = s.who, max(0.0, s.scene.smile)
    u, v = s.pose.grid(side)
    scale = s.px * side / s.canvas.side
    dome = 0.75 * np.sqrt(np.clip(1 - (u / (who.width + 0.06)) ** 2 - (v / 1.1) ** 2, 0, 1))
    nose, mouth, gap = who.nose_length, who.mouth_height, who.eye_gap
    # Each bump is x, y, its spread in both and its height: the middle of the face, then both sides.
    bumps = [(0, 0.08, 0.065, 0.22, 0.09), (0, nose - 0.04, who.nose_width * 0.75, 0.10, 0.15)]
    bumps += [(0, mouth, 0.26, 0.15, 0.05), (0, mouth + 0.07, 0.12, 0.05, 0.025)]
    bumps += [(0, 0.89, 0.15, 0.10, 0.06), (0, -0.48, 0.42, 0.2, 0.03)]
    for k in (-1, 1):
        bumps += [
            (k * gap, -0.01, 0.19, 0.11, -0.09),
            (k * gap, 0, 0.09, 0.06, 0.03),
            (k * 0.3, -0.2, 0.2, 0.055, 0.025),
        ]
        bumps.append((k * 0.44, 0.26 - 0.04 * smile, 0.17, 0.15, 0.05 + 0.03 * smile))
    for (a, b), (_, _, sx, sy, h) in zip(s.pose.turn([bump[:2] for bump in bumps]), bumps, strict=True):
        dome += h * np.exp(-(((u - a) / sx) ** 2) - ((v - b) / sy) ** 2)

    def soft(part: str, spread: float) -> np.ndarray:
        return blur(cv2.resize(s.parts[part], (side, side), interpolation=cv2.INTER_AREA), spread * scale)

    body = np.maximum(soft("body", 0.2), soft("neck", 0.14) * 0.6) * 0.7
    head = soft("head", 0.06)
    height = blur(dome * head + body * (1 - head), 0.02 * scale)
    return height + 0.34 * soft("hair", 0.09) if "hair" in s.parts else height
