import csv
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data import shards
from detector.data.shards import (
    COLUMNS,
    ShardReader,
    ShardWriter,
    dataset_digest,
    read_manifest,
    test_sets,
    write_manifest,
)
from detector.errors import UserError

test_sets.__test__ = False  # a function of the module, no test

ODD_PATHS = [
    "Train/Real/plain.jpg",
    "ü/é/日本/😀.jpg",
    "comma, 'quote' and \"double\".jpg",
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "both\r\n.jpg",
    " blanks at both ends ",
    "tab\there",
    "back\\slash",
    "# no comment",
    "\u2028\x85line separators",
    "\ufeffmark",
    "NA",
    "nan",
    "null",
    "None",
    "007",
    "1e5",
    "True",
    "-",
    "'",
    '"',
    ",",
    ";",
]


def row(path: str = "a.jpg", **changes) -> dict:
    values = ("train", "real", 0, "g", 64, 48, 10, "ab" * 32, "train-00000.tfrecord", 27)
    return dict(zip(COLUMNS, (path, *values), strict=True)) | changes


def written(folder, images: dict[str, bytes], split: str = "train") -> pd.DataFrame:
    """Write `images` by path, label 1 every other time, and their manifest; returns it as read."""
    rows = []
    with ShardWriter(folder) as writer:
        for i, (path, image) in enumerate(images.items()):
            shard, offset = writer.write(split, path, i % 2, image)
            rows.append(row(path, split=split, label=i % 2, bytes=len(image), shard=shard, offset=offset))
    write_manifest(rows, [], folder / "manifest.csv")
    return read_manifest(folder)


def records(*files) -> list[tuple[bytes, int, bytes]]:
    """What TensorFlow reads in shards: image, label, path."""
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "path": tf.io.FixedLenFeature([], tf.string),
    }
    parsed = tf.data.TFRecordDataset([str(file) for file in files]).map(
        lambda r: tf.io.parse_single_example(r, features)
    )
    return [(r["image"], int(r["label"]), r["path"]) for r in parsed.as_numpy_iterator()]


# ---- shards ----------------------------------------------------------------------------------------------------


def test_every_image_comes_back_byte_by_byte_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    images = {
        f"{i}.jpg": rng.bytes(int(size)) for i, size in enumerate([0, 1, 2, 127, 128, 129, 16_383, 16_384, 70_000])
    }
    images |= {"header.jpg": b"\n\x05image", "label.jpg": b"label", "path.jpg": b"path.jpg", "zeros.jpg": bytes(100)}
    manifest = written(tmp_path, images)
    reader = ShardReader(tmp_path, manifest)
    assert len(reader) == len(images)
    contents = list(images.values())
    for index in rng.permutation(len(images)):
        assert reader.read(int(index)) == reader.read(index) == contents[index]


def test_a_selection_of_the_manifest_has_indices_of_its_own(tmp_path):
    manifest = written(tmp_path, {f"{i}.jpg": bytes([i] * 5) for i in range(10)})
    reader = ShardReader(tmp_path, manifest[manifest["label"] == 1])
    assert [reader.read(i)[0] for i in range(len(reader))] == [1, 3, 5, 7, 9]


def test_tensorflow_reads_the_same_records(tmp_path):
    images = {path: path.encode() * 3 for path in ODD_PATHS}
    written(tmp_path, images)
    expected = [(image, i % 2, path.encode()) for i, (path, image) in enumerate(images.items())]
    assert records(tmp_path / "train-00000.tfrecord") == expected


def test_shards_are_closed_when_full_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    rng = np.random.default_rng(1)
    images = {f"{i}.jpg": rng.bytes(int(rng.integers(0, 900))) for i in range(60)}
    manifest = written(tmp_path, images)
    names = sorted(manifest["shard"].unique())
    assert len(names) > 10
    assert names == [f"train-{number:05d}.tfrecord" for number in range(len(names))]
    assert names == sorted(file.name for file in tmp_path.glob("*.tfrecord"))
    reader = ShardReader(tmp_path, manifest)
    assert [reader.read(i) for i in range(60)] == list(images.values())
    assert [image for image, _, _ in records(*(tmp_path / name for name in names))] == list(images.values())
    for name in names[:-1]:
        assert 2000 < (tmp_path / name).stat().st_size < 2000 + 1000


def test_an_image_larger_than_a_shard_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    images = {"a": b"x" * 5000, "b": b"y" * 5000}
    reader = ShardReader(tmp_path, written(tmp_path, images))
    assert [reader.read(0), reader.read(1)] == list(images.values())


def test_splits_have_shards_of_their_own(tmp_path):
    with ShardWriter(tmp_path) as writer:
        places = [writer.write(split, "x", 0, b"1") for split in ("train", "test", "train", "test_fog")]
    assert [shard for shard, _ in places] == [
        f"{split}-00000.tfrecord" for split in ("train", "test", "train", "test_fog")
    ]
    assert places[2][1] > places[0][1]


def test_the_same_images_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, {"a.jpg": b"abc", "ü.jpg": b"\0" * 1000})
    for file in ("train-00000.tfrecord", "manifest.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bytes_that_are_not_utf8_in_a_path_are_escaped(tmp_path):
    manifest = written(tmp_path, {"caf\udce9.jpg": b"1"})
    assert manifest["path"].to_list() == [r"caf\udce9.jpg"]
    assert records(tmp_path / "train-00000.tfrecord") == [(b"1", 0, rb"caf\udce9.jpg")]


def test_reading_from_many_threads_gives_everyone_their_image(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 5000)
    rng = np.random.default_rng(2)
    images = [rng.bytes(500) for _ in range(50)]
    reader = ShardReader(tmp_path, written(tmp_path, {str(i): image for i, image in enumerate(images)}))
    order = rng.integers(0, 50, 2000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.read, order)) == [images[i] for i in order]


def test_more_shards_than_a_process_may_have_files_open(tmp_path):
    resource = pytest.importorskip("resource")
    count = 200
    for i in range(count):
        (tmp_path / f"{i}.tfrecord").write_bytes(bytes([i]))
    rows = pd.DataFrame([row(str(i), shard=f"{i}.tfrecord", offset=0, bytes=1) for i in range(count)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, limits[1]))
    try:
        reader = ShardReader(tmp_path, rows)
        assert [reader.read(i)[0] for i in range(count)] == list(range(count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_no_file_stays_open(tmp_path):
    manifest = written(tmp_path, {"a": b"1", "b": b"2"})
    before = os.listdir("/proc/self/fd")
    reader = ShardReader(tmp_path, manifest)
    assert reader.read(1) == b"2"
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(RuntimeError), ShardWriter(tmp_path) as writer:
        writer.write("test", "c", 0, b"3")
        raise RuntimeError
    assert os.listdir("/proc/self/fd") == before


def test_images_are_decoded_in_the_manifests_order(prepared):
    reader = ShardReader(prepared, read_manifest(prepared))
    images = list(reader.images())
    assert [int(image[0, 0, 0]) for image in images] == list(range(29))
    np.testing.assert_array_equal(images[4], np.full((34, 46, 3), 4))
    np.testing.assert_array_equal(reader.image(4), images[4])


def test_a_missing_shard_says_what_to_do(tmp_path):
    manifest = written(tmp_path, {"a": b"1"})
    (tmp_path / "train-00000.tfrecord").unlink()
    with pytest.raises(UserError, match=r"train-00000\.tfrecord: not found; run `dvc repro -f prepare`"):
        ShardReader(tmp_path, manifest)


def test_a_shard_that_was_cut_or_altered_says_what_to_do(tmp_path, encode, photo):
    image = encode(photo())
    manifest = written(tmp_path, {"a.png": image})
    shard = tmp_path / "train-00000.tfrecord"
    reader, whole = ShardReader(tmp_path, manifest), shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(image, bytes(len(image)))):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-00000\.tfrecord: damaged; run `dvc repro -f prepare`"):
            reader.image(0)
    shard.write_bytes(whole[: whole.index(image) + len(image) - 1])
    with pytest.raises(UserError, match="damaged"):
        reader.read(0)
    shard.write_bytes(whole)
    np.testing.assert_array_equal(reader.image(0), photo())


# ---- manifest --------------------------------------------------------------------------------------------------


def test_texts_stay_texts_and_numbers_numbers(tmp_path):
    texts = ["", "NA", "007", "nan", "null", "1.50", "1e5", "True", "2020-01-01", " x ", '"', "a,b", "a\r\nb\rc\n"]
    rows = [row(f"{i}.jpg", label=i % 2, method=text) for i, text in enumerate(texts)]
    write_manifest(rows, ["method"], tmp_path / "manifest.csv")
    manifest = read_manifest(tmp_path)
    assert list(manifest.columns) == [*COLUMNS, "method"]
    assert manifest["method"].to_list() == texts
    assert manifest.drop(columns="method").to_dict("records") == [
        {key: value for key, value in each.items() if key != "method"} for each in rows
    ]
    for name in ("label", "width", "height", "bytes", "offset"):
        assert manifest[name].dtype == np.int64


def test_odd_paths_stay_what_they_are(tmp_path):
    write_manifest([row(path, group=path) for path in ODD_PATHS], [], tmp_path / "manifest.csv")
    manifest = read_manifest(tmp_path)
    assert manifest["path"].to_list() == manifest["group"].to_list() == ODD_PATHS
    with (tmp_path / "manifest.csv").open(newline="", encoding="utf-8") as file:  # other programs' reader
        assert [each["path"] for each in csv.DictReader(file)] == ODD_PATHS


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), min_size=1)
)
def test_any_text_comes_back(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp()
    write_manifest([row(text, group=text, note=text) for text in texts], ["note"], folder / "manifest.csv")
    manifest = read_manifest(folder)
    assert manifest["path"].to_list() == manifest["group"].to_list() == manifest["note"].to_list() == texts


def test_an_attribute_that_a_row_lacks_is_empty(tmp_path):
    write_manifest([row("a", source="web"), row("b")], ["source"], tmp_path / "manifest.csv")
    assert read_manifest(tmp_path)["source"].to_list() == ["web", ""]


def test_large_offsets_are_exact(tmp_path):
    write_manifest([row(offset=2**53 + 1)], [], tmp_path / "manifest.csv")
    assert read_manifest(tmp_path)["offset"][0] == 2**53 + 1


def test_an_empty_manifest_has_its_columns(tmp_path):
    write_manifest([], ["note"], tmp_path / "manifest.csv")
    manifest = read_manifest(tmp_path)
    assert len(manifest) == 0 and list(manifest.columns) == [*COLUMNS, "note"]


def test_without_a_manifest(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.csv: not found; run `dvc repro prepare` first"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"path,split\na,b\n", b"\xff\xfe\0", b"\x80", b'"', b"<html>", b"a,b\n1,2,3,4\n"]
)
def test_a_damaged_manifest(tmp_path, content):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.csv: damaged; run `dvc repro -f prepare`"):
        read_manifest(tmp_path)


def test_a_manifest_with_a_word_for_a_number(tmp_path):
    write_manifest([row(width="wide")], [], tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="damaged"):
        read_manifest(tmp_path)


def test_the_test_sets_are_test_first_then_by_name():
    splits = ["train", "test_snow", "validation", "test", "test_fog", "test", "tests", "testing"]
    assert test_sets(pd.DataFrame({"split": splits})) == ["test", "test_fog", "test_snow"]
    assert test_sets(pd.DataFrame({"split": ["train"]})) == []


# ---- digest ----------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_content(prepared):
    digest = dataset_digest(read_manifest(prepared))
    assert len(digest) == 64 and int(digest, 16)
    assert dataset_digest(read_manifest(prepared)) == digest


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", "other.jpg"),
        ("split", "test"),
        ("class", "camera"),
        ("label", 1),  # real and fake exchanged
        ("group", "other"),
        ("sha256", "0" * 64),
    ],
)
def test_the_digest_tells_every_change(tmp_path, column, value):
    manifest = pd.DataFrame([row("a.jpg"), row("b.jpg")])
    assert dataset_digest(manifest.assign(**{column: [manifest[column][0], value]})) != dataset_digest(manifest)


def test_the_digest_tells_an_image_more_or_less_and_their_order():
    manifest = pd.DataFrame([row("a.jpg"), row("b.jpg", group="h")])
    others = [manifest[:1], manifest[::-1], pd.concat([manifest, manifest])]
    assert len({dataset_digest(each) for each in (manifest, *others)}) == 4


def test_the_digest_does_not_hang_on_where_the_bytes_lie():
    manifest = pd.DataFrame([row("a.jpg")])
    assert dataset_digest(manifest.assign(shard="x", offset=5)) == dataset_digest(manifest)


def test_the_digest_does_not_mix_up_neighbouring_columns():
    assert dataset_digest(pd.DataFrame([row("ab", split="c")])) != dataset_digest(pd.DataFrame([row("a", split="bc")]))
