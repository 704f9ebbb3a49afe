import io
import json

import numpy as np
import pytest
from PIL import Image

from detector.images import decode
from detector.prepare.shortcuts import FEATURES, STANDARD_ERRORS, null_standard_error, shortcut_audit, trivial_features

SIZES = {"train": 120, "test": 100}


def drawn(sizes: dict[str, int] = SIZES, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that say nothing about the class, with labels and splits."""
    rng = np.random.default_rng(seed)
    n = sum(sizes.values())
    features = np.zeros(n, FEATURES)
    features["file_size"][:, 0] = np.exp(rng.normal(9.5, 0.4, n))
    features["dimensions"] = rng.integers(200, 300, (n, 2))
    features["encoding"][:, :128] = rng.integers(1, 4, (n, 1)) * np.arange(1, 129)
    features["thumbnail"] = rng.integers(0, 256, (n, 768))
    labels = rng.permuted(np.arange(n) % 2)
    return features, labels, np.repeat(list(sizes), list(sizes.values()))


def audit(features, labels, splits, groups=None) -> dict:
    """With a group of its own for every image unless `groups` says otherwise."""
    return shortcut_audit(features, labels, splits, np.random.default_rng(0), groups or range(len(labels)))


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


# ---- features

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)


def of(data: bytes) -> np.ndarray:
    return trivial_features(data, decode(data))


def test_features_of_a_jpeg():
    data = encoded(IMAGE, "JPEG", quality=75, subsampling="4:2:0", progressive=True)
    row = of(data)
    with Image.open(io.BytesIO(data)) as file:
        tables = file.quantization
    assert row["file_size"].tolist() == [len(data)]
    assert row["dimensions"].tolist() == [80, 48]
    assert row["encoding"][:64].tolist() == tables[0] and row["encoding"][64:128].tolist() == tables[1]
    assert row["encoding"][128:].tolist() == [2, 3, 1, 0, 3, 0, 0]
    assert row["thumbnail"].shape == (768,) and row.nbytes == 1046


def test_features_tell_encodings_apart():
    plain = {"quality": 75, "subsampling": "4:2:0"}
    exif = Image.Exif()
    exif[271] = "a camera"
    files = [
        encoded(IMAGE, "JPEG", **plain),
        encoded(IMAGE, "JPEG", **plain | {"quality": 76}),
        encoded(IMAGE, "JPEG", **plain | {"subsampling": "4:4:4"}),
        encoded(IMAGE, "JPEG", **plain, progressive=True),
        encoded(IMAGE, "JPEG", **plain, exif=exif),
        encoded(IMAGE[..., 0], "JPEG", quality=75),
        encoded(IMAGE, "PNG"),
        encoded(IMAGE, "WEBP"),
        encoded(IMAGE, "BMP"),
    ]
    assert len({of(data)["encoding"].tobytes() for data in files}) == len(files)
    assert of(encoded(IMAGE, "PNG"))["encoding"][:129].tolist() == [0] * 129


# ---- audit


def test_features_drawn_at_random_give_no_warning():
    found = audit(*drawn())
    assert found["warnings"] == []
    assert found["images"] == SIZES
    for table in (found["from_train"], found["within"]):
        assert set(table) == set(FEATURES.names)
        assert all(0.3 < auc < 0.7 for row in table.values() for auc in row.values())
    json.dumps(found)


@pytest.mark.parametrize("planted", [["train", "test"], ["train"], ["test"]], ids="-".join)
def test_larger_files_of_fakes_are_told_in_the_splits_that_have_them(planted):
    features, labels, splits = drawn()
    larger = (labels == 1) & np.isin(splits, planted)
    features["file_size"][larger] *= 3
    found = audit(features, labels, splits)
    for split in SIZES:
        assert (found["within"]["file_size"][split] > 0.9) == (split in planted)
    assert all("size of the file" in sentence and "median fake" in sentence for sentence in found["warnings"])
    told = [split for text in found["warnings"] for split in SIZES if f"{split} (" in text]
    assert told == planted
    assert (found["from_train"]["file_size"]["test"] > 0.9) == (len(planted) == 2)


def test_what_train_cannot_teach_is_not_said_to_be_learnt_there():
    features, labels, splits = drawn()
    lucky = 0
    for larger in (0, 1):  # what a classifier takes from train is chance, and agrees with one of the two
        planted = features.copy()
        planted["file_size"][(labels == larger) & (splits == "test")] *= 9
        found = audit(planted, labels, splits)
        lucky += found["from_train"]["file_size"]["test"] > 0.8
        assert [text.split(" (")[0] for text in found["warnings"]] == [
            "The size of the file alone tells fake from real within test"
        ]
    assert lucky == 1


def test_a_shortcut_that_turns_round_is_no_shortcut_from_train():
    features, labels, splits = drawn()
    larger = (labels == 1) == (splits != "test")
    features["file_size"][larger] *= 3
    found = audit(features, labels, splits)
    assert found["from_train"]["file_size"]["test"] < 0.1
    assert any("within test" in sentence for sentence in found["warnings"])
    assert not any("learnt on train" in text and "test (" in text for text in found["warnings"])


def test_each_feature_is_caught_by_its_own_name():
    features, labels, splits = drawn()
    fake = labels == 1
    features["dimensions"][fake] = 256  # amid sizes from 200 to 299: no larger, no smaller
    features["encoding"][fake, 70] += 1
    features["thumbnail"][fake] //= 2
    found = audit(features, labels, splits)
    for feature in ("dimensions", "encoding", "thumbnail"):
        assert found["from_train"][feature]["test"] > 0.95
    assert 0.3 < found["from_train"]["file_size"]["test"] < 0.7
    assert len(found["warnings"]) == 6
    assert "256 x 256" in found["warnings"][0]


def test_a_small_test_set_does_not_cry_wolf():
    features, labels, splits = drawn({"train": 400, "test": 60})
    features["file_size"][labels == 1] = features["file_size"][labels == 1] * 1.25
    found = audit(features, labels, splits)
    assert 0.6 < found["from_train"]["file_size"]["test"] < 0.5 + STANDARD_ERRORS * null_standard_error(30, 30)
    assert not any("test (" in sentence for sentence in found["warnings"])


def test_standard_error_is_that_of_the_rank_sum_of_noise():
    rng = np.random.default_rng(0)
    noise = rng.random((20_000, 50)).argsort(axis=1).argsort(axis=1) + 1
    aucs = (noise[:, :30].sum(axis=1) - 30 * 31 / 2) / (30 * 20)
    assert null_standard_error(30, 20) == pytest.approx(aucs.std(), rel=0.02)


def test_images_of_one_group_prove_nothing_by_resembling_one_another():
    features, _, splits = drawn({"train": 240})
    groups = np.arange(240) // 6
    labels = groups % 2
    features["thumbnail"] = features["thumbnail"][groups * 6]
    assert audit(features, labels, splits)["within"]["thumbnail"]["train"] > 0.95
    found = audit(features, labels, splits, groups.tolist())
    assert found["within"]["thumbnail"]["train"] < 0.75
    assert found["warnings"] == []


def test_what_cannot_be_told_is_none():
    features, labels, splits = drawn({"train": 30, "validation": 30, "test": 30})
    labels[splits == "test"] = 1
    found = audit(features, labels, splits)
    assert found["from_train"]["file_size"]["test"] is None and found["within"]["file_size"]["test"] is None
    assert found["from_train"]["file_size"]["validation"] is not None
    labels[:] = 1 - (splits == "test")
    found = audit(features, labels, splits)
    assert set(found["from_train"]["thumbnail"].values()) == {None} and found["warnings"] == []


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
def test_images_of_too_few_sources_cannot_be_told(sources):
    features, labels, splits = drawn({"train": 60, "test": 60})
    found = audit(features, labels, splits, [f"{split}{i % sources}" for i, split in enumerate(splits)])
    assert set(found["within"]["file_size"].values()) == {None} and found["warnings"] == []


def test_without_a_train_split_only_the_splits_themselves_are_looked_at():
    features, labels, _ = drawn({"test": 80})
    features["file_size"][labels == 1] *= 5
    found = audit(features, labels, ["test"] * 80)
    assert found["from_train"]["file_size"] == {"test": None}
    assert len(found["warnings"]) == 1


def test_large_splits_are_sampled_and_the_same_seed_gives_the_same_audit(monkeypatch):
    monkeypatch.setattr("detector.prepare.shortcuts.MAX_ROWS", 80)
    monkeypatch.setattr("detector.prepare.shortcuts.MAX_ROWS_WITHIN", 40)
    found = audit(*drawn())
    assert found["images"] == {"train": 80, "test": 80}
    assert found == audit(*drawn())
