"""The loop learns, resumes to the same numbers, and its schedule is that of Keras's own callbacks."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import UserError
from detector.models.backend import keras, make_deterministic
from detector.params import ProgressiveParams, load_params
from detector.training.augmenter import Augmenter
from detector.training.checkpoint import Checkpoint, fingerprint
from detector.training.loop import train
from detector.training.optimizer import plateau_learning_rate
from detector.training.phases import phase
from detector.training.sampling import sample_weights
from detector.training.selection import best_epoch, epochs_since_best
from detector.training.split import Split

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
    return split_of(Drawn(n))


def split_of(reader) -> Split:
    """All images of `reader`, of no source, each a group of its own."""
    n = len(reader)
    return Split(reader, reader.labels, np.full(n, "", object), np.arange(n).astype(str))


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
    model = defaults.model.model_copy(update={"image_size": SIZE})
    return defaults.model_copy(update={"train": defaults.train.model_copy(update=values), "model": model})


def run(folder, settings_, stop_after: int | None = None, n: int = 42):
    seen = []

    def on_epoch(row, seconds):
        seen.append(row)
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    with Checkpoint.open(folder) as checkpoint:
        model, history = train(lambda size: tiny_network(), settings_, split(n), split(20), checkpoint, on_epoch)
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


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="how TensorFlow traces")
@pytest.mark.parametrize(("settings_", "phases"), [({}, 1), ({"head_epochs": 1, "ema_decay": 0.9}, 2)])
def test_the_training_step_is_traced_once_a_phase(settings_, phases, tmp_path):
    model, traced = tiny_network(), []
    model.layers[-1].name = "p_fake"  # the head has something to learn
    step = model.train_step
    model.train_step = lambda data: traced.append(1) or step(data)
    with Checkpoint.open(tmp_path / "c") as checkpoint:
        train(lambda size: model, params(epochs=3, **settings_), split(42), split(20), checkpoint, lambda *_: None)
    assert len(traced) == phases


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
    training, validation = (split_of(reader) for reader in (ThreeKinds(96), ThreeKinds(48)))
    with Checkpoint.open(tmp_path / "c") as checkpoint:
        model, history = train(
            lambda size: model, params(epochs=6, learning_rate=0.1), training, validation, checkpoint, lambda *_: 0
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
    weights = sample_weights(labels, "balanced")
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose([weights[labels == k].sum() for k in range(3)], 2)
    np.testing.assert_allclose(sample_weights(labels, "auto"), weights)
    assert sample_weights(labels, "none") is None
    assert sample_weights(labels[:5], "auto") is None
    np.testing.assert_allclose(sample_weights(labels[:5], "balanced"), [5 / 6] * 3 + [5 / 4] * 2)
    assert sample_weights(labels[1:5], "balanced") is None


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
    (folder / "state.json").write_text(json.dumps({"history": checkpoint_history, "best": 1, "run_id": "r"}))
    _, history, seen = run(folder, settings_)
    assert seen == []
    assert history == checkpoint_history


def test_fewer_images_than_a_batch(tmp_path):
    _, history, _ = run(tmp_path / "c", params(epochs=1, batch_size=64), n=10)
    assert len(history) == 1


def test_divergence_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("detector.training.loop.network_outputs", lambda model, batches: np.full(20, np.nan))
    with pytest.raises(UserError, match=r"train\.learning_rate: the loss is no longer finite in epoch 1"):
        run(tmp_path / "c", params())


def test_divergence_of_the_head_names_its_own_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("detector.training.loop.network_outputs", lambda model, batches: np.full(20, np.nan))
    with pytest.raises(UserError, match=r"train\.head_learning_rate: the loss .* set it lower than 0\.002"):
        run(tmp_path / "c", params(head_epochs=1, head_learning_rate=0.002))


def test_an_image_damaged_on_disk_ends_the_epoch_in_its_own_line(tmp_path):
    class Damaged(Drawn):
        def image(self, index: int) -> np.ndarray:
            if index == 17:
                raise UserError("train-00000.tfrecord: damaged; run `dvc repro -f prepare`")
            return super().image(index)

    reader = Damaged(160)
    training = split_of(reader)
    with (
        pytest.raises(UserError, match=r"^train-00000\.tfrecord: damaged"),
        Checkpoint.open(tmp_path / "c") as checkpoint,
    ):
        train(lambda size: tiny_network(), params(), training, split(20), checkpoint, lambda *_: None)


@pytest.mark.parametrize(("smoothing", "balance"), [(0, "none"), (0.2, "none"), (0, "balanced"), (0.2, "balanced")])
def test_the_loss_is_that_of_smoothed_labels_and_weighted_images(tmp_path, smoothing, balance):
    make_deterministic(5)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(image))
    model = keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))
    training = split(48)
    training = dataclasses.replace(training, labels=np.where(np.arange(48) % 8 == 1, 1, 0))
    settings_ = params(epochs=1, learning_rate=1e-9, label_smoothing=smoothing, class_weights=balance)
    with Checkpoint.open(tmp_path / "c") as checkpoint:
        model, [row] = train(lambda size: model, settings_, training, split(8), checkpoint, lambda *_: None)
    scores = model.predict_on_batch(np.stack([training.reader.image(i) for i in range(48)]))[:, 0].astype(float)
    target = training.labels * (1 - smoothing) + smoothing / 2
    losses = -(target * np.log(scores) + (1 - target) * np.log(1 - scores))
    weights = np.where(training.labels == 1, 4, 4 / 7) if balance == "balanced" else np.ones(48)
    assert row["loss"] == pytest.approx(np.mean(weights * losses), rel=1e-4)


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
    from detector.models.weights import InitialWeights

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


# ---- phases, averages, sources -----------------------------------------------------------------------------------


def headed_network(size: int = SIZE) -> "keras.Model":
    """A backbone with a norm of its own, and a head by its name."""
    make_deterministic(5)
    image = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.BatchNormalization(momentum=0.5, name="head_norm")(x)
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid", name="p_fake")(x))


def train_headed(folder, settings_, stop_after=None, training=None, validation=None, watch=lambda model, row: None):
    built = {SIZE: headed_network(), SIZE // 2: headed_network(SIZE // 2)}
    model = built[SIZE]
    start = {layer.name: layer.get_weights() for layer in model.layers}

    def on_epoch(row, seconds):
        watch(model, row)
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    with Checkpoint.open(folder) as checkpoint:
        model, history = train(
            built.get, settings_, training or split(42), validation or split(20), checkpoint, on_epoch
        )
    return model, history, start


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_head_learns_alone_then_all_do(tmp_path):
    start, moved = headed_network(), {}

    def watch(model, row):
        backbone = [[layer.get_weights() for layer in map(of.get_layer, ("conv", "norm"))] for of in (model, start)]
        moved[row["epoch"]] = [not same(now, before) for now, before in zip(*backbone, strict=True)]

    settings_ = params(epochs=3, head_epochs=2, head_learning_rate=0.01, learning_rate=0.03)
    _, history, _ = train_headed(tmp_path / "c", settings_, watch=watch)
    assert [moved[1], moved[2], moved[3]] == [[False, False], [False, False], [True, True]]
    assert [row["learning_rate"] for row in history] == pytest.approx([0.01, 0.01, 0.03])


def test_a_frozen_batch_norm_keeps_its_statistics_but_not_the_heads(tmp_path):
    model, _, start = train_headed(tmp_path / "c", params(epochs=2, batch_norm="frozen"))
    assert same(model.get_layer("norm").get_weights(), start["norm"])
    assert not same(model.get_layer("head_norm").get_weights(), start["head_norm"])
    assert not same(model.get_layer("conv").get_weights(), start["conv"])


PROGRESSIVE = ProgressiveParams.model_construct(image_size=SIZE // 2, final_epochs=2, augment=0.5)
LONG = {
    "schedule": "cosine",
    "warmup": 0.2,
    "ema_decay": 0.9,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "early_stopping_patience": 99,
}


ALL_AT_ONCE = {"progressive": PROGRESSIVE, "ema_norm_images": 16, "paired_batches": True, "mixup": 0.5}


@pytest.mark.parametrize(
    ("head_epochs", "stop_after", "more"),
    [
        *[(0, 2, {}), (2, 2, {}), (2, 3, {}), (2, 1, {})],
        *[(0, 1, ALL_AT_ONCE), (0, 2, ALL_AT_ONCE), (1, 3, ALL_AT_ONCE), (2, 2, ALL_AT_ONCE)],
    ],
)
def test_a_long_training_resumes_to_the_same_model(tmp_path, head_epochs, stop_after, more):
    settings_ = params(epochs=4, head_epochs=head_epochs, **LONG | more)
    whole, history, _ = train_headed(tmp_path / "whole", settings_)
    with pytest.raises(KeyboardInterrupt):
        train_headed(tmp_path / "broken", settings_, stop_after)
    resumed, again, _ = train_headed(tmp_path / "broken", settings_)
    assert [row["epoch"] for row in again] == [1, 2, 3, 4]
    for a, b in zip(history, again, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert history[-1]["learning_rate"] == pytest.approx(0.03 * 0.01, rel=1e-3)


def test_the_model_that_is_kept_has_the_weights_that_were_validated(tmp_path):
    model, history, _ = train_headed(tmp_path / "c", params(epochs=3, **LONG))
    validation = split(20)
    images = np.stack([validation.reader.image(i) for i in range(20)])
    scores = np.clip(model.predict_on_batch(images)[:, 0].astype(float), 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(validation.labels == 1, scores, 1 - scores)).mean()
    assert loss == pytest.approx(min(row["val_loss"] for row in history), abs=1e-6)


# ---- progressive resizing ----------------------------------------------------------------------------------------


def test_small_epochs_come_first_and_only_the_last_phase_counts(tmp_path):
    sizes = []
    settings_ = params(epochs=5, progressive=PROGRESSIVE, learning_rate=0.05)
    model, history, _ = train_headed(tmp_path / "c", settings_, watch=lambda _, row: sizes.append(row["image_size"]))
    assert sizes == [SIZE // 2] * 3 + [SIZE] * 2
    assert model.input_shape == (None, SIZE, SIZE, 3)
    best = history[best_epoch(history) - 1]
    assert best["epoch"] in (4, 5)
    validation = split(20)
    images = np.stack([validation.reader.image(i) for i in range(20)])
    scores = np.clip(model.predict_on_batch(images)[:, 0].astype(float), 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(validation.labels == 1, scores, 1 - scores)).mean()
    assert loss == pytest.approx(best["val_loss"], abs=1e-6)


def test_the_optimizer_goes_on_at_the_larger_size(tmp_path):
    """Without augmentation, at a size that changes nothing, two phases are what one would be."""

    class Flat(Drawn):
        def image(self, index: int) -> np.ndarray:
            return np.full((SIZE, SIZE, 3), 60 + 100 * self.labels[index] + index % 20, np.uint8)

    def trained(folder, **changes):
        make_deterministic(5)
        built = {}
        for size in (SIZE // 2, SIZE):
            image = keras.Input((size, size, 3))
            x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(image))
            built[size] = keras.Model(image, keras.layers.Dense(1, activation="sigmoid", name="p_fake")(x))
        built[SIZE].set_weights(built[SIZE // 2].get_weights())
        settings_ = params(epochs=4, schedule="cosine", weight_decay=0.01, ema_decay=0.9, **changes)
        with Checkpoint.open(folder) as checkpoint:
            flat = split_of(Flat(40)), split_of(Flat(12))
            return train(built.get, settings_, *flat, checkpoint, lambda *_: None)

    one, history = trained(tmp_path / "one")
    two, again = trained(tmp_path / "two", progressive=PROGRESSIVE)
    for a, b in zip(history, again, strict=True):
        assert a == pytest.approx({name: value for name, value in b.items() if name != "image_size"}, abs=1e-5)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_early_stop_waits_for_the_full_size(tmp_path):
    settings_ = params(epochs=9, progressive=PROGRESSIVE, learning_rate=1e-9, early_stopping_patience=1)
    _, history, _ = train_headed(tmp_path / "c", settings_)
    assert [row["image_size"] for row in history] == [SIZE // 2] * 7 + [SIZE] * 2


def test_a_phase_says_what_its_epochs_see():
    defaults = params(epochs=6, head_epochs=1, progressive=PROGRESSIVE)
    blend = defaults.augment.self_blend.model_copy(update={"rate": 0.2, "start_epoch": 4})
    augmentation = defaults.augment.model_copy(update={"rotation": 20, "self_blend": blend})
    phases = [phase(epoch, defaults.model_copy(update={"augment": augmentation})) for epoch in range(1, 7)]
    assert [p.head_alone for p in phases] == [True, *[False] * 5]
    assert [p.image_size for p in phases] == [SIZE // 2] * 4 + [SIZE] * 2
    assert [p.augment.rotation for p in phases] == [10] * 4 + [20] * 2
    assert [p.augment.self_blend.rate for p in phases] == [0, 0, 0, 0.2, 0.2, 0.2]


# ---- what the best epoch is chosen by ----------------------------------------------------------------------------


def test_the_best_epoch_is_that_of_the_monitor():
    def row(epoch, loss, right, auc, **sources):
        of_sources = {f"val_auc_{name}": value for name, value in sources.items()}
        return {"epoch": epoch, "val_loss": loss, "val_accuracy": right, "val_auc": auc, **of_sources}

    history = [
        row(1, 0.5, 0.7, 0.80, a=0.9, b=0.5),
        row(2, 0.3, 0.6, 0.85, a=0.8, b=0.6),
        row(3, 0.4, 0.9, 0.85, a=0.7, b=0.7),
        row(4, 0.4, 0.9, 0.95, a=1.0, b=0.6),
    ]
    chosen = {name: best_epoch(history, name) for name in ("loss", "accuracy", "auc", "worst_source_auc")}
    assert chosen == {"loss": 2, "accuracy": 3, "auc": 4, "worst_source_auc": 3}
    assert [epochs_since_best(history, name) for name in chosen] == [2, 1, 0, 1]
    assert best_epoch([row(1, 1, 0, 0.6), row(2, 1, 0, 0.7)], "worst_source_auc") == 2  # of one source: of all
    assert best_epoch([row(1, 1, 0, None), row(2, 1, 0, 0.4)], "auc") == 2


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8]), min_size=1, max_size=12), patience=st.integers(1, 4))
def test_an_early_stop_on_accuracy_is_that_of_the_keras_callbacks(values, patience):
    stand_in = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    early = keras.callbacks.EarlyStopping("val_accuracy", patience=patience, mode="max")
    early.set_model(stand_in)
    early.on_train_begin()
    stand_in.stop_training = False
    history = []
    for epoch, value in enumerate(values, 1):
        history.append({"epoch": epoch, "val_accuracy": value})
        early.on_epoch_end(epoch, {"val_accuracy": value})
        assert (epochs_since_best(history, "accuracy") >= patience) == stand_in.stop_training
        if stand_in.stop_training:
            return


def test_the_monitor_decides_which_weights_are_kept(tmp_path):
    kept = {}
    for monitor in ("loss", "accuracy"):
        model, history, _ = train_headed(tmp_path / monitor, params(epochs=6, learning_rate=0.2, monitor=monitor))
        images = np.stack([split(20).reader.image(i) for i in range(20)])
        scores = model.predict_on_batch(images)[:, 0]
        best = history[best_epoch(history, monitor) - 1]
        assert np.mean((scores > 0.5) == split(20).labels) == pytest.approx(best["val_accuracy"])
        kept[monitor] = best["epoch"]
    assert len(set(kept.values())) == 2  # else this shows nothing


# ---- pairs -------------------------------------------------------------------------------------------------------


def test_without_groups_of_both_classes_pairing_does_nothing(tmp_path):
    _, plain, _ = train_headed(tmp_path / "plain", params(epochs=2))
    _, paired, _ = train_headed(tmp_path / "paired", params(epochs=2, paired_batches=True, mixup=0.5))
    assert split(42).pairs == 0
    assert paired == plain


def test_with_groups_it_does_and_the_accuracy_of_mixed_images_means_something(tmp_path):
    training = dataclasses.replace(split(42), groups=(np.arange(42) // 2).astype(str))
    assert training.pairs == 21
    settings_ = params(epochs=8, paired_batches=True, mixup=0.5, learning_rate=0.05, schedule="cosine")
    _, plain, _ = train_headed(tmp_path / "plain", params(epochs=8, learning_rate=0.05, schedule="cosine"))
    _, mixed, _ = train_headed(tmp_path / "mixed", settings_, training=training)
    assert mixed != plain
    assert mixed[-1]["accuracy"] > 0.8


def from_two(n: int) -> Split:
    """Two sources, a with three quarters of the images."""
    own = split(n)
    return dataclasses.replace(own, sources=np.where(np.arange(n) % 8 < 2, "b", "a").astype(object))


def test_validation_weighs_sources_as_training_does(tmp_path):
    settings_ = params(epochs=1, source_weights={"a": 1, "b": 3})
    model, [row], _ = train_headed(tmp_path / "c", settings_, training=from_two(48), validation=from_two(24))
    validation = from_two(24)
    images = np.stack([validation.reader.image(i) for i in range(24)])
    scores = model.predict_on_batch(images)[:, 0].astype(float)
    losses = -np.log(np.where(validation.labels == 1, scores, 1 - scores))
    by_source = {name: losses[validation.sources == name].mean() for name in "ab"}
    assert row["val_loss"] == pytest.approx(0.25 * by_source["a"] + 0.75 * by_source["b"], abs=1e-6)
    assert {"val_auc_a", "val_auc_b"} <= row.keys()


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}])
def test_weights_of_other_sources_are_refused(tmp_path, weights):
    with pytest.raises(UserError, match=r"train\.source_weights: .*a, b"):
        train_headed(tmp_path / "c", params(source_weights=weights), training=from_two(48), validation=from_two(24))


def with_blends(rate: float, donor: float = 0.0):
    augment = load_params().augment
    blend = augment.self_blend.model_copy(update={"rate": rate, "donor": donor})
    return augment.model_copy(update={"self_blend": blend, "horizontal_flip": False})


@pytest.mark.parametrize("donor", [0.0, 1.0])
def test_self_blends_stand_in_for_fakes_and_are_made_of_real_images_of_their_source(donor):
    training = from_two(48)
    drawn = {index: Augmenter(training).draws(with_blends(1.0, donor), SIZE) for index in (0, 1, 8, 9)}
    for index, draw in drawn.items():
        image = draw(index, np.random.default_rng(index))
        stored = training.reader.image(index)
        if training.labels[index] == 0:
            np.testing.assert_array_equal(image, stored)
        else:
            assert image.mean() < 110 < stored.mean()  # dark as the real ones are


def test_a_self_blend_is_made_of_the_source_of_the_fake_it_stands_for():
    class OneColourASource(Drawn):
        def image(self, index: int) -> np.ndarray:
            return np.full((SIZE, SIZE, 3), 30 if index % 8 < 2 else 200, np.uint8)

    reader = OneColourASource(48)
    training = dataclasses.replace(from_two(48), reader=reader)
    draw = Augmenter(training).draws(with_blends(1.0, donor=0.5), SIZE)
    for index in np.flatnonzero(training.labels):
        brightness = draw(index, np.random.default_rng(index)).mean()
        assert (brightness < 110) == (training.sources[index] == "b")


def test_the_only_real_image_of_its_source_has_a_donor_elsewhere_and_the_only_one_of_all_has_none():
    training = split(6)
    only = dataclasses.replace(training, labels=np.array([0, 1, 1, 1, 1, 1]))
    draw = Augmenter(only).draws(with_blends(1.0, donor=1.0), SIZE)
    assert draw(1, np.random.default_rng(0)).shape == (SIZE, SIZE, 3)
    sources = np.array(["a", "a", "b", "b", "b", "b"], object)
    drawn = []
    reader = Drawn(6)
    reader.image = lambda index: drawn.append(index) or Drawn.image(reader, index)
    several = Split(reader, np.array([0, 1, 0, 1, 0, 1]), sources, sources)
    draw = Augmenter(several).draws(with_blends(1.0, donor=1.0), SIZE)
    draw(1, np.random.default_rng(0))
    assert drawn[0] == 0 and drawn[1] in (2, 4)


def test_a_donor_is_another_face():
    training = from_two(48)
    own, other = (Augmenter(training).draws(with_blends(1.0, donor), SIZE) for donor in (0.0, 1.0))
    draws = [(own(i, np.random.default_rng(i)), other(i, np.random.default_rng(i))) for i in (1, 3, 5, 7)]
    assert any((a != b).any() for a, b in draws)


def test_no_dropout_is_a_dropout_of_nothing(tmp_path):
    make_deterministic(5)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Dropout(0.0)(keras.layers.GlobalAveragePooling2D()(image))
    model = keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))
    with Checkpoint.open(tmp_path / "c") as checkpoint:
        _, history = train(lambda size: model, params(epochs=1), split(24), split(12), checkpoint, lambda *_: None)
    assert len(history) == 1


def test_the_rate_is_the_share_of_fakes_that_are_self_blended():
    training = split(400)
    draw = Augmenter(training).draws(with_blends(0.25), SIZE)
    fakes = np.flatnonzero(training.labels)
    blended = [draw(i, np.random.default_rng(i)).mean() < 110 for i in fakes]
    assert 0.15 < np.mean(blended) < 0.35


def test_a_self_blend_is_of_no_kind_of_fake(tmp_path):
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)))
    settings_ = params().model_copy(update={"augment": with_blends(0.1)})
    with pytest.raises(UserError, match=r"augment\.self_blend\.rate"), Checkpoint.open(tmp_path / "c") as checkpoint:
        train(lambda size: model, settings_, split(12), split(12), checkpoint, lambda *_: None)


def test_early_stopping_waits_for_the_fine_tuning(tmp_path):
    settings_ = params(epochs=6, head_epochs=4, head_learning_rate=1e-9, learning_rate=1e-9, early_stopping_patience=1)
    _, history, _ = train_headed(tmp_path / "c", settings_)
    assert len(history) in (5, 6)  # the head's four standstills end nothing


def test_a_cosine_runs_to_its_end(tmp_path):
    settings_ = params(epochs=5, schedule="cosine", learning_rate=1e-9, early_stopping_patience=1)
    assert len(train_headed(tmp_path / "c", settings_)[1]) == 5


def test_classes_count_alike_as_often_as_they_are_drawn():
    labels = np.array([0, 0, 0, 1, 1, 2])
    frequency = np.array([1, 1, 1, 3, 3, 0.5])
    weights = sample_weights(labels, "balanced", frequency)
    mass = [float((weights * frequency)[labels == kind].sum()) for kind in range(3)]
    assert mass == pytest.approx([mass[0]] * 3)
    assert (weights * frequency).sum() / frequency.sum() == pytest.approx(1)
