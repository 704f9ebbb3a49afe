import builtins
import hashlib
import io
from dataclasses import replace

import h5py
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from detector.errors import UserError
from detector.models import network as module
from detector.models.backbones import BACKBONES
from detector.models.backend import keras, make_deterministic
from detector.models.network import build_network, in_float32, resolve_precision
from detector.models.weights import InitialWeights

RANDOM = InitialWeights("random")


def small_backbone(*, weights=None, include_top=False, input_tensor=None) -> "keras.Model":
    """Called as a backbone of `keras.applications` is, and built in no time."""
    assert weights is None and not include_top
    image = keras.Input((None, None, 3)) if input_tensor is None else input_tensor
    x = keras.layers.Conv2D(4, 3, strides=4, name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.SeparableConv2D(6, 3, name="separable")(keras.layers.ReLU(name="relu")(x))
    return keras.Model(keras.utils.get_source_inputs(image) if input_tensor is not None else image, x, name="small")


@pytest.fixture(scope="module")
def params(defaults):
    return defaults.model.model_copy(update={"image_size": 71, "dense_units": 16, "batch_norm_momentum": 0.83})


@pytest.fixture
def small(monkeypatch):
    """Xception's place is taken by `small_backbone`."""
    monkeypatch.setattr(keras.applications, "Small", small_backbone, raising=False)
    entry = replace(BACKBONES["xception"], keras_name="Small", last_conv="separable")
    monkeypatch.setitem(BACKBONES, "xception", entry)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (4, 71, 71, 3), np.uint8)
    images[0], images[1] = 0, 255
    return images


def norms(model: "keras.Model") -> list:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


# ---- the graph -------------------------------------------------------------------------------------------------


def test_the_graph_is_flat_so_that_every_activation_can_be_reached(network):
    assert not [layer.name for layer in network.layers if isinstance(layer, keras.Model)]
    last = network.get_layer("block14_sepconv2_act")
    assert network.get_layer("pool").input is last.output
    tapped = keras.Model(network.input, [last.output, network.output])
    assert tapped.output_shape == [(None, 3, 3, 2048), (None, 1)]


def test_the_head_is_the_published_one(network, defaults):
    head = [layer.name for layer in network.layers][-5:]
    assert head == ["pool", "head_dense", "head_norm", "head_dropout", "p_fake"]
    assert network.get_layer("head_dense").units == defaults.model.dense_units
    assert network.get_layer("head_dense").activation is keras.activations.relu
    assert network.get_layer("head_dropout").rate == defaults.model.dropout
    assert network.get_layer("p_fake").activation is keras.activations.sigmoid
    assert network.input_shape == (None, 71, 71, 3) and network.output_shape == (None, 1)


def test_the_binary_xception_is_what_it_always_was(network, images):
    """Weights and scores as they were when Xception was the only backbone and two the only number of classes."""
    weights = hashlib.sha256(b"".join(weight.tobytes() for weight in network.get_weights())).hexdigest()
    assert weights == "638ad666c1554c39c620c9836db046259aadea0619645d1ef8a805f15864688a"
    former = [0.5000044107437134, 0.500005841255188, 0.5000046491622925, 0.5000049471855164]
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    np.testing.assert_allclose(network.predict_on_batch(noise)[:, 0], former, rtol=0, atol=3e-7)


def test_more_than_two_classes_give_a_softmax(params, small, images):
    keras.utils.set_random_seed(3)
    model = build_network(params, RANDOM, "float32", classes=4)
    scores = model.predict_on_batch(images)
    assert scores.shape == (4, 4) and scores.dtype == np.float32
    assert (scores > 0).all()
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    assert model.layers[-1].activation is keras.activations.softmax
    keras.utils.set_random_seed(3)
    binary = build_network(params, RANDOM, "float32", classes=2)
    assert binary.output_shape == (None, 1)
    for ours, theirs in zip(model.get_weights()[:-2], binary.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_softmax_is_float32_in_bfloat16(params, small, images):
    model = build_network(params, RANDOM, "bfloat16", classes=3)
    assert model.layers[-1].compute_dtype == "float32"
    twin = in_float32(model)
    np.testing.assert_allclose(twin.predict_on_batch(images), model.predict_on_batch(images), atol=0.02)


def test_the_scores_are_probabilities(network, images):
    scores = network.predict_on_batch(images)
    assert scores.shape == (4, 1) and scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    np.testing.assert_allclose(scores, network.predict_on_batch(images.astype(np.float32)), atol=1e-6)


def test_pixels_are_scaled_inside_to_what_the_backbone_was_trained_on(network):
    scaling = keras.Model(network.input, network.get_layer("scaling").output)
    levels = np.array([0, 127, 128, 255], np.uint8)
    scaled = scaling.predict_on_batch(np.broadcast_to(levels[:, None, None, None], (4, 71, 71, 3)))[:, 0, 0, 0]
    expected = keras.applications.xception.preprocess_input(levels.astype(np.float32))
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    np.testing.assert_allclose(scaled[[0, 3]], [-1, 1], atol=1e-6)
    assert network.get_layer("block1_conv1").input is network.get_layer("scaling").output


def test_everything_can_be_trained(network):
    assert all(layer.trainable for layer in network.layers)
    assert len(network.trainable_weights) > 150


def test_the_momentum_is_that_of_every_batch_normalisation(network, defaults, params, small):
    assert len(norms(network)) == 41
    assert {layer.momentum for layer in norms(network)} == {defaults.model.batch_norm_momentum}
    other = build_network(params, RANDOM, "float32")
    assert [layer.momentum for layer in norms(other)] == [0.83, 0.83]
    assert [layer.momentum for layer in norms(in_float32(other))] == [0.83, 0.83]


def test_the_momentum_is_at_work_in_training(params, small, images):
    model = build_network(params, RANDOM, "float32")
    norm = model.get_layer("norm")
    before = norm.get_weights()[2]
    batch_mean = keras.Model(model.input, norm.input).predict_on_batch(images).mean((0, 1, 2))
    model(images, training=True)
    np.testing.assert_allclose(norm.get_weights()[2], 0.83 * before + 0.17 * batch_mean, rtol=1e-3, atol=1e-5)


def test_the_same_seed_gives_the_same_initial_weights(params, small):
    models = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        models.append(build_network(params, RANDOM, "float32").get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(models[0], models[1], strict=True))
    assert not np.array_equal(models[0][0], models[2][0])


def test_make_deterministic_seeds_the_weights(params, small, monkeypatch):
    monkeypatch.setattr("tensorflow.config.experimental.enable_op_determinism", lambda: None)  # it cannot be undone
    weights = []
    for _ in range(2):
        make_deterministic(7)
        weights.append(build_network(params, RANDOM, "float32").get_weights()[0])
    np.testing.assert_array_equal(*weights)


# ---- precision -------------------------------------------------------------------------------------------------


def test_bfloat16_is_for_the_arithmetic_between_scaling_and_output(params, small, images):
    model = build_network(params, RANDOM, "bfloat16")
    compute = {layer.name: layer.compute_dtype for layer in model.layers}
    assert {compute.pop(name) for name in ("scaling", "p_fake")} == {"float32"}
    assert set(compute.values()) == {"bfloat16"}
    assert model.input.dtype == "float32"
    assert {weight.dtype for weight in model.weights} <= {"float32"}
    scores = model.predict_on_batch(images)
    assert scores.dtype == np.float32 and ((scores > 0) & (scores < 1)).all()


def test_in_float32_is_the_same_network_in_float32(params, small, images):
    keras.utils.set_random_seed(3)
    model = build_network(params, RANDOM, "bfloat16")
    twin = in_float32(model)
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}
    assert [layer.name for layer in twin.layers] == [layer.name for layer in model.layers]
    assert [weight.path for weight in twin.weights] == [weight.path for weight in model.weights]
    for ours, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert twin.name == model.name and twin.input_shape == model.input_shape
    np.testing.assert_allclose(twin.predict_on_batch(images), model.predict_on_batch(images), atol=0.02)
    keras.utils.set_random_seed(3)
    reference = build_network(params, RANDOM, "float32")
    np.testing.assert_allclose(twin.predict_on_batch(images), reference.predict_on_batch(images), atol=1e-6)


def test_in_float32_leaves_the_model_alone(params, small):
    model = build_network(params, RANDOM, "bfloat16")
    twin = in_float32(model)
    twin.get_layer("conv").kernel.assign(np.zeros((3, 3, 3, 4)))
    assert model.get_layer("conv").get_weights()[0].any()
    assert model.get_layer("conv").compute_dtype == "bfloat16"


def test_in_float32_leaves_the_optimizer_behind(params, small):
    model = build_network(params, RANDOM, "float32")
    model.compile("adam", "binary_crossentropy")
    twin = in_float32(model)
    assert not twin.compiled and model.compiled


def test_xception_in_bfloat16_scores_about_the_same_in_float32(defaults, network, images):
    model = build_network(defaults.model.model_copy(update={"image_size": 71}), RANDOM, "bfloat16")
    model.set_weights(network.get_weights())
    twin = in_float32(model)
    assert [weight.path for weight in twin.weights] == [weight.path for weight in model.weights]
    np.testing.assert_allclose(twin.predict_on_batch(images), network.predict_on_batch(images), atol=1e-6)
    np.testing.assert_allclose(model.predict_on_batch(images), network.predict_on_batch(images), atol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_global_policy_is_left_at_float32(params, small, precision, tmp_path):
    build_network(params, RANDOM, precision)
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(UserError):
        build_network(params, InitialWeights("file", tmp_path / "gone.h5"), precision)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_named_is_taken(precision, monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    assert resolve_precision(precision) == precision


@pytest.mark.parametrize(
    ("devices", "flags", "expected"),
    [
        (["cpu:0"], "flags\t\t: fpu sse4_2 avx2 avx512f", "float32"),
        (["cpu:0"], "flags\t\t: fpu avx512f avx512_bf16", "bfloat16"),
        (["cpu:0"], "flags\t\t: fpu amx_bf16 amx_tile", "bfloat16"),
        (["cpu:0"], "Features\t: fp asimd", "float32"),
        (["cpu:0"], None, "float32"),
        (["gpu:0"], "flags\t\t: fpu", "bfloat16"),
        (["GPU:0", "GPU:1"], None, "bfloat16"),
        (["cuda:0"], None, "bfloat16"),
        (["tpu:0"], None, "bfloat16"),
    ],
)
def test_auto_is_what_the_processor_is_fast_with(monkeypatch, devices, flags, expected):
    def cpuinfo(path, *_, **__):
        assert path == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return io.StringIO(f"processor\t: 0\n{flags}\n")

    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    monkeypatch.setattr(module, "open", cpuinfo, raising=False)
    assert resolve_precision("auto") == expected


@pytest.mark.parametrize(("devices", "expected"), [(["cpu:0"], "float32"), (["gpu:0"], "bfloat16")])
def test_auto_knows_that_bfloat16_is_slow_without_onednn(monkeypatch, devices, expected):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    monkeypatch.setattr(module, "open", lambda *_, **__: io.StringIO("flags\t\t: avx512_bf16\n"), raising=False)
    assert resolve_precision("auto") == expected


def test_auto_has_an_answer_here():
    assert resolve_precision("auto") in ("float32", "bfloat16")
    assert module.__dict__.get("open", builtins.open) is builtins.open


# ---- initial weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xception() -> "keras.Model":
    keras.utils.set_random_seed(11)
    return keras.applications.Xception(weights=None, include_top=False)


def save_weights(model: "keras.Model", path) -> None:
    model.save_weights(path)


def save_as_published(model: "keras.Model", path) -> None:
    """In the older layout, in which the ImageNet weights are published."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize(
    ("save", "name"), [(save_weights, "x.weights.h5"), (save_as_published, "x_notop.h5")], ids=["keras 3", "published"]
)
def test_the_backbone_starts_from_the_file(defaults, xception, tmp_path, save, name):
    save(xception, tmp_path / name)
    params = defaults.model.model_copy(update={"image_size": 71})
    model = build_network(params, InitialWeights("file", tmp_path / name), "float32")
    backbone = [weight for layer in model.layers[:-5] for weight in layer.get_weights()]
    assert len(backbone) == len(xception.get_weights()) == 234
    for ours, theirs in zip(backbone, xception.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_loaded_in_bfloat16_as_in_float32(params, small, tmp_path):
    source = small_backbone()
    source.save_weights(tmp_path / "s.weights.h5")
    model = build_network(params, InitialWeights("file", tmp_path / "s.weights.h5"), "bfloat16")
    for name in ("conv", "norm", "separable"):
        for ours, theirs in zip(model.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def other_network() -> "keras.Model":
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


WRONG = {
    "text.h5": lambda path: path.write_text("hello"),
    "text.weights.h5": lambda path: path.write_text("hello"),
    "text.keras": lambda path: path.write_text("hello"),
    "empty.h5": lambda path: path.touch(),
    "empty.weights.h5": lambda path: path.touch(),
    "unknown.txt": lambda path: path.write_text("hello"),
    "no-suffix": lambda path: path.write_text("hello"),
    "folder": lambda path: path.mkdir(),
    "folder.h5": lambda path: path.mkdir(),
    "folder.weights.h5": lambda path: path.mkdir(),
    "folder.keras": lambda path: path.mkdir(),
    "gone.h5": lambda path: None,
    "gone.weights.h5": lambda path: None,
    "nothing.h5": lambda path: h5py.File(path, "w").close(),
    "nothing.weights.h5": lambda path: h5py.File(path, "w").close(),
    "other.weights.h5": lambda path: save_weights(other_network(), path),
    "other.h5": lambda path: save_as_published(other_network(), path),
    "other.keras": lambda path: other_network().save(path),
    "new-layout-under-the-old-name.h5": lambda path: save_as_new_layout(path),
    "cut.weights.h5": lambda path: cut(path),
    "layer-missing.weights.h5": lambda path: without(path, "layers/batch_normalization"),
    "array-missing.weights.h5": lambda path: without(path, "layers/conv2d/vars/1"),
}


def save_as_new_layout(path) -> None:
    small_backbone().save_weights(path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def cut(path) -> None:
    small_backbone().save_weights(path)
    path.write_bytes(path.read_bytes()[:3000])


def without(path, part: str) -> None:
    small_backbone().save_weights(path)
    with h5py.File(path, "r+") as file:
        del file[part]


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_something_else_is_refused_in_one_line(params, small, tmp_path, name, recwarn):
    WRONG[name](tmp_path / name)
    recwarn.clear()
    with pytest.raises(UserError) as caught:
        build_network(params, InitialWeights("file", tmp_path / name), "float32")
    assert not [str(warning.message) for warning in recwarn]
    message = str(caught.value)
    assert message.startswith(f"model.weights: {tmp_path / name} does not hold weights of small without its top (")
    assert message.endswith("name a .weights.h5 or .h5 file of this backbone")
    assert len(message.splitlines()) == 1 and "()" not in message


def test_another_networks_weights_are_refused_by_xception(defaults, tmp_path):
    small_backbone().save_weights(tmp_path / "small.weights.h5")
    with pytest.raises(UserError, match="does not hold weights of xception without its top"):
        build_network(defaults.model, InitialWeights("file", tmp_path / "small.weights.h5"), "float32")
