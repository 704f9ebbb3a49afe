"""The loop learns, resumes to the same numbers, and its schedule is that of Keras's own callbacks."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import UserError
from detector.model.backend import keras, make_deterministic
from detector.params import load_params
from detector.training import (
    Checkpoint,
    Split,
    best_epoch,
    epochs_since_best,
    fingerprint,
    image_weights,
    plateau_learning_rate,
    train,
)

SIZE = 16


class Drawn:
    """Stands in for a ShardReader: real images are dark, fake ones bright, with some noise."""

    def __init__(self, n: int):
        self.labels = np.arange(n) % 2
        rng = np.random.default_rng(n)
        self._images = np.uint8(rng.integers(0, 120, (n, SIZE, SIZE, 3)) + 100 * self.labels[:, None, None, None])

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        return self._images[index]


def split(n: int) -> Split:
    reader = Drawn(n)
    return Split(reader, reader.labels)


def tiny_network() -> "keras.Model":
    make_deterministic(5)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))


def params(**train_params):
    defaults = load_params()
    values = {"epochs": 4, "batch_size": 8, "learning_rate": 0.03, **train_params}
    return defaults.model_copy(update={"train": defaults.train.model_copy(update=values)})


def run(folder, settings_, stop_after: int | None = None, n: int = 42):
    seen = []

    def on_epoch(row, seconds):
        seen.append(row)
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    with Checkpoint.open(folder) as checkpoint:
        model, history = train(tiny_network(), settings_, split(n), split(20), checkpoint, on_epoch)
    return model, history, seen


def test_learns_and_returns_the_best_epoch(tmp_path):
    model, history, seen = run(tmp_path / "c", params(epochs=8))
    assert history == seen
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert max(row["val_auc"] for row in history) > 0.95
    validation = split(20)
    images = np.stack([validation.reader.image(i) for i in range(20)])
    scores = np.clip(model.predict_on_batch(images)[:, 0].astype(float), 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(validation.labels == 1, scores, 1 - scores)).mean()
    assert loss == pytest.approx(min(row["val_loss"] for row in history), abs=1e-6)
    assert list(tmp_path.iterdir()) == []


class ThreeKinds(Drawn):
    """Three classes of 3 : 2 : 1, each bright in another colour."""

    def __init__(self, n: int):
        super().__init__(n)
        self.labels = np.array([0, 0, 0, 1, 1, 2] * (n // 6))
        self._images = np.random.default_rng(n).integers(0, 120, (n, SIZE, SIZE, 3)).astype(np.uint8)
        self._images[np.arange(n), ..., self.labels] += 110


def test_more_than_two_classes_are_learnt_by_a_softmax(tmp_path):
    make_deterministic(5)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(image))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))
    training, validation = (Split(reader, reader.labels) for reader in (ThreeKinds(96), ThreeKinds(48)))
    with Checkpoint.open(tmp_path / "c") as checkpoint:
        model, history = train(
            model, params(epochs=6, learning_rate=0.1), training, validation, checkpoint, lambda *_: 0
        )
    best = history[best_epoch(history) - 1]
    images = np.stack([validation.reader.image(i) for i in range(48)])
    outputs = model.predict_on_batch(images).astype(float)
    own = outputs[np.arange(48), validation.labels]
    assert best["val_loss"] == pytest.approx(-np.log(own).mean(), abs=1e-6)
    assert best["val_accuracy"] == np.mean(outputs.argmax(axis=1) == validation.labels) > 0.9
    assert best["val_auc"] > 0.95


def test_class_weights_make_each_class_count_alike_in_the_loss():
    labels = np.array([0, 0, 0, 1, 1, 2])
    weights = image_weights(labels, "balanced")
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose([weights[labels == k].sum() for k in range(3)], 2)
    np.testing.assert_allclose(image_weights(labels, "auto"), weights)
    assert image_weights(labels, "none") is None
    assert image_weights(labels[:5], "auto") is None
    np.testing.assert_allclose(image_weights(labels[:5], "balanced"), [5 / 6] * 3 + [5 / 4] * 2)
    assert image_weights(labels[1:5], "balanced") is None


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_model(tmp_path, stop_after):
    whole, history, _ = run(tmp_path / "whole", params())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", params(), stop_after=stop_after)
    resumed, again, seen = run(tmp_path / "killed", params())
    assert [row["epoch"] for row in seen] == list(range(stop_after + 1, 5))
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(history), rtol=1e-6)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_kill_while_saving_leaves_the_former_epoch(tmp_path, monkeypatch):
    _, history, _ = run(tmp_path / "whole", params())
    saved = []

    def interrupted(self, state):
        if len(state["history"]) == 3:
            saved.append(state)
            raise KeyboardInterrupt
        original(self, state)

    original = Checkpoint._write
    monkeypatch.setattr(Checkpoint, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", params())
    monkeypatch.undo()
    assert saved
    _, again, seen = run(tmp_path / "killed", params())
    assert [row["epoch"] for row in seen] == [3, 4]
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(history), rtol=1e-6)


def test_stops_early_and_does_not_train_on_when_resumed(tmp_path, monkeypatch):
    settings_ = params(epochs=50, early_stopping_patience=2, learning_rate=1e-9)
    checkpoint_history = [
        {"epoch": e, "loss": 1.0, "accuracy": 0.5, "val_loss": loss, "val_accuracy": 0.5, "val_auc": 0.5,
         "learning_rate": 1e-9} for e, loss in enumerate((0.5, 0.6, 0.6), 1)
    ]  # fmt: skip
    folder = tmp_path / "c"
    folder.mkdir()
    network = tiny_network()
    network.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    network.save(folder / "last-3.keras")
    network.save_weights(folder / "best-1.weights.h5")
    (folder / "state.json").write_text(json.dumps({"history": checkpoint_history, "run_id": "r"}))
    _, history, seen = run(folder, settings_)
    assert seen == []
    assert history == checkpoint_history


def test_fewer_images_than_a_batch(tmp_path):
    _, history, _ = run(tmp_path / "c", params(epochs=1, batch_size=64), n=10)
    assert len(history) == 1


def test_divergence_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("detector.training.network_outputs", lambda model, batches: np.full(20, np.nan))
    with pytest.raises(UserError, match=r"train\.learning_rate: the loss is no longer finite in epoch 1"):
        run(tmp_path / "c", params())


@settings(deadline=None, max_examples=60)
@given(
    losses=st.lists(st.sampled_from([0.1, 0.2, 0.20005, 0.3, 0.30002, 0.5, 0.7]), min_size=1, max_size=14),
    patience=st.integers(1, 4),
)
def test_schedule_is_that_of_the_keras_callbacks(losses, patience):
    train_params = params(reduce_lr_patience=patience, early_stopping_patience=patience, learning_rate=0.5).train
    stand_in = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    stand_in.compile(keras.optimizers.SGD(0.5), "mse")
    reduce = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.3, patience=patience)
    early = keras.callbacks.EarlyStopping("val_loss", patience=patience)
    for callback in (reduce, early):
        callback.set_model(stand_in)
        callback.on_train_begin()
    stand_in.stop_training = False
    history = []
    for epoch, loss in enumerate(losses, 1):
        history.append({"epoch": epoch, "val_loss": loss})
        for callback in (reduce, early):
            callback.on_epoch_end(epoch, {"val_loss": loss})
        assert plateau_learning_rate(history, train_params) == pytest.approx(float(stand_in.optimizer.learning_rate))
        assert (epochs_since_best(history) >= patience) == stand_in.stop_training
        if stand_in.stop_training:
            break
    assert losses[best_epoch(history) - 1] == min(losses[: len(history)])


def test_fingerprint_changes_with_what_it_stands_for():
    from detector.model.weights import InitialWeights

    base = (params(), "digest", InitialWeights("random"), "float32")
    marks = {
        fingerprint(*base),
        fingerprint(params(epochs=5), *base[1:]),
        fingerprint(base[0], "other", *base[2:]),
        fingerprint(*base[:3], "bfloat16"),
        fingerprint(*base[:2], dataclasses.replace(base[2], origin="imagenet"), base[3]),
    }
    assert len(marks) == 5
    defaults = params()
    other_grid = defaults.model_copy(update={"plot": defaults.plot.model_copy(update={"grid_images": 3})})
    assert fingerprint(other_grid, *base[1:]) == fingerprint(*base)
