import csv
from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from detector.data import sample
from detector.data.sample import draw_sample, read_mask, write_sample
from detector.params import SampleParams

SIZE = 64
COUNTS = {"Train": 13, "Validation": 6, "Test": 8}


def pixels(portrait):
    return cv2.imdecode(np.frombuffer(portrait.jpeg, np.uint8), cv2.IMREAD_UNCHANGED)


def split(portrait):
    return portrait.path.split("/")[0]


@pytest.fixture(scope="module")
def portraits():
    return list(draw_sample(COUNTS, SIZE, seed=5))


@pytest.fixture(scope="module")
def many():
    return list(draw_sample({"Train": 96}, SIZE, seed=5))


def test_half_of_every_split_is_fake_and_the_odd_one_is_real(portraits):
    kinds = Counter(tuple(portrait.path.split("/")[:2]) for portrait in portraits)
    assert kinds == {
        ("Train", "Real"): 7,
        ("Train", "Fake"): 6,
        ("Validation", "Real"): 3,
        ("Validation", "Fake"): 3,
        ("Test", "Real"): 4,
        ("Test", "Fake"): 4,
        ("Test_Perturbed", "Real"): 4,
        ("Test_Perturbed", "Fake"): 4,
    }
    assert len({portrait.path for portrait in portraits}) == len(portraits)
    assert {"Train/Real/0007.jpg", "Train/Fake/0001.jpg", "Test_Perturbed/Fake/0004.jpg"} <= {
        portrait.path for portrait in portraits
    }


def test_images_are_jpegs_of_the_size_asked_for(portraits):
    for portrait in portraits:
        assert portrait.jpeg[:3] == b"\xff\xd8\xff"
        image = pixels(portrait)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 and image.std() > 8


def test_fakes_alone_have_a_method_and_a_mask(portraits):
    for portrait in portraits:
        fake = "/Fake/" in portrait.path
        assert portrait.method == ("swap" if fake else "camera")
        assert (portrait.mask is not None) == fake
        if fake:
            mask = cv2.imdecode(np.frombuffer(portrait.mask, np.uint8), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8
            assert mask.max() > 250 and 0.03 < (mask > 127).mean() < 0.4
            assert mask[[0, -1]].max() == 0 and mask[:, [0, -1]].max() == 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(portraits):
    sample._person.cache_clear()
    assert list(draw_sample({"Train": 6, "Test": 4}, SIZE, seed=5)) == [*portraits[:6], *portraits[-16:-8]]
    others = draw_sample({"Train": 6, "Test": 4}, SIZE, seed=6)
    assert not {portrait.jpeg for portrait in others} & {portrait.jpeg for portrait in portraits}


def test_workers_do_not_change_the_images(portraits):
    assert list(draw_sample({"Train": 13}, SIZE, seed=5, workers=2)) == portraits[:13]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(portraits):
    fewer = list(draw_sample({"Validation": 3, "Test": 2}, SIZE, seed=5))
    assert (
        fewer
        == [p for p in portraits if split(p) == "Validation"][:3]
        + [p for p in portraits if split(p).startswith("Test")][:4]
    )


def test_nobody_is_in_two_splits_not_even_as_a_donor(monkeypatch):
    seen = {}
    real = sample._person

    def note(seed, split, k):
        seen.setdefault(split, set()).add(real(seed, split, k).seed)
        return real(seed, split, k)

    monkeypatch.setattr(sample, "_person", note)
    drawn = list(draw_sample({"Train": 14, "Validation": 4, "Test": 4}, 32, seed=5))
    assert len(seen) == 3 and all(len(people) >= 3 for people in seen.values())
    assert all(not a & b for a, b in combinations(seen.values(), 2))
    groups = [{p.group for p in drawn if split(p).startswith(name)} for name in seen]
    assert all(not a & b for a, b in combinations(groups, 2))


def test_photos_of_one_person_share_a_group_real_or_fake(portraits):
    train = [p for p in portraits if split(p) == "Train"]
    assert Counter(p.group for p in train) == {"train-0000": 6, "train-0001": 6, "train-0002": 1}
    assert Counter(p.method for p in train if p.group == "train-0000") == {"camera": 3, "swap": 3}


def test_the_perturbed_test_split_shows_the_very_same_images(portraits):
    clean = [p for p in portraits if split(p) == "Test"]
    perturbed = [p for p in portraits if split(p) == "Test_Perturbed"]
    for a, b in zip(clean, perturbed, strict=True):
        assert b.path == a.path.replace("Test", "Test_Perturbed")
        assert (b.group, b.method, b.mask) == (a.group, a.method, a.mask)
    before, after = (np.int32([pixels(p) for p in images]) for images in (clean, perturbed))
    assert np.median(np.abs(after - before).mean((1, 2, 3))) > 4


def test_a_swap_changes_what_its_mask_covers_and_nothing_else(monkeypatch):
    def watched(photo, scene, people, rng):
        forged, mask = sample._swap(photo, scene, people, rng)
        change = np.abs(forged - photo.pixels).max(2)
        assert change[mask == 0].max() == 0
        assert change[mask > 0.9].mean() > 0.02
        watched.calls += 1
        return forged, mask

    watched.calls = 0
    monkeypatch.setattr(sample, "FORGERIES", {"watched": watched})
    methods = [p.method for p in draw_sample({"Train": 8}, SIZE, seed=1)]
    assert methods == ["camera", "watched"] * 4 and watched.calls == 4


def test_kinds_of_forgery_take_turns(monkeypatch):
    def mirror(photo, scene, people, rng):
        return photo.pixels[:, ::-1], np.ones_like(photo.face)

    monkeypatch.setattr(sample, "FORGERIES", {"swap": sample._swap, "mirror": mirror})
    fakes = [p.method for p in draw_sample({"Train": 8}, 32, seed=1) if p.mask]
    assert fakes == ["swap", "mirror", "swap", "mirror"]


def learnable(features, portraits):
    """The cross-validated AUC, across persons, of a linear classifier."""
    labels = np.array([p.method != "camera" for p in portraits])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = cross_val_predict(
        model, features, labels, cv=GroupKFold(4), groups=[p.group for p in portraits], method="predict_proba"
    )
    return roc_auc_score(labels, folds[:, 1])


def test_nothing_trivial_gives_the_class_away(many):
    images = [pixels(p) for p in many]
    size = [[len(p.jpeg)] for p in many]
    tables = [list(p.jpeg[p.jpeg.index(b"\xff\xdb") + 5 :][:64]) for p in many]
    colour = [np.r_[image.mean((0, 1)), image.std((0, 1))] for image in images]
    thumbnail = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in images]
    for features in (size, tables, colour, thumbnail):
        assert learnable(np.float64(features), many) < 0.65


def test_the_forgery_leaves_a_trace_in_the_fine_detail(many):
    def detail(image):
        fine = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32), cv2.CV_32F))
        grid = cv2.resize(fine, (8, 8), interpolation=cv2.INTER_AREA)
        return np.log(grid + 0.5).ravel()

    assert learnable(np.float64([detail(pixels(p)) for p in many]), many) > 0.7


def test_a_written_sample_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sample.os, "cpu_count", lambda: 1)
    write_sample(tmp_path / "sample", SampleParams(train=4, validation=4, test=4, size=SIZE), seed=5)
    expected = list(draw_sample({"Train": 4, "Validation": 4, "Test": 4}, SIZE, seed=5))
    with open(tmp_path / "sample" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"path": p.path, "group": p.group, "method": p.method} for p in expected]
    for portrait in expected:
        assert (tmp_path / "sample" / portrait.path).read_bytes() == portrait.jpeg
        mask = read_mask(tmp_path / "sample", portrait.path)
        if portrait.mask is None:
            assert mask is None
        else:
            assert mask.shape == (SIZE, SIZE) and mask.dtype == np.float32 and 0.9 < mask.max() <= 1
