from collections import Counter

import numpy as np
import pytest

from detector.images import decode
from detector.models.faces import Face, crop
from detector.prepare.face_crops import NoFace, face_crops
from detector.prepare.ingest import ingest
from detector.prepare.sources import Source
from detector.prepare.splits import Entry

BOX = (10, 12, 30, 40)


class Store:
    def __init__(self, files):
        self.files, self.ignored = files, Counter()

    def read(self, paths):
        return ((path, self.files[path]) for path in sorted(paths))


class BrightCorner:
    """Stands in for a FaceFinder: two faces where the first pixel is bright, none elsewhere."""

    def find(self, image):
        return [Face(BOX, 0.9), Face((0, 0, 5, 5), 0.9)] if image[0, 0, 0] > 127 else []


def source(files) -> Source:
    entries = [Entry(path, *path.split("/")[:2], group=path, attributes={}) for path in sorted(files)]
    return Source("memory", entries, ["real", "fake"], {}, 0, Store(files))


@pytest.fixture
def noisy():
    def draw(seed: int, corner: int) -> np.ndarray:
        image = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
        image[0, 0] = corner
        return image

    return draw


def test_every_image_becomes_its_largest_face_and_the_rest_says_why_not(noisy, encode):
    refused = OSError("cut short")
    files = {
        "train/real/face": encode(noisy(1, 255)),
        "train/real/gone": refused,
        "train/real/none": encode(noisy(2, 0)),
        "train/real/text": b"hello",
    }
    found = {entry.path: data for entry, data in face_crops(source(files), BrightCorner()).read()}
    np.testing.assert_array_equal(decode(found["train/real/face"]), crop(noisy(1, 255), Face(BOX, 0.9)))
    assert found["train/real/gone"] is refused and found["train/real/text"] == b"hello"
    assert isinstance(found["train/real/none"], NoFace)


def test_images_without_a_face_are_excluded_as_such(noisy, encode, tmp_path):
    places = [
        f"{split}/{kind}/{number}"
        for split in ("train", "validation", "test")
        for kind in ("real", "fake")
        for number in range(4)
    ]
    files = {path: encode(noisy(seed, 0 if path.endswith("0") else 255)) for seed, path in enumerate(places)}
    summary = ingest(face_crops(source(files), BrightCorner()), tmp_path, 1024, "drop", np.random.default_rng(0))
    assert summary["excluded"]["reasons"]["no face found"]["images"] == 6
    assert summary["images"] == 18 and summary["scaled_down"] == 0
    assert summary["sizes"]["width"] == {"min": 39.0, "median": 39.0, "max": 39.0}
