import csv
import hashlib
import platform
from collections import Counter
from itertools import combinations
from typing import get_args

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from detector.augment import corruption
from detector.augment.corruption import Corruption
from detector.data.masks import read_mask
from detector.errors import UserError
from detector.params import SampleParams, load_params
from detector.synthetic import sample
from detector.synthetic.forgery import FORGERIES
from detector.synthetic.sample import draw_sample, write_sample

SIZE = 64
COUNTS = {"Train": 13, "Validation": 6, "Test": 8}
KINDS = tuple(FORGERIES)


def pixels(portrait):
    return cv2.imdecode(np.frombuffer(portrait.jpeg, np.uint8), cv2.IMREAD_UNCHANGED)


def split(portrait):
    return portrait.path.split("/")[0]


@pytest.fixture(scope="module")
def portraits():
    return list(draw_sample(COUNTS, SIZE, seed=5))


@pytest.fixture(scope="module", params=["swap", "drawn"])
def many(request):
    return list(draw_sample({"Train": 96}, SIZE, seed=5, kinds=[request.param]))


@pytest.fixture(scope="module")
def mixed():
    return list(draw_sample({"Train": 24, "Test": 8}, SIZE, seed=5, kinds=KINDS))


def mask_of(portrait):
    return cv2.imdecode(np.frombuffer(portrait.mask, np.uint8), cv2.IMREAD_UNCHANGED)


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


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round otherwise")
def test_the_default_sample_is_what_it_has_always_been():
    digest = hashlib.sha256()
    for p in draw_sample({"Train": 6, "Test": 4}, SIZE, seed=5):
        digest.update(p.path.encode() + p.jpeg + p.group.encode() + p.method.encode() + (p.mask or b""))
    assert digest.hexdigest() == "3259d25f0525068b37573a58f22583d0377aeeed135d9b598da79648dd6d1466"
    assert load_params().data.sample.kinds == ["swap"]


@pytest.fixture(scope="module")
def perturbed():
    """The bytes of 24 images of the perturbed test split: enough that a corruption more or less would show."""
    return [p.jpeg for p in draw_sample({"Test": 24}, SIZE, seed=5) if split(p) == "Test_Perturbed"]


@pytest.mark.parametrize("family", ["blur", "of its own"])
def test_another_corruption_changes_nothing_in_the_perturbed_split(perturbed, monkeypatch, family):
    def forget():
        for function in vars(corruption).values():
            getattr(function, "cache_clear", lambda: None)()

    for corruption_set in ("generic", "matched", "another"):
        added = Corruption(f"invert_{corruption_set}", family, corruption_set, lambda image, strength, rng: 255 - image)
        monkeypatch.setitem(corruption.CORRUPTIONS, added.name, added)
    forget()
    assert [p.jpeg for p in draw_sample({"Test": 24}, SIZE, seed=5) if split(p) == "Test_Perturbed"] == perturbed
    monkeypatch.undo()
    forget()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round otherwise")
def test_the_perturbed_split_is_what_it_has_always_been(perturbed):
    assert (
        hashlib.sha256(b"".join(perturbed)).hexdigest()
        == "16dccf3aefabee3874559d9645c2ad0448ee93126623acba4c34d29ce83c88ec"
    )


def test_the_perturbations_are_one_corruption_each_of_the_family_they_stand_in():
    families = [{corruption.CORRUPTIONS[name].family for name in names} for names in sample.PERTURBATIONS]
    assert all(len(family) == 1 for family in families) and len(set.union(*families)) == len(families)
    names = sum(sample.PERTURBATIONS, ())
    assert len(set(names)) == len(names)


def witness(monkeypatch, kind, check):
    """Draw sixteen images, eight of them fakes of `kind`, each checked: check(photo, forged, mask)."""
    forge = FORGERIES[kind]
    calls = []

    def watched(photo, scene, people, rng):
        forged, mask = forge(photo, scene, people, rng)
        assert forged.dtype == mask.dtype == np.float32
        assert forged.shape == (SIZE, SIZE, 3) and mask.shape == (SIZE, SIZE) and 0 <= mask.min() < mask.max() < 1.001
        calls.append(check(photo, forged, mask))
        return forged, mask

    monkeypatch.setitem(FORGERIES, kind, watched)
    methods = [p.method for p in draw_sample({"Train": 16}, SIZE, seed=1, kinds=[kind])]
    assert methods == ["camera", kind] * 8 and len(calls) == 8
    return calls


@pytest.mark.parametrize(("kind", "least"), [("swap", 0.02), ("retouch", 0.01)])
def test_a_local_forgery_changes_what_its_mask_covers_and_nothing_else(monkeypatch, kind, least):
    def check(photo, forged, mask):
        change = np.abs(forged - photo.pixels).max(2)
        assert change[mask == 0].max() == 0
        assert change[mask > 0.9].mean() > least

    witness(monkeypatch, kind, check)


def test_a_drawn_picture_is_another_throughout_and_its_mask_the_head(monkeypatch):
    def check(photo, forged, mask):
        change = np.abs(forged - photo.pixels).max(2)
        assert (change > 0).mean() > 0.9
        assert change[mask == 0].mean() > 0.01 and change[mask == 1].mean() > 0.01
        assert mask[photo.face == 1].mean() > 0.95 and 0.1 < mask.mean() < 0.4

    witness(monkeypatch, "drawn", check)


def test_retouches_are_of_the_eyes_the_nose_and_the_mouth(monkeypatch):
    def check(photo, forged, mask):
        y, x = np.argwhere(mask > 0.9).mean(0)
        left, right, nose, mouth_left, mouth_right, *_ = photo.landmarks
        parts = {"eyes": (left + right) / 2, "nose": nose, "mouth": (mouth_left + mouth_right) / 2}
        assert 0.01 < (mask > 0.5).mean() < 0.15
        return min(parts, key=lambda part: np.hypot(*(parts[part] - (x, y))))

    assert set(witness(monkeypatch, "retouch", check)) == {"eyes", "nose", "mouth"}


def test_several_kinds_are_classes_of_their_own_beside_as_many_real_images(mixed):
    assert Counter(tuple(p.path.split("/")[:2]) for p in mixed) == {
        ("Train", "Real"): 12,
        ("Train", "Swap"): 4,
        ("Train", "Drawn"): 4,
        ("Train", "Retouch"): 4,
        **{(name, "Real"): 4 for name in ("Test", "Test_Perturbed")},
        **{(name, "Swap"): 2 for name in ("Test", "Test_Perturbed")},
        **{(name, kind): 1 for name in ("Test", "Test_Perturbed") for kind in ("Drawn", "Retouch")},
    }
    assert len({p.path for p in mixed}) == len(mixed)
    for p in mixed:
        folder = p.path.split("/")[1]
        assert p.method == ("camera" if folder == "Real" else folder.lower())
        assert (p.mask is None) == (folder == "Real")
        if p.mask:
            mask = mask_of(p)
            assert mask.shape == (SIZE, SIZE) and mask.max() > 250
            assert mask[[0, -1]].max() == 0 and mask[:, [0, -1]].max() == 0


def test_the_photos_of_one_person_share_out_the_kinds(mixed):
    one = [p.method for p in mixed if p.group == "train-0001"]
    assert Counter(one) == {"camera": 3, "swap": 1, "drawn": 1, "retouch": 1}


def test_one_kind_of_any_name_makes_the_classes_real_and_fake():
    drawn = list(draw_sample({"Train": 4}, 64, seed=5, kinds=["retouch"]))
    assert [p.path.split("/")[1] for p in drawn] == ["Real", "Fake"] * 2
    assert [p.method for p in drawn] == ["camera", "retouch"] * 2


def test_more_kinds_leave_the_real_images_and_the_other_forgers_work_as_they_were(mixed, portraits):
    alone = {p.path.split("/")[2]: p.jpeg for p in portraits if p.path.startswith("Train/Fake")}
    real = {p.path: p.jpeg for p in portraits if p.method == "camera"}
    swaps = [p for p in mixed if p.path.startswith("Train/Swap")][:2]
    assert len(swaps) == 2 and all(alone[p.path.split("/")[2]] == p.jpeg for p in swaps)
    assert all(p.jpeg == real[p.path] for p in mixed if p.path in real)


def test_the_kinds_that_can_be_asked_for_are_the_forgers_there_are():
    kinds = SampleParams.model_fields["kinds"]
    assert get_args(get_args(kinds.annotation)[0]) == KINDS and kinds.metadata[1].max_length == len(KINDS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kinds: [swap]", "kinds: [swap, swap]", "data.sample.kinds: must name each kind once"),
        (
            "kinds: [swap]",
            "kinds: [swap, blur]",
            "data.sample.kinds.1: must be one of swap, drawn, retouch, got 'blur'",
        ),
        ("kinds: [swap]", "kinds: []", "data.sample.kinds: must be a list"),
        (
            "validation: 120\n    test: 200\n    size: 128                   # pixels\n    kinds: [swap]",
            "validation: 5\n    test: 200\n    size: 128\n    kinds: [swap, drawn, retouch]",
            "data.sample.validation: must be at least 6, two images for each of the kinds, got 5",
        ),
    ],
)
def test_bad_kinds_are_refused_in_words(tmp_path, old, new, message):
    with open("params.yaml", encoding="utf-8") as file:
        shipped = file.read()
    assert old in shipped
    (tmp_path / "params.yaml").write_text(shipped.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("[", r"\[")):
        load_params(tmp_path / "params.yaml")


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


def detail(image):
    """How much fine detail there is in each of 8 x 8 places."""
    fine = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32), cv2.CV_32F))
    return np.log(cv2.resize(fine, (8, 8), interpolation=cv2.INTER_AREA) + 0.5).ravel()


def test_the_forgery_leaves_a_trace_in_the_fine_detail(many):
    assert learnable(np.float64([detail(pixels(p)) for p in many]), many) > 0.7


def test_a_written_sample_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sample.os, "cpu_count", lambda: 1)
    write_sample(
        tmp_path / "sample", SampleParams(train=4, validation=4, test=4, size=SIZE, kinds=["swap", "retouch"]), seed=5
    )
    expected = list(draw_sample({"Train": 4, "Validation": 4, "Test": 4}, SIZE, seed=5, kinds=["swap", "retouch"]))
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
