"""The forgers: each makes one kind of fake of a drawn portrait, with the traces that this kind has in practice.

swap: another person's inner face, in the steps of a face swap (Li and Lyu, "Exposing DeepFake videos by detecting face
warping artifacts", CVPRW 2019): warped onto the target at a lower resolution, matched in colour (Reinhard et al.,
"Color transfer between images", 2001) and blended in with a feathered mask. Its traces: a softer patch without the
camera's grain, a seam, light and colour that do not quite fit the head.

drawn: the whole picture drawn anew, as a generator does, without a seam. Its traces are everywhere: smooth skin between
crisp edges, blotches in place of the camera's grain (the noise that StyleGAN feeds into its layers; Karras et al., CVPR
2019), the lattice of transposed convolutions (Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016),
and a bias in faces: younger, unmarked, with larger eyes.

retouch: the eyes, the nose or the mouth alone, replaced by another person's, warped as portrait editors do (Gustafsson,
"Interactive image warping", 1993) or airbrushed (Tomasi and Manduchi, "Bilateral filtering for gray and color images",
ICCV 1998). Its traces: a small soft patch without the camera's grain, lighter or darker than the skin around it.
"""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from detector.synthetic.portrait import Drawing, render
from detector.synthetic.portrait.camera import grain, photograph, vignette
from detector.synthetic.portrait.canvas import ellipse, noise
from detector.synthetic.portrait.sitter import Identity, Scene, draw_scene

# The forged picture, float32 RGB, 0..1, and the mask of what was forged, float32 (size, size), 0..1.
Forged = tuple[np.ndarray, np.ndarray]
# Takes a photo, its scene and people of its split, of whom the first is the one in the photo.
Forger = Callable[[Drawing, Scene, list[Identity], np.random.Generator], Forged]

PARTS = ("eyes", "nose", "mouth")
EDITS = ("replace", "warp", "airbrush")


def swap(photo: Drawing, scene: Scene, people: list[Identity], rng: np.random.Generator) -> Forged:
    """Another person's inner face on the person in the photo. A `Forger`."""
    size = len(photo.pixels)
    face = _warp(_photo_of_donor(people, scene, size, rng), photo.landmarks, rng)
    face += rng.uniform(0, 0.01) * grain(rng, size)  # a forger may add some grain, never the camera's

    mask, grow = photo.face, rng.uniform(-0.02, 0.02) * size
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(abs(grow)) + 1,) * 2)
    mask = (cv2.dilate if grow > 0 else cv2.erode)(mask, kernel)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.005, 0.022) * size)
    face = _match_colour(face, photo.pixels, mask, rng.uniform(0.55, 0.9))
    return _blend(photo.pixels, face, mask), mask


def _photo_of_donor(people: list[Identity], scene: Scene, size: int, rng: np.random.Generator) -> Drawing:
    """A donor's photo in about the same pose, in its own light; its background is not used."""
    yaw, pitch = rng.normal((scene.yaw, scene.pitch), (0.08, 0.04))
    frame = replace(draw_scene(rng), yaw=yaw, pitch=pitch, place="studio", pattern="plain")
    return photograph(render(_donor(people, rng), frame, size), rng)


def _donor(people: list[Identity], rng: np.random.Generator) -> Identity:
    """One of the two others most like the first of `people`, as forgers choose a similar donor."""
    target, *others = people

    def unlike(other: Identity) -> float:
        colour = 6 * np.abs(other.skin - target.skin).mean()
        traits = sum(getattr(other, k) != getattr(target, k) for k in ("feminine", "beard", "glasses"))
        return colour + traits + abs(other.age - target.age)

    return sorted(others, key=unlike)[rng.integers(2)]


def _warp(donor: Drawing, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The donor's face warped onto the target's landmarks, at the lower resolution of a face generator."""
    size = len(donor.pixels)
    small = int(size * rng.uniform(0.38, 0.62))
    ones = np.ones((len(landmarks), 1), np.float32)
    fit = np.linalg.lstsq(np.hstack([donor.landmarks, ones]), landmarks * (small / size), rcond=None)[0]
    soft = cv2.GaussianBlur(donor.pixels, (0, 0), 0.35 * size / small)
    face = cv2.warpAffine(soft, fit.T, (small, small), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return cv2.resize(face, (size, size), interpolation=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)])


def _match_colour(image: np.ndarray, model: np.ndarray, mask: np.ndarray, strength: float) -> np.ndarray:
    """Move the mean and deviation of each Lab channel inside `mask` towards those of `model`, by `strength` in 0..1."""
    where = mask > 0.5
    ours, theirs = cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.cvtColor(model, cv2.COLOR_RGB2LAB)
    a, b = ours[where], theirs[where]
    matched = (ours - a.mean(0)) * (b.std(0) / (a.std(0) + 1e-3)).clip(0.6, 1.6) + b.mean(0)
    return cv2.cvtColor(ours + (matched - ours) * np.float32(strength), cv2.COLOR_LAB2RGB)


def _blend(image: np.ndarray, layer: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return image + (layer - image) * mask[..., None]


def drawn(photo: Drawing, scene: Scene, people: list[Identity], rng: np.random.Generator) -> Forged:
    """The person and the scene of the photo drawn anew; the mask is the head. A `Forger`."""
    size, who = len(photo.pixels), people[0]
    who = replace(who, age=0.5 * who.age, marks=who.marks[:0], eye_size=who.eye_size * rng.uniform(1.1, 1.25))
    drawing = render(who, replace(scene, seed=int(rng.integers(2**31))), size)
    image = drawing.pixels * vignette(size, rng)  # generators learn it from photos
    for _ in range(2):  # flat between edges, which are then drawn too crisp
        image = cv2.bilateralFilter(image, -1, rng.uniform(0.08, 0.14), 0.012 * size)
    image += rng.uniform(0.5, 1.0) * (image - cv2.GaussianBlur(image, (0, 0), 0.014 * size))
    blotches = np.stack([noise(rng, size, 24, 2) for _ in range(3)], 2)
    blotches = blotches.mean(2, keepdims=True) + 0.4 * blotches
    image += rng.uniform(0.008, 0.02) * blotches
    return (image * _lattice(size, rng)).clip(0, 1), drawing.head


def _lattice(size: int, rng: np.random.Generator) -> np.ndarray:
    """The gain of two layers of transposed convolution, float32 (size, size, 3): it differs from phase to phase."""
    cell = rng.normal(1, 0.018, (4, 4, 3)).astype(np.float32)
    return np.tile(cell / cell.mean((0, 1)), (size // 4 + 1, size // 4 + 1, 1))[:size, :size]


def retouch(photo: Drawing, scene: Scene, people: list[Identity], rng: np.random.Generator) -> Forged:
    """The eyes, nose or mouth of the photo replaced, warped or airbrushed. A `Forger`."""
    size = len(photo.pixels)
    part = PARTS[rng.integers(len(PARTS))]
    mask = cv2.GaussianBlur(_region(photo, part), (0, 0), rng.uniform(0.004, 0.01) * size)
    edit = EDITS[rng.integers(len(EDITS))]
    if edit == "replace":
        layer = _warp(_photo_of_donor(people, scene, size, rng), photo.landmarks, rng)
        layer = _match_colour(layer, photo.pixels, mask, rng.uniform(0.55, 0.9))
    elif edit == "warp":
        layer = _reshape(photo, part, rng)
    else:
        layer = cv2.bilateralFilter(photo.pixels, -1, rng.uniform(0.08, 0.16), rng.uniform(0.02, 0.03) * size)
    layer = _soften(layer, rng) * (1 + (-1, 1)[rng.integers(2)] * rng.uniform(0.04, 0.12))  # dodged or burnt
    layer += rng.uniform(0, 0.004) * grain(rng, size)
    return _blend(photo.pixels, layer, mask).clip(0, 1), mask


def _frame(photo: Drawing, part: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Where a part of the face is: its centre (2,), its half-axes (2,), both in pixels, and its tilt in radians."""
    left, right, nose, *mouth, chin, brow = photo.landmarks
    across, down = right - left, chin - brow
    wide, high = np.hypot(*across), np.hypot(*down)
    centre, half = {
        "eyes": ((left + right) / 2 - 0.04 * down, (1.05 * wide, 0.3 * high)),
        "nose": (nose - 0.12 * down, (0.55 * wide, 0.34 * high)),
        "mouth": (sum(mouth) / 2 + 0.02 * down, (0.8 * wide, 0.26 * high)),
    }[part]
    return centre, np.array(half), float(np.arctan2(*across[::-1]))


def _region(photo: Drawing, part: str) -> np.ndarray:
    """float32 (size, size): 1 on the part and a little about it, as far as the inner face goes."""
    mask = np.zeros(photo.face.shape, np.float32)
    centre, half, tilt = _frame(photo, part)
    outline = ellipse((0, 0), *half, tilt) + centre
    cv2.fillPoly(mask, [np.int32(outline * 16 + 0.5)], 1.0, cv2.LINE_8, 4)
    return mask * photo.face


def _reshape(photo: Drawing, part: str, rng: np.random.Generator) -> np.ndarray:
    """The picture with larger eyes, a narrower nose or fuller lips."""
    (cx, cy), (rx, ry), _ = _frame(photo, part)
    growth = {"eyes": (0.22, 0.22), "nose": (-0.3, -0.05), "mouth": (0.2, 0.3)}
    grow = np.array(growth[part]) * rng.uniform(0.7, 1.2)
    centres = photo.landmarks[:2] if part == "eyes" else [(cx, cy)]
    reach = (rx / 2 if part == "eyes" else rx, ry)
    y, x = np.mgrid[: len(photo.pixels), : len(photo.pixels)].astype(np.float32)
    from_x, from_y = x.copy(), y.copy()
    for cx, cy in centres:
        dx, dy = x - cx, y - cy
        near = np.clip(1 - (dx / reach[0]) ** 2 - (dy / reach[1]) ** 2, 0, 1)
        from_x -= grow[0] * near * dx
        from_y -= grow[1] * near * dy
    return cv2.remap(photo.pixels, from_x, from_y, cv2.INTER_LINEAR)


def _soften(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as it comes back from the lower resolution of an editing network."""
    size = len(image)
    small = int(size * rng.uniform(0.34, 0.44))
    image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


FORGERIES: dict[str, Forger] = {"swap": swap, "drawn": drawn, "retouch": retouch}
