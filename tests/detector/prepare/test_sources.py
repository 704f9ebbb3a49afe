"""Folders, archives and Kaggle: the same images must be found in each, and nothing may end in a traceback."""

import gzip
import io
import os
import random
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import detector
from detector.errors import UserError
from detector.params import DataParams, load_params
from detector.prepare import archives
from detector.prepare.archives import Folder, Tar, Zip
from detector.prepare.sources import open_folder, open_source, open_test_set

DEFAULTS = load_params(Path(detector.__file__).parent.parent / "params.yaml").data
IMAGES = {
    f"{s}/{k}/{i}.jpg": f"{s} {k} {i}".encode()
    for s in ("Train", "Validation", "Test")
    for k in ("Real", "Fake")
    for i in range(3)
}
FORMATS = ["folder", "zip", "tar", "tar.gz", "tgz"]


def params(**changes) -> DataParams:
    return DataParams.model_validate(DEFAULTS.model_dump() | {"source": "folder"} | changes)


def make(place: Path, files: dict[str, bytes], form: str = "folder") -> Path:
    """A folder or archive `place`/data[.form] with `files`."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / ("data" if form == "folder" else f"data.{form}")
    if form == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w" if form == "tar" else "w:gz") as archive:
            for name, data in files.items():
                archive.addfile(member(name, len(data)), io.BytesIO(data))
    return path


def member(name: str, size: int = 0, **more) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in more.items():
        setattr(info, key, value)
    return info


def opened(path, seed=0, **changes):
    return open_source(params(path=str(path), **changes), seed)


def content(source) -> dict[str, bytes]:
    return {entry.path: data for entry, data in source.read()}


def refusal(path, **changes) -> str:
    with pytest.raises(UserError) as refused:
        opened(path, **changes)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 600
    return message


# ---- what every store does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_every_image_is_listed_and_read_once(tmp_path, form):
    files = {f"some/where/{name}": data for name, data in reversed(IMAGES.items())}
    source = opened(make(tmp_path, files, form))
    assert [entry.path for entry in source.entries] == sorted(files)
    for _ in range(2):  # a source can be read again
        read = list(source.read())
        assert {entry.path: data for entry, data in read} == files and len(read) == len(files)
    assert source.classes == ["real", "fake"] and source.ungrouped == len(files) and not source.ignored
    assert {(e.split, e.kind) for e in source.entries} == {
        (s, k) for s in ("train", "validation", "test") for k in ("real", "fake")
    }


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_no_image_is_counted_by_reason(tmp_path, form):
    odd = ["Train/Real/notes.txt", "Train/Real/Thumbs.db", ".cache/Train/Real/1.jpg", "Train/Real/.2.jpg"]
    odd += ["__MACOSX/Train/Real/._1.jpg", "Train/Fake/README"]
    upper = {"Train/Real/9.JPEG": b"9"}
    source = opened(make(tmp_path, IMAGES | upper | dict.fromkeys(odd, b"x"), form))
    assert content(source) == IMAGES | upper
    assert source.ignored == {"files without an image extension": 3, "hidden files": 2, "__MACOSX files": 1}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("wrapper", ["", "wrapper/"])
def test_a_manifest_at_the_root_is_found(tmp_path, form, wrapper):
    lines = [f"{name},{name[-5]},photo" for name in IMAGES]
    manifest = "\n".join(["path,group,method", *lines]).encode()
    files = {wrapper + name: data for name, data in (IMAGES | {"manifest.csv": manifest}).items()}
    source = opened(make(tmp_path, files, form))
    assert len(source.entries) == len(IMAGES) and source.ungrouped == 0 and not source.ignored
    assert {entry.group for entry in source.entries if entry.split == "train"} == {
        "train/0",
        "train/1",
        "train/2",
    }
    assert source.entries[0].attributes == {"method": "photo"}


@pytest.mark.parametrize("form", FORMATS)
def test_a_manifest_of_the_parent_folder_can_be_named(tmp_path, form):
    for other in ("data", "other"):
        lines = [f"{other}/{name},{other} {name[-5]}" for name in IMAGES]
        with open(tmp_path / "parents.csv", "a") as file:
            file.write("\n".join((["path,group"] if other == "data" else []) + lines) + "\n")
    source = opened(make(tmp_path, IMAGES, form), manifest=str(tmp_path / "parents.csv"))
    assert source.ungrouped == 0 and {entry.group.split()[0] for entry in source.entries} == {
        "train/data", "validation/data", "test/data"
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_not_utf8_or_not_ascii(tmp_path, form):
    if form == "zip":  # the name of a zip member is in code page 437 or flagged as UTF-8; both can be printed
        name, expected = "Train/Real/é.jpg", "Train/Real/é.jpg"
    else:
        name, expected = os.fsdecode(b"Train/Real/\xe9.jpg"), "Train/Real/\\xe9.jpg"
    try:
        source = opened(make(tmp_path, IMAGES | {name: b"e"}, form))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert content(source)[expected] == b"e"
    assert all(entry.path.encode("utf-8") for entry in source.entries)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_split_is_drawn_wherever_the_images_lie(tmp_path, form):
    files = {f"{kind}/{i}.jpg": b"" for kind in ("Real", "Fake") for i in range(40)}
    drawn = {e.path: e.split for e in opened(make(tmp_path, files, form), seed=3).entries}
    assert drawn == {e.path: e.split for e in opened(make(tmp_path / "again", files), seed=3).entries}
    assert Counter(drawn.values())["test"] == 12


@pytest.mark.parametrize("form", FORMATS)
def test_too_large_a_file_is_an_error_of_its_own(tmp_path, form, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 20)
    source = opened(make(tmp_path, IMAGES | {"Train/Real/1.jpg": bytes((1 << 20) + 1)}, form))
    read = content(source)
    assert isinstance(read["Train/Real/1.jpg"], OSError) and "larger than 1 MiB" in str(read["Train/Real/1.jpg"])
    assert sum(isinstance(data, bytes) for data in read.values()) == len(IMAGES) - 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["it is empty"]),
        ({"a.txt": b"", ".b.jpg": b""}, ["1 files without an image extension, 1 hidden files"]),
    ],
)
def test_no_images_at_all(tmp_path, form, files, words):
    (tmp_path / "data").mkdir()
    message = refusal(make(tmp_path, files, form))
    assert all(word in message for word in ["data.path", "no images", *words])


# ---- folders -----------------------------------------------------------------------------------------------


def test_links_are_followed_but_not_in_circles(tmp_path):
    pool = make(tmp_path / "pool", IMAGES)
    data = tmp_path / "data"
    (data / "Test" / "Real").mkdir(parents=True)
    (data / "Test" / "Real" / "linked.jpg").symlink_to(pool / "Test/Real/0.jpg")
    (data / "Test" / "Fake").symlink_to(pool / "Test/Fake")
    (data / "Train").symlink_to(pool / "Train", target_is_directory=True)
    (pool / "Train" / "Real" / "up").symlink_to(data)  # a circle through the other tree
    (data / "self").symlink_to(data / "self")
    (data / "broken.jpg").symlink_to(tmp_path / "nowhere")
    source = opened(data)
    assert content(source) == {
        "Test/Real/linked.jpg": IMAGES["Test/Real/0.jpg"],
        **{path: data for path, data in IMAGES.items() if path.startswith(("Test/Fake", "Train"))},
    }
    assert source.ignored == {"links and special files": 3}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_image(tmp_path):
    data = make(tmp_path, IMAGES)
    os.mkfifo(data / "Train" / "Real" / "pipe.jpg")
    assert opened(data).ignored == {"links and special files": 1}


def test_a_file_that_cannot_be_read_is_yielded_as_an_error(tmp_path):
    data = make(tmp_path, IMAGES)
    source = opened(data)
    (data / "Train/Real/0.jpg").unlink()
    (data / "Train/Real/1.jpg").unlink()
    (data / "Train/Real/1.jpg").mkdir()
    read = content(source)
    assert {path for path, data in read.items() if isinstance(data, OSError)} == {
        "Train/Real/0.jpg",
        "Train/Real/1.jpg",
    }
    assert len(read) == len(IMAGES)


def test_another_archive_type_is_a_class_and_a_row_in_the_table(tmp_path, monkeypatch):
    class Listing:
        """A text file that names the files of its archive, each of which holds its own name."""

        def __init__(self, path):
            self.files, self.ignored = dict.fromkeys(path.read_text().split()), Counter()

        def read(self, paths):
            return ((path, path.encode()) for path in paths)

    monkeypatch.setitem(archives.ARCHIVES, ".listing", Listing)
    names = [f"{split}/{kind}/1.png" for split in ("Train", "Validation", "Test") for kind in ("Real", "Fake")]
    (tmp_path / "faces.LISTING").write_text(" ".join([*names, "notes.txt"]))
    source = open_source(params(path=str(tmp_path / "faces.LISTING")), seed=0)
    assert sorted(data for _, data in source.read()) == sorted(name.encode() for name in names)
    assert source.name == "archive faces.LISTING" and source.ignored == {"files without an image extension": 1}
    assert archives.without_suffix(tmp_path / "faces.LISTING") == str(tmp_path / "faces")
    (tmp_path / "faces.rar").touch()
    with pytest.raises(UserError, match=r"is no folder and no \.zip, \.tar, \.tar\.gz, \.tgz or \.listing archive;"):
        archives.open_store(tmp_path / "faces.rar", "data.path")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    data, scandir = make(tmp_path, IMAGES), os.scandir

    def guarded(place):
        if str(place).rstrip("/").endswith("Train/Real"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    message = refusal(data)
    assert "data.path" in message and "Train/Real" in message and "Permission denied" in message


def test_what_is_not_there_or_neither_folder_nor_archive(tmp_path):
    assert "data.path" in refusal(tmp_path / "nowhere")
    for name in ("data.rar", "data.zip.part", "data.jpg"):
        (tmp_path / name).write_bytes(b"x")
        assert "no folder and no .zip" in refusal(tmp_path / name)
    data = make(tmp_path, IMAGES)
    assert "data.manifest" in refusal(data, manifest=str(tmp_path / "nowhere.csv"))
    assert "data.manifest" in refusal(data, manifest=str(tmp_path))


def test_the_drawn_sample_has_no_manifest_but_its_own(tmp_path):
    lines = [f"{name},{name[-5]}" for name in IMAGES]
    data = make(tmp_path, IMAGES | {"manifest.csv": "\n".join(["path,group", *lines]).encode()})
    source = open_folder(data, params(source="sample", manifest="/nowhere.csv"), 0, name="drawn sample")
    assert source.name == "drawn sample" and source.ungrouped == 0
    with pytest.raises(ValueError):
        open_source(params(source="sample"), 0)


# ---- archives ----------------------------------------------------------------------------------------------


def test_archives_are_read_in_the_order_they_are_written(tmp_path):
    files = dict(sorted(IMAGES.items(), key=lambda item: item[0][::-1]))
    for form in FORMATS[1:]:
        assert [entry.path for entry, _ in opened(make(tmp_path, files, form)).read()] == list(files)


@pytest.mark.parametrize("form", ["zip", "tar", "tgz"])
def test_hostile_and_odd_member_names_stay_inside(tmp_path, form):
    files = {f"./{name}": data for name, data in IMAGES.items()} | {
        "../../Train/Real/outside.jpg": b"1",
        "/Train/Real/absolute.jpg": b"2",
        "Train\\Fake\\windows.jpg": b"3",
    }
    source = opened(make(tmp_path, files, form))
    assert content(source) == IMAGES | {"Train/Real/absolute.jpg": b"2", "Train/Fake/windows.jpg": b"3"}
    assert source.ignored == {"hidden files": 1}
    assert [path.name for path in tmp_path.iterdir()] == [f"data.{form}"]


@pytest.mark.parametrize("form", ["tar", "tgz"])
def test_tar_links_and_directories_are_no_images(tmp_path, form):
    path = make(tmp_path, IMAGES, form)
    with tarfile.open(path, "w" if form == "tar" else "w:gz") as archive:
        archive.addfile(member("Train", type=tarfile.DIRTYPE))
        for name, data in IMAGES.items():
            archive.addfile(member(name, len(data)), io.BytesIO(data))
        archive.addfile(member("Train/Real/link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
        archive.addfile(member("Train/Real/hard.jpg", type=tarfile.LNKTYPE, linkname="Train/Real/0.jpg"))
        archive.addfile(member("Train/Real/pipe.jpg", type=tarfile.FIFOTYPE))
    source = opened(path)
    assert content(source) == IMAGES and source.ignored == {"links and special files": 3}


def test_zip_links_are_no_images(tmp_path):
    path = make(tmp_path, IMAGES, "zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("Train/Real/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("Train/Real/empty folder.jpg/", b"")
    source = opened(path)
    assert content(source) == IMAGES and source.ignored == {"links and special files": 1}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["zip", "tar", "tgz"])
def test_of_members_with_one_name_the_last_counts(tmp_path, form):
    files = [*IMAGES.items(), ("Train/Real/0.jpg", b"newer")]
    path = tmp_path / f"data.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w" if form == "tar" else "w:gz") as archive:
            for name, data in files:
                archive.addfile(member(name, len(data)), io.BytesIO(data))
    source = opened(path)
    assert content(source) == IMAGES | {"Train/Real/0.jpg": b"newer"}
    assert source.ignored == {"older copies in the archive": 1}


def test_a_damaged_zip_member_is_yielded_as_an_error(tmp_path):
    names = ["Train/Real/1.jpg", "Train/Real/2.jpg"]
    path = make(tmp_path, IMAGES | dict.fromkeys(names, bytes(range(256)) * 40), "zip")
    with zipfile.ZipFile(path) as archive:
        wrong_sum, no_block = (archive.getinfo(name).header_offset + 30 + len(name) for name in names)
    raw = bytearray(path.read_bytes())
    raw[wrong_sum + 20] ^= 0xFF
    raw[no_block] = 7  # deflate has no block of type 3
    path.write_bytes(raw)
    read = content(opened(path))
    assert [name for name, data in read.items() if isinstance(data, OSError)] == names
    assert len(read) == len(IMAGES)


def test_a_zip_member_of_unknown_compression_is_yielded_as_an_error(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
    raw = path.read_bytes()
    name = b"Train/Real/1.jpg"
    at = raw.rindex(name) - 46  # its record in the directory at the end
    path.write_bytes(raw[: at + 10] + struct.pack("<H", 9) + raw[at + 12 :])
    read = content(opened(path))
    assert [name for name, data in read.items() if isinstance(data, OSError)] == ["Train/Real/1.jpg"]


def test_a_tar_cut_short_after_it_was_listed(tmp_path):
    path = make(tmp_path, IMAGES, "tar")
    source = opened(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"Test Real 1") + 4])
    read = content(source)
    broken = [name for name, data in read.items() if isinstance(data, OSError)]
    assert len(read) == len(IMAGES) and "Test/Real/1.jpg" in broken and "Train/Real/1.jpg" not in broken


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: b"",
        lambda raw: b"no archive at all" * 100,
        lambda raw: raw[: len(raw) * 2 // 5],
        lambda raw: raw[: len(raw) * 2 // 5] + b"\x55" * 700 + raw[len(raw) * 2 // 5 + 700 :],
    ],
    ids=["empty", "other", "cut", "overwritten"],
)
def test_a_damaged_archive_is_refused_in_one_line(tmp_path, form, harm):
    noise = {f"Train/Real/x{i}.jpg": random.Random(i).randbytes(300) for i in range(40)}  # does not compress to nothing
    path = make(tmp_path, IMAGES | noise, form)
    path.write_bytes(harm(path.read_bytes()))
    if form == "zip" and b"PK\x05\x06" in path.read_bytes():  # the directory at the end is whole
        assert any(isinstance(data, OSError) for data in content(opened(path)).values())
    else:
        message = refusal(path)
        assert "data.path" in message and "damaged" in message


def test_a_wrong_checksum_at_the_end_of_a_gzip_file_is_seen(tmp_path):
    path = make(tmp_path, IMAGES, "tgz")
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    assert "damaged" in refusal(path)


def test_what_the_compression_is_shows_in_the_bytes_not_in_the_name(tmp_path):
    packed = make(tmp_path, IMAGES, "tgz")
    plain = packed.with_name("plain.tar.gz")
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    assert content(opened(plain)) == IMAGES
    assert content(opened(packed.rename(tmp_path / "packed.TAR"))) == IMAGES


def test_an_encrypted_archive_is_refused(tmp_path):
    path = make(tmp_path, IMAGES, "zip")
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 8] |= 1
    path.write_bytes(raw)
    message = refusal(path)
    assert "data.path" in message and "encrypted" in message and "unpack" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_member_packed_by_what_stops_at_no_limit_is_not_unpacked(tmp_path, method):
    path = make(tmp_path, IMAGES, "zip")
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("Train/Real/rare.jpg", bytes(1000))
    found = {entry.path: data for entry, data in opened(path).read()}
    assert "packed by a rare method" in str(found.pop("Train/Real/rare.jpg")) and found == IMAGES


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_tar_that_leads_back_to_a_member_is_refused(tmp_path, place):
    path = tmp_path / "data.tar"
    headers = [member(f"Train/Real/{i}.jpg").tobuf() for i in range(3)]
    endless = bytearray(headers[place])
    endless[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256
    endless[148:156] = b" " * 8
    endless[148:156] = b"%06o\0 " % sum(endless)
    headers[place] = bytes(endless)
    path.write_bytes(b"".join(headers) + bytes(1024))
    assert f"Train/Real/{place}.jpg of -512 bytes" in refusal(path)


def test_a_tar_that_leads_back_by_a_further_header_is_refused(tmp_path):
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member("Train/Real/0.jpg", pax_headers={"size": "-1536"}))
    assert "Train/Real/0.jpg of -1,536 bytes" in refusal(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_further_headers_fill_the_memory_is_refused(tmp_path, kind):
    path = tmp_path / "data.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(member("x", (1 << 20) + 1, type=kind).tobuf())
        file.write(bytes((1 << 20) + 512))
        file.write(bytes(1024))
    assert "a member of 1,048,577 bytes" in refusal(path)


def test_a_message_names_the_parameter_that_names_the_data(tmp_path):
    data = make(tmp_path, {path: b"" for path in IMAGES}, "folder")
    assert opened(data).key == "data.path"
    assert open_folder(data, params(source="sample"), 0, name="drawn sample").key == "data.sample"


def test_a_place_with_a_backslash_in_its_name_and_files_that_differ_by_one(tmp_path):
    for name in ("a\\b", "c"):
        (tmp_path / name).mkdir()
        make(tmp_path / name, IMAGES, "folder").rename(tmp_path / name / "moved")
    places = [tmp_path / "a\\b", tmp_path / "c"]
    (places[1] / "moved" / "Train\\Real\\0.jpg").write_bytes(b"twin")
    source = open_source(params(path=[str(place) for place in places]), 0)
    assert {entry.attributes["source"] for entry in source.entries} == {"a_b", "c"}
    assert len(content(source)) == 2 * len(IMAGES)
    assert source.ignored == {"files whose names differ in \\ and / alone": 1}


def test_a_member_name_that_is_not_the_utf8_it_claims_to_be(tmp_path):
    path = make(tmp_path, IMAGES | {"Train/Real/é.jpg": b"e"}, "zip")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    assert "damaged" in refusal(path)


def test_sparse_tar_members_are_left_out(tmp_path):
    path = make(tmp_path, IMAGES, "tar")
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        sparse = member("Train/Real/sparse.jpg", 10, pax_headers={"GNU.sparse.map": "0,10", "GNU.sparse.size": "99"})
        archive.addfile(sparse, io.BytesIO(bytes(10)))
    assert content(opened(path)) == IMAGES


def test_the_stores_by_themselves(tmp_path):
    for form, store in (("folder", Folder), ("zip", Zip), ("tar", Tar)):
        some = store(make(tmp_path, IMAGES, form))
        assert some.files.keys() == IMAGES.keys()
        assert list(some.read(["Test/Real/1.jpg"])) == [("Test/Real/1.jpg", b"Test Real 1")]
        assert list(some.read([])) == []


# ---- several sources -------------------------------------------------------------------------------------------


def several(tmp_path, **kinds_and_forms) -> list[str]:
    places = []
    for name, form in kinds_and_forms.items():
        made = make(tmp_path / "made" / name, {path: name.encode() + data for path, data in IMAGES.items()}, form)
        place = tmp_path / (name if form == "folder" else f"{name}.{form}")
        made.rename(place)
        places.append(str(place))
    return places


def test_several_places_are_one_data_set_that_keeps_them_apart(tmp_path):
    source = open_source(params(path=several(tmp_path, here="folder", there="zip", yonder="tar.gz")), 0)
    assert {entry.attributes["source"] for entry in source.entries} == {"here", "there", "yonder"}
    for entry in source.entries:
        name, inner = entry.path.split("/", 1)
        assert name == entry.attributes["source"]
        assert entry.split == inner.split("/")[0].lower()
        assert entry.group.startswith(f"{name}/")
    assert content(source) == {
        f"{name}/{path}": name.encode() + data for name in ("here", "there", "yonder") for path, data in IMAGES.items()
    }
    some = {"there/Train/Real/0.jpg", "here/Test/Fake/2.jpg"}
    assert {entry.path for entry, _ in source.read(some)} == some
    assert source.classes == ["real", "fake"]
    assert source.name == "3 sources: here, there, yonder"


def test_a_source_that_a_set_names_itself_is_kept_beside_the_set_it_comes_from(tmp_path):
    manifest = "\n".join(["path,group,source", *(f"{name},{name},camera 1" for name in IMAGES)]).encode()
    places = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        places.append(
            str(make(tmp_path / name, IMAGES | {"manifest.csv": manifest}, "folder").rename(tmp_path / name / name))
        )
    source = open_source(params(path=places), 0)
    assert {tuple(sorted(entry.attributes.items())) for entry in source.entries} == {
        (("own_source", "camera 1"), ("source", "one")), (("own_source", "camera 1"), ("source", "two"))
    }  # fmt: skip


def test_each_of_several_places_has_a_validation_split_of_its_own(tmp_path):
    places = several(tmp_path, here="folder", there="folder")
    without = Path(places[1]) / "Validation"
    for file in without.rglob("*.jpg"):
        file.unlink()
    found = Counter((e.attributes["source"], e.split) for e in open_source(params(path=places), 0).entries)
    assert found["here", "validation"] == 6
    assert 0 < found["there", "validation"] < found["there", "train"] < 6  # carved from its own train


def test_kinds_of_fake_of_all_places_come_together(tmp_path):
    for name, kind in (("one", "Swap"), ("two", "Drawn")):
        make(tmp_path / name, {path.replace("Fake", kind): data for path, data in IMAGES.items()})
        (tmp_path / name / "data").rename(tmp_path / f"set-{name}")
    source = open_source(params(path=[str(tmp_path / "set-one"), str(tmp_path / "set-two")]), 0)
    assert source.classes == ["real", "drawn", "swap"]


def test_rows_of_a_named_manifest_belong_to_the_place_they_begin_with(tmp_path):
    places = several(tmp_path, here="folder", there="folder")
    rows = ["path,group", "here/Train/Real/0.jpg,anna", "there/Train/Real/0.jpg,berta", "here/Train/Real/1.jpg,anna"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    source = open_source(params(path=places, manifest=str(tmp_path / "rows.csv")), 0)
    groups = {entry.path: entry.group for entry in source.entries}
    assert groups["here/Train/Real/0.jpg"] == groups["here/Train/Real/1.jpg"] == "here/train/anna"
    assert groups["there/Train/Real/0.jpg"] == "there/train/berta"
    assert "anna" not in groups["there/Train/Real/1.jpg"]
    (tmp_path / "rows.csv").write_text("\n".join(rows[:2]))
    with pytest.raises(UserError, match=r"data\.manifest: .*begins with there/.*\(in .*there\)"):
        open_source(params(path=places, manifest=str(tmp_path / "rows.csv")), 0)


def test_two_places_of_one_name_are_refused(tmp_path):
    places = [str(make(tmp_path / name, IMAGES)) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"data\.path: two of its places are called data; rename one"):
        open_source(params(path=places), 0)


def test_one_of_several_places_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: .*nowhere is not there"):
        open_source(params(path=[*several(tmp_path, here="folder"), str(tmp_path / "nowhere")]), 0)


# ---- Kaggle ------------------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(monkeypatch):
    """Put a kagglehub in place of the real one whose download is the given function."""

    def install(download):
        module = types.ModuleType("kagglehub")
        module.dataset_download = download
        monkeypatch.setitem(sys.modules, "kagglehub", module)

    return install


def kaggle_refusal() -> str:
    with pytest.raises(UserError) as refused:
        open_source(params(source="kaggle", kaggle="someone/faces"), 0)
    message = str(refused.value)
    assert "\n" not in message
    assert all(words in message for words in ("data.kaggle", "someone/faces", "data.source=folder data.path="))
    return message


def test_a_kaggle_data_set_is_read_like_a_folder_and_quietly(tmp_path, kaggle, capsys):
    asked = []

    def download(name):
        asked.append(name)
        print("Downloading, and by the way there is a newer version")
        print("100%", file=sys.stderr)
        return str(make(tmp_path, {f"Dataset/{name}": data for name, data in IMAGES.items()}))

    kaggle(download)
    source = open_source(params(source="kaggle", kaggle="someone/faces"), 0)
    assert asked == ["someone/faces"] and source.name == "Kaggle data set someone/faces"
    assert len(content(source)) == len(IMAGES)
    assert capsys.readouterr() == ("", "100%\n")


class Refused(OSError):
    """As requests.HTTPError is."""

    def __init__(self, status):
        super().__init__(f"{status} Client Error.\n\nYou don't have\npermission")
        self.response = types.SimpleNamespace(status_code=status)


class Timeout(OSError):
    """As requests.Timeout is."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Refused(404), "no such data set"),
        (Refused(403), "consent"),
        (Refused(401), "consent"),
        (Refused(500), "500 Client Error"),
        (Timeout("slow"), "check the network"),
        (ConnectionError("HTTPSConnectionPool(...): Max retries exceeded"), "check the network"),
        (OSError(28, "No space left on device"), "No space left"),
        (ValueError("Unsupported\narchive type."), "Unsupported archive type"),
        (ImportError("No module named requests"), "not installed"),
    ],
)
def test_every_failed_download_ends_in_one_line_that_says_what_to_do(kaggle, error, words):
    def fail(name):
        raise error

    kaggle(fail)
    assert words in kaggle_refusal()


def test_without_kagglehub_the_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "not installed" in kaggle_refusal()


def test_a_kaggle_data_set_without_a_layout_names_its_own_key(tmp_path, kaggle):
    kaggle(lambda name: str(make(tmp_path, {"a.jpg": b""})))
    with pytest.raises(UserError, match=r"data\.kaggle"):
        open_source(params(source="kaggle"), 0)


def test_kagglehub_is_not_loaded_for_other_sources(tmp_path):
    code = (
        "import sys; from detector.prepare.sources import open_source\n"
        "assert not {'kagglehub', 'tensorflow', 'mlflow', 'pandas'} & sys.modules.keys(), sys.modules.keys()"
    )
    root = Path(detector.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


# ---- further test sets -------------------------------------------------------------------------------------

KEY = "evaluate.extra_sets"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "places",
    [
        ["Real", "Fake"],
        ["some/where/REAL", "some/where/fake"],
        ["Train/Real", "Train/Fake", "Test/Real", "Test/Fake"],
        ["Train/Real", "TEST/fake"],  # each split one class
        ["Test/Real", "Test/Fake", "Real", "Fake"],  # some in split folders, some not
        ["Real/val", "Real/test", "Fake/val"],
        ["Real/person 1", "Fake/person 1/take 2"],
        ["Test-Fog/Real", "Test-Fog/Fake"],
        ["test/data/Real", "test/data/Fake"],
    ],
    ids=str,
)
def test_every_image_of_a_further_test_set_counts(tmp_path, form, places):
    files = {f"{place}/{i}.jpg": f"{place} {i}".encode() for place in places for i in range(2)}
    source = open_test_set(make(tmp_path, files, form), "Real", KEY)
    assert content(source) == files and not source.ignored
    assert [entry.path for entry in source.entries] == sorted(files)
    assert source.classes == ["real", "fake"]
    for entry in source.entries:
        assert entry.split == "test" and entry.kind == ("real" if "real" in entry.path.lower() else "fake")


def test_a_further_test_set_has_any_number_of_fake_classes(tmp_path):
    files = {f"{kind}/1.jpg": b"" for kind in ("Originals", "Swap", "GAN")}
    source = open_test_set(make(tmp_path, files), " originals ", KEY)
    assert source.classes == ["originals", "gan", "swap"]
    one = open_test_set(make(tmp_path / "one", {"Originals/1.jpg": b""}), "originals", KEY)
    assert one.classes == ["originals"]


def test_images_beside_no_real_folder_are_counted_as_ignored(tmp_path):
    files = {"a/Real/1.jpg": b"", "a/Fake/2.jpg": b"", "b/3.jpg": b"", "notes.txt": b""}
    source = open_test_set(make(tmp_path, files), "real", KEY)
    assert len(source.entries) == 2
    assert source.ignored == {"files without an image extension": 1, "images in no class folder": 1}


@pytest.mark.parametrize("form", FORMATS)
def test_a_further_test_sets_own_manifest_gives_groups_and_attributes(tmp_path, form):
    rows = b"path,group,age\nTrain/Real/1.jpg,ann,7\nTest/Real/1.jpg,ann,8\nTest/Fake/1.jpg,bob,\n"
    files = {"Train/Real/1.jpg": b"1", "Test/Real/1.jpg": b"2", "Test/Fake/1.jpg": b"3", "manifest.csv": rows}
    source = open_test_set(make(tmp_path, files, form), "real", KEY)
    assert not source.ignored and source.ungrouped == 0
    # The names of groups are good within a split alone, here as in training data.
    assert {entry.path: (entry.group, entry.attributes["age"]) for entry in source.entries} == {
        "Test/Fake/1.jpg": ("test/bob", ""),
        "Test/Real/1.jpg": ("test/ann", "8"),
        "Train/Real/1.jpg": ("train/ann", "7"),
    }


def test_a_further_test_sets_classes_may_come_from_its_manifest(tmp_path):
    rows = b"path,group,class\nimages/1.jpg,a,Real\nimages/2.jpg,b,Swap\n"
    source = open_test_set(
        make(tmp_path, {"images/1.jpg": b"", "images/2.jpg": b"", "manifest.csv": rows}), "real", KEY
    )
    assert {entry.path: entry.kind for entry in source.entries} == {"images/1.jpg": "real", "images/2.jpg": "swap"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": b""}, "there are no images in"),
        ({"1.jpg": b""}, "lie in no class folder"),
        ({"Fake/1.jpg": b"", "Genuine/1.jpg": b""}, "is called real (found fake, genuine)"),
        ({"Real/1.jpg": b"", "manifest.csv": b"path\nReal/1.jpg"}, "no column group"),
        ({"Real/1.jpg": b"", "manifest.csv": b"path,group\nOther/1.jpg,a"}, "names an image of the data"),
        ({"Real/1.jpg": b"", "manifest.csv": b"path,group,split\nReal/1.jpg,a,mine"}, "has the split mine"),
        ({"Real/1.jpg": b"", "manifest.csv": b"path,group\nReal/1.jpg,a\nReal/1.jpg,b"}, "stands twice"),
    ],
)
def test_what_is_wrong_with_a_further_test_set_is_one_line_that_names_its_key(tmp_path, files, words):
    with pytest.raises(UserError) as refused:
        open_test_set(make(tmp_path, files), "real", KEY)
    assert str(refused.value).startswith(f"{KEY}: ") and words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_further_test_set_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "faces.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=rf"{KEY}: the archive .*faces.zip is damaged"):
        open_test_set(tmp_path / "faces.zip", "real", KEY)


# ---- reading a second time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_some_of_the_images_can_be_read_again(tmp_path, form):
    source = opened(make(tmp_path, IMAGES, form))
    wanted = sorted(IMAGES)[::5]
    read = list(source.read(set(wanted)))
    assert {entry.path: data for entry, data in read} == {path: IMAGES[path] for path in wanted}
    assert len(read) == len(wanted) and not list(source.read([]))


@pytest.mark.parametrize("form", ["folder", "tar", "tgz"])
def test_what_vanishes_between_two_readings_is_no_traceback(tmp_path, form):
    path = make(tmp_path, IMAGES, form)
    source = opened(path)
    path.rename(tmp_path / "elsewhere")
    if form == "folder":  # file by file
        assert all(isinstance(data, OSError) for data in content(source).values())
    else:
        with pytest.raises(UserError, match="cannot be read any more"):
            content(source)
