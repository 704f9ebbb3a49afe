"""A data set of drawn portraits and drawn fakes, so that a first run needs no download and nobody's face."""

import csv
import os
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from tqdm import tqdm

from detector.augment.corruption import corrupt
from detector.data.masks import MASKS
from detector.params import SampleParams
from detector.synthetic.forgery import FORGERIES
from detector.synthetic.portrait import render
from detector.synthetic.portrait.camera import photograph
from detector.synthetic.portrait.sitter import Identity, draw_identity, draw_scene

PHOTOS = 3  # of one person in each class
NEIGHBOURS = 8  # people among whom a forger looks for a donor; a power of two
MANIFEST = "manifest.csv"

# The corruptions of the perturbed test split, by family. They are listed here so that the split's images stay the
# same, byte for byte, when detector/augment/corruption.py gains another one; see `_perturb`.
PERTURBATIONS = (
    ("jpeg",),
    ("resize", "pixelate"),
    ("gaussian_blur", "average_blur", "median_blur", "motion_blur"),
    ("gaussian_noise", "laplace_noise", "poisson_noise", "impulse_noise"),
    ("dropout", "coarse_dropout"),
    ("colour_shift", "grey", "hue", "saturation", "temperature", "posterise"),
    ("brightness", "contrast", "equalise"),
    ("sharpen", "emboss", "edge_overlay"),
    ("elastic_warp",),
    ("average_pool", "max_pool", "min_pool", "median_pool"),
    ("fog", "clouds", "frost", "snow", "rain"),
)


@dataclass(frozen=True)
class Portrait:
    """One image of the sample.

    path: "<split>/<class>/<number>.jpg"; a fake's class is Fake or, where there are several kinds, its kind.
    group: the person shown; a fake has its target's. method: "camera" for a real image, the kind of forgery
    for a fake. mask: PNG, 8-bit grey, as large as the image, 255 where it is forged; None for a real image.
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
        portraits = draw_sample(counts, params.size, seed, params.kinds, workers=os.cpu_count() or 1)
        total = sum(counts.values()) + params.test
        for portrait in tqdm(portraits, "draw", total, unit=" images", disable=None, leave=False):
            path = folder / portrait.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(portrait.jpeg)
            manifest.writerow((portrait.path, portrait.group, portrait.method))
            if portrait.mask:
                masks.writestr(zipfile.ZipInfo(f"{portrait.path}.png"), portrait.mask)


def draw_sample(
    counts: Mapping[str, int], size: int, seed: int, kinds: Sequence[str] = ("swap",), workers: int = 1
) -> Iterator[Portrait]:
    """Draw `counts[split]` images a split, half of them fake, `size` x `size` pixels, in a fixed order.

    The fakes are of the given `kinds`, names in `FORGERIES`, in turn. One kind makes the classes Real and Fake; several
    make Real and one class per kind ("Swap"), with as many real images as all fakes together. The three photos of each
    class of one person share the kinds among them.

    An image depends only on the seed, its split, its number and the kinds, and the kinds decide only which forger makes
    the fake. Nobody is in two splits, not even as a donor. Each image of the split "Test" is followed by the same image
    in "Test_Perturbed", corrupted as in published test sets.
    """
    tasks = [(split, i) for split, count in counts.items() for i in range(count)]
    draw = partial(_draw, seed=seed, size=size, kinds=kinds)
    if workers == 1:
        for task in tasks:
            yield from draw(task)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (os.getpid(),)) as pool:
        for portraits in pool.map(draw, tasks, chunksize=24):
            yield from portraits


def _begin_worker(parent: int) -> None:
    """Use one thread per process; on POSIX the process ends with its parent, even if that is killed."""
    cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw(task: tuple[str, int], seed: int, size: int, kinds: Sequence[str]) -> list[Portrait]:
    """One image of a split, an even one real, an odd one fake; in the test split, with its perturbed copy."""
    split, i = task
    number, fake = divmod(i, 2)
    person = number // PHOTOS
    rng = _rng(seed, split, "photo", i)
    scene = draw_scene(rng)
    photo = photograph(render(_person(seed, split, person), scene, size), rng)
    pixels, folder, method, mask = photo.pixels, "Real", "camera", None
    if fake:
        method = kinds[number % len(kinds)]
        folder = "Fake" if len(kinds) == 1 else method.capitalize()
        people = [_person(seed, split, person ^ k) for k in range(NEIGHBOURS)]  # within a block of the split
        pixels, forged = FORGERIES[method](photo, scene, people, rng)
        mask = cv2.imencode(".png", _uint8(forged))[1].tobytes()
    jpeg = _jpeg(_uint8(pixels), rng)
    name = f"{folder}/{number + 1:04d}.jpg"
    group = f"{split.lower()}-{person:04d}"
    portraits = [Portrait(f"{split}/{name}", jpeg, group, method, mask)]
    if split == "Test":
        rng = _rng(seed, split, "perturb", i)
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        perturbed = _jpeg(_perturb(image, rng), rng)
        portraits.append(Portrait(f"{split}_Perturbed/{name}", perturbed, group, method, mask))
    return portraits


def _perturb(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one to three corruptions of different families of `PERTURBATIONS`, JPEG last, as files are saved."""
    families = rng.permutation(len(PERTURBATIONS))[: rng.integers(1, 3, endpoint=True)]
    names = [PERTURBATIONS[i][rng.integers(len(PERTURBATIONS[i]))] for i in families]
    for name in sorted(names, key=lambda name: name == "jpeg"):
        image = corrupt(image, name, rng.uniform(0.2, 1.0), rng)
    return image


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng([seed, *(crc32(str(name).encode()) for name in names)])


@lru_cache(maxsize=64)
def _person(seed: int, split: str, k: int) -> Identity:
    return draw_identity(_rng(seed, split, "person", k))


def _uint8(image: np.ndarray) -> np.ndarray:
    return np.uint8(image.clip(0, 1) * 255 + 0.5)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """A uint8 RGB image as JPEG, of a quality and a chroma sampling met on the web."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)[rng.integers(2)]
    quality = int(rng.integers(74, 97))
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
