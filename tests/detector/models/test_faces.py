import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import UserError
from detector.images import EXTENSIONS, decode
from detector.models import faces
from detector.models.faces import MARGIN, MAX_FACES, Face, FaceFinder, crop, square
from detector.synthetic.sample import draw_sample

FOLDER = os.environ.get("DETECTOR_FACES")  # photographs of one face each


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


@pytest.fixture(scope="module")
def portraits() -> list[np.ndarray]:
    """Six drawn faces, 128 x 128."""
    return [decode(portrait.jpeg) for portrait in draw_sample({"Train": 6}, 128, seed=3)]


def scene(portraits: list[np.ndarray], places: list[tuple[int, int, int]], shape=(900, 1200)) -> np.ndarray:
    """Portraits on grey, at (left, top, side)."""
    image = np.full((*shape, 3), 120, np.uint8)
    for portrait, (left, top, side) in zip(portraits, places, strict=False):
        image[top : top + side, left : left + side] = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    return image


def in_the_middle_of(face: Face, left: int, top: int, side: int) -> bool:
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    return max(abs(x - left - side / 2), abs(y - top - side / 2)) < side / 4


# ---- find ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 128, 256, 1000, 2000])
def test_one_face_is_found_whether_small_or_huge(finder, portraits, side):
    for portrait in portraits[:2]:
        [face] = finder.find(cv2.resize(portrait, (side, side), interpolation=cv2.INTER_LINEAR))
        assert in_the_middle_of(face, 0, 0, side)
        assert 0.3 * side < face.box[3] - face.box[1] <= side
        assert 0.7 <= face.confidence <= 1


def test_several_faces_come_the_largest_first_and_within_the_image(finder, portraits):
    places = [(100, 100, 150), (500, 300, 400), (1000, 700, 80)]
    found = finder.find(scene(portraits, places))
    assert len(found) == 3
    for face, place in zip(found, [places[1], places[0], places[2]], strict=True):
        assert in_the_middle_of(face, *place)
    assert [face.area for face in found] == sorted((face.area for face in found), reverse=True)


def test_no_face_is_found_where_there_is_none(finder, photo):
    assert finder.find(photo(700, 900, seed=4)) == []
    assert finder.find(np.zeros((500, 400, 3), np.uint8)) == []
    assert finder.find(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 40), (2, 2)])
def test_images_too_small_for_a_face(finder, shape):
    assert finder.find(np.full((*shape, 3), 90, np.uint8)) == []


def test_of_a_crowd_the_largest_are_kept(monkeypatch):
    finder = FaceFinder()
    crowd = [(30 * i, 0, 30 * i + 10 + i % 7, 10 + i % 7, 0.9) for i in range(50)]
    monkeypatch.setattr(finder, "_search", lambda image: crowd)
    monkeypatch.setattr(faces, "SCALES", (10_000,))
    found = finder.find(np.zeros((100, 1600, 3), np.uint8))
    assert len(found) == MAX_FACES
    assert min(face.area for face in found) == 12**2


def test_boxes_of_one_face_become_one_and_doubtful_ones_none(monkeypatch):
    finder = FaceFinder()
    boxes = [
        (10, 10, 110, 110, 0.9),
        (12, 8, 108, 112, 0.95),  # the same face, surer
        (20, 20, 50, 50, 0.8),  # a part of it
        (200, 10, 260, 80, 0.5),  # doubtful
        (300, -20, 340, 20, 0.8),  # half outside
        (-50, -50, -10, -10, 0.99),  # outside
    ]
    monkeypatch.setattr(finder, "_search", lambda image: boxes)
    found = finder.find(np.zeros((300, 380, 3), np.uint8))
    assert [face.box for face in found] == [(12, 8, 108, 112), (300, 0, 340, 20)]


def test_threads_and_repetitions_find_the_same(finder, portraits):
    images = [scene(portraits[i:], [(50 * i, 40, 200), (500, 300, 90)], (500, 800)) for i in range(3)]
    expected = [finder.find(image) for image in images]
    assert all(expected)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(FaceFinder().find, images * 3)) == expected * 3


def test_views_and_rows_out_of_order_are_searched_alike(finder, portraits):
    image = scene(portraits, [(300, 100, 250)], (500, 800))
    assert finder.find(image[:, ::-1][:, ::-1]) == finder.find(image)
    assert finder.find(np.asfortranarray(image)) == finder.find(image)


@pytest.mark.skipif(not FOLDER, reason="DETECTOR_FACES names no folder of photographs")
def test_photographs_of_faces(finder):
    files = sorted(path for path in Path(FOLDER or ".").rglob("*") if path.suffix.lower() in EXTENSIONS)
    some = files[:: max(1, len(files) // 40)]
    found = [bool(finder.find(decode(path.read_bytes()))) for path in some]
    assert np.mean(found) > 0.85


# ---- crop ----------------------------------------------------------------------------------------------------------


def test_a_crop_is_the_square_around_the_face():
    image = np.arange(200 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 300, 3)
    face = Face((100, 60, 140, 120), 0.9)
    np.testing.assert_array_equal(crop(image, face, margin=0), image[60:120, 90:150])
    assert crop(image, face).shape == (84, 84, 3)  # 60 and 0.2 of it on either side
    assert MARGIN == 0.2


def test_outside_the_image_its_border_goes_on():
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    found = crop(image, Face((0, 0, 20, 20), 0.9), margin=0.5)
    np.testing.assert_array_equal(found[10:, 10:], image[:30, :30])
    np.testing.assert_array_equal(found[:10, 10:], np.repeat(image[:1, :30], 10, axis=0))
    np.testing.assert_array_equal(found[:10, :10], np.broadcast_to(image[0, 0], (10, 10, 3)))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), height=st.integers(1, 60), width=st.integers(1, 60), margin=st.floats(0, 2))
def test_every_face_within_an_image_can_be_cropped(data, height, width, margin):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    kept = image.copy()
    found = crop(image, Face((left, top, right, bottom), 1.0), margin)
    assert found.shape[0] == found.shape[1] >= max(right - left, bottom - top)
    assert found.dtype == np.uint8 and found.flags.owndata
    found[:] = 0
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("box", [(0, 0, 300, 300), (100, 50, 400, 350), (-0, 200, 250, 400)])
def test_a_large_crop_is_the_small_one_of_a_smaller_image(monkeypatch, photo, box):
    image = photo(400, 400)
    whole = crop(image, Face(box, 1.0), 0.3)
    monkeypatch.setattr(faces, "LARGEST", 120)
    small = crop(image, Face(box, 1.0), 0.3)
    assert small.shape == (120, 120, 3)
    expected = cv2.resize(whole, (120, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 3


def test_the_square_is_where_the_crop_comes_from(photo):
    image = photo(200, 300)
    face = Face((100, 60, 180, 150), 1.0)
    left, top, right, bottom = square(face, 0.1)
    np.testing.assert_array_equal(crop(image, face, 0.1), image[top:bottom, left:right])


def test_a_further_detector_is_an_entry_of_the_registry(monkeypatch):
    def load():
        return lambda image: [(1, 2, 30, 40, 0.9)]

    monkeypatch.setitem(faces.DETECTORS, "numpy", SimpleNamespace(load=load))  # numpy stands for the package it needs
    assert FaceFinder("numpy").find(np.zeros((50, 50, 3), np.uint8)) == [Face((1, 2, 30, 40), 0.9)]


def test_the_first_installed_detector_is_taken_and_none_is_an_error(monkeypatch):
    module = SimpleNamespace(load=lambda: lambda image: [])
    monkeypatch.setattr(faces, "DETECTORS", {"not_installed_at_all": None, "numpy": module})
    assert FaceFinder().find(np.zeros((50, 50, 3), np.uint8)) == []
    with pytest.raises(UserError, match="not_installed_at_all: not installed; run pip install"):
        FaceFinder("not_installed_at_all")
