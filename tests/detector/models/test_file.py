import json
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import detector
from detector.errors import UserError
from detector.models import file as export
from detector.models.backend import keras
from detector.models.file import CARD, DRAWN_SAMPLE, ModelCard, read_card, save_model
from detector.models.network import in_float32

CARD_OF_MODEL = ModelCard(["camera", "swap"], 71, "xception", "random", "d1635700")  # that of the fixture `model_file`
ODD = ModelCard(['Réal "a"', "Fake\n日本"], 96, "xception", "file", "0" * 64)


def small_model(seed: int = 1) -> "keras.Model":
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Rescaling(1 / 127.5, -1, name="scaling")(image))
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.BatchNormalization(name="norm2")(x))
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid", name="p_fake")(x), name="small")


@pytest.fixture(scope="module")
def model() -> "keras.Model":
    return small_model()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    save_model(model, ODD, tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.parametrize("card", [CARD_OF_MODEL, ODD, replace(ODD, classes=["a", "b", "c"])], ids=lambda c: c.backbone)
def test_the_card_comes_back(model, tmp_path, card):
    save_model(model, card, tmp_path / "model.keras")
    assert read_card(tmp_path / "model.keras") == read_card(str(tmp_path / "model.keras")) == card


def test_keras_loads_the_file(model, saved):
    loaded = keras.saving.load_model(saved)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


def test_the_same_model_gives_the_same_bytes(model, saved, tmp_path):
    save_model(model, ODD, tmp_path / "again.keras")
    save_model(small_model(), ODD, tmp_path / "built again.keras")
    save_model(keras.saving.load_model(saved), ODD, tmp_path / "loaded.keras")
    for other in ("again", "built again", "loaded"):
        assert (tmp_path / f"{other}.keras").read_bytes() == saved.read_bytes(), other


def test_a_model_that_was_trained_in_two_runs_gives_the_same_bytes(tmp_path, recwarn):
    files = []
    for resumed in (False, True):
        model = small_model()
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", ["accuracy"])
        if resumed:
            model.save(tmp_path / "last.keras")
            model = keras.saving.load_model(tmp_path / "last.keras")
            model.optimizer.learning_rate.assign(1e-4)
        save_model(in_float32(model), ODD, tmp_path / "model.keras")
        files.append((tmp_path / "model.keras").read_bytes())
    assert files[0] == files[1]
    recwarn.clear()
    keras.saving.load_model(tmp_path / "model.keras")
    assert not recwarn.list  # of an optimizer without its state, say


def test_another_model_or_card_gives_other_bytes(model, saved, tmp_path):
    save_model(small_model(2), ODD, tmp_path / "weights.keras")
    save_model(model, replace(ODD, data_digest="1" * 64), tmp_path / "card.keras")
    assert len({path.read_bytes() for path in tmp_path.glob("*.keras")}) == 3


def test_a_fresh_process_writes_the_same_bytes(model_file, tmp_path):
    program = f"""
from pathlib import Path
from detector.models.backend import keras
from detector.models.file import ModelCard, save_model
from detector.models.network import build_network
from detector.models.weights import InitialWeights
from detector.params import load_params
params = load_params().model.model_copy(update={{"image_size": 71}})
keras.utils.set_random_seed(5)
network = build_network(params, InitialWeights("random"), "float32")
save_model(network, {CARD_OF_MODEL!r}, Path({str(tmp_path / "model.keras")!r}))
"""
    root = Path(detector.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.keras").read_bytes() == model_file.read_bytes()


def test_the_archive_holds_no_date_and_is_readable_by_any_program(saved):
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(archive.namelist())
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert "date_saved" not in json.loads(archive.read("metadata.json"))
        assert json.loads(archive.read(CARD)) == asdict(ODD)
        assert b"shared_object_id" not in archive.read("config.json")


def test_a_file_that_is_there_is_replaced(saved, tmp_path):
    save_model(small_model(2), CARD_OF_MODEL, saved)
    assert read_card(saved) == CARD_OF_MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["save", "writestr", "replace"])
def test_a_failure_leaves_the_former_file_and_nothing_half_written(model, saved, tmp_path, monkeypatch, step, error):
    before = saved.read_bytes()

    def fail(*_, **__):
        raise error

    owner = {"save": type(model), "writestr": zipfile.ZipFile, "replace": export.os}[step]
    other = small_model(2)
    if step == "save":  # after a part is written
        monkeypatch.setattr(owner, step, lambda _, path: (path.write_bytes(b"half"), fail()))
    else:
        monkeypatch.setattr(owner, step, fail)
    with pytest.raises(type(error)):
        save_model(other, CARD_OF_MODEL, saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="not found; train a model first with `dvc repro train`"):
        read_card(tmp_path / "model.keras")


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.touch(),
        lambda path: path.write_text("hello"),
        lambda path: small_model().save(path),  # of Keras, without a card
        lambda path: zipped(path, {}),
        lambda path: zipped(path, {CARD: b""}),
        lambda path: zipped(path, {CARD: b"[]"}),
        lambda path: zipped(path, {CARD: b"3"}),
        lambda path: zipped(path, {CARD: b"{}"}),
        lambda path: zipped(path, {CARD: b"\xff"}),
        lambda path: zipped(path, {CARD: b"[" * 100_000}),
        lambda path: zipped(path, {CARD: json.dumps(asdict(ODD) | {"extra": 1}).encode()}),
        lambda path: zipped(path, {CARD: json.dumps({"classes": ["a", "b"]}).encode()}),
    ],
)
def test_what_is_no_model_of_this_project_is_refused(tmp_path, make):
    make(tmp_path / "model.keras")
    with pytest.raises(UserError, match="not a model of this project; name a file that `dvc repro train` wrote"):
        read_card(tmp_path / "model.keras")


def test_a_damaged_file_is_refused_or_read_and_nothing_else(saved):
    whole = saved.read_bytes()
    at = whole.index(CARD.encode())
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in (1, 30, at, len(whole) // 2, len(whole) - 1)]
    for _ in range(300):  # in the card, its header and the list of members
        position = int(rng.choice([at + rng.integers(-30, 300), len(whole) - rng.integers(1, 400)]))
        damaged.append(whole[:position] + bytes([rng.integers(256)]) + whole[position + 1 :])
    for content in damaged:
        saved.write_bytes(content)
        try:
            read_card(saved)
        except UserError as error:
            assert len(str(error).splitlines()) == 1


def test_a_model_of_drawn_faces_says_so_and_no_other_does(tmp_path):
    assert replace(ODD, trained_on=DRAWN_SAMPLE).caveat
    assert ODD.caveat == replace(ODD, trained_on="folder faces").caveat == ""
