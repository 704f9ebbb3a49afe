import os
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from detector.inference.detector import BATCH, ScoredFace
from detector.inference.scan import Row, list_files, scan
from detector.models.faces import Face


class Brightness:
    """Stands in for a Detector: P(fake) is an image's mean; `batches` are the sizes of what it was given."""

    card = SimpleNamespace(image_size=8, classes=["real", "fake"])

    def __init__(self):
        self.batches = []

    def score(self, crops):
        crops = list(crops)
        assert all(crop.pixels.shape == (8, 8, 3) for crop in crops)
        self.batches.append(len(crops))
        for crop in crops:
            score = crop.pixels.mean() / 255
            label = "fake" if score >= 0.5 else "real"
            yield ScoredFace(crop, score, label, label)


def verdict(row: Row) -> str | None:
    return row.face and row.face.verdict


class WideImages:
    """Stands in for a FaceFinder: as many faces, 10 x 10 pixels side by side, as an image is tens of pixels wide."""

    def find(self, image):
        return [Face((10 * i, 0, 10 * i + 10, 10), 0.9) for i in range(image.shape[1] // 10)]


def flat(level: int, width: int = 10) -> np.ndarray:
    return np.full((10, width, 3), level, np.uint8)


def memory(files):
    return [(name, lambda data=data: data) for name, data in files.items()]


@pytest.fixture
def folder(tmp_path, encode):
    """Two images, a broken one, a text and a hidden file."""
    place = tmp_path / "in"
    (place / "sub" / ".cache").mkdir(parents=True)
    (place / "b.png").write_bytes(encode(flat(10)))
    (place / "sub" / "a.jpg").write_bytes(encode(flat(250), "JPEG"))
    (place / "sub" / "broken.png").write_bytes(b"hello")
    (place / "notes.txt").write_text("hello")
    (place / "sub" / ".cache" / "thumb.png").write_bytes(encode(flat(0)))
    return place


def test_a_folder_and_archives_of_it_give_the_same_verdicts(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"a{suffix}", mode) as archive:
            archive.add(folder, ".")
    seen = {}
    for place in (folder, *(tmp_path / f"a{suffix}" for suffix in (".zip", ".tar", ".tar.gz"))):
        rows = list(scan(list_files([str(place)]), Brightness(), None))
        seen[place] = {
            (row.path.removeprefix(f"{place}/"), row.face and row.face.p_fake, verdict(row), row.error) for row in rows
        }
        assert len(rows) == 3
    assert len(set(map(frozenset, seen.values()))) == 1
    assert {(path, label) for path, _, label, _ in seen[folder]} == {
        ("b.png", "real"),
        ("sub/a.jpg", "fake"),
        ("sub/broken.png", None),
    }
    assert [row.path for row in scan(list_files([str(folder)]), Brightness(), None)] == [
        str(folder / path) for path in ("b.png", "sub/a.jpg", "sub/broken.png")
    ]


def test_what_cannot_be_read_is_a_row_and_the_rest_goes_on(folder, tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    os.mkfifo(tmp_path / "pipe.png")
    files = ["gone.png", "nul\0.png", "cut.zip", "pipe.png", "in/notes.txt", "in/b.png"]
    rows = list(scan(list_files(str(tmp_path / file) for file in files), Brightness(), WideImages()))
    assert [os.path.relpath(row.path, tmp_path) for row in rows] == files
    assert all(row.error and row.face is None and len(row.error) < 200 for row in rows[:-1])
    assert rows[0].error == "No such file or directory"
    face = rows[-1].face
    assert (rows[-1].number, face.crop.box, face.label, face.verdict) == (1, (0, 0, 10, 10), "real", "real")
    assert face.p_fake == pytest.approx(10 / 255)


def test_the_contents_of_a_folder_that_may_not_be_read_are_told(folder, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    rows = list(scan(list_files([str(folder)]), Brightness(), None))
    assert [(row.path, row.error) for row in rows] == [
        (str(folder / "b.png"), None),
        (str(folder / "sub"), "Permission denied"),
    ]


def test_a_row_a_face_in_order_and_none_is_an_answer(encode):
    files = {"two": encode(flat(200, 25)), "none": encode(flat(200, 9)), "bad": b"", "one": encode(flat(20))}
    rows = list(scan(memory(files), Brightness(), WideImages(), margin=0))
    assert [(row.path, row.number, row.face and row.face.crop.box, verdict(row), row.error) for row in rows] == [
        ("two", 1, (0, 0, 10, 10), "fake", None),
        ("two", 2, (10, 0, 20, 10), "fake", None),
        ("none", None, None, None, None),
        ("bad", None, None, None, "empty file"),
        ("one", 1, (0, 0, 10, 10), "real", None),
    ]


def test_the_network_gets_full_batches_across_files(encode):
    many, detector = encode(flat(100, 70)), Brightness()
    rows = list(scan(memory({str(i): many for i in range(20)}), detector, WideImages()))
    assert len(rows) == 140
    assert detector.batches == [BATCH] * 4 + [140 - 4 * BATCH]


def test_rows_come_as_batches_finish_and_memory_holds_a_few_files(encode):
    image, read = encode(flat(100)), []

    def endless():
        for i in range(10**9):
            yield str(i), lambda i=i: (read.append(i), image)[1]

    rows = scan(endless(), Brightness(), WideImages())
    for _ in range(BATCH):
        next(rows)
    rows.close()
    assert len(read) < BATCH + 4 * os.cpu_count() + 8


def test_where_faces_are_rare_rows_are_not_held_back_for_a_batch(encode):
    face, none, read = encode(flat(100)), encode(flat(100, 9)), []

    def endless():
        for i in range(10**9):
            yield str(i), lambda i=i: (read.append(i), none if i else face)[1]

    rows = scan(endless(), Brightness(), WideImages())
    assert verdict(next(rows)) == "real"
    rows.close()
    assert len(read) < 9 * BATCH + 4 * os.cpu_count()


def test_a_picture_of_every_face_is_kept_where_one_is_asked_for(encode):
    files = {"a": encode(flat(200, 20)), "none": encode(flat(0, 5)), "b": encode(flat(50))}
    for picture, shape in ((0, None), (6, (6, 6, 3)), (100, (10, 10, 3))):
        rows = list(scan(memory(files), Brightness(), WideImages(), 0, picture))
        pictures = [row.face.crop.picture for row in rows if row.face]
        assert len(pictures) == 3 and all((one if shape is None else one.shape) == shape for one in pictures)


def test_a_pipe_with_a_silent_writer_is_a_row_of_its_own(tmp_path, encode):
    (tmp_path / "face.png").write_bytes(encode(flat(9), "PNG"))
    os.mkfifo(tmp_path / "pipe.png")
    held = os.open(tmp_path / "pipe.png", os.O_RDWR | os.O_NONBLOCK)
    try:
        paths = [str(tmp_path / name) for name in ("pipe.png", "face.png")]
        pipe, face = scan(list_files(paths), Brightness(), None)
    finally:
        os.close(held)
    assert pipe.error and pipe.face is None
    assert verdict(face) == "real"
