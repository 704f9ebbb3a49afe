import csv
import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from detector.data.decode import decode, resize
from detector.data.ingest import EXAMPLES, ingest, replaced_folder, split_order
from detector.data.shards import COLUMNS, ShardReader, dataset_digest, read_manifest
from detector.data.splits import Entry
from detector.errors import UserError

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def complete(photo, encode) -> dict[str, bytes]:
    """Two JPEG images of every class in every split."""
    places = [f"{split}/{kind}/{i}.jpg" for split in SPLITS for kind in ("real", "fake") for i in range(2)]
    return {path: encode(photo(40, 56, seed), "JPEG") for seed, path in enumerate(places)}


def set_aside(folder) -> list[list[str]]:
    with (folder / "set_aside.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_images_keep_their_bytes_and_their_place(complete, memory_source, tmp_path):
    ingest(memory_source(complete), tmp_path, max_side=1024)
    manifest = read_manifest(tmp_path)
    assert manifest["path"].to_list() == sorted(complete)
    reader = ShardReader(tmp_path, manifest)
    for i, row in enumerate(manifest.to_dict("records")):
        data = complete[row["path"]]
        split, kind, _ = row["path"].split("/")
        assert reader.read(i) == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        assert (row["split"], row["class"], row["label"]) == (split, kind, int(kind == "fake"))
        assert (row["width"], row["height"]) == (56, 40)
        assert row["shard"].startswith(f"{split}-")


def test_the_summary_counts_what_there_is(complete, memory_source, tmp_path):
    extra = {"test_fog/real/1.jpg": complete["test/real/0.jpg"], "broken/real/x.jpg": b"no image"}
    source = memory_source(complete | extra, ignored={"hidden files": 3})
    summary = ingest(source, tmp_path, max_side=1024)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary | {"classes": ["real", "fake"]}
    assert summary["source"] == "memory" and list(summary["classes"]) == ["real", "fake"]
    assert summary["images"] == 13
    assert list(summary["counts"]) == ["train", "validation", "test", "test_fog"]
    assert summary["counts"]["train"] == {"real": 2, "fake": 2}
    assert summary["counts"]["test_fog"] == {"real": 1, "fake": 0}
    assert summary["groups"] == {"train": 4, "validation": 4, "test": 4, "test_fog": 1}
    assert summary["sizes"]["width"] == {"min": 56, "median": 56, "max": 56}
    assert summary["sizes"]["bytes"]["max"] == max(map(len, complete.values()))
    assert summary["scaled_down"] == 0
    assert summary["ignored_files"] == {"hidden files": 3}
    assert summary["digest"] == dataset_digest(read_manifest(tmp_path))


def test_broken_images_are_set_aside_with_their_reason(complete, memory_source, tmp_path):
    whole = complete["train/real/0.jpg"]
    broken = {
        "train/real/empty.jpg": b"",
        "train/fake/text.jpg": b"not an image",
        "train/fake/cut.jpg": whole[: len(whole) // 2],
        "test/real/locked.jpg": PermissionError(13, "Permission denied"),
        "test/real/odd.jpg": OSError("bad checksum"),
    }
    summary = ingest(memory_source(complete | broken), tmp_path, max_side=1024)
    assert set_aside(tmp_path) == [
        ["path", "reason"],
        ["test/real/locked.jpg", "cannot be read: Permission denied"],
        ["test/real/odd.jpg", "cannot be read: bad checksum"],
        ["train/fake/cut.jpg", "cut short"],
        ["train/fake/text.jpg", "not an image, or of an unknown format"],
        ["train/real/empty.jpg", "empty file"],
    ]
    assert summary["images"] == 12 and summary["set_aside"]["images"] == 5
    assert summary["set_aside"]["reasons"]["cut short"] == {"images": 1, "examples": ["train/fake/cut.jpg"]}
    assert not set(broken) & set(read_manifest(tmp_path)["path"])


def test_reasons_come_by_frequency_with_a_few_examples(complete, memory_source, tmp_path):
    empty = {f"train/real/empty{i:02d}.jpg": b"" for i in range(EXAMPLES + 5)}
    summary = ingest(memory_source(complete | empty | {"test/real/x.jpg": b"text"}), tmp_path, max_side=1024)
    reasons = summary["set_aside"]["reasons"]
    assert list(reasons) == ["empty file", "not an image, or of an unknown format"]
    assert reasons["empty file"]["images"] == EXAMPLES + 5
    assert reasons["empty file"]["examples"] == sorted(empty)[:EXAMPLES]
    assert len(set_aside(tmp_path)) == 1 + EXAMPLES + 5 + 1


def test_a_larger_image_is_scaled_down_without_loss_and_any_other_is_left(
    complete, memory_source, tmp_path, photo, encode
):
    large = {
        "train/real/wide.jpg": encode(photo(90, 200), "JPEG"),
        "train/fake/edge.jpg": encode(photo(100, 50), "JPEG"),
    }
    summary = ingest(memory_source(complete | large), tmp_path, max_side=100)
    assert summary["scaled_down"] == 1
    manifest = read_manifest(tmp_path)
    reader = ShardReader(tmp_path, manifest)
    rows = {row["path"]: (i, row) for i, row in enumerate(manifest.to_dict("records"))}
    i, row = rows["train/real/wide.jpg"]
    assert (row["width"], row["height"]) == (100, 45)
    assert reader.read(i).startswith(b"\x89PNG") and len(reader.read(i)) == row["bytes"]
    assert row["sha256"] == hashlib.sha256(reader.read(i)).hexdigest()
    original = resize(decode(large["train/real/wide.jpg"]), 45)
    assert np.abs(resize(reader.image(i), 45).astype(int) - original).mean() < 2
    i, row = rows["train/fake/edge.jpg"]
    assert reader.read(i) == large["train/fake/edge.jpg"] and (row["width"], row["height"]) == (50, 100)


def test_a_rotated_image_is_upright_in_size_and_when_scaled(complete, memory_source, tmp_path, photo, encode):
    tags = Image.Exif()
    tags[0x0112] = 6
    files = {
        f"train/real/{name}.jpg": encode(photo(60, side), "JPEG", exif=tags) for name, side in (("a", 90), ("b", 300))
    }
    ingest(memory_source(complete | files), tmp_path, max_side=100)
    manifest = read_manifest(tmp_path)
    reader = ShardReader(tmp_path, manifest)
    for i, row in enumerate(manifest.to_dict("records")):
        if row["path"] in files:
            assert (row["width"], row["height"]) == {"a": (60, 90), "b": (20, 100)}[row["path"][-5]]
            assert reader.image(i).shape == (row["height"], row["width"], 3)


def test_attributes_of_the_data_set_stay_texts(complete, memory_source, tmp_path):
    attributes = {
        "train/real/0.jpg": {"method": "007", "source": "NA"},
        "train/fake/0.jpg": {"method": "", "quality": "é\r"},
    }
    ingest(memory_source(complete, attributes), tmp_path, max_side=1024)
    manifest = read_manifest(tmp_path).set_index("path")
    assert list(manifest.columns[-3:]) == ["method", "quality", "source"]
    assert manifest.loc["train/real/0.jpg", ["method", "quality", "source"]].to_list() == ["007", "", "NA"]
    assert manifest.loc["train/fake/0.jpg", ["method", "quality", "source"]].to_list() == ["", "é\r", ""]


def test_an_attribute_cannot_take_a_columns_name(complete, memory_source, tmp_path):
    attributes = {path: {"label": "9", "offset": "x", "shard": "", "bytes": "-1", "method": "gan"} for path in complete}
    ingest(memory_source(complete, attributes), tmp_path, max_side=1024)
    manifest = read_manifest(tmp_path)
    assert list(manifest.columns) == [*COLUMNS, "method"]
    assert set(manifest["label"]) == {0, 1}
    assert next(ShardReader(tmp_path, manifest).images()).shape == (40, 56, 3)


def test_odd_paths_reach_the_manifest(complete, memory_source, tmp_path):
    image = complete["train/real/0.jpg"]
    odd = {
        f"train/real/{name}": image for name in ('a,"b".jpg', "new\nline.jpg", "cr\r.jpg", "日本.jpg", "caf\udce9.jpg")
    }
    broken = {f"train/fake/{name}": b"" for name in ("cr\r.jpg", "caf\udce9.jpg")}
    ingest(memory_source(complete | odd | broken), tmp_path, max_side=1024)
    paths = read_manifest(tmp_path)["path"].to_list()
    assert {path.replace("\udce9", r"\udce9") for path in odd} <= set(paths)
    assert [path for path, _ in set_aside(tmp_path)] == ["path", r"train/fake/caf\udce9.jpg", "train/fake/cr\r.jpg"]


def test_the_real_class_has_label_0_whatever_it_is_called(complete, memory_source, tmp_path):
    ingest(memory_source(complete, classes=("fake", "real")), tmp_path, max_side=1024)
    manifest = read_manifest(tmp_path)
    assert set(manifest.loc[manifest["class"] == "fake", "label"]) == {0}
    assert set(manifest.loc[manifest["class"] == "real", "label"]) == {1}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_a_split_without_a_class_is_refused(complete, memory_source, tmp_path, split, kind):
    files = {path: b"" if path.startswith(f"{split}/{kind}/") else data for path, data in complete.items()}
    message = rf"data\.path: memory has no readable {kind} image in its {split} split \(2 broken ones were set aside\)"
    with pytest.raises(UserError, match=message):
        ingest(memory_source(files), tmp_path, max_side=1024)


def test_a_source_of_broken_images_only_is_refused(complete, memory_source, tmp_path):
    with pytest.raises(UserError, match=r"no readable real image in its train split \(12 broken"):
        ingest(memory_source(dict.fromkeys(complete, b"")), tmp_path, max_side=1024)


def test_the_outcome_does_not_hang_on_the_number_of_threads(complete, memory_source, tmp_path, monkeypatch):
    outcomes = []
    for count in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        (tmp_path / str(count)).mkdir()
        summary = ingest(memory_source(complete), tmp_path / str(count), max_side=50)
        files = {file.name: file.read_bytes() for file in (tmp_path / str(count)).iterdir()}
        outcomes.append((summary, files))
    assert outcomes[0] == outcomes[1]


def test_the_order_in_which_files_come_changes_neither_manifest_nor_digest(
    complete, memory_source, tmp_path, monkeypatch
):
    files = complete | {f"train/real/empty{i}.jpg": b"" for i in range(3)}
    digest = ingest(memory_source(files), tmp_path, max_side=1024)["digest"]
    paths, aside = read_manifest(tmp_path)["path"].to_list(), set_aside(tmp_path)
    in_order = memory_source.read
    monkeypatch.setattr(memory_source, "read", lambda source: reversed(list(in_order(source))))
    assert ingest(memory_source(files), tmp_path, max_side=1024)["digest"] == digest
    assert read_manifest(tmp_path)["path"].to_list() == paths == sorted(complete)
    assert set_aside(tmp_path) == aside
    reader = ShardReader(tmp_path, read_manifest(tmp_path))
    assert [reader.read(i) for i in range(len(reader))] == [complete[path] for path in paths]


def test_an_interrupted_source_is_passed_on(complete, memory_source, tmp_path, monkeypatch):
    def cut(self):
        yield Entry("train/real/0.jpg", "train", "real", "g", {}), complete["train/real/0.jpg"]
        raise OSError("disk gone")

    monkeypatch.setattr(memory_source, "read", cut)
    with pytest.raises(OSError, match="disk gone"):
        ingest(memory_source(complete), tmp_path, max_side=1024)


def test_split_order():
    names = ["test_snow", "test", "train", "test_fog", "validation"]
    assert sorted(names, key=split_order) == ["train", "validation", "test", "test_fog", "test_snow"]


# ---- replaced_folder -------------------------------------------------------------------------------------------


def test_a_new_folder_takes_the_place_of_the_old(tmp_path):
    folder = tmp_path / "data" / "prepared"
    for name in ("first", "second"):
        with replaced_folder(folder) as part:
            assert list(part.iterdir()) == []
            (part / name).touch()
    assert [file.name for file in folder.iterdir()] == ["second"]
    assert [file.name for file in folder.parent.iterdir()] == ["prepared"]


@pytest.mark.parametrize("error", [UserError("x"), KeyboardInterrupt(), ValueError()], ids=repr)
def test_a_failure_leaves_the_old_folder_and_nothing_half_written(tmp_path, error):
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(type(error)), replaced_folder(folder) as part:
        (part / "new").touch()
        raise error
    assert [file.name for file in folder.iterdir()] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["prepared"]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / "prepared.part").mkdir()
    (tmp_path / "prepared.part" / "stale").touch()
    with replaced_folder(tmp_path / "prepared") as part:
        (part / "new").touch()
    assert [file.name for file in (tmp_path / "prepared").iterdir()] == ["new"]


def test_the_manifest_can_be_read_by_other_programs(complete, memory_source, tmp_path):
    ingest(memory_source(complete), tmp_path, max_side=1024)
    assert len(pd.read_csv(tmp_path / "manifest.csv")) == len(complete)
