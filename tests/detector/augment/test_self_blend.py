import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.augment.self_blend import face_region, mismatch, self_blend

seeds = st.integers(0, 2**32 - 1)
wild = settings(max_examples=25, deadline=None)


def mottled(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.add(image, rng.integers(0, 30, image.shape, np.uint8))


@wild
@given(st.integers(1, 70), st.integers(1, 70), seeds, st.booleans())
def test_any_size_gives_an_image_of_that_size_and_leaves_its_input_alone(height, width, seed, with_donor):
    image, donor = mottled(height, width, seed), mottled(height, width, seed + 1)
    before, given_donor = image.copy(), donor.copy()
    out = self_blend(image, np.random.default_rng(seed), donor if with_donor else None)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert np.array_equal(image, before) and np.array_equal(donor, given_donor)


@wild
@given(seeds)
def test_the_same_seed_gives_the_same_bytes(seed):
    image = mottled(64, 64, 3)
    first, second = (self_blend(image, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)


def test_most_forgeries_differ_from_their_image_and_from_each_other():
    image = mottled(128, 128, 1)
    forged = [self_blend(image, np.random.default_rng(seed)) for seed in range(20)]
    changed = [np.abs(f.astype(int) - image).mean() for f in forged]
    assert np.median(changed) > 0.5
    assert len({f.tobytes() for f in forged}) == 20


@pytest.mark.parametrize("part", [False, True])
def test_a_region_is_soft_inside_the_image_and_clear_of_its_corners(part):
    for seed in range(40):
        region = face_region((128, 128), np.random.default_rng(seed), part)
        assert region.dtype == np.float32 and region.shape == (128, 128)
        assert region.min() >= 0 and region.max() <= 1 and region.max() > 0.5
        assert max(region[0, 0], region[0, -1], region[-1, 0], region[-1, -1]) < 0.05
        assert ((region > 0.1) & (region < 0.9)).any()


def test_parts_are_smaller_than_faces():
    areas = [
        np.mean([face_region((128, 128), np.random.default_rng(seed), part).mean() for seed in range(40)])
        for part in (True, False)
    ]
    assert areas[0] < 0.5 * areas[1]


def test_a_donor_shows_inside_the_region_only():
    image, donor = np.full((128, 128, 3), 90, np.uint8), mottled(128, 128, 5)
    forged = np.stack([self_blend(image, np.random.default_rng(s), donor, parts=0) for s in range(30)])
    texture = forged.astype(float).std(axis=(0, 3))
    assert texture[50:80, 50:80].mean() > 3 * texture[:6, :6].mean()


def test_a_mismatch_changes_the_image():
    image = mottled(96, 96, 2)
    changed = [not np.array_equal(mismatch(image, np.random.default_rng(seed)), image) for seed in range(40)]
    assert np.mean(changed) > 0.9
