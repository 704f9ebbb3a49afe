from pathlib import Path

import numpy as np
import pytest

from detector.data.shards import ShardReader, read_manifest
from detector.errors import UserError
from detector.prepare.extra import set_names, write_extra_sets
from detector.prepare.ingest import ingest


def test_names_are_short_safe_and_apart(tmp_path):
    for place in ("a/faces", "b/faces", "c/Test", "Ünusual näme (1)", "..odd"):
        (tmp_path / place).mkdir(parents=True)
    for archive in ("set.zip", "more.tar.gz"):
        (tmp_path / archive).write_bytes(b"")
    places = ["a/faces", "b/faces", "c/Test", "Ünusual näme (1)", "..odd", "set.zip", "more.tar.gz"]
    assert set_names([tmp_path / place for place in places], taken=["train", "test"]) == [
        "faces", "b-faces", "c-Test", "Ünusual_näme_1", "odd", "set", "more"
    ]  # fmt: skip


def test_no_set_bears_the_name_of_all_sets_together():
    assert set_names([Path("/data/Pooled")], taken=["test"]) == ["data-Pooled"]


def test_the_same_place_twice_is_refused():
    with pytest.raises(UserError, match=r"evaluate\.extra_sets: .*faces"):
        set_names([Path("/a/faces"), Path("/b/a/faces")] * 2, taken=[])


@pytest.fixture
def home(tmp_path, photo, encode, memory_source) -> Path:
    """Prepared data with pictures of the seeds 0 to 11, the last four of them test images."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    splits = ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    files = {
        f"{split}/{('real', 'fake')[seed % 2]}/{seed:02d}.png": encode(photo(seed=seed))
        for seed, split in enumerate(splits)
    }
    ingest(memory_source(files), folder, 1024, "drop", np.random.default_rng(0))
    return folder


def write(folder: Path, seeds: dict[str, list[int]], photo, encode) -> Path:
    for place, numbers in seeds.items():
        (folder / place).mkdir(parents=True)
        for seed in numbers:
            (folder / place / f"{seed}.png").write_bytes(encode(photo(seed=seed)))
    return folder


@pytest.mark.parametrize(("policy", "kept"), [("drop", [20, 21]), ("report", [20, 21, 0, 4, 9])])
def test_what_was_trained_on_is_no_test_of_transfer(tmp_path, home, defaults, photo, encode, policy, kept):
    elsewhere = write(tmp_path / "elsewhere", {"Test/REAL": [20, 0, 9], "Train/pasted": [21, 4]}, photo, encode)
    (elsewhere / "Test/REAL/broken.png").write_bytes(b"no image")
    params = defaults.model_copy(
        update={
            "evaluate": defaults.evaluate.model_copy(update={"extra_sets": [str(elsewhere)]}),
            "data": defaults.data.model_copy(update={"duplicates": policy}),
        }
    )
    extra = tmp_path / "extra"
    found = write_extra_sets(params, home, extra)["elsewhere"]
    assert len(found.pop("digest")) == 64
    assert found == {"excluded": 6 - len(kept), "seen_in_training": 2, "seen_in_test": 1, "search_complete": True}
    rows = read_manifest(extra / "elsewhere")
    assert set(rows["split"]) == {"elsewhere"}
    assert set(zip(rows["class"], rows["label"], strict=True)) == {("real", 0), ("pasted", 1)}
    images = list(ShardReader(extra / "elsewhere", rows).images())
    wanted = [photo(seed=seed) for seed in kept]
    assert len(images) == len(wanted)
    assert all(any(np.array_equal(image, other) for other in images) for image in wanted)


def test_no_sets_make_an_empty_folder_and_a_bad_one_leaves_the_former(tmp_path, home, defaults, photo, encode):
    extra = tmp_path / "extra"
    assert write_extra_sets(defaults, home, extra) == {}
    assert [file.name for file in extra.iterdir()] == ["sets.json"]
    (extra / "kept").touch()
    fine = write(tmp_path / "fine", {"Real": [30], "Fake": [31]}, photo, encode)
    for bad, message in ((str(tmp_path / "gone"), "is not there"), (str(home), "there are no images")):
        sets = [str(fine), bad]
        params = defaults.model_copy(update={"evaluate": defaults.evaluate.model_copy(update={"extra_sets": sets})})
        with pytest.raises(UserError, match=rf"evaluate\.extra_sets: .*{message}"):
            write_extra_sets(params, home, extra)
        assert (extra / "kept").exists()
        assert not list(tmp_path.glob("*.part"))
