import copy

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.legacy.preprocessing.image import apply_affine_transform

from detector.augment.geometry import affine_matrix, augment
from detector.params import AugmentParams, load_params

NOTHING = load_params().augment.model_dump() | {
    "rotation": 0,
    "width_shift": 0,
    "height_shift": 0,
    "shear": 0,
    "zoom": 0,
    "horizontal_flip": False,
    "brightness": [1, 1],
}


def params(**changes) -> AugmentParams:
    return AugmentParams.model_validate(NOTHING | changes)


class Ends:
    """A generator that draws the upper or the lower end of every range, and flips or not."""

    def __init__(self, upper: bool = True, flips: bool = True):
        self.upper, self.flips = upper, flips

    def uniform(self, low, high, size=None):
        value = high if self.upper else low
        return value if size is None else np.full(size, value)

    def random(self):
        return 0.0 if self.flips else 0.999


def warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[:2], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def kerases(image: np.ndarray, rotation=0.0, shift=(0.0, 0.0), shear=0.0, zoom=(1.0, 1.0)) -> np.ndarray:
    """The same by Keras's ImageDataGenerator, whose tx and ty, for all that they are called, shift along x and y."""
    return apply_affine_transform(
        image.astype(np.float32),
        theta=rotation,
        tx=shift[0],
        ty=shift[1],
        shear=shear,
        zx=zoom[0],
        zy=zoom[1],
        row_axis=0,
        col_axis=1,
        channel_axis=2,
        fill_mode="nearest",
        order=1,
    )


def assert_same_picture(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(float) - theirs)
    assert difference.max() < 4 and difference.mean() < 0.6  # OpenCV rounds positions to 1/32 pixel, values to 1


@pytest.fixture(scope="module")
def smooth(photo) -> np.ndarray:
    """64 x 64, hardly symmetric, its steepest slope about 20 a pixel."""
    return photo(64, 64, seed=3)


# ---- one thing at a time ---------------------------------------------------------------------------------------


def test_ranges_of_zero_leave_the_image_as_it_is(photo):
    for seed in range(5):
        np.testing.assert_array_equal(augment(photo(64, 64), params(), np.random.default_rng(seed)), photo(64, 64))


@pytest.mark.parametrize("size", [2, 7, 64])
def test_a_flip_mirrors_exactly(photo, size):
    image = photo(size, size)
    np.testing.assert_array_equal(augment(image, params(horizontal_flip=True), Ends()), image[:, ::-1])
    np.testing.assert_array_equal(augment(image, params(horizontal_flip=True), Ends(flips=False)), image)
    np.testing.assert_array_equal(augment(image, params(), Ends()), image)


@pytest.mark.parametrize("size", [2, 7, 64])
def test_a_quarter_turn_is_about_the_centre(photo, size):
    image = photo(size, size)
    np.testing.assert_array_equal(augment(image, params(rotation=90), Ends()), np.rot90(image))
    np.testing.assert_array_equal(augment(image, params(rotation=90), Ends(upper=False)), np.rot90(image, -1))
    np.testing.assert_array_equal(augment(image, params(rotation=180), Ends()), image[::-1, ::-1])


def test_shifts_are_shares_of_the_side_and_repeat_the_border(photo):
    image = photo(40, 40)
    left = augment(image, params(width_shift=0.25), Ends())
    np.testing.assert_array_equal(left[:, :30], image[:, 10:])
    np.testing.assert_array_equal(left[:, 30:], np.repeat(image[:, -1:], 10, axis=1))
    down = augment(image, params(height_shift=0.5), Ends(upper=False))
    np.testing.assert_array_equal(down[20:], image[:20])
    np.testing.assert_array_equal(down[:20], np.repeat(image[:1], 20, axis=0))


def test_zoom_scales_about_the_centre():
    image = np.zeros((64, 64, 3), np.uint8)
    image[24:40, 24:40] = 200
    for end, side in ((True, 16 / 1.5), (False, 32)):
        area = augment(image, params(zoom=0.5), Ends(upper=end))[..., 0]
        assert area.sum() / 200 == pytest.approx(side**2, rel=0.05)
        rows, columns = np.indices(area.shape)
        assert np.average(rows, weights=area) == pytest.approx(31.5, abs=0.2)
        assert np.average(columns, weights=area) == pytest.approx(31.5, abs=0.2)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 2, 4])
def test_brightness_multiplies_and_saturates(photo, factor):
    image = photo(64, 64)
    lit = augment(image, params(brightness=[factor, factor]), Ends())
    expected = np.clip(np.rint(image * float(factor)), 0, 255)
    assert np.abs(lit - expected).max() <= 1
    assert lit.max() <= 255 and (lit[image * factor >= 256] == 255).all()


# ---- against Keras ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upper", [True, False], ids=["upper", "lower"])
@pytest.mark.parametrize(
    "ranges",
    [
        {"rotation": 20},
        {"width_shift": 0.2},
        {"height_shift": 0.2},
        {"shear": 15},
        {"zoom": 0.2},
        {"rotation": 35, "width_shift": 0.13, "height_shift": 0.21, "shear": 25, "zoom": 0.3},
        {"rotation": 20, "width_shift": 0.2, "height_shift": 0.2, "shear": 15, "zoom": 0.2},
    ],
    ids=lambda ranges: "+".join(ranges),
)
def test_every_map_is_that_of_imagedatagenerator(smooth, ranges, upper):
    ours = augment(smooth, params(**ranges), Ends(upper))
    sign = 1 if upper else -1
    theirs = kerases(
        smooth,
        rotation=sign * ranges.get("rotation", 0),
        shift=(sign * 64 * ranges.get("width_shift", 0), sign * 64 * ranges.get("height_shift", 0)),
        shear=sign * ranges.get("shear", 0),
        zoom=(1 + sign * ranges.get("zoom", 0),) * 2,
    )
    assert_same_picture(ours, theirs)
    assert np.abs(ours.astype(float) - smooth).mean() > 3


@settings(max_examples=40, deadline=None)
@given(
    rotation=st.floats(-180, 180),
    shift=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    shear=st.floats(-45, 45),
    zoom=st.tuples(st.floats(0.6, 1.8), st.floats(0.6, 1.8)),
)
def test_the_matrix_is_kerases_for_any_values(smooth, rotation, shift, shear, zoom):
    ours = warped(smooth, affine_matrix(64, rotation, shift, shear, zoom))
    assert_same_picture(ours, kerases(smooth, rotation, shift, shear, zoom))


def test_a_flip_comes_with_the_mirrored_map(smooth):
    """Keras mirrors the outcome, we the input: the same but for signs, which are drawn evenly."""
    ranges = {"rotation": 20, "width_shift": 0.2, "height_shift": 0.1, "shear": 15, "zoom": 0.2}
    ours = augment(smooth, params(**ranges, horizontal_flip=True), Ends())
    theirs = kerases(smooth, -20, (-0.2 * 64, 0.1 * 64), -15, (1.2, 1.2))[:, ::-1]
    assert_same_picture(ours, theirs)


# ---- as it is used ---------------------------------------------------------------------------------------------

ranges = st.fixed_dictionaries(
    {
        "rotation": st.floats(0, 180),
        "width_shift": st.floats(0, 0.99),
        "height_shift": st.floats(0, 0.99),
        "shear": st.floats(0, 60),
        "zoom": st.floats(0, 0.99),
        "horizontal_flip": st.booleans(),
        "brightness": st.tuples(st.floats(0.01, 4), st.floats(0.01, 4)).map(sorted),
    }
)


@settings(max_examples=100, deadline=None)
@given(ranges=ranges, size=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
def test_any_ranges_give_an_image_of_the_same_shape_and_leave_the_input_alone(photo, ranges, size, seed):
    image = photo(size, size)
    before = image.copy()
    out = augment(image, params(**ranges), np.random.default_rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    low, high = ranges["brightness"]
    assert out.min() >= np.floor(image.min() * min(low, 1)) - 1 and out.max() <= np.ceil(image.max() * max(high, 1)) + 1
    np.testing.assert_array_equal(out, augment(before, params(**ranges), np.random.default_rng(seed)))


def test_a_read_only_image_will_do(photo):
    image = photo(64, 64).copy()
    image.flags.writeable = False
    for ranges in ({}, {"rotation": 20}, {"brightness": [0.5, 0.5]}):
        assert augment(image, params(**ranges), np.random.default_rng(0)).shape == image.shape


def test_the_draws_are_spread_over_their_ranges():
    """Of 400 variants about half are flipped, and brightness reaches from nearly 0.8 to nearly 1.2."""
    image = np.full((16, 16, 3), 100, np.uint8)
    image[:, :8] = 50
    rng = np.random.default_rng(7)
    only = params(horizontal_flip=True, brightness=[0.8, 1.2])
    variants = [augment(image, only, rng)[0] for _ in range(400)]
    flipped = [variant[0, 0] > variant[-1, 0] for variant in variants]
    assert 150 < sum(flipped) < 250
    factors = [int(variant.max()) / 100 for variant in variants]
    assert 0.79 <= min(factors) < 0.82 and 1.18 < max(factors) <= 1.21


def test_a_range_does_not_change_the_draws_of_the_others(photo):
    """Two recipes that differ in one range see the same rotations, so that comparing them is fair."""
    rng = np.random.default_rng(3)
    state = copy.deepcopy(rng)
    augment(photo(32, 32), params(rotation=20, zoom=0.2, brightness=[0.8, 1.2]), rng)
    augment(photo(32, 32), params(), state)
    assert rng.random() == state.random()
