import numpy as np
import pytest

from detector.augment import geometry
from detector.augment.recipe import augment


@pytest.fixture
def image(photo) -> np.ndarray:
    return photo(48, 48, seed=3)


@pytest.fixture
def with_damage(defaults):
    def change(**values):
        damage = defaults.augment.corruption.model_copy(update=values)
        return defaults.augment.model_copy(update={"corruption": damage, "horizontal_flip": False})

    return change


def test_without_damage_it_is_the_geometry_and_draws_no_more(image, defaults):
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    np.testing.assert_array_equal(
        augment(image, defaults.augment, one), geometry.augment(image, defaults.augment, other)
    )
    assert one.random() == other.random()


@pytest.mark.parametrize(("generic", "matched", "share"), [(0.5, 0, 0.5), (0, 0.3, 0.3), (0.5, 0.5, 0.75), (1, 0, 1)])
def test_each_arm_comes_with_its_own_probability(image, with_damage, generic, matched, share):
    params = with_damage(generic=generic, matched=matched, strength=[0.5, 1.0])
    changed = [not np.array_equal(augment(image, params, np.random.default_rng(i)), image) for i in range(300)]
    assert np.mean(changed) == pytest.approx(share, abs=0.09)


def test_the_same_draw_gives_the_same_image_and_stronger_damage_changes_more(image, with_damage):
    def difference(strength: float) -> float:
        params = with_damage(generic=1, strength=[strength, strength])
        damaged = [augment(image, params, np.random.default_rng(i)) for i in range(40)]
        again = [augment(image, params, np.random.default_rng(i)) for i in range(40)]
        assert all(a.shape == image.shape and a.dtype == np.uint8 for a in damaged)
        assert all(np.array_equal(a, b) for a, b in zip(damaged, again, strict=True))
        return float(np.mean([np.abs(a.astype(int) - image).mean() for a in damaged]))

    weak, strong = difference(0.1), difference(1.0)
    assert weak < strong / 2
