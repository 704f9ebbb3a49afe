import numpy as np
import pytest

from detector.augment import geometry
from detector.augment.corruption import CORRUPTIONS, corrupt
from detector.augment.pipeline import augment, weakened, working_size


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
        augment(image, 48, defaults.augment, one), geometry.augment(image, defaults.augment, other)
    )
    assert one.random() == other.random()


@pytest.mark.parametrize(("generic", "matched", "share"), [(0.5, 0, 0.5), (0, 0.3, 0.3), (0.5, 0.5, 0.75), (1, 0, 1)])
def test_each_corruption_set_comes_with_its_own_probability(image, with_damage, generic, matched, share):
    params = with_damage(generic=generic, matched=matched, strength=[0.5, 1.0])
    changed = [not np.array_equal(augment(image, 48, params, np.random.default_rng(i)), image) for i in range(300)]
    assert np.mean(changed) == pytest.approx(share, abs=0.09)


def test_the_same_draw_gives_the_same_image_and_stronger_damage_changes_more(image, with_damage):
    def difference(strength: float) -> float:
        params = with_damage(generic=1, strength=[strength, strength])
        damaged = [augment(image, 48, params, np.random.default_rng(i)) for i in range(40)]
        again = [augment(image, 48, params, np.random.default_rng(i)) for i in range(40)]
        assert all(a.shape == image.shape and a.dtype == np.uint8 for a in damaged)
        assert all(np.array_equal(a, b) for a, b in zip(damaged, again, strict=True))
        return float(np.mean([np.abs(a.astype(int) - image).mean() for a in damaged]))

    weak, strong = difference(0.1), difference(1.0)
    assert weak < strong / 2


@pytest.mark.parametrize(
    ("shape", "damaged", "side"),
    [
        ((128, 128), True, 128),
        ((256, 256), True, 160),
        ((60, 120), True, 120),
        ((40, 40), True, 40),
        ((256, 256), False, 80),
    ],
)
def test_damage_comes_before_a_large_image_is_scaled_down(photo, with_damage, shape, damaged, side):
    params = with_damage(matched=1.0 if damaged else 0.0)
    assert working_size(photo(*shape), 80, params) == side
    assert augment(photo(*shape), 80, params, np.random.default_rng(0)).shape == (80, 80, 3)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_does_something_in_training_at_the_shipped_sizes(photo, defaults, with_damage, name):
    stored = photo(defaults.data.sample.size, defaults.data.sample.size, seed=5)
    stored = np.random.default_rng(1).integers(-20, 21, stored.shape) + stored
    stored = stored.clip(0, 255).astype(np.uint8)
    side = working_size(stored, defaults.model.image_size, with_damage(generic=1.0))
    image = stored[:side, :side]
    damaged = [corrupt(image, name, 0.6, np.random.default_rng(i)) for i in range(5)]
    assert min(np.abs(d.astype(int) - image).mean() for d in damaged) > 0.5


def test_a_cover_comes_with_its_probability_and_is_drawn_from_the_generator(image, defaults):
    params = defaults.augment.model_copy(update={"cutout": 0.3, "horizontal_flip": False})
    covered = [augment(image, 48, params, np.random.default_rng(i)) for i in range(300)]
    assert np.mean([(c != image).any() for c in covered]) == pytest.approx(0.3, abs=0.09)
    again = [augment(image, 48, params, np.random.default_rng(i)) for i in range(300)]
    assert all(np.array_equal(a, b) for a, b in zip(covered, again, strict=True))


def test_weakened_augmentation_has_smaller_ranges_and_probabilities(defaults):
    params = defaults.augment.model_copy(
        update={
            "rotation": 20,
            "shear": 0.15,
            "cutout": 0.4,
            "brightness": [0.8, 1.2],
            "corruption": defaults.augment.corruption.model_copy(update={"generic": 0.5, "matched": 0.2}),
        }
    )
    half = weakened(params, 0.5)
    assert (half.rotation, half.shear, half.cutout) == (10, 0.075, 0.2)
    assert half.brightness == pytest.approx([0.9, 1.1])
    assert (half.corruption.generic, half.corruption.matched) == (0.25, 0.1)
    assert half.corruption.strength == params.corruption.strength
    assert half.horizontal_flip == params.horizontal_flip
    assert weakened(params, 1.0) == params
    nothing = weakened(params, 0.0)
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    still = nothing.model_copy(update={"horizontal_flip": False})
    np.testing.assert_array_equal(augment(image, 48, still, np.random.default_rng(1)), image)
