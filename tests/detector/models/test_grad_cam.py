import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detector.errors import UserError
from detector.evaluation.localization import localisation
from detector.models.backend import keras
from detector.models.grad_cam import at_size, grad_cam, overlay

SIZE, BLOB = 32, (slice(4, 12), slice(20, 28))


def network(classes: int = 2, seed: int = 0, name: str = "xception") -> "keras.Model":
    """Sees red as fake (class 1), green as real (class 0) and, where there is one, blue as class 2."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(image)
    x = keras.layers.Conv2D(3, 4, strides=4, use_bias=False, name="early")(x)
    y = keras.layers.Conv2D(3, 1, use_bias=False, name="branch")(x)
    x = keras.layers.Add(name="sum")([x, y])
    x = keras.layers.ReLU(name="fine")(x)
    x = keras.layers.AveragePooling2D(2, name="block14_sepconv2_act")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    output = keras.layers.Dense(1 if classes == 2 else classes, "sigmoid" if classes == 2 else "softmax", name="out")
    model = keras.Model(image, output(x), name=name)
    model.get_layer("early").set_weights([np.tile(np.eye(3, dtype=np.float32) / 16, (4, 4, 1, 1))])
    model.get_layer("branch").set_weights([np.zeros((1, 1, 3, 3), np.float32)])
    kernel = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32) * 4 - 1
    kernel = kernel[:, 1:2] - kernel[:, :1] if classes == 2 else kernel
    output.set_weights([kernel, np.zeros(kernel.shape[1], np.float32)])
    return model


def spots(*colours: int) -> np.ndarray:
    """Dark images, each with a bright square of one colour channel."""
    images = np.full((len(colours), SIZE, SIZE, 3), 10, np.uint8)
    for image, colour in zip(images, colours, strict=True):
        image[(*BLOB, colour)] = 250
    return images


def share_in_the_blob(heat: np.ndarray) -> np.ndarray:
    return heat[:, BLOB[0], BLOB[1]].sum((1, 2)) / np.maximum(heat.sum((1, 2)), 1e-9)


CHANCE = 64 / SIZE**2


@pytest.mark.parametrize(("output", "colour"), [(None, 0), (1, 0), (0, 1)])
def test_the_heat_is_where_the_evidence_is(output, colour):
    heat = grad_cam(network(), spots(colour), output)
    assert heat.shape == (1, SIZE, SIZE) and heat.dtype == np.float32
    assert heat.max() == 1 and heat.min() >= 0
    assert share_in_the_blob(heat)[0] > 5 * CHANCE
    assert np.unravel_index(heat[0].argmax(), heat[0].shape)[0] in range(4, 12)


def test_what_speaks_against_an_output_is_left_out():
    np.testing.assert_array_equal(grad_cam(network(), spots(1), 1)[0, BLOB[0], BLOB[1]], 0)
    np.testing.assert_array_equal(grad_cam(network(), spots(0), 0)[0, BLOB[0], BLOB[1]], 0)


@pytest.mark.parametrize(("output", "colour"), [(0, 1), (1, 0), (2, 2)])
def test_every_class_of_a_softmax_has_its_map(output, colour):
    model = network(classes=3)
    assert share_in_the_blob(grad_cam(model, spots(colour), output))[0] > 5 * CHANCE
    assert share_in_the_blob(grad_cam(model, spots((colour + 1) % 3), output))[0] < CHANCE


def test_none_is_fake_of_any_kind():
    model = network(classes=3)
    shares = share_in_the_blob(grad_cam(model, spots(0, 1, 2)))
    assert (shares[[0, 2]] > 5 * CHANCE).all() and shares[1] < CHANCE


def test_with_a_linear_head_it_is_the_class_activation_map():
    """Selvaraju et al., section 3.1: it generalises CAM (Zhou et al., 2016), the maps under the head's weights."""
    images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    means = images.reshape(3, 8, 4, 8, 4, 3).mean((2, 4))
    cam = np.maximum(means @ np.array([5.0, -5.0, 0.0]), 0)
    heat = grad_cam(network(), images)
    # Bilinear: the mean of a cell's four inner pixels is near the cell, and a corner pixel is the corner cell.
    np.testing.assert_allclose(heat[:, 0, 0] * cam[:, -1, -1], heat[:, -1, -1] * cam[:, 0, 0], atol=1e-3 * cam.max())
    inner = heat.reshape(3, 8, 4, 8, 4)[:, :, 1:3, :, 1:3].mean((2, 4))
    assert np.corrcoef(inner.ravel(), (cam / cam.max((1, 2), keepdims=True)).ravel())[0, 1] > 0.97


def test_a_certain_score_is_explained_too():
    model = network()
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, np.array([60.0], np.float32)])
    images = spots(0)
    assert np.asarray(model(images))[0, 0] == 1  # in float32: the sigmoid's own gradient is 0
    np.testing.assert_allclose(grad_cam(model, images), grad_cam(network(), images), atol=1e-6)


def test_random_weights_change_the_map():
    """Adebayo et al., NeurIPS 2018: a map that outlives its weights explains the image, not the model."""
    images = np.random.default_rng(2).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    trained = grad_cam(network(), images)
    np.testing.assert_array_equal(grad_cam(network(), images), trained)
    changes = {"out": [], "branch": [], "early": []}  # cascading, from the output down
    for seed in range(8):
        model, rng = network(), np.random.default_rng(seed)
        for name, change in changes.items():
            layer = model.get_layer(name)
            layer.set_weights([rng.normal(0, 1, weight.shape) for weight in layer.get_weights()])
            change.append(np.abs(grad_cam(model, images) - trained).mean())
    assert min(np.mean(change) for change in changes.values()) > 0.5 * trained.mean()


def test_an_image_is_explained_alone_as_among_others(monkeypatch):
    images = np.random.default_rng(4).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    model = network()
    together = grad_cam(model, images)
    for image, heat in zip(images, together, strict=True):
        np.testing.assert_allclose(grad_cam(model, image[None])[0], heat, atol=1e-5)
    monkeypatch.setattr("detector.models.grad_cam.BATCH", 2)
    np.testing.assert_allclose(grad_cam(model, images), together, atol=1e-5)


def test_no_image_no_map():
    assert grad_cam(network(), np.empty((0, SIZE, SIZE, 3), np.uint8)).shape == (0, SIZE, SIZE)


def test_nothing_that_speaks_for_it_is_all_zero():
    heat = grad_cam(network(), np.zeros((2, SIZE, SIZE, 3), np.uint8))
    np.testing.assert_array_equal(heat, 0)


def test_an_earlier_layer_can_be_named():
    np.testing.assert_allclose(grad_cam(network(), spots(0), layer="sum"), grad_cam(network(), spots(0)), atol=1e-6)


@pytest.mark.parametrize("layer", ["branch", "pool", "out", "nowhere"])
def test_a_layer_that_cannot_be_explained_is_refused(layer):
    with pytest.raises(UserError, match=f"xception has no layer {layer} of maps"):
        grad_cam(network(), spots(0), layer=layer)


@pytest.mark.parametrize(("classes", "output"), [(2, 2), (2, -1), (3, 3)])
def test_an_output_that_is_not_there_is_refused(classes, output):
    with pytest.raises(UserError, match=rf"output {output} is none of the model's; name one from 0 to {classes - 1}"):
        grad_cam(network(classes), spots(0), output)


def test_a_network_of_any_name_is_explained_where_all_of_it_passes_through():
    np.testing.assert_array_equal(grad_cam(network(name="mine"), spots(0)), grad_cam(network(), spots(0)))


def test_a_network_without_maps_is_explained_at_its_input():
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255, name="scaling")(image))
    model = keras.Model(image, keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")(x), name="flat")
    assert share_in_the_blob(grad_cam(model, spots(0)))[0] > 5 * CHANCE


# ---- a network that has learned something --------------------------------------------------------------------


def forgeries(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grain all over; every other image is smooth in a square somewhere. Images, labels, masks."""
    rng = np.random.default_rng(seed)
    images = rng.normal(128, 40, (n, SIZE, SIZE, 3))
    labels, masks = np.arange(n) % 2, np.zeros((n, SIZE, SIZE), np.float32)
    for i in np.flatnonzero(labels):
        y, x = rng.integers(0, SIZE - 12, 2)
        masks[i, y : y + 12, x : x + 12] = 1
        images[i, y : y + 12, x : x + 12] = rng.normal(128, 4, (12, 12, 3))
    return images.clip(0, 255).astype(np.uint8), labels, masks


def learner(seed: int) -> "keras.Model":
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 64, -2, name="scaling")(image)
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="first")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="fine")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="block14_sepconv2_act")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(1, "sigmoid", name="p_fake")(x), name="xception")


@pytest.fixture(scope="module")
def learned() -> "keras.Model":
    model = learner(0)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    images, labels, _ = forgeries(512, seed=0)
    model.fit(images, labels[:, None], batch_size=32, epochs=20, verbose=0)
    return model


def test_of_a_trained_network_the_heat_follows_the_forged_region(learned):
    images, labels, masks = forgeries(128, seed=1)
    assert np.mean((learned.predict_on_batch(images)[:, 0] > 0.5) == labels) > 0.9
    fakes = labels == 1
    found = localisation(grad_cam(learned, images[fakes]), masks[fakes], list(range(fakes.sum())), 200, seed=0)
    assert found["intervals"]["ratio"]["low"] > 1.5
    assert found["heat_share"] > 1.5 * found["elsewhere_share"]
    assert found["pointing_game"] > 2 * found["region_share"]


def test_a_trained_networks_maps_do_not_outlive_its_weights(learned):
    """Adebayo et al., NeurIPS 2018: the model parameter randomisation test, from the output down."""
    images, labels, masks = forgeries(128, seed=1)
    fakes = labels == 1
    trained = grad_cam(learned, images[fakes])

    def likeness(other: np.ndarray) -> float:
        moved = (trained.std((1, 2)) > 0) & (other.std((1, 2)) > 0)
        pairs = zip(trained[moved], other[moved], strict=True)
        return float(np.sum([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]) / len(trained))

    twin = learner(0)
    twin.set_weights(learned.get_weights())
    assert likeness(grad_cam(twin, images[fakes])) > 0.95
    random = [learner(seed) for seed in range(1, 9)]
    assert abs(np.mean([likeness(grad_cam(model, images[fakes])) for model in random])) < 0.4
    ratios = [
        localisation(grad_cam(m, images[fakes]), masks[fakes], ["a"] * fakes.sum(), 100, 0)["ratio"] for m in random
    ]
    assert np.mean(ratios) < localisation(trained, masks[fakes], ["a"] * fakes.sum(), 100, 0)["ratio"]


def test_the_maps_are_those_before_the_last_reduction():
    model = learner(3)
    images, *_ = forgeries(4, seed=2)
    np.testing.assert_array_equal(grad_cam(model, images), grad_cam(model, images, layer="fine"))
    assert not np.array_equal(grad_cam(model, images), grad_cam(model, images, layer="block14_sepconv2_act"))


# ---- laid over the image ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    heat=arrays(np.float32, (5, 5), elements=st.floats(0, 1, width=32)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_at_any_size_heat_stays_heat(heat, height, width):
    fitted = at_size(heat, height, width)
    assert fitted.shape == (height, width) and fitted.dtype == np.float32
    assert heat.min() - 1e-6 <= fitted.min() and fitted.max() <= heat.max() + 1e-6


def test_heat_keeps_its_place_in_an_image_of_another_shape():
    heat = np.zeros((10, 10), np.float32)
    heat[2:4, 7:9] = 1
    fitted = at_size(heat, 100, 200)
    assert np.unravel_index(fitted.argmax(), fitted.shape)[0] in range(20, 40)
    assert np.unravel_index(fitted.argmax(), fitted.shape)[1] in range(140, 180)


def test_without_heat_the_image_is_grey_and_untouched():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    laid = overlay(image, np.zeros((20, 30)))
    assert laid.dtype == np.uint8 and laid.shape == image.shape
    assert (laid == laid[..., :1]).all()
    np.testing.assert_allclose(laid[..., 0], image @ [0.299, 0.587, 0.114], atol=1)


def test_under_the_most_heat_the_image_is_still_to_be_seen():
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8), 3, axis=2)
    laid = overlay(image, np.ones((20, 30))).astype(float)
    for channel in range(3):
        assert np.corrcoef(laid[..., channel].ravel(), image[..., 0].ravel())[0, 1] > 0.999
        assert laid[..., channel].std() > 0.39 * image.std()


def test_more_heat_is_lighter_on_a_dark_image():
    laid = overlay(np.full((1, 101, 3), 30, np.uint8), np.linspace(0, 1, 101)[None]).astype(float)
    lightness = laid[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1.5).all() and lightness[-1] > lightness[0] + 60


def test_overlays_need_no_keras():
    code = "import sys, detector.models.grad_cam; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
