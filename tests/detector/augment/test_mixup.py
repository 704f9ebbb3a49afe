import numpy as np
import pytest

from detector.augment.mixup import mix_pairs


def test_a_pair_shares_in_both_directions():
    pairs = np.array([[[0.0], [1.0]], [[0.0], [1.0]]], np.float32)
    mixed = mix_pairs(pairs, np.array([0.75, 1.0]))
    np.testing.assert_allclose(mixed, [[[0.25], [0.75]], [[0.0], [1.0]]])
    assert mixed.dtype == np.float32


def test_images_are_rounded_not_cut():
    pairs = np.zeros((1, 2, 3, 3, 3), np.uint8)
    pairs[0, 0], pairs[0, 1] = 255, 10
    mixed = mix_pairs(pairs, np.array([0.5]))
    assert mixed.dtype == np.uint8
    assert set(mixed.ravel().tolist()) == {132}  # 132.5, to even


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_are_the_images_themselves(share):
    pairs = np.random.default_rng(1).integers(0, 256, (4, 2, 5, 5, 3), np.uint8)
    np.testing.assert_array_equal(mix_pairs(pairs, np.full(4, share)), pairs if share else pairs[:, ::-1])
