"""A data set of drawn portraits and drawn face swaps: a first run needs no download and nobody's face.

Fakes are made as face swaps are made (Li and Lyu, "Exposing DeepFake videos by detecting face warping
artifacts", CVPRW 2019, describe the steps and their traces): the inner face of another person's photo is
warped onto the target at a lower resolution, matched in colour (Reinhard et al., "Color transfer between
images", 2001) and blended in under a feathered mask. What is left to find is what is left in practice: a
softer patch whose grain is not the camera's, a seam, light and colour that do not quite fit the head.
"""

import csv
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from tqdm import tqdm

from detector.augment import corruption
from detector.data.portrait import Drawing, render
from detector.data.portrait.sitter import Identity, Scene, draw_identity, draw_scene
from detector.params import SampleParams

PHOTOS = 3  # of one person in each class
NEIGHBOURS = 8  # people among whom a forger looks for a donor; a power of two


MANIFEST = "manifest.csv"
MASKS = "masks.zip"


@dataclass(frozen=True)
class Portrait:
    """One image of the sample.

    path: "<split>/<Real or Fake>/<number>.jpg". group: the person shown; a fake has its target's. method:
    "camera" for a real image, the kind of forgery for a fake. mask: PNG, 8-bit grey, as large as the image,
    255 where it is forged; None for a real image.
    """

    path: str
    jpeg: bytes
    group: str
    method: str
    mask: bytes | None


def write_sample(folder: Path, params: SampleParams, seed: int) -> None:
    """Draw the sample into `folder`: images, a manifest (path, group, method), the masks in one archive."""
    counts = {"Train": params.train, "Validation": params.validation, "Test": params.test}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / MANIFEST, "w", newline="") as file, zipfile.ZipFile(folder / MASKS, "w") as masks:
        manifest = csv.writer(file)
        manifest.writerow(("path", "group", "method"))
        portraits = draw_sample(counts, params.size, seed, workers=os.cpu_count() or 1)
        total = sum(counts.values()) + params.test
        for portrait in tqdm(portraits, "draw", total, unit=" images", disable=None, leave=False):
            path = folder / portrait.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(portrait.jpeg)
            manifest.writerow((portrait.path, portrait.group, portrait.method))
            if portrait.mask:
                masks.writestr(zipfile.ZipInfo(f"{portrait.path}.png"), portrait.mask)


def read_mask(folder: Path, path: str) -> np.ndarray | None:
    """What is forged in the image at `path` of a sample that was written to `folder`.

    Returns float32 (size, size), 0..1; None for a real image.
    """
    with zipfile.ZipFile(folder / MASKS) as masks:
        name = f"{path}.png"
        if name not in masks.namelist():
            return None
        png = np.frombuffer(masks.read(name), np.uint8)
    return cv2.imdecode(png, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


def draw_sample(counts: Mapping[str, int], size: int, seed: int, workers: int = 1) -> Iterator[Portrait]:
    """Draw `counts[split]` images a split, half of them fake, `size` x `size` pixels, in a fixed order.

    An image depends on the seed, its split and its number alone, not on the counts or the workers. Nobody is
    in two splits, be it as a donor. After each image of the split "Test" comes the same image in
    "Test_Perturbed", spoilt as published test sets are.
    """
    tasks = [(split, i) for split, count in counts.items() for i in range(count)]
    draw = partial(_draw, seed=seed, size=size)
    if workers == 1:
        for task in tasks:
            yield from draw(task)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        for portraits in pool.map(draw, tasks, chunksize=24):
            yield from portraits


def _draw(task: tuple[str, int], seed: int, size: int) -> list[Portrait]:
    """One image of a split, even ones real, odd ones fake; in the test split, with its perturbed twin."""
    split, i = task
    number, fake = divmod(i, 2)
    person = number // PHOTOS
    rng = _rng(seed, split, "photo", i)
    scene = draw_scene(rng)
    photo = _photograph(render(_person(seed, split, person), scene, size), rng)
    pixels, method, mask = photo.pixels, "camera", None
    if fake:
        method = list(FORGERIES)[number % len(FORGERIES)]
        people = [_person(seed, split, person ^ k) for k in range(NEIGHBOURS)]  # within a block of the split
        pixels, forged = FORGERIES[method](photo, scene, people, rng)
        mask = cv2.imencode(".png", _uint8(forged))[1].tobytes()
    jpeg = _jpeg(_uint8(pixels), rng)
    name = f"{('Real', 'Fake')[fake]}/{number + 1:04d}.jpg"
    group = f"{split.lower()}-{person:04d}"
    portraits = [Portrait(f"{split}/{name}", jpeg, group, method, mask)]
    if split == "Test":
        rng = _rng(seed, split, "perturb", i)
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        spoilt = _jpeg(corruption.perturb(image, rng), rng)
        portraits.append(Portrait(f"{split}_Perturbed/{name}", spoilt, group, method, mask))
    return portraits


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng([seed, *(crc32(str(name).encode()) for name in names)])


@lru_cache(maxsize=64)
def _person(seed: int, split: str, k: int) -> Identity:
    return draw_identity(_rng(seed, split, "person", k))


# --- The camera -----------------------------------------------------------------------------------


def _photograph(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """A slightly soft lens, vignetting, and a sensor with shot and read noise, a little of it in colour."""
    size = len(drawing.pixels)
    image = cv2.GaussianBlur(drawing.pixels, (0, 0), rng.uniform(0.3, 0.55) * size / 128)
    at = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    image *= 1 - rng.uniform(0, 0.16) * (at[:, None] + at)[..., None] / 2
    shot, read = rng.uniform(0.008, 0.026), rng.uniform(0.002, 0.006)
    image += _grain(rng, size) * np.sqrt(shot**2 * image + read**2)
    return replace(drawing, pixels=image.clip(0, 1))


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit noise, float32 (size, size, 3), mostly in brightness; demosaicing has mixed the neighbours."""
    grey, colour = (rng.standard_normal((size, size, n), np.float32) for n in (1, 3))
    return cv2.GaussianBlur(grey + 0.6 * colour, (0, 0), 0.45) * 1.5


def _uint8(image: np.ndarray) -> np.ndarray:
    return np.uint8(image.clip(0, 1) * 255 + 0.5)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """A uint8 RGB image as JPEG, of a quality and a chroma sampling met on the web."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)[rng.integers(2)]
    quality = int(rng.integers(74, 97))
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


# --- The forger -----------------------------------------------------------------------------------

# A photo, its scene, people of its split (first the one in it) -> the forged picture, float32 RGB, 0..1, and
# what was forged, float32 (size, size), 0..1.
Forger = Callable[[Drawing, Scene, list[Identity], np.random.Generator], tuple[np.ndarray, np.ndarray]]


def _swap(
    photo: Drawing, scene: Scene, people: list[Identity], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Somebody else's inner face on the person in the photo. A `Forger`."""
    size = len(photo.pixels)
    # A frame of about the same pose, in its own light; of its background nothing is used.
    yaw, pitch = rng.normal((scene.yaw, scene.pitch), (0.08, 0.04))
    frame = replace(draw_scene(rng), yaw=yaw, pitch=pitch, place="studio", pattern="plain")
    donor = render(_donor(people, rng), frame, size)
    face = _warp(_photograph(donor, rng), photo.landmarks, rng)
    face += rng.uniform(0, 0.01) * _grain(rng, size)  # a forger may add some grain, never the camera's

    mask, grow = photo.face, rng.uniform(-0.02, 0.02) * size
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(abs(grow)) + 1,) * 2)
    mask = (cv2.dilate if grow > 0 else cv2.erode)(mask, kernel)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.005, 0.022) * size)
    face = _match_colour(face, photo.pixels, mask, rng.uniform(0.55, 0.9))
    return photo.pixels + (face - photo.pixels) * mask[..., None], mask


FORGERIES: dict[str, Forger] = {"swap": _swap}


def _donor(people: list[Identity], rng: np.random.Generator) -> Identity:
    """Somebody like the first of `people`: forgers choose a likely donor."""
    target, *others = people

    def unlike(other: Identity) -> float:
        colour = 6 * np.abs(other.skin - target.skin).mean()
        traits = sum(getattr(other, k) != getattr(target, k) for k in ("feminine", "beard", "glasses"))
        return colour + traits + abs(other.age - target.age)

    return sorted(others, key=unlike)[rng.integers(2)]


def _warp(donor: Drawing, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The donor's face on the target's landmarks, by way of the lower resolution of a face generator."""
    size = len(donor.pixels)
    small = int(size * rng.uniform(0.38, 0.62))
    ones = np.ones((len(landmarks), 1), np.float32)
    fit = np.linalg.lstsq(np.hstack([donor.landmarks, ones]), landmarks * (small / size), rcond=None)[0]
    soft = cv2.GaussianBlur(donor.pixels, (0, 0), 0.35 * size / small)
    face = cv2.warpAffine(soft, fit.T, (small, small), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return cv2.resize(face, (size, size), interpolation=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)])


def _match_colour(image: np.ndarray, model: np.ndarray, mask: np.ndarray, strength: float) -> np.ndarray:
    """Give `image` the model's mean and deviation, a Lab channel each, of what is inside `mask`, in part."""
    where = mask > 0.5
    ours, theirs = cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.cvtColor(model, cv2.COLOR_RGB2LAB)
    a, b = ours[where], theirs[where]
    matched = (ours - a.mean(0)) * (b.std(0) / (a.std(0) + 1e-3)).clip(0.6, 1.6) + b.mean(0)
    return cv2.cvtColor(ours + (matched - ours) * np.float32(strength), cv2.COLOR_LAB2RGB)
