import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from detector.errors import UserError
from detector.models.backend import keras
from detector.models.file import ModelCard, save_model
from detector.models.grad_cam import grad_cam
from detector.models.keras_file import PIXELS, p_fake_of, read_keras_file, rebuild

SIZE = 32
layers = keras.layers


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    blotches = np.random.default_rng(3).integers(0, 256, (6, 4, 4, 3), np.uint8)
    return blotches.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


def backbone(name: str = "tiny", size: int | None = SIZE) -> "keras.Model":
    """Every kind of layer that Xception has, and a slash in a name as DenseNet has it in Keras 2."""
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv_one")(image)
    x = layers.BatchNormalization(name="norm_one")(x)
    x = layers.Activation("relu", name="first_act")(x)
    y = layers.SeparableConv2D(8, 3, padding="same", use_bias=False, name="separable")(x)
    x = layers.Add(name="sum")([x, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)])
    x = layers.MaxPooling2D(2, name="reduction")(x)
    return keras.Model(image, layers.ReLU(name="last_act")(x), name=name)


def head(x, *last):
    """That of the published recipe."""
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.BatchNormalization()(layers.Dense(16, activation="relu")(x))
    x = layers.Dropout(0.3)(x)
    for layer in last:
        x = layer(x)
    return x


def alive(model: "keras.Model", seed: int = 0) -> "keras.Model":
    """With weights that let every layer matter, and scores that differ from image to image."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            alive(layer, seed + 1)
        elif isinstance(layer, layers.BatchNormalization):
            n = layer.gamma.shape[0]
            values = rng.normal(1, 0.3, n), rng.normal(0, 0.3, n), rng.normal(0, 0.1, n), rng.uniform(0.02, 0.1, n)
            layer.set_weights(values)
        elif layer.weights:
            layer.set_weights([weight + rng.normal(0, 0.1, weight.shape) for weight in layer.get_weights()])
    return model


def published(nested: bool = False, *last) -> "keras.Model":
    keras.utils.set_random_seed(0)
    last, base = last or (layers.Dense(1, activation="sigmoid"),), backbone()
    if not nested:
        return alive(keras.Model(base.input, head(base.output, *last)))
    image = keras.Input((SIZE, SIZE, 3))
    return alive(keras.Model(image, head(base(image, training=False), *last)))


def sequential() -> "keras.Model":
    keras.utils.set_random_seed(1)
    flip = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    base = backbone()
    base.trainable = False
    rescale = layers.Rescaling(1 / 127.5, -1)
    last = layers.Dense(2, activation="softmax")
    return alive(
        keras.Sequential([keras.Input((SIZE, SIZE, 3)), flip, rescale, base, layers.GlobalAveragePooling2D(), last])
    )


def saved(model: "keras.Model", path: Path) -> Path:
    model.save(path)
    return path


def score(network: "keras.Model", images: np.ndarray) -> np.ndarray:
    """P(fake) of a network of ours."""
    outputs = network.predict_on_batch(images)
    return outputs[:, 0] if outputs.shape[1] == 1 else 1 - outputs[:, 0]


@pytest.mark.parametrize(
    ("suffix", "nested", "classes"),
    [("h5", False, ["fake", "real"]), ("h5", True, ["real", "fake"]), ("keras", True, ["fake", "real"])],
)
def test_the_published_model_scores_as_keras_scores_it(tmp_path, images, suffix, nested, classes):
    model = published(nested)
    own = model.predict_on_batch(np.float32(images) / 255)[:, 0]
    assert np.ptp(own) > 0.05
    network, order = rebuild(
        read_keras_file(saved(model, tmp_path / f"m.{suffix}")), classes, "real", PIXELS["0..1"], None
    )
    assert order == ["real", "fake"] and network.input_shape == (None, SIZE, SIZE, 3)
    np.testing.assert_allclose(score(network, images), 1 - own if classes[1] == "real" else own, atol=1e-6)


@pytest.mark.parametrize("pixels", PIXELS)
def test_pixels_are_scaled_as_the_model_takes_them(images, pixels):
    model = published()
    taken = {
        "0..1": images / 255,
        "0..255": images,
        "-1..1": images / 127.5 - 1,
        "imagenet": (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "caffe": images[..., ::-1] - np.array([103.939, 116.779, 123.68]),
    }[pixels]
    network, _ = rebuild(model, ["real", "fake"], "real", PIXELS[pixels], None)
    np.testing.assert_allclose(PIXELS[pixels].of(images), taken, atol=1e-4)
    own = model.predict_on_batch(np.float32(taken))[:, 0]
    np.testing.assert_allclose(score(network, images), own, atol=1e-5)


def test_a_softmax_of_two_becomes_one_sigmoid(tmp_path, images):
    model = sequential()
    own = model.predict_on_batch(np.float32(images))
    found = read_keras_file(saved(model, tmp_path / "m.h5"))
    network, order = rebuild(found, ["real", "fake"], "real", PIXELS["0..255"], None)
    assert network.output_shape == (None, 1) and order == ["real", "fake"]
    np.testing.assert_allclose(score(network, images), own[:, 1], atol=1e-6)
    network, order = rebuild(found, ["fake", "photo"], "photo", PIXELS["0..255"], None)
    assert order == ["photo", "fake"]
    np.testing.assert_allclose(score(network, images), own[:, 0], atol=1e-6)


def test_a_larger_softmax_is_put_in_our_order(images):
    model = published(False, layers.Dense(4), layers.Softmax())
    own = model.predict_on_batch(np.float32(images) / 255)
    network, order = rebuild(model, ["swap", "gan", "real", "drawn"], "real", PIXELS["0..1"], None)
    assert order == ["real", "drawn", "gan", "swap"]
    np.testing.assert_allclose(network.predict_on_batch(images), own[:, [2, 3, 1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "last",
    [
        (layers.Dense(1), layers.Activation("sigmoid", dtype="float32")),
        (layers.Dense(1, use_bias=False, activation="sigmoid"),),
        (layers.Dense(1, activation="sigmoid"), layers.Activation("linear", dtype="float32")),
        (layers.Dense(1, activation="sigmoid"), layers.Dropout(0.1)),
        (layers.Dense(8), layers.Reshape((2, 4)), layers.GlobalAveragePooling1D(), layers.Softmax()),
    ],
)
def test_other_ends_of_the_same_kind(images, last):
    model = published(False, *last)
    classes = ["fake", "real"] if model.output_shape[1] == 1 else ["a", "b", "real", "c"]
    own = p_fake_of(model.predict_on_batch(np.float32(images) / 255), classes, "real")
    network, _ = rebuild(model, classes, "real", PIXELS["0..1"], None)
    np.testing.assert_allclose(score(network, images), own, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_logits(images, outputs):
    model = published(False, layers.Dense(outputs))
    classes = ["fake", "real"] if outputs == 1 else ["a", "real", "b"]
    with pytest.raises(UserError, match=r"not in 0\.\.1.*--logits"):
        rebuild(model, classes, "real", PIXELS["0..1"], None)
    network, _ = rebuild(model, classes, "real", PIXELS["0..1"], None, logits=True)
    own = p_fake_of(model.predict_on_batch(np.float32(images) / 255), classes, "real", logits=True)
    np.testing.assert_allclose(score(network, images), own, atol=1e-6)
    with pytest.raises(UserError, match="--logits: its last layer ends in sigmoid"):
        rebuild(published(), ["fake", "real"], "real", PIXELS["0..1"], None, logits=True)


def test_all_layers_are_in_one_graph_and_can_be_explained(images):
    network, _ = rebuild(published(nested=True), ["fake", "real"], "real", PIXELS["0..1"], None)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    assert network.name == "tiny"
    heat = grad_cam(network, images)
    np.testing.assert_array_equal(heat, grad_cam(network, images, layer="sum"))
    assert heat.max() == 1


def test_two_models_with_layers_of_one_name(images):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Concatenate()([backbone("one")(image), backbone("two")(image)])
    model = alive(keras.Model(image, head(x, layers.Dense(1, activation="sigmoid"))))
    network, _ = rebuild(model, ["real", "fake"], "real", PIXELS["-1..1"], None)
    own = model.predict_on_batch(np.float32(images / 127.5 - 1))[:, 0]
    np.testing.assert_allclose(score(network, images), own, atol=1e-6)


def test_a_model_of_any_size_takes_the_one_that_is_named(images):
    base = backbone(size=None)
    model = alive(keras.Model(base.input, head(base.output, layers.Dense(1, activation="sigmoid"))))
    with pytest.raises(UserError, match=r"\? x \? x 3, of any size; say which with --image-size"):
        rebuild(model, ["real", "fake"], "real", PIXELS["0..1"], None)
    network, _ = rebuild(model, ["real", "fake"], "real", PIXELS["0..1"], SIZE)
    np.testing.assert_allclose(
        score(network, images), model.predict_on_batch(np.float32(images) / 255)[:, 0], atol=1e-6
    )


def test_a_model_trained_in_half_precision_is_kept_in_float32(tmp_path, images):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = published()
    finally:
        keras.config.set_dtype_policy("float32")
    path = saved(model, tmp_path / "m.keras")
    network, _ = rebuild(read_keras_file(path), ["real", "fake"], "real", PIXELS["0..1"], None)
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    half = model.predict_on_batch(np.float32(images) / 255)[:, 0]
    np.testing.assert_allclose(score(network, images), half, atol=5e-3)


# ---- Keras 2 -------------------------------------------------------------------------------------------------------


def in_keras_2(path: Path, top: str) -> Path:
    """The same weights under the description that Keras 2.13 writes of the same network: `preprocess_input`, then
    the backbone as a model within it (called with the index 1), then the head."""

    def node(kind: str, name: str, config: dict, *sources: list) -> dict:
        config = {"name": name, "trainable": True, "dtype": "float32", **config}
        return {"class_name": kind, "config": config, "name": name, "inbound_nodes": list(sources)}

    def given(name: str) -> dict:
        shape = {"batch_input_shape": [None, SIZE, SIZE, 3], "sparse": False, "ragged": False}
        return node("InputLayer", name, shape)

    def of(*names: str) -> list:
        return [[name, 0, 0, {}] for name in names]

    conv = {"kernel_size": [3, 3], "padding": "same", "data_format": "channels_last", "groups": 1}
    started = {"kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}}}
    twins = {**started, "kernel_regularizer": None, "kernel_constraint": None}
    norm = {"axis": [3], "momentum": 0.99, "epsilon": 0.001, "center": True, "scale": True}
    inner = [
        given("input_2"),
        node(
            "Conv2D", "conv/one", {**conv, **started, "filters": 8, "strides": [2, 2], "use_bias": False}, of("input_2")
        ),
        node("BatchNormalization", "norm/one", norm, of("conv/one")),
        node("Activation", "act", {"activation": "relu"}, of("norm/one")),
        node("SeparableConv2D", "separable", {**conv, **twins, "filters": 8, "use_bias": False}, of("act")),
        node("DepthwiseConv2D", "depthwise", {**conv, **twins, "depth_multiplier": 1}, of("separable")),
        node("Add", "sum", {}, of("act", "depthwise")),
        node("MaxPooling2D", "reduction", {"pool_size": [2, 2]}, of("sum")),
        node("ReLU", "last", {}, of("reduction")),
    ]
    ends = {"input_layers": [["input_2", 0, 0]], "output_layers": [["last", 0, 0]]}
    tiny = {"class_name": top, "config": {"name": "tiny", "layers": inner, **ends}, "name": "tiny"}
    dense = {**started, "use_bias": True}
    outer = [
        given("input_1"),
        node("TFOpLambda", "tf.div", {"function": "math.truediv"}, ["input_1", 0, 0, {"y": 127.5, "name": None}]),
        node("TFOpLambda", "tf.sub", {"function": "math.subtract"}, ["tf.div", 0, 0, {"y": 1.0, "name": None}]),
        {**tiny, "inbound_nodes": [of("tf.sub")]},
        node("GlobalAveragePooling2D", "pool", {}, [["tiny", 1, 0, {}]]),
        node("Dense", "dense", {**dense, "units": 16, "activation": "relu"}, of("pool")),
        node("BatchNormalization", "norm", {**norm, "axis": [1]}, of("dense")),
        node("Dropout", "drop", {"rate": 0.3}, of("norm")),
        node("Dense", "dense_1", {**dense, "units": 1, "activation": "sigmoid"}, of("drop")),
    ]  # fmt: skip
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["dense_1", 0, 0]]}
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.13.1"
        file.attrs["model_config"] = json.dumps({"class_name": top, "config": {"name": "m", "layers": outer, **ends}})
    return path


@pytest.mark.parametrize("top", ["Functional", "Model"])
def test_a_file_of_keras_2_scores_as_its_network(tmp_path, images, top):
    model = published(nested=True)
    own = model.predict_on_batch(np.float32(images / 127.5 - 1))[:, 0]
    path = in_keras_2(saved(model, tmp_path / "m.h5"), top)
    with pytest.raises(ValueError, match="TFOpLambda"):
        keras.saving.load_model(path, compile=False)  # or there would be nothing to mend
    network, _ = rebuild(read_keras_file(path), ["real", "fake"], "real", PIXELS["0..255"], None)
    np.testing.assert_allclose(score(network, images), own, atol=1e-6)
    assert grad_cam(network, images).max() == 1


def test_the_name_of_a_file_does_not_matter(tmp_path, images):
    model = published()
    path = saved(model, tmp_path / "m.h5").rename(tmp_path / "m.keras")  # as TensorFlow 2.11 wrote it
    found = read_keras_file(path)
    np.testing.assert_allclose(found.predict_on_batch(np.float32(images)), model.predict_on_batch(np.float32(images)))


def test_an_operation_that_is_not_known_is_named(tmp_path):
    path = in_keras_2(saved(published(nested=True), tmp_path / "m.h5"), "Functional")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace("math.subtract", "image.resize")
    with pytest.raises(UserError, match=r"m\.h5: .*tf\.image\.resize"):
        read_keras_file(path)


# ---- what is refused -----------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("mine")
class Own(layers.Layer):
    def call(self, x):
        return x


def with_lambda() -> "keras.Model":
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Lambda(lambda x: x / 255)(image)
    return keras.Model(image, head(x, layers.Dense(1, activation="sigmoid")))


def with_own_layer() -> "keras.Model":
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, head(Own()(image), layers.Dense(1, activation="sigmoid")))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize(
    ("build", "words"), [(with_lambda, "Lambda layer"), (with_own_layer, "Own is no part of Keras")]
)
def test_code_in_a_file_is_not_run(tmp_path, build, words, suffix, monkeypatch):
    path = saved(build(), tmp_path / f"m.{suffix}")
    if suffix == "h5" and build is with_own_layer:  # there the class has no package
        words = "Own"
        monkeypatch.delitem(keras.saving.get_custom_objects(), "mine>Own")
    with pytest.raises(UserError, match=words) as refused:
        read_keras_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_module_of_anybody_is_not_imported(tmp_path):
    path = saved(published(), tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= {"module": "antigravity", "class_name": "Popen"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="Popen is no part of Keras"):
        read_keras_file(path)


def weights_alone(path: Path) -> None:
    published().save_weights(path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def cut_off(path: Path) -> None:
    saved(published(), path)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "not found"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.write_text("no model"), "no Keras model"),
        (lambda path: path.write_bytes(b""), "no Keras model"),
        (weights_alone, "holds weights alone"),
        (cut_off, "Keras cannot load it"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no Keras model"),
    ],
)
def test_what_is_no_keras_model_is_refused(tmp_path, write, words):
    path = tmp_path / "m.h5"
    write(path)
    with pytest.raises(UserError, match=words) as refused:
        read_keras_file(path)
    assert str(path) in str(refused.value)


def test_a_model_of_ours_needs_no_conversion(tmp_path):
    save_model(published(), ModelCard(["real", "fake"], SIZE, "tiny", "random", "-"), tmp_path / "m.keras")
    with pytest.raises(UserError, match="a model of this project already"):
        read_keras_file(tmp_path / "m.keras")


def classifier(shape: tuple, last: "layers.Layer", outputs: int = 1) -> "keras.Model":
    image = keras.Input(shape)
    x = last(layers.GlobalAveragePooling2D()(image))
    return keras.Model(image, x if outputs == 1 else [x] * outputs)


def two_inputs() -> "keras.Model":
    ends = [keras.Input((SIZE, SIZE, 3)) for _ in range(2)]
    return keras.Model(ends, layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling2D()(layers.Add()(ends))))


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "classes", "size", "words"),
    [
        (classifier((32, 32, 3), layers.Dense(1, "sigmoid")), 3, None, "--classes: 3 names, but it has one output"),
        (classifier((32, 32, 3), layers.Dense(3, "softmax")), 2, None, "--classes: 2 names, but it has 3 outputs"),
        (classifier((32, 32, 3), layers.Dense(3, "sigmoid")), 3, None, "ends in sigmoid; of 3 outputs a softmax"),
        (classifier((32, 32, 3), layers.Dense(1, "softmax")), 2, None, "ends in softmax; of one output a sigmoid"),
        (classifier((32, 32, 3), layers.Dense(1, "tanh")), 2, None, "ends in tanh"),
        (classifier((32, 32, 1), layers.Dense(1, "sigmoid")), 2, None, "32 x 32 x 1: grey images"),
        (classifier((32, 48, 3), layers.Dense(1, "sigmoid")), 2, None, "32 x 48 x 3; only square"),
        (classifier((32, 32, 3), layers.Dense(1, "sigmoid")), 2, 64, "leave --image-size out"),
        (classifier((32, 32, 3), layers.Dense(1, "sigmoid"), 2), 2, None, "1 inputs and 2 outputs"),
        (two_inputs(), 2, None, "2 inputs and 1 outputs"),
        (keras.Sequential([layers.Flatten(), layers.Dense(1, "sigmoid")]), 2, None, "shape of its input is not known"),
        (Subclassed(), 2, None, "neither a functional nor a Sequential"),
    ],
)  # fmt: skip
def test_a_model_of_another_kind_is_refused(model, classes, size, words):
    with pytest.raises(UserError, match=words):
        rebuild(model, ["real", "fake", "other"][:classes], "real", PIXELS["0..1"], size)
