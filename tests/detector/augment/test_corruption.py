from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.augment import corruption
from detector.augment.corruption import CORRUPTIONS, SEVERITIES, corrupt, perturb
from detector.errors import UserError
from detector.params import CORRUPTION_SETS

NAMES = list(CORRUPTIONS)
wild = settings(max_examples=20, deadline=None)
strengths = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def images(draw) -> np.ndarray:
    """Flat, noisy within bounds, or of extremes only; 1 x 1 to 40 x 40."""
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)), 3)
    low, high = sorted((draw(st.integers(0, 255)), draw(st.integers(0, 255))))
    rng = np.random.default_rng(draw(seeds))
    if draw(st.booleans()):
        return rng.choice(np.array([low, high], np.uint8), shape)
    return rng.integers(low, high, shape, np.uint8, endpoint=True)


def portrait(side: int = 256) -> np.ndarray:
    """A drawn head over a mottled background: flat areas, edges, shading and texture, like a photograph."""
    rng = np.random.default_rng(7)
    octaves = (rng.normal(0, 300 / n, (n, n, 3)).astype(np.float32) for n in (4, 8, 16, 32, 64, 128))
    mottled = sum(cv2.resize(o, (side, side), interpolation=cv2.INTER_CUBIC) for o in octaves)
    image = np.clip(0.4 * mottled + (110, 120, 130), 0, 255).astype(np.uint8)
    unit = side / 256

    def ellipse(x, y, width, height, colour):
        box = ((x * unit, y * unit), (width * unit, height * unit), 0)
        cv2.ellipse(image, box, colour, -1, cv2.LINE_AA)

    ellipse(133, 125, 160, 220, (60, 40, 30))
    ellipse(133, 141, 125, 158, (205, 160, 130))
    for x in (103, 163):
        ellipse(x, 129, 22, 15, (50, 70, 40))
    ellipse(133, 190, 61, 17, (160, 60, 60))
    shade = np.linspace(1.1, 0.8, side)[None, :, None]
    return np.clip(image * shade + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


PORTRAIT = portrait()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(np.float32) - b) ** 2))


def ladder(name: str, seed: int) -> list[float]:
    rungs = (corrupt(PORTRAIT, name, k / 5, np.random.default_rng(seed)) for k in SEVERITIES)
    return [distance(PORTRAIT, rung) for rung in rungs]


@pytest.mark.parametrize("name", NAMES)
@wild
@given(image=images(), strength=strengths, seed=seeds)
def test_any_image_gives_an_image_and_the_same_one_from_the_same_seed(name, image, strength, seed):
    before = image.copy()
    image.flags.writeable = False
    out = corrupt(image, name, strength, np.random.default_rng(seed))
    assert out.dtype == np.uint8 and out.shape == image.shape
    assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(out, corrupt(image, name, strength, np.random.default_rng(seed)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 700), (33, 500), (640, 48)])
@pytest.mark.parametrize("name", NAMES)
def test_elongated_images_at_full_strength(name, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = corrupt(image, name, 1, np.random.default_rng(0))
    assert out.dtype == np.uint8 and out.shape == image.shape


@pytest.mark.parametrize("name", NAMES)
def test_views_are_read_as_they_look(name):
    view = PORTRAIT[::-2, 3:200:2]
    expected = corrupt(np.ascontiguousarray(view), name, 0.6, np.random.default_rng(0))
    np.testing.assert_array_equal(corrupt(view, name, 0.6, np.random.default_rng(0)), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jpeg"])
@wild
@given(image=images(), seed=seeds)
def test_no_strength_is_the_identity_but_for_rounding(name, image, seed):
    out = corrupt(image, name, 0, np.random.default_rng(seed))
    assert np.abs(out.astype(int) - image).max() <= 1


def test_no_strength_of_jpeg_is_nearly_the_identity():
    for seed in range(4):  # with and without chroma subsampling
        assert distance(PORTRAIT, corrupt(PORTRAIT, "jpeg", 0, np.random.default_rng(seed))) < 4**2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_severity_grows(name, seed):
    rungs = ladder(name, seed)
    assert rungs[0] > 0.1, "the first severity must show"
    assert all(b >= 0.98 * a for a, b in pairwise(rungs)), rungs
    assert rungs[-1] > 1.5 * rungs[0], rungs


@pytest.mark.parametrize("name", NAMES)
def test_a_face_survives_the_strongest(name):
    # Recognition stood in for by layout: blurred and in grey, light and dark still lie where they did.
    for seed in range(4):
        out = corrupt(PORTRAIT, name, 1, np.random.default_rng(seed))
        luma = (cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in (PORTRAIT, out))
        before, after = (cv2.resize(i, (32, 32), interpolation=cv2.INTER_AREA).ravel() for i in luma)
        assert abs(np.corrcoef(before, after)[0, 1]) > 0.3


def test_size_does_not_change_what_a_strength_means():
    small, large = portrait(128), portrait(512)
    for name in ("gaussian_blur", "motion_blur", "pixelate", "elastic_warp", "fog", "rain", "snow", "frost"):
        a, b = (distance(i, corrupt(i, name, 1, np.random.default_rng(0))) for i in (small, large))
        assert 0.4 < a / b < 2.5, (name, a, b)


def test_noise_has_the_stated_size():
    flat = np.full((256, 256, 3), 128, np.uint8)
    variances = {"gaussian_noise": 25**2, "laplace_noise": 2 * 17.5**2, "poisson_noise": 128 * 255 / 80}
    for name, variance in variances.items():
        noise = corrupt(flat, name, 0.5, np.random.default_rng(0)).astype(np.float64) - 128
        assert abs(noise.mean()) < 0.3, name
        assert noise.var() == pytest.approx(variance, rel=0.04), name


def test_noise_comes_in_grey_and_in_colour():
    flat = np.full((32, 32, 3), 128, np.uint8)
    for name in (
        "gaussian_noise",
        "laplace_noise",
        "poisson_noise",
        "impulse_noise",
        "dropout",
        "coarse_dropout",
    ):
        spreads = [np.ptp(corrupt(flat, name, 1, np.random.default_rng(s)), axis=2).max() for s in range(16)]
        assert min(spreads) == 0 < max(spreads), name


def test_dropped_and_impulse_pixels_have_the_stated_share():
    flat = np.full((512, 512, 3), 128, np.uint8)
    for name, share in {"impulse_noise": 0.075, "dropout": 0.1, "coarse_dropout": 0.075}.items():
        shares = [np.mean(corrupt(flat, name, 0.5, np.random.default_rng(s)) != 128) for s in range(8)]
        assert np.mean(shares) == pytest.approx(share, rel=0.1), name


def test_colour_corruptions_leave_grey_alone_except_temperature():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for name in ("colour_shift", "grey", "hue", "saturation"):
        out = corrupt(ramp, name, 1, np.random.default_rng(0))
        assert np.abs(out.astype(int) - ramp).max() <= 1, name
    tinted = [corrupt(ramp, "temperature", 1, np.random.default_rng(seed))[0, 128] for seed in range(8)]
    assert {bool(r > g > b) for r, g, b in tinted} == {True, False}
    assert all(r > g > b or r < g < b for r, g, b in tinted)


def test_full_strength_of_grey_and_posterise():
    grey = corrupt(PORTRAIT, "grey", 1, np.random.default_rng(0))
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    assert set(np.unique(corrupt(PORTRAIT, "posterise", 1, np.random.default_rng(0)))) <= {0, 85, 170, 255}


@pytest.mark.parametrize("name, reduced", [("max_pool", np.max), ("min_pool", np.min), ("average_pool", np.mean)])
def test_pooling_takes_whole_blocks(name, reduced, monkeypatch):
    monkeypatch.setattr(corruption.cv2, "INTER_CUBIC", cv2.INTER_NEAREST)
    image = np.random.default_rng(0).integers(0, 256, (252, 252, 3), dtype=np.uint8)
    blocks = reduced(image.reshape(42, 6, 42, 6, 3), axis=(1, 3))
    out = corrupt(image, name, 1, np.random.default_rng(0))
    assert np.abs(out[3::6, 3::6] - blocks).max() <= 1


def test_unknown_names_sets_and_strengths_are_refused_in_one_line():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"'no_such_thing'.*jpeg.*rain"):
        corrupt(PORTRAIT, "no_such_thing", 0.5, rng)
    with pytest.raises(UserError, match="between 0 and 1"):
        corrupt(PORTRAIT, "jpeg", 1.5, rng)
    with pytest.raises(UserError, match="between 0 and 1"):
        corrupt(PORTRAIT, "jpeg", float("nan"), rng)
    for corruption_sets in ((), ("generic", "weather")):
        with pytest.raises(UserError, match="generic, matched, other"):
            perturb(PORTRAIT, rng, corruption_sets=corruption_sets)


def test_an_empty_set_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(
        corruption, "CORRUPTIONS", {n: c for n, c in CORRUPTIONS.items() if c.corruption_set != "other"}
    )
    with pytest.raises(UserError, match=r"set other has no corruption yet; add one in detector/augment/corruption\.py"):
        perturb(PORTRAIT, np.random.default_rng(0), corruption_sets=("generic", "other"))


def test_a_corruption_added_to_the_set_other_changes_no_draw_of_the_existing_sets(monkeypatch, defaults):
    named = {name: one for name, one in CORRUPTIONS.items() if one.corruption_set != "other"}
    monkeypatch.setattr(corruption, "CORRUPTIONS", named)
    image = PORTRAIT[:32, :32]
    sets = (("generic",), ("matched",), ("generic", "matched"))
    params = defaults.augment.model_copy(
        update={"corruption": defaults.augment.corruption.model_copy(update={"generic": 0.5, "matched": 0.5})}
    )

    def draws() -> list[bytes]:
        rng = np.random.default_rng
        drawn = [perturb(image, rng(seed), corruption_sets=names) for names in sets for seed in range(30)]
        drawn += [perturb(image, rng(seed)) for seed in range(30)]
        drawn += [corruption.augment(image, params, rng(seed)) for seed in range(30)]
        return [one.tobytes() for one in drawn]

    before = draws()
    negative = corruption.Corruption("negative", "colour", "other", lambda image, strength, rng: 255 - image)
    monkeypatch.setattr(corruption, "CORRUPTIONS", {"negative": negative, **named})
    assert draws() == before
    np.testing.assert_array_equal(perturb(image, np.random.default_rng(0), ("other",), (1, 1)), 255 - image)
    only_other = defaults.augment.corruption.model_copy(update={"other": 1.0})
    chosen = defaults.augment.model_copy(update={"corruption": only_other})
    np.testing.assert_array_equal(corruption.augment(image, chosen, np.random.default_rng(0)), 255 - image)


def test_every_entry_is_what_its_key_says():
    assert all(c.name == name and c.apply is getattr(corruption, name) for name, c in CORRUPTIONS.items())
    assert {"generic", "matched"} <= {c.corruption_set for c in CORRUPTIONS.values()} <= set(CORRUPTION_SETS)


@pytest.fixture
def applied(monkeypatch):
    """Records what `perturb` applies, as (name, strength)."""
    calls = []

    def record(image, name, strength, rng):
        calls.append((name, strength))
        return image

    monkeypatch.setattr(corruption, "corrupt", record)
    return calls


def test_perturb_reaches_every_corruption_of_its_sets_and_no_other(applied):
    rng = np.random.default_rng(0)
    for corruption_sets in (("generic",), ("matched",), ("generic", "matched")):
        applied.clear()
        for _ in range(2000):
            perturb(PORTRAIT[:1, :1], rng, corruption_sets=corruption_sets)
        assert {name for name, _ in applied} == {
            n for n, c in CORRUPTIONS.items() if c.corruption_set in corruption_sets
        }


def test_perturb_draws_within_its_bounds_one_a_family_and_compresses_last(applied):
    counts, firsts = set(), set()
    for seed in range(500):
        applied.clear()
        perturb(PORTRAIT[:1, :1], np.random.default_rng(seed), count=(2, 4), strength=(0.3, 0.6))
        names = [name for name, _ in applied]
        families = [CORRUPTIONS[name].family for name in names]
        assert len(set(families)) == len(families)
        assert "jpeg" not in names[:-1]
        assert all(0.3 <= strength <= 0.6 for _, strength in applied)
        counts.add(len(names))
        firsts.add(families[0])
    assert counts == {2, 3, 4}
    assert firsts == {c.family for c in CORRUPTIONS.values() if c.corruption_set != "other"} - {"compression"}


def test_perturb_draws_no_more_than_there_are_families(applied):
    perturb(PORTRAIT, np.random.default_rng(0), corruption_sets=("generic",), count=(50, 50))
    assert len(applied) == len({c.family for c in CORRUPTIONS.values() if c.corruption_set == "generic"})


@wild
@given(image=images(), seed=seeds)
def test_perturb_is_deterministic_and_leaves_its_input_alone(image, seed):
    before = image.copy()
    out = perturb(image, np.random.default_rng(seed), count=(0, 4))
    assert out.dtype == np.uint8 and out.shape == image.shape
    assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(out, perturb(image, np.random.default_rng(seed), count=(0, 4)))
