import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from detector.data.loader import stored_batches
from detector.data.shards import ShardReader, read_manifest
from detector.errors import UserError
from detector.evaluation import summary
from detector.evaluation.calibration import UNCALIBRATED, read_calibration
from detector.experiments import convert
from detector.experiments.convert import check_output, main, real_class
from detector.files import read_table
from detector.images import decode, resize
from detector.inference.detector import Detector, crop_faces
from detector.inference.find_model import find_model
from detector.inference.openvino import Engine
from detector.models.backend import keras
from detector.models.file import read_card
from detector.models.outputs import network_outputs
from detector.paths import HISTORY, MODEL, TRAIN_SUMMARY, TRAINING_RUN
from detector.reporting.gallery import training
from detector.tracking import runs

SIZE = 32


def published(classes: int = 1) -> "keras.Model":
    """The published recipe's head on a small backbone; its scores differ from image to image."""
    keras.utils.set_random_seed(2)
    layers = keras.layers
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="early")(image)
    x = layers.SeparableConv2D(16, 3, strides=2, activation="relu", name="late")(x)
    base = keras.Model(image, x, name="small")
    x = layers.Dense(32, activation="relu")(layers.GlobalAveragePooling2D()(base.output))
    x = layers.Dropout(0.3)(layers.BatchNormalization()(x))
    wide = keras.initializers.RandomNormal(stddev=20)
    last = layers.Dense(classes, activation="sigmoid" if classes == 1 else "softmax", kernel_initializer=wide)
    return keras.Model(base.input, last(x))


@pytest.fixture
def clone(tmp_path, monkeypatch, schema) -> Path:
    """An empty project with a store, the working folder; in it the file of the published recipe."""
    for name in ("mlruns", "models", "metrics"):
        (tmp_path / name).mkdir()
    shutil.copy(schema, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    published().save("XceptionNet_best_model.h5")
    return tmp_path


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["detector", *arguments])
    main()


RECIPE = ("XceptionNet_best_model.h5", "--classes", "Fake", "Real", "--pixels", "0..1")


def own_scores(images: list[np.ndarray]) -> np.ndarray:
    """P(fake) as its author computes it, by Keras alone."""
    return 1 - published().predict_on_batch(np.stack(images).astype(np.float32) / 255)[:, 0]


def test_the_published_recipes_file_becomes_the_model_to_evaluate(clone, monkeypatch, capsys):
    run(monkeypatch, *RECIPE)
    said = capsys.readouterr().out
    assert "dvc repro prepare && dvc repro -s evaluate plot" in said and len(said.splitlines()) == 3
    card = read_card(MODEL)
    assert card.classes == ["real", "fake"] and card.image_size == SIZE and card.caveat == ""
    assert "XceptionNet_best_model.h5" in card.trained_on and card.data_digest == ""
    assert read_calibration(MODEL) == UNCALIBRATED
    assert list(training(read_table(HISTORY, texts=[]), None)) == []  # no picture of a training that was not
    summary = json.loads(TRAIN_SUMMARY.read_text())
    assert summary["command"] == f"convert {' '.join(RECIPE)}" and len(summary["sha256"]) == 64
    (entered,) = runs.all_runs()
    assert TRAINING_RUN.read_text().strip() == entered.info.run_id and entered.info.run_name == "XceptionNet_best_model"
    assert entered.info.status == "FINISHED"
    tags = entered.data.tags
    assert tags["source"] == tags["weights"] == "converted"
    assert tags["converted.file"] == "XceptionNet_best_model.h5" and tags["converted.sha256"] == summary["sha256"]
    assert entered.data.params == {"model.backbone": "unnamed", "model.image_size": str(SIZE)}


def test_the_same_model_is_the_same_file_and_run(clone, monkeypatch):
    run(monkeypatch, *RECIPE)
    before = MODEL.read_bytes()
    run(monkeypatch, *RECIPE)
    assert MODEL.read_bytes() == before and len(runs.all_runs()) == 1
    assert sorted(path.name for path in MODEL.parent.iterdir()) == ["calibration.json", "model.keras", "run_id"]
    run(monkeypatch, *RECIPE[:-1], "0..255")
    assert len(runs.all_runs()) == 2


def test_it_scores_the_prepared_images_as_keras_scores_their_pixels(clone, monkeypatch, prepared):
    """What `evaluate` does, before calibration, and what `predict` says, against Keras on the same pixels / 255."""
    run(monkeypatch, *RECIPE)
    detector = Detector(find_model("models/model.keras"))
    rows = read_manifest(prepared)
    reader = ShardReader(prepared, rows)
    own = own_scores([resize(decode(reader.read(i)), SIZE) for i in range(len(rows))])
    assert np.ptp(own) > 0.01
    scored = network_outputs(detector.model, stored_batches(reader, SIZE, 8))
    np.testing.assert_allclose(scored, own, atol=1e-5)
    wholes = (crop for i in range(len(rows)) for crop in crop_faces(decode(reader.read(i)), SIZE))
    faces = list(detector.score(wholes))
    np.testing.assert_allclose([face.p_fake for face in faces], own, atol=1e-5)
    assert [face.verdict for face in faces] == ["fake" if p >= 0.5 else "real" for p in own]


def test_it_runs_on_openvino_and_can_be_explained(clone, monkeypatch, photo):
    run(monkeypatch, *RECIPE, "--output", "models/mine.keras")
    images = [resize(photo(seed=seed), SIZE) for seed in range(4)]
    outputs = Engine("models/mine.keras").predict_on_batch(np.stack(images))
    np.testing.assert_allclose(outputs[:, 0], own_scores(images), atol=2e-5)
    detector = Detector("models/mine.keras")
    heat = [detector.explain(crop) for image in images for crop in crop_faces(image, SIZE)]
    assert len(heat) == 4 and max(map_.max() for map_ in heat) == 1


def test_with_an_output_nothing_else_is_touched(clone, monkeypatch):
    run(monkeypatch, *RECIPE, "--output", "mine.keras")
    assert sorted(path.name for path in clone.iterdir() if path.is_file()) == [
        "XceptionNet_best_model.h5", "calibration.json", "mine.keras"
    ]  # fmt: skip
    assert not list((clone / "models").iterdir()) and not list((clone / "metrics").iterdir())
    assert runs.all_runs() == []
    run(monkeypatch, *RECIPE, "--output", "mine.keras")  # again, over itself
    with pytest.raises(UserError, match="holds the calibration of another model"):
        run(monkeypatch, *RECIPE, "--output", "other.keras")
    assert not Path("other.keras").exists()


def test_a_model_that_dvc_does_not_keep_is_moved_aside(clone, monkeypatch, capsys):
    MODEL.write_bytes(b"hours of training")
    run(monkeypatch, *RECIPE)
    (aside,) = MODEL.parent.glob("model-*.keras")
    assert aside.read_bytes() == b"hours of training" and str(aside) in capsys.readouterr().out


def test_a_model_in_dvcs_cache_needs_no_copy(clone, monkeypatch):
    MODEL.write_bytes(b"hours of training")
    digest = "2d3ddfa9e7b8a3e0c4a5ee16e8e9d2a1"
    monkeypatch.setattr(convert.hashlib, "file_digest", fixed_md5(convert.hashlib.file_digest, digest))
    cached = clone / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"hours of training")
    run(monkeypatch, *RECIPE)
    assert not list(MODEL.parent.glob("model-*.keras"))


def fixed_md5(file_digest, digest: str):
    class Fixed:
        def hexdigest(self) -> str:
            return digest

    return lambda file, name: Fixed() if name == "md5" else file_digest(file, name)


def test_a_model_whose_scores_would_differ_is_not_kept(clone, monkeypatch):
    MODEL.write_bytes(b"the one before")
    monkeypatch.setattr(convert, "AGREEMENT", -1)
    with pytest.raises(UserError, match=r"XceptionNet_best_model\.h5: cannot be converted: the scores would differ"):
        run(monkeypatch, *RECIPE)
    assert MODEL.read_bytes() == b"the one before" and len(list(MODEL.parent.iterdir())) == 1
    assert runs.all_runs() == []


def test_scores_that_are_no_numbers_are_refused(clone, monkeypatch):
    model = published()
    model.layers[-1].set_weights([weight * np.nan for weight in model.layers[-1].get_weights()])
    model.save("XceptionNet_best_model.h5")
    with pytest.raises(UserError, match="not finite"):
        run(monkeypatch, *RECIPE)
    assert not MODEL.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("XceptionNet_best_model.h5", "--classes", "Fake", "--pixels", "0..1"), "--classes: there is one name alone"),
        (("XceptionNet_best_model.h5", "--classes", "Real", "real", "--pixels", "0..1"), "a name is there twice"),
        (("XceptionNet_best_model.h5", "--classes", "", "real", "--pixels", "0..1"), "--classes: a name is empty"),
        (("XceptionNet_best_model.h5", "--classes", "ai", "photo", "--pixels", "0..1"), "none of ai, photo says real"),
        ((*RECIPE, "--real", "photo"), "--real: photo is none of the classes fake, real"),
        ((*RECIPE[:-1], "0-1"), "--pixels: there is no '0-1'"),
        ((*RECIPE, "--image-size", "0"), "--image-size: 0 is not in"),
        ((*RECIPE, "--output", "model.h5"), "--output: model.h5 must end in .keras"),
        ((*RECIPE, "--output", "nowhere/model.keras"), "--output: there is no folder nowhere"),
        (("nowhere.h5", *RECIPE[1:]), "nowhere.h5: not found"),
        (("XceptionNet_best_model.h5", "--classes", "a", "b", "real", "--pixels", "0..1"), "^--classes: 3 names"),
        ((*RECIPE, "--image-size", "64"), "^XceptionNet_best_model.h5: its input is 32 x 32 x 3; leave --image-size"),
    ],
)  # fmt: skip
def test_wrong_use_ends_in_one_line(clone, monkeypatch, arguments, words):
    with pytest.raises(UserError, match=words) as refused:
        run(monkeypatch, *arguments)
    assert "\n" not in str(refused.value)
    assert not list((clone / "models").iterdir()) and runs.all_runs() == []


def test_minus_one_is_no_option(clone, monkeypatch):
    run(monkeypatch, *RECIPE[:-1], "-1..1", "--output", "mine.keras")
    assert read_card("mine.keras").image_size == SIZE


@pytest.mark.parametrize(
    ("classes", "named", "real"),
    [
        (["fake", "real"], None, "real"),
        (["training_fake", "training_real"], None, "training_real"),
        (["0-real", "1-unreal"], None, "0-real"),
        (["ai", "photo"], " Photo", "photo"),
        (["real", "fake"], "fake", "fake"),  # who says so, knows
        (["surreal", "photo"], None, None),
        (["real old", "real new"], None, None),
    ],
)
def test_which_class_is_real(classes, named, real):
    if real is None:
        with pytest.raises(UserError, match="--real"):
            real_class(classes, named)
    else:
        assert real_class(classes, named) == real


def test_a_folder_cannot_be_the_output(tmp_path):
    (tmp_path / "m.keras").mkdir()
    with pytest.raises(UserError, match="is no file"):
        check_output(tmp_path / "m.keras")


# ---- evaluated on data whose classes are called otherwise --------------------------------------------------------


def chosen(classes: list[str], outputs: np.ndarray, defaults) -> tuple:
    rows = pd.DataFrame({"class": ["real", "swap"] * 20, "label": [0, 1] * 20, "path": [str(i) for i in range(40)]})
    return summary.choose_calibration(rows, lambda rows, _: outputs[rows.index], classes, defaults.evaluate, seed=0)


def test_two_classes_of_any_name_are_real_and_fake(defaults):
    outputs = np.where(np.arange(40) % 2, 0.7, 0.3)
    calibration, found = chosen(["photo", "ai"], outputs, defaults)
    assert found["accuracy"] == 1 and 0.3 < calibration.threshold <= calibration.apply(np.array([0.7]))[0]


def test_kinds_that_the_model_does_not_know_end_in_one_line(defaults):
    with pytest.raises(UserError, match="data: the model knows the classes real, gan, drawn, but not swap"):
        chosen(["real", "gan", "drawn"], np.full((40, 3), 1 / 3), defaults)
