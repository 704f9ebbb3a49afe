import csv
import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from detector.data.shards import COLUMNS, ShardReader, dataset_digest, read_manifest
from detector.errors import UserError
from detector.files import replaced_folder
from detector.images import decode, resize
from detector.prepare.duplicates import FINGERPRINT
from detector.prepare.ingest import EXAMPLES, ingest, ingest_test_set, read_fingerprints, split_order
from detector.prepare.splits import Entry

SPLITS = ("train", "validation", "test")


def prepare(source, folder, max_side=1024, policy="drop") -> dict:
    return ingest(source, folder, max_side, policy, np.random.default_rng(0))


@pytest.fixture(scope="module")
def complete(photo, encode) -> dict[str, bytes]:
    """Two JPEG images of every class in every split."""
    places = [f"{split}/{kind}/{i}.jpg" for split in SPLITS for kind in ("real", "fake") for i in range(2)]
    return {path: encode(photo(40, 56, seed), "JPEG") for seed, path in enumerate(places)}


def excluded(folder) -> list[list[str]]:
    with (folder / "excluded.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_images_keep_their_bytes_and_their_place(complete, memory_source, tmp_path):
    prepare(memory_source(complete), tmp_path)
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
    summary = prepare(source, tmp_path)
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


def test_broken_images_are_excluded_with_their_reason(complete, memory_source, tmp_path):
    whole = complete["train/real/0.jpg"]
    broken = {
        "train/real/empty.jpg": b"",
        "train/fake/text.jpg": b"not an image",
        "train/fake/cut.jpg": whole[: len(whole) // 2],
        "test/real/locked.jpg": PermissionError(13, "Permission denied"),
        "test/real/odd.jpg": OSError("bad checksum"),
    }
    summary = prepare(memory_source(complete | broken), tmp_path)
    assert excluded(tmp_path) == [
        ["path", "reason"],
        ["test/real/locked.jpg", "cannot be read: Permission denied"],
        ["test/real/odd.jpg", "cannot be read: bad checksum"],
        ["train/fake/cut.jpg", "cut short"],
        ["train/fake/text.jpg", "not an image, or of an unknown format"],
        ["train/real/empty.jpg", "empty file"],
    ]
    assert summary["images"] == 12 and summary["excluded"]["images"] == 5
    assert summary["excluded"]["reasons"]["cut short"] == {"images": 1, "examples": ["train/fake/cut.jpg"]}
    assert not set(broken) & set(read_manifest(tmp_path)["path"])


def test_reasons_come_by_frequency_with_a_few_examples(complete, memory_source, tmp_path):
    empty = {f"train/real/empty{i:02d}.jpg": b"" for i in range(EXAMPLES + 5)}
    summary = prepare(memory_source(complete | empty | {"test/real/x.jpg": b"text"}), tmp_path)
    reasons = summary["excluded"]["reasons"]
    assert list(reasons) == ["empty file", "not an image, or of an unknown format"]
    assert reasons["empty file"]["images"] == EXAMPLES + 5
    assert reasons["empty file"]["examples"] == sorted(empty)[:EXAMPLES]
    assert len(excluded(tmp_path)) == 1 + EXAMPLES + 5 + 1


def test_a_larger_image_is_scaled_down_without_loss_and_any_other_is_left(
    complete, memory_source, tmp_path, photo, encode
):
    large = {
        "train/real/wide.jpg": encode(photo(90, 200, 98), "JPEG"),
        "train/fake/edge.jpg": encode(photo(100, 50, 99), "JPEG"),
    }
    summary = prepare(memory_source(complete | large), tmp_path, max_side=100)
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
    prepare(memory_source(complete | files), tmp_path, max_side=100)
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
    prepare(memory_source(complete, attributes), tmp_path)
    manifest = read_manifest(tmp_path).set_index("path")
    assert list(manifest.columns[-3:]) == ["method", "quality", "source"]
    assert manifest.loc["train/real/0.jpg", ["method", "quality", "source"]].to_list() == ["007", "", "NA"]
    assert manifest.loc["train/fake/0.jpg", ["method", "quality", "source"]].to_list() == ["", "é\r", ""]


def test_an_attribute_cannot_take_a_columns_name(complete, memory_source, tmp_path):
    attributes = {path: {"label": "9", "offset": "x", "shard": "", "bytes": "-1", "method": "gan"} for path in complete}
    prepare(memory_source(complete, attributes), tmp_path)
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
    prepare(memory_source(complete | odd | broken), tmp_path)
    paths = read_manifest(tmp_path)["path"].to_list()
    assert {path.replace("\udce9", r"\udce9") for path in odd} <= set(paths)
    assert [path for path, _ in excluded(tmp_path)] == ["path", r"train/fake/caf\udce9.jpg", "train/fake/cr\r.jpg"]


def test_the_real_class_has_label_0_whatever_it_is_called(complete, memory_source, tmp_path):
    prepare(memory_source(complete, classes=("fake", "real")), tmp_path)
    manifest = read_manifest(tmp_path)
    assert set(manifest.loc[manifest["class"] == "fake", "label"]) == {0}
    assert set(manifest.loc[manifest["class"] == "real", "label"]) == {1}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_a_split_without_a_class_is_refused(complete, memory_source, tmp_path, split, kind):
    files = {path: b"" if path.startswith(f"{split}/{kind}/") else data for path, data in complete.items()}
    message = rf"data\.path: memory has no readable {kind} image in its {split} split \(2 broken ones were excluded\)"
    with pytest.raises(UserError, match=message):
        prepare(memory_source(files), tmp_path)


def test_a_source_of_broken_images_only_is_refused(complete, memory_source, tmp_path):
    with pytest.raises(UserError, match=r"no readable real image in its train split \(2 broken"):
        prepare(memory_source(dict.fromkeys(complete, b"")), tmp_path)


def test_the_outcome_does_not_hang_on_the_number_of_threads(complete, memory_source, tmp_path, monkeypatch):
    outcomes = []
    for count in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        (tmp_path / str(count)).mkdir()
        summary = prepare(memory_source(complete), tmp_path / str(count), max_side=50)
        files = {file.name: file.read_bytes() for file in (tmp_path / str(count)).iterdir()}
        outcomes.append((summary, files))
    assert outcomes[0] == outcomes[1]


def test_the_order_in_which_files_come_changes_neither_manifest_nor_digest(
    complete, memory_source, tmp_path, monkeypatch
):
    files = complete | {f"train/real/empty{i}.jpg": b"" for i in range(3)}
    digest = prepare(memory_source(files), tmp_path)["digest"]
    paths, aside = read_manifest(tmp_path)["path"].to_list(), excluded(tmp_path)
    in_order = memory_source.read
    monkeypatch.setattr(memory_source, "read", lambda *asked: reversed(list(in_order(*asked))))
    assert prepare(memory_source(files), tmp_path)["digest"] == digest
    assert read_manifest(tmp_path)["path"].to_list() == paths == sorted(complete)
    assert excluded(tmp_path) == aside
    reader = ShardReader(tmp_path, read_manifest(tmp_path))
    assert [reader.read(i) for i in range(len(reader))] == [complete[path] for path in paths]


def test_an_interrupted_source_is_passed_on(complete, memory_source, tmp_path, monkeypatch):
    def cut(self, paths=None):
        yield Entry("train/real/0.jpg", "train", "real", "g", {}), complete["train/real/0.jpg"]
        raise OSError("disk gone")

    monkeypatch.setattr(memory_source, "read", cut)
    with pytest.raises(OSError, match="disk gone"):
        prepare(memory_source(complete), tmp_path)


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
    prepare(memory_source(complete), tmp_path)
    assert len(pd.read_csv(tmp_path / "manifest.csv")) == len(complete)


# ---- duplicates, and what else goes ------------------------------------------------------------------------------


def test_hundreds_of_leaks_are_one_reason_with_examples_and_partners(complete, memory_source, tmp_path):
    copies = {f"train/real/copy{i:03d}.jpg": complete["test/real/0.jpg"] for i in range(EXAMPLES + 80)}
    summary = prepare(memory_source(complete | copies), tmp_path)
    assert summary["excluded"] == {
        "images": len(copies),
        "reasons": {
            "same picture in test": {
                "images": len(copies),
                "examples": sorted(copies)[:EXAMPLES],
                "partners": ["test/real/0.jpg"] * EXAMPLES,
            }
        },
    }
    assert excluded(tmp_path)[1] == ["train/real/copy000.jpg", "same picture as test/real/0.jpg in test"]
    assert summary["images"] == len(complete) == len(read_manifest(tmp_path))


def test_an_image_that_is_only_evidence_is_neither_stored_nor_scaled_down(
    complete, memory_source, tmp_path, photo, encode
):
    large = encode(photo(90, 200, 97), "JPEG")
    files = complete | {"train/real/wide.jpg": large, "test/real/wide.jpg": large}
    summary = prepare(memory_source(files), tmp_path, max_side=100)
    assert summary["scaled_down"] == 1 and "train/real/wide.jpg" not in set(read_manifest(tmp_path)["path"])
    names = summary["duplicates"]["examples"][0]["files"]
    assert [(tmp_path / "duplicates" / name).read_bytes() for name in names] == [large, large]


@pytest.mark.parametrize(
    ("split", "copied", "words"),
    [
        ("train", "test/real/0.jpg", "no real image is left in the train split (2 same picture in test); add other"),
        ("validation", "test/real/1.jpg", "no real image is left in the validation split (2 same picture in test)"),
        ("train", "validation/real/1.jpg", "in the train split (2 same picture in validation)"),
    ],
)
def test_a_split_that_is_all_copies_is_refused_with_the_reason(complete, memory_source, tmp_path, split, copied, words):
    files = complete | {f"{split}/real/{i}.jpg": complete[copied] for i in range(2)}
    with pytest.raises(UserError) as refused:
        prepare(memory_source(files), tmp_path)
    assert words in str(refused.value) and "data.duplicates to report" in str(refused.value)
    assert not list(tmp_path.iterdir())
    assert prepare(memory_source(files), tmp_path, policy="report")["images"] == len(files)


def test_a_class_that_is_all_in_doubt_is_refused_and_no_policy_helps(complete, memory_source, tmp_path):
    files = complete | {f"train/fake/{i}.jpg": complete[f"train/real/{i}.jpg"] for i in range(2)}
    for policy in ("drop", "report"):
        with pytest.raises(UserError) as refused:
            prepare(memory_source(files), tmp_path, policy=policy)
        assert "no real image is left in the train split (2 same picture under another label)" in str(refused.value)
        assert "data.duplicates" not in str(refused.value)


@pytest.mark.parametrize("second", ["other", FileNotFoundError(2, "No such file or directory")], ids=repr)
def test_a_file_that_changes_or_vanishes_while_it_is_read_is_one_clear_error(
    complete, memory_source, tmp_path, photo, encode, second
):
    path = "validation/fake/1.jpg"
    other = encode(photo(40, 56, 96), "JPEG") if second == "other" else second

    class Changing(memory_source):
        def read(self, paths=None):
            files = self.files if paths is None else self.files | {path: other}
            return ((entry, files[entry.path]) for entry in self.entries if paths is None or entry.path in paths)

    with pytest.raises(UserError, match=f"memory: {path} changed or vanished") as refused:
        prepare(Changing(complete), tmp_path)
    assert "\n" not in str(refused.value)


def test_damaged_or_missing_fingerprints_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"fingerprints\.npy: not found"):
        read_fingerprints(tmp_path, 3)
    for content in (b"", b"no numbers", b"\x93NUMPY\x01\x00\xff\xff"):
        (tmp_path / "fingerprints.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"fingerprints\.npy: damaged"):
            read_fingerprints(tmp_path, 3)
    for content in (np.zeros(3), np.zeros(2, FINGERPRINT)):
        np.save(tmp_path / "fingerprints.npy", content)
        with pytest.raises(UserError, match=r"fingerprints\.npy: damaged"):
            read_fingerprints(tmp_path, 3)


# ---- further test sets -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(complete, memory_source, tmp_path_factory):
    """The folder of `complete`, prepared."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(memory_source(complete), folder)
    return folder


@pytest.fixture
def foreign(photo, encode, memory_source):
    """foreign(more files): a source of two camera images and one of each of two kinds of fakes, seen nowhere else."""

    def source(more=()):
        places = ["test/camera/a.jpg", "test/camera/b.jpg", "test/gan/c.jpg", "test/swap/d.jpg"]
        files = {path: encode(photo(40, 56, 200 + i), "JPEG") for i, path in enumerate(places)}
        return memory_source(
            files | dict(more), classes=("camera", "gan", "swap"), attributes={places[2]: {"age": "7"}}
        )

    return source


def test_a_further_test_set_is_stored_under_its_name_with_its_own_classes(foreign, trained, tmp_path):
    summary = ingest_test_set(foreign(), tmp_path, "phones", 1024, trained, "drop")
    manifest = read_manifest(tmp_path)
    assert manifest[["split", "class", "label", "age"]].to_numpy().tolist() == [
        ["phones", "camera", 0, ""],
        ["phones", "camera", 0, ""],
        ["phones", "gan", 1, "7"],
        ["phones", "swap", 1, ""],
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"manifest.csv", "excluded.csv", "phones-00000.tfrecord"}
    assert len(list(ShardReader(tmp_path, manifest).images())) == 4
    assert summary["counts"] == {"camera": 2, "gan": 1, "swap": 1} and summary["groups"] == 4
    assert summary["seen_in_training"] == 0 and summary["excluded"]["images"] == 0
    assert summary["digest"] == dataset_digest(manifest)
    assert json.loads(json.dumps(summary))


@pytest.mark.parametrize(("policy", "left"), [("drop", 4), ("report", 6)])
def test_what_was_seen_in_training_is_counted_and_dropped_or_not(
    foreign, trained, complete, tmp_path, encode, policy, left
):
    seen = {
        "test/camera/exact.jpg": complete["train/real/0.jpg"],
        "test/gan/again.jpg": encode(decode(complete["validation/fake/1.jpg"]), "JPEG", quality=60),
    }
    tested = {"test/camera/tested.jpg": complete["test/real/0.jpg"]}  # judged already
    summary = ingest_test_set(foreign(seen | tested), tmp_path, "phones", 1024, trained, policy)
    assert (summary["seen_in_training"], summary["seen_in_test"]) == (2, 1)
    assert summary["images"] == len(read_manifest(tmp_path)) == left + (policy == "report")
    assert excluded(tmp_path)[1:] == (
        [
            ["test/camera/exact.jpg", "same picture as train/real/0.jpg in train"],
            ["test/camera/tested.jpg", "same picture as test/real/0.jpg in test"],
            ["test/gan/again.jpg", "same picture as validation/fake/1.jpg in validation"],
        ]
        if policy == "drop"
        else []
    )


@pytest.mark.parametrize("policy", ["drop", "report"])
def test_broken_and_doubtful_images_of_a_further_test_set_are_excluded(foreign, trained, tmp_path, policy):
    whole = foreign().files["test/camera/a.jpg"]
    more = {"test/gan/a.jpg": whole, "test/swap/odd.jpg": b"no image"}
    summary = ingest_test_set(foreign(more), tmp_path, "phones", 1024, trained, policy)
    assert summary["images"] == 3 and summary["seen_in_training"] == 0
    assert excluded(tmp_path)[1:] == [
        ["test/camera/a.jpg", "same picture as test/gan/a.jpg under another label"],
        ["test/gan/a.jpg", "same picture as test/camera/a.jpg under another label"],
        ["test/swap/odd.jpg", "not an image, or of an unknown format"],
    ]


def test_a_further_test_set_may_hold_one_class(foreign, trained, memory_source, tmp_path):
    real = {path: data for path, data in foreign().files.items() if "camera" in path}
    summary = ingest_test_set(memory_source(real, classes=("camera",)), tmp_path, "x", 1024, trained, "drop")
    assert summary["counts"] == {"camera": 2}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"test/real/a.jpg": b""}, r"\(1 empty file\)"),
        ({"test/real/a.jpg": "train/real/0.jpg"}, r"\(1 same picture in train\)"),
    ],
)
def test_a_further_test_set_without_an_image_left_is_refused(complete, trained, memory_source, tmp_path, files, words):
    files = {path: complete.get(data, data) for path, data in files.items()}
    with pytest.raises(UserError, match=rf"evaluate\.extra_sets: memory has no image left to score {words}"):
        ingest_test_set(memory_source(files), tmp_path, "x", 1024, trained, "drop")
