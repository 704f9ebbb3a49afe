import numpy as np
import pytest

from detector.augment.cutout import cut_out


@pytest.mark.parametrize("shape", [(71, 71), (128, 96), (256, 256)])
def test_a_part_of_the_face_is_covered_and_the_rest_stays(photo, shape):
    image = photo(*shape)
    original = image.copy()
    shares, centres = [], []
    for seed in range(60):
        covered = cut_out(image, np.random.default_rng(seed))
        assert covered.dtype == np.uint8 and covered.shape == image.shape
        changed = (covered != image).any(axis=2)
        shares.append(changed.mean())
        if changed.any():
            centres.append(np.argwhere(changed).mean(axis=0) / shape)
    np.testing.assert_array_equal(image, original)
    assert 0 < np.median(shares) < 0.15 and max(shares) < 0.35
    assert np.abs(np.mean(centres, axis=0) - 0.5).max() < 0.08  # about the middle, where the face is
    assert np.std(centres, axis=0).min() > 0.04  # but not always the same place


def test_the_cover_is_the_mean_colour_or_noise(photo):
    image = photo(128, 128)
    spread = []
    for seed in range(40):
        covered = cut_out(image, np.random.default_rng(seed))
        changed = (covered != image).any(axis=2)
        spread.append(covered[changed].std(axis=0).mean() if changed.any() else 0)
    flat = np.array(spread) < 1
    assert 8 < flat.sum() < 32
    assert np.array(spread)[~flat].min() > 50
