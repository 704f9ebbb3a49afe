"""The audit from end to end: what is planted is found, nothing else is, and none of it reaches the prepared data."""

import csv
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.shards import ShardReader, read_manifest
from detector.images import decode
from detector.prepare.audit import examine
from detector.prepare.duplicates import FINGERPRINT, fingerprint
from detector.prepare.ingest import EXAMPLES, ingest, read_fingerprints
from detector.prepare.shortcuts import FEATURES, trivial_features

SIZE = 64
EXACT, AGAIN, DOUBTFUL = 20, 20, 5


def picture(seed: int) -> np.ndarray:
    """Blobs of colour under a finer texture, (SIZE, SIZE, 3) uint8; no two seeds alike."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(20, 235, (7, 7, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 12, (24, 24, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def resaved(data: bytes, scale: float, encode, quality: int) -> bytes:
    image = cv2.resize(decode(data), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return encode(image, "JPEG", quality=quality)


@dataclass
class Planted:
    files: dict[str, bytes]
    leaks: dict[str, str] = field(default_factory=dict)  # planted copy -> the test image it is of
    doubtful: dict[str, str] = field(default_factory=dict)  # both ways


@pytest.fixture(scope="module")
def planted(encode) -> Planted:
    """30 pictures a split and class, and what an audit has to find among them."""
    rng = np.random.default_rng(5)
    splits = ("train", "validation", "test")
    places = [f"{split}/{kind}/{i:02d}.jpg" for split in splits for kind in ("real", "fake") for i in range(30)]
    files = {path: encode(picture(seed), "JPEG", quality=92) for seed, path in enumerate(places)}
    found = Planted(files)
    tests = [places[i] for i in 120 + rng.permutation(60)]
    for i, original in enumerate(tests[: EXACT + AGAIN]):
        path = f"{('train', 'validation')[i % 4 == 3]}/{original.split('/')[1]}/copy{i:02d}.jpg"
        exact = i < EXACT
        files[path] = files[original] if exact else resaved(files[original], rng.uniform(0.6, 1.6), encode, 60)
        found.leaks[path] = original
    for i in range(DOUBTFUL):
        original, path = f"train/real/{i:02d}.jpg", f"train/fake/doubt{i}.jpg"
        files[path] = files[original] if i < 3 else resaved(files[original], 1, encode, 75)
        found.doubtful |= {path: original, original: path}
    return found


@pytest.fixture(scope="module")
def audited(planted, memory_source, tmp_path_factory) -> tuple[Path, dict]:
    """The folder and the summary of the planted images, prepared with the policy "drop"."""
    folder = tmp_path_factory.mktemp("audited")
    return folder, prepare(memory_source(planted.files), folder)


def prepare(source, folder: Path, policy: str = "drop") -> dict:
    return ingest(source, folder, 1024, policy, np.random.default_rng(0))


def excluded(folder: Path) -> dict[str, str]:
    with (folder / "excluded.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def records(folder: Path) -> list[tuple[str, str, bytes]]:
    """(split, path, image) of all that a TFRecord reader finds in the shards, whatever the manifest says."""
    import tensorflow as tf

    found = []
    for shard in sorted(folder.glob("*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            path, image = (feature[name].bytes_list.value[0] for name in ("path", "image"))
            found.append((shard.name.split("-")[0], path.decode(), image))
    return found


def test_what_is_planted_is_found_and_nothing_else(planted, audited):
    folder, summary = audited
    expected = {path: f"same picture as {original} in test" for path, original in planted.leaks.items()}
    expected |= {path: f"same picture as {other} under another label" for path, other in planted.doubtful.items()}
    assert excluded(folder) == expected
    account = summary["duplicates"]
    assert account["policy"] == "drop" and account["search_complete"]
    assert sum(account["dropped"].values()) == EXACT + AGAIN
    assert account["excluded"] == {"train": 2 * DOUBTFUL}
    assert sum(pairs["exact"] for pairs in account["leaks"].values()) == EXACT
    assert sum(pairs["near"] for pairs in account["leaks"].values()) == AGAIN
    reasons = summary["excluded"]["reasons"]
    assert {reason: images["images"] for reason, images in reasons.items()} == {
        "same picture in test": EXACT + AGAIN,
        "same picture under another label": 2 * DOUBTFUL,
    }
    leaks = reasons["same picture in test"]
    assert dict(zip(leaks["examples"], leaks["partners"], strict=True)).items() <= planted.leaks.items()
    assert len(leaks["examples"]) == EXAMPLES


def test_training_cannot_see_what_was_planted(planted, audited):
    folder, _ = audited
    gone = planted.leaks.keys() | planted.doubtful.keys()
    kept = planted.files.keys() - gone
    assert set(read_manifest(folder)["path"]) == kept
    stored = records(folder)
    assert sorted(path for _, path, _ in stored) == sorted(kept)
    assert all(image == planted.files[path] and path.startswith(f"{split}/") for split, path, image in stored)
    seen = {hashlib.sha256(image).digest() for split, _, image in stored if split != "test"}
    assert not seen & {hashlib.sha256(planted.files[path]).digest() for path in gone}


def test_a_report_lets_leaks_stay_and_still_sets_conflicts_aside(planted, memory_source, tmp_path):
    summary = prepare(memory_source(planted.files), tmp_path, policy="report")
    assert excluded(tmp_path).keys() == planted.doubtful.keys()
    assert set(read_manifest(tmp_path)["path"]) == planted.files.keys() - planted.doubtful.keys()
    assert summary["duplicates"]["policy"] == "report" and summary["duplicates"]["dropped"] == {}
    assert sum(pairs["exact"] + pairs["near"] for pairs in summary["duplicates"]["leaks"].values()) == EXACT + AGAIN


def test_the_pairs_named_lie_beside_the_data_byte_for_byte(planted, audited):
    folder, summary = audited
    examples = summary["duplicates"]["examples"]
    assert 0 < len(examples) <= 20
    named = [name for example in examples for name in example["files"]]
    assert sorted(file.name for file in (folder / "duplicates").iterdir()) == sorted(named)
    for example in examples:
        for path, name in zip(example["paths"], example["files"], strict=True):
            assert (folder / "duplicates" / name).read_bytes() == planted.files[path]


def test_fingerprints_are_kept_in_the_manifests_order(audited):
    folder, _ = audited
    reader = ShardReader(folder, read_manifest(folder))
    fingerprints = read_fingerprints(folder, len(reader))
    for row, image in zip(fingerprints, reader.images(), strict=True):
        assert row == fingerprint(image)


def test_fakes_that_are_larger_files_are_warned_of(planted, audited, memory_source, tmp_path, encode):
    assert audited[1]["shortcuts"]["warnings"] == []
    larger = {
        path: encode(decode(data), "JPEG", quality=98)
        for path, data in planted.files.items()
        if path.startswith("test/fake/")
    }
    sentences = prepare(memory_source(planted.files | larger), tmp_path)["shortcuts"]["warnings"]
    assert [sentence.split(" (")[0] for sentence in sentences] == [
        "The size of the file alone tells fake from real within test",
        "The encoding of the file",
    ]


def test_shortcuts_are_looked_for_among_what_stays(audited):
    assert audited[1]["shortcuts"]["images"] == {"train": 60 - DOUBTFUL, "validation": 60, "test": 60}


def test_one_look_leaves_every_number_in_its_row(planted, memory_source, monkeypatch):
    broken = {"train/real/a.jpg": b"", "test/fake/z.jpg": OSError(5, "bad sector")}
    in_order = memory_source.read
    monkeypatch.setattr(memory_source, "read", lambda *asked: reversed(list(in_order(*asked))))
    images, odd = examine(memory_source(planted.files | broken))
    assert [entry.path for entry in images.entries] == sorted(planted.files)
    assert [(entry.path, reason) for entry, reason in odd] == [
        ("test/fake/z.jpg", "cannot be read: bad sector"),
        ("train/real/a.jpg", "empty file"),
    ]
    for i, entry in enumerate(images.entries):
        data = planted.files[entry.path]
        image = decode(data)
        assert images.fingerprints[i] == fingerprint(image)
        assert images.features[i] == trivial_features(data, image)
        assert images.files[i]["sha256"].tobytes() == hashlib.sha256(data).digest()
        assert (images.files[i]["width"], images.files[i]["height"]) == image.shape[1::-1]


def test_what_is_kept_of_an_image_is_small():
    assert FINGERPRINT.itemsize + FEATURES.itemsize < 2200
