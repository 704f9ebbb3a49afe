import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import UserError
from detector.files import read_heatmaps, read_json, read_table, read_text, write_heatmaps, write_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(content=st.dictionaries(st.text(), values, max_size=4))
def test_round_trip(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, content)
    assert read_json(path) == content


def test_the_file_is_for_people_and_for_diffs(tmp_path):
    write_json(tmp_path / "a.json", {"n": 2, "auc": 0.5, "classes": ["real", "fake"]})
    text = (tmp_path / "a.json").read_text()
    assert text.startswith('{\n  "n": 2,\n  "auc": 0.5,\n') and text.endswith("}\n")
    write_json(tmp_path / "b.json", {"n": 2, "auc": 0.5, "classes": ["real", "fake"]})
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_folders_are_made(tmp_path):
    write_json(tmp_path / "metrics" / "new" / "a.json", {})
    assert read_json(tmp_path / "metrics" / "new" / "a.json") == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), {"deep": [-math.inf]}])
def test_what_json_cannot_say_is_refused_and_the_former_file_stays(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError):
        write_json(path, {"loss": value})
    assert read_json(path) == {"loss": 1}


def test_read_text_strips(tmp_path):
    (tmp_path / "run_id").write_text("\n abc \n")
    assert read_text(tmp_path / "run_id") == "abc"


@pytest.mark.parametrize("read", [read_json, read_text])
def test_a_missing_file_says_which_and_what_to_do(tmp_path, read):
    with pytest.raises(UserError, match=r"a\.json: not found; run `dvc repro` first"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"abc", b"\xff\xfe"])
def test_a_damaged_file_says_which_and_what_to_do(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON .*; run `dvc repro -f`"):
        read_json(tmp_path / "a.json")


def test_a_table_keeps_its_texts_and_its_gaps(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('name,auc,n\n"NA",,3\n"",0.5,4\n"1",1.0,5\n')
    table = read_table(path, texts=["name", "gone"])
    assert table["name"].tolist() == ["NA", "", "1"]
    np.testing.assert_array_equal(table["auc"], [np.nan, 0.5, 1.0])
    assert table["n"].tolist() == [3, 4, 5]
    path.write_text("name,auc\n")
    assert read_table(path, texts=["name"]).empty
    with pytest.raises(UserError, match=r"gone\.csv: not found"):
        read_table(tmp_path / "gone.csv", texts=[])


def test_heatmaps_come_back_and_equal_ones_are_equal_bytes(tmp_path):
    heat = np.random.default_rng(0).random((3, 8, 8), np.float32)
    table = pd.DataFrame({"set": ["test", "test", "straße"], "path": ["a/1.jpg", "b/2.jpg", "c"], "heat": list(heat)})
    write_heatmaps(tmp_path / "a.npz", table)
    write_heatmaps(tmp_path / "b.npz", table)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_heatmaps(tmp_path / "a.npz")
    assert back[["set", "path"]].equals(table[["set", "path"]])
    np.testing.assert_allclose(np.stack(back["heat"]), heat, atol=0.5 / 255 + 1e-6)


def test_heatmaps_that_are_none(tmp_path):
    with pytest.raises(UserError, match="not found; run `dvc repro` first"):
        read_heatmaps(tmp_path / "heatmaps.npz")
    write_heatmaps(tmp_path / "whole.npz", pd.DataFrame({"set": ["t"], "path": ["a"], "heat": [np.eye(40)]}))
    whole = (tmp_path / "whole.npz").read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], whole[:60] + b"????????" + whole[68:]):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged; run `dvc repro -s -f evaluate`"):
            read_heatmaps(tmp_path / "damaged.npz")
