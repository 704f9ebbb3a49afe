"""The average follows the weights by its formula, decay spares what it should, and a saved state goes on."""

import math

import numpy as np
import pytest

from detector.models.backend import keras
from detector.params import load_params
from detector.training.optimizer import AveragingAdam, averaged_weights, make_optimizer, plateau_learning_rate


def train_params(**changes):
    return load_params().train.model_copy(update=changes)


def network() -> "keras.Model":
    keras.utils.set_random_seed(3)
    image = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(3)(image))
    return keras.Model(image, keras.layers.Dense(1)(x))


def fitted(model, steps: int) -> list[list[np.ndarray]]:
    """The trainable weights after each step."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(steps):
        model.train_on_batch(rng.normal(size=(8, 4)), rng.normal(size=(8, 1)))
        seen.append([np.array(v) for v in model.trainable_variables])
    return seen


def test_the_average_is_that_of_its_formula():
    model = network()
    model.compile(AveragingAdam(0.05, average=0.9), "mse")
    seen = fitted(model, 120)
    expected = seen[0]
    for t, weights in enumerate(seen[1:], 2):
        decay = min(0.9, (1 + t) / (10 + t))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights, strict=True)]
    own = [np.array(v) for v in model.trainable_variables]
    with averaged_weights(model):
        for average, variable in zip(expected, model.trainable_variables, strict=True):
            np.testing.assert_allclose(np.array(variable), average, rtol=1e-4, atol=1e-6)
    for before, variable in zip(own, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(np.array(variable), before)


def test_averaging_changes_no_step():
    with_average, without = network(), network()
    with_average.compile(AveragingAdam(0.05, average=0.9), "mse")
    without.compile(keras.optimizers.Adam(0.05), "mse")
    for a, b in zip(fitted(with_average, 20)[-1], fitted(without, 20)[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_weights_without_an_average_are_left_as_they_are():
    model = network()
    model.compile(keras.optimizers.Adam(0.05), "mse")
    fitted(model, 2)
    own = [np.array(v) for v in model.trainable_variables]
    with averaged_weights(model):
        for before, variable in zip(own, model.trainable_variables, strict=True):
            np.testing.assert_array_equal(np.array(variable), before)


@pytest.mark.parametrize("average", [0, 0.9])
def test_a_saved_state_goes_on_as_if_unbroken(tmp_path, average):
    def made():
        model = network()
        model.compile(
            make_optimizer(train_params(ema_decay=average, weight_decay=0.1, schedule="cosine"), 0.05, 20), "mse"
        )
        return model

    whole = made()
    rng = np.random.default_rng(1)
    batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 1))) for _ in range(12)]
    for batch in batches:
        whole.train_on_batch(*batch)
    broken = made()
    for batch in batches[:5]:
        broken.train_on_batch(*batch)
    broken.save(tmp_path / "m.keras")
    resumed = keras.saving.load_model(tmp_path / "m.keras")
    for batch in batches[5:]:
        resumed.train_on_batch(*batch)
    with averaged_weights(whole), averaged_weights(resumed):
        for a, b in zip(whole.trainable_variables, resumed.trainable_variables, strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5, atol=1e-7)


def test_weight_decay_is_for_kernels_alone():
    model = network()
    model.compile(make_optimizer(train_params(weight_decay=0.5), 0.1, 10), "mse")
    model.optimizer.build(model.trainable_variables)
    before = {v.path: np.array(v) + 1 for v in model.trainable_variables}
    for v in model.trainable_variables:
        v.assign_add(np.ones(v.shape))
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for v in model.trainable_variables:
        shrunk = 1 - 0.1 * 0.5 if v.path.endswith("kernel") else 1
        np.testing.assert_allclose(np.array(v), shrunk * before[v.path], rtol=1e-5)


def test_the_cosine_rises_falls_and_ends_at_its_floor():
    optimizer = make_optimizer(train_params(schedule="cosine", warmup=0.1), 0.02, 200)
    rate = [float(optimizer._learning_rate(step)) for step in range(201)]
    assert rate[0] == 0
    assert rate[20] == pytest.approx(0.02)
    assert np.all(np.diff(rate[:21]) > 0) and np.all(np.diff(rate[20:]) < 0)
    assert rate[110] == pytest.approx(0.02 * (0.99 * (1 + math.cos(math.pi / 2)) / 2 + 0.01), rel=1e-3)
    assert rate[200] == pytest.approx(0.0002)


def test_the_gradient_is_clipped_by_its_norm():
    model = network()
    model.compile(make_optimizer(train_params(clip_norm=1.0), 0.1, 10), "mse")
    assert model.optimizer.global_clipnorm == 1.0


def test_a_step_follows_the_direction_of_a_clipped_gradient_not_its_length():
    """Adam's second step tells: its moments mix a gradient of length 1000 with one of length 1."""

    def after_two_steps(clip: float | None, first: float) -> np.ndarray:
        model = network()
        model.compile(make_optimizer(train_params(clip_norm=clip), 0.1, 10), "mse")
        shapes = [v.shape for v in model.trainable_variables]
        for length in (first, 1.0):
            gradients = [np.full(shape, length, np.float32) for shape in shapes]
            model.optimizer.apply(gradients, model.trainable_variables)
        return np.concatenate([np.array(v).ravel() for v in model.trainable_variables])

    np.testing.assert_allclose(after_two_steps(0.01, 1000.0), after_two_steps(0.01, 1.0), atol=1e-6)
    assert np.abs(after_two_steps(None, 1000.0) - after_two_steps(None, 1.0)).max() > 1e-3


def normed() -> "keras.Model":
    keras.utils.set_random_seed(3)
    image = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="first", momentum=0.9)(keras.layers.Dense(3)(image))
    x = keras.layers.BatchNormalization(name="second", momentum=0.8)(keras.layers.Dense(2)(x))
    return keras.Model(image, keras.layers.Dense(1)(x))


def test_statistics_of_the_average_are_the_mean_over_batches_and_then_the_models_own_again():
    model = normed()
    model.compile(AveragingAdam(0.05, average=0.9), "mse")
    fitted(model, 30)
    own = [np.array(w) for w in model.get_weights()]
    rng = np.random.default_rng(2)
    batches = [rng.normal(i, 1 + i, (16, 4)).astype(np.float32) for i in range(3)]
    with averaged_weights(model, iter(batches)):
        first = keras.Model(model.input, model.layers[1].output)
        inputs = [np.asarray(first(batch)) for batch in batches]
        norm = model.get_layer("first")
        np.testing.assert_allclose(norm.moving_mean, np.mean([x.mean(axis=0) for x in inputs], axis=0), atol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, np.mean([x.var(axis=0) for x in inputs], axis=0), rtol=1e-3)
        assert (norm.momentum, model.get_layer("second").momentum) == (0.9, 0.8)
    for before, after in zip(own, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_statistics_of_a_frozen_norm_are_not_estimated_anew():
    model = normed()
    model.get_layer("first").trainable = False
    model.compile(AveragingAdam(0.05, average=0.9), "mse")
    fitted(model, 3)
    frozen = model.get_layer("first").get_weights()
    with averaged_weights(model, [np.ones((4, 4), np.float32)]):
        for a, b in zip(frozen, model.get_layer("first").get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_plateau_cuts_no_lower_than_the_lowest_rate():
    params = train_params(reduce_lr_patience=1, reduce_lr_factor=0.1, min_learning_rate=2e-5, learning_rate=0.001)
    history = [{"val_loss": 1.0}] * 5
    assert [plateau_learning_rate(history[:n], params) for n in range(1, 6)] == pytest.approx(
        [0.001, 0.0001, 2e-5, 2e-5, 2e-5]
    )
