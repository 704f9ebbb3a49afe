"""Named parameter sets: what the shipped ones say, and what is refused before any work."""

import shutil
import subprocess
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml

from detector.errors import UserError
from detector.experiments import recipes
from detector.params import Params, check_params, flatten, load_params, read_yaml
from detector.paths import project_root
from detector.training.optimizer import plateau_learning_rate
from detector.training.selection import best_epoch, epochs_since_best

ROOT = project_root()
# The notebook's recipe once more. What it has no word for (head_epochs, mixup, ...) is at what switches it off.
NOTEBOOK = {
    "model.backbone": "xception",
    "model.weights": "imagenet",
    "model.image_size": 256,
    "model.pixels": "0..1",
    "model.dense_units": 512,
    "model.dropout": 0.3,
    "model.batch_norm_momentum": 0.99,
    "augment.rotation": 20,
    "augment.width_shift": 0.2,
    "augment.height_shift": 0.2,
    "augment.shear": 0.15,
    "augment.zoom": 0.2,
    "augment.horizontal_flip": True,
    "augment.brightness": [0.8, 1.2],
    "augment.cutout": 0,
    "augment.corruption.generic": 0,
    "augment.corruption.matched": 0,
    "augment.corruption.other": 0,
    "augment.self_blend.rate": 0,
    "train.epochs": 10,
    "train.batch_size": 32,
    "train.learning_rate": 1e-4,
    "train.schedule": "plateau",
    "train.head_epochs": 0,
    "train.batch_norm": "train",
    "train.ema_decay": 0,
    "train.weight_decay": 0,
    "train.clip_norm": None,
    "train.label_smoothing": 0,
    "train.paired_batches": False,
    "train.mixup": 0,
    "train.progressive.image_size": None,
    "train.monitor": "accuracy",
    "train.early_stopping_patience": 5,
    "train.reduce_lr_factor": 0.3,
    "train.reduce_lr_patience": 5,
    "train.min_learning_rate": 1e-7,
    "train.class_weights": "none",
    "train.precision": "float32",
    "evaluate.flip_average": False,
    "evaluate.threshold": 0.5,
    "data.face_crop": "none",
    "data.duplicates": "report",
}


def with_recipe(name: str) -> Params:
    """All parameters: the recipe's, on some folder where it is for photographs."""
    data = {} if "data.source" in recipes.read(name) else recipes.of_data(["faces.zip"])
    changes = {**recipes.read(name), **data}
    return check_params(recipes.changed(read_yaml(ROOT / "params.yaml"), changes), name)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_made_of_parameters_that_exist(name):
    given = flatten(with_recipe(name))
    assert {key: given[key] for key in recipes.read(name)} == recipes.read(name)


def test_the_published_recipe_is_the_notebooks():
    given = flatten(with_recipe("published"))
    assert {key: given[key] for key in NOTEBOOK} == NOTEBOOK
    assert set(NOTEBOOK) <= set(recipes.read("published"))


@pytest.mark.parametrize("name", ["published", "recommended"])
def test_the_defaults_decide_nothing_of_such_a_training(name, defaults):
    training = {key for key in flatten(defaults) if key.startswith(("model.", "augment.", "train."))}
    assert training - {"train.source_weights"} <= set(recipes.read(name))


def test_few_real_people_are_called_fake_by_the_recommended_recipe():
    evaluation = with_recipe("recommended").evaluate
    assert (evaluation.threshold, evaluation.max_false_positive_rate) == ("auto", 0.05)


@pytest.mark.parametrize("seed", range(30))
def test_the_published_recipe_slows_down_and_stops_as_kerases_callbacks_do(seed):
    params, rng = with_recipe("published").train, np.random.default_rng(seed)
    noise = [0.1, 0.02, 8e-5][seed % 3]  # the last near the 1e-4 that counts as an improvement
    losses = 0.7 * 0.95 ** np.arange(60) + rng.normal(0, noise, 60)
    accuracies = np.clip(0.5 + 0.03 * np.arange(60) + rng.normal(0, 0.05, 60), 0, 1).round(2)  # with ties
    optimizer = SimpleNamespace(learning_rate=1e-4)
    model = SimpleNamespace(stop_training=False, optimizer=optimizer, metrics=[])
    stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=5, mode="max")
    slowing = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.3, patience=5, min_lr=1e-7, mode="min")
    for callback in (stopping, slowing):
        callback.set_model(model)
        callback.on_train_begin()
    history = []
    for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        assert plateau_learning_rate(history, params) == pytest.approx(optimizer.learning_rate, rel=1e-6)
        if (seed % 2 == 0) and model.stop_training:
            break  # of the others the learning rate is followed down to its least
        assert (epochs_since_best(history, params.monitor) >= 5) == (stopping.wait >= 5)
        history.append({"epoch": epoch + 1, "val_loss": loss, "val_accuracy": accuracy})
        for callback in (stopping, slowing):
            callback.on_epoch_end(epoch, {"val_loss": loss, "val_accuracy": accuracy})
    assert best_epoch(history, params.monitor) == stopping.best_epoch + 1


def test_the_list_has_a_line_for_each():
    lines = recipes.listing().splitlines()
    assert [line.split()[0] for line in lines] == recipes.names() == ["published", "quick", "recommended"]
    assert all(line.endswith(".") and len(line) < 140 for line in lines)


# ---- in a project of its own ---------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, the recipes, and data to name."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name in ("faces", "more faces"):
        (tmp_path / name).mkdir()
    (tmp_path / "w.weights.h5").touch()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def resolved(name: str, data=(), settings=()) -> dict:
    return recipes.resolve(name, list(data), ["model.weights=none", *settings])


@pytest.mark.parametrize(
    ("data", "source", "path"),
    [
        (["faces"], "folder", "faces"),
        (["faces", "more faces"], "folder", ["faces", "more faces"]),
        (["kaggle"], "kaggle", None),
        (["sample"], "sample", None),
        (["./faces"], "folder", "./faces"),
    ],
)
def test_data_in_place_of_those_of_params_yaml(project, data, source, path):
    own = {"data.source": "folder", "data.path": "faces", "data.manifest": "m.csv", "train.source_weights": {"a": 1}}
    raw = recipes.changed(read_yaml(project / "params.yaml"), own)
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    found = resolved("published", data)
    assert (found["data.source"], found["data.path"]) == (source, path)
    assert found["data.manifest"] is found["train.source_weights"] is None


def test_without_data_those_of_params_yaml_are_taken(project):
    raw = recipes.changed(read_yaml(project / "params.yaml"), {"data.source": "folder", "data.path": "faces"})
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    assert "data.path" not in resolved("published")
    assert resolved("quick")["data.source"] == "sample"  # whatever params.yaml names


def test_what_is_set_has_the_last_word(project):
    found = resolved("published", ["faces"], ["train.epochs=3", "train.learning_rate=1e-3", "seed=7"])
    assert (found["train.epochs"], found["train.learning_rate"], found["seed"]) == (3, 0.001, 7)
    assert found["train.batch_size"] == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["typo"], "no recipe is called typo; there are published, quick, recommended"),
        (["../params"], "no recipe is called ../params"),
        (["published"], "recipe published needs photographs"),
        (["published", "--data", "nowhere"], "--data: nowhere is not there"),
        (["published", "--data", "faces", "gone"], "--data: gone is not there"),
        (["quick", "--set", "train.epoch=3"], "--set: train.epoch: unknown key"),
        (["quick", "--set", "epochs=3"], "--set: epochs: unknown key"),
        (["quick", "--set", "train.epochs=many"], "--set: train.epochs: must be a whole number"),
        (["quick", "--set", "train.epochs.x=1"], "--set: train.epochs: must be a whole number"),
        (["quick", "--set", "train.epochs"], "--set: 'train.epochs' is not key=value"),
        (["quick", "--set", "train.epochs=1,2"], "--set: 'train.epochs=1,2' is not key=value with one value"),
        (["quick", "--set", "+train.epochs=1"], "is not key=value"),
        (["quick", "--set", "evaluate.extra_sets=[gone.zip]"], "evaluate.extra_sets: gone.zip is not there"),
        (["quick", "--set", "model.weights=gone.h5"], "model.weights: gone.h5 is not there"),
        (["quick", "--data", "faces", "--set", "data.manifest=gone.csv"], "data.manifest: gone.csv is not there"),
        (["--set", "seed=1"], "name a recipe: published, quick, recommended"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_any_work(project, monkeypatch, arguments, words):
    monkeypatch.setattr("sys.argv", ["recipes", *arguments])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(UserError) as error:
        recipes.main()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epoch: 3}", "recipes/own.yaml: train.epoch: unknown key"),
        ("train: {epochs: 3", "not valid YAML"),
        ("- train", "must hold sections and keys"),
        ("train: {epochs: 3, epochs: 4}", "epochs occurs twice"),
    ],
)
def test_a_recipe_that_is_wrong_is_named(project, text, words):
    (project / "recipes" / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        recipes.resolve("own")


def test_what_dvc_writes_is_what_was_checked(project):
    from dvc.utils.hydra import apply_overrides

    awkward = {"data.path": ["a b.zip", "it's", "[x],y", "c:\\d", "a\\'b\\", "2019", "null"], "evaluate.extra_sets": []}
    weights = {"train.source_weights": {"one": 2, "two-b": 0.5}}
    raw = recipes.changed(read_yaml(project / "params.yaml"), {"train.source_weights": {"former": 1.0}})
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    for name in recipes.names():
        changes = {**recipes.read(name), "data.source": "folder", **awkward, **weights}
        expected = check_params(recipes.changed(raw, changes), name)
        shutil.copy(project / "params.yaml", project / "written.yaml")
        apply_overrides(project / "written.yaml", recipes.overrides(changes)[1::2])
        assert load_params(project / "written.yaml") == expected


def test_an_experiment_is_named_like_its_recipe_and_takes_no_name_twice(project):
    for command in ("init -q", "-c user.name=a -c user.email=b commit -q --allow-empty -m x"):
        subprocess.run(["git", *command.split()], cwd=project, check=True)
    assert recipes._free_name("quick") == "quick"
    for name in ("quick", "quick-2", "quicker"):
        reference = f"refs/exps/ab/{'0' * 38}/{name}"
        subprocess.run(["git", "update-ref", reference, "HEAD"], cwd=project, check=True)
    assert recipes._free_name("quick") == "quick-3"
    assert recipes._experiments()["quicker"] == f"refs/exps/ab/{'0' * 38}/quicker"
