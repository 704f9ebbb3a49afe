import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.errors import UserError
from detector.evaluation.calibration import Calibration
from detector.images import resize
from detector.inference import command
from detector.inference.command import COLUMNS, WRITERS, main
from detector.inference.detector import Crop, Detector, ScoredFace
from detector.inference.scan import Row
from detector.models.grad_cam import at_size, grad_cam, overlay

ROOT = Path(__file__).resolve().parents[3]
ODD = os.fsdecode(b'a "quoted", \n\r name\x1b[31m \xff \xe2\x80\xae.png')
CROP = Crop((3, 4, 50, 60), (0, 0, 60, 60), np.zeros((71, 71, 3), np.uint8))
ROWS = [
    Row("a.png", 1, ScoredFace(CROP, 0.123456789, "real", "unsure")),
    Row(ODD),
    Row("b.png", error="cut short"),
]


@pytest.fixture(scope="module")
def detector(model_file) -> Detector:
    return Detector(model_file, Calibration())


@pytest.fixture
def predict(detector, model_file, monkeypatch, tmp_path):
    """Run the command line in `tmp_path`: predict(*arguments, stdin=b"") -> (exit code, standard output)."""
    monkeypatch.setattr(command, "Detector", {model_file: detector}.get)  # loaded once for all
    registry = types.ModuleType("detector.inference.find_model")
    registry.find_model = lambda reference: model_file
    monkeypatch.setitem(sys.modules, "detector.inference.find_model", registry)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin: bytes = b"") -> tuple[int, str]:
        output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "argv", ["predict", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            main()
        output.flush()
        return end.value.code, output.buffer.getvalue().decode("utf-8")

    return run


def written(form: str, rows=ROWS) -> str:
    file = io.StringIO(newline="")
    write = WRITERS[form](file, ["real", "fake"])
    for row in rows:
        write(row)
    return file.getvalue()


# ---- forms ---------------------------------------------------------------------------------------------------------


def test_csv_holds_every_name_and_nothing_where_nothing_is_known():
    head, first, odd, bad = csv.reader(io.StringIO(written("csv"), newline=""))
    assert tuple(head) == COLUMNS
    assert first == ["a.png", "1", "3", "4", "50", "60", "0.123457", "real", "unsure", ""]
    assert odd == [ODD.replace("\udcff", "\\xff"), *[""] * 7, "no face", ""]
    assert bad == ["b.png", *[""] * 8, "cut short"]
    written("csv").encode("utf-8")


def test_jsonl_is_an_object_a_line():
    first, odd, bad = map(json.loads, written("jsonl").splitlines()[:1] + written("jsonl").split("\n")[1:3])
    assert first == {
        "path": "a.png",
        "face": 1,
        "box": [3, 4, 50, 60],
        "p_fake": 0.123457,
        "label": "real",
        "verdict": "unsure",
        "error": None,
    }
    assert odd["path"] == ODD.replace("\udcff", "\\xff") and odd["verdict"] == "no face"
    assert bad["error"] == "cut short" and bad["verdict"] is None


def test_a_table_is_aligned_and_sends_no_control_character():
    text = written("table")
    lines = text.splitlines()
    assert len(lines) == 4 and all(c.isprintable() for line in lines for c in line)
    start = lines[0].index("path")
    assert [line[start:] for line in lines[1:]] == [
        "a.png",
        'a "quoted", \\n\\r name\\x1b[31m \\xff \\u202e.png',
        "b.png: cut short",
    ]
    assert lines[3].startswith("error")


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_folder_of_photographs_becomes_csv(predict, tmp_path, photo, encode):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(photo(50, 60)))
    code, output = predict("in")
    assert code == 0
    assert next(csv.DictReader(io.StringIO(output)))["verdict"] == "no face"
    code, output = predict("in", "--no-detect", "--format", "jsonl")
    row = json.loads(output)
    assert code == 0 and row["box"] is None and row["verdict"] in ("camera", "swap") and 0 < row["p_fake"] < 1


def test_broken_files_are_rows_and_exit_code_1(predict, tmp_path, photo, encode):
    (tmp_path / "a.png").write_bytes(encode(photo()))
    (tmp_path / "b.png").write_bytes(b"hello")
    code, output = predict("b.png", "gone.png", "a.png", "--no-detect")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert code == 1
    assert [bool(row["error"]) for row in rows] == [True, True, False]


def test_paths_come_from_standard_input(predict, tmp_path, photo, encode):
    name = b"odd \xff name.png"
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(encode(photo()))
    for arguments in (["-"], []):
        code, output = predict(*arguments, "--no-detect", stdin=name + b"\n\n")
        [row] = csv.DictReader(io.StringIO(output))
        assert (code, row["path"], row["error"]) == (0, "odd \\xff name.png", "")
    assert predict("-", stdin=b"")[0] == 0


def test_nothing_at_all_to_do_is_told(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["gone"], "PATH: gone is not there"),
        (["empty"], "PATH: there are no images in empty"),
    ):
        with pytest.raises(UserError, match=message):
            predict(*arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--explain: cannot make file"):
        predict("empty", "--explain", "file")


@pytest.mark.parametrize("margin", ["-1", "nan", "3", "wide"])
def test_an_impossible_margin_is_a_usage_error(predict, margin):
    assert predict("in", "--margin", margin)[0] == 2


def test_heatmaps_have_names_that_can_be_foretold_and_do_not_collide(predict, tmp_path, photo, encode):
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same name?.png").write_bytes(encode(photo(50, 60)))
    code, _ = predict("x", "y", "--no-detect", "--explain", "maps")
    names = [
        f"same_name_.png-{hashlib.sha256(f'{place}/same name?.png'.encode()).hexdigest()[:8]}-1.png" for place in "xy"
    ]
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == sorted(names)
    image = cv2.imread(str(tmp_path / "maps" / names[0]))[..., ::-1]
    assert image.shape == (50, 120, 3)
    np.testing.assert_array_equal(image[:, :60], photo(50, 60))


def test_the_heat_map_is_that_of_the_pixels_that_are_scored(predict, detector, tmp_path, photo, encode):
    pixels = photo(300, 500)
    (tmp_path / "a.png").write_bytes(encode(pixels))
    assert predict("a.png", "--no-detect", "--explain", "maps")[0] == 0
    [file] = (tmp_path / "maps").iterdir()
    heat = at_size(grad_cam(detector.model, resize(pixels, detector.card.image_size)[None])[0], 300, 500)
    beside = cv2.imread(str(file))[:, 500:, ::-1].astype(int)
    assert np.abs(beside - overlay(pixels, heat)).max() <= 1


def test_help_is_quick_to_come_without_tensorflow():
    code = (
        "import sys, detector.inference.command; sys.exit(bool({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    line = [sys.executable, "-m", "detector", "predict", "--help"]
    assert "PATH" in subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
