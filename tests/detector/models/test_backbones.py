"""Every backbone does all that the project asks of one, and takes pixels and weights as Keras publishes them."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras.src import applications
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

import detector
from detector.errors import UserError
from detector.models.backbones import BACKBONES
from detector.models.backend import keras
from detector.models.file import ModelCard, save_model
from detector.models.grad_cam import grad_cam
from detector.models.network import build_network, in_float32
from detector.models.weights import KERAS_STORAGE, InitialWeights
from detector.params import ModelParams, load_params

RANDOM = InitialWeights("random")
A_FAMILY_EACH = ["efficientnet_b0", "efficientnetv2_b0", "convnext_tiny", "resnet50", "mobilenetv3_small"]


@pytest.fixture(autouse=True)
def freed():
    """Sixteen networks at once would take gigabytes."""
    yield
    keras.utils.clear_session(free_memory=True)


def params(name: str, size: int | None = None) -> ModelParams:
    return ModelParams(
        backbone=name,
        weights="none",
        image_size=size or BACKBONES[name].smallest,
        dense_units=16,
        dropout=0.3,
        batch_norm_momentum=0.83,
        pixels="backbone",
    )


def noise(size: int, n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def as_exported(model: "keras.Model", images: np.ndarray, folder: Path) -> np.ndarray:
    """The scores of a SavedModel with one traced function, the heart of `Model.export`, in a fraction of its time."""
    module, signature = tf.Module(), tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    module.variables_of_model = [variable.value for variable in model.variables]
    module.serve = tf.function(lambda pixels: model(pixels, training=False), [signature], autograph=False)
    tf.saved_model.save(module, folder, options=tf.saved_model.SaveOptions(experimental_custom_gradients=False))
    served = tf.saved_model.load(str(folder))
    return served.serve(images.astype(np.float32)).numpy()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_builds_trains_saves_loads_exports_and_explains(name, tmp_path):
    entry = BACKBONES[name]
    images, labels = noise(entry.smallest), np.array([[0], [1], [0], [1]], np.float32)
    keras.utils.set_random_seed(3)
    model = build_network(params(name), RANDOM, "float32")

    assert not [layer.name for layer in model.layers if isinstance(layer, keras.Model)]  # flat: no model in the model
    assert model.get_layer("pool").input is model.get_layer(entry.last_conv).output
    scalings = (keras.layers.Rescaling, keras.layers.Normalization)
    assert [layer.name for layer in model.layers if isinstance(layer, scalings)] == ["scaling"]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.83}
    assert len({layer.name for layer in model.layers}) == len(model.layers)

    before = [weight.numpy() for weight in model.trainable_weights]
    model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(images, labels))
    moved = [not np.array_equal(old, new) for old, new in zip(before, model.trainable_weights, strict=True)]
    assert np.mean(moved) > 0.9

    save_model(model, ModelCard(["real", "fake"], entry.smallest, name, "random", "d1635700"), tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    scores = np.asarray(model(images, training=False))
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(np.asarray(loaded(images, training=False)), scores, atol=1e-6)

    np.testing.assert_allclose(as_exported(loaded, images, tmp_path / "traced"), scores, atol=1e-4)

    real, fake = grad_cam(loaded, images, 0), grad_cam(loaded, images, 1)
    for heat in (real, fake):
        assert heat.shape == images.shape[:3] and heat.dtype == np.float32
        assert heat.min() >= 0 and heat.max() <= 1
    assert (np.maximum(real, fake).max((1, 2)) == 1).all()


@pytest.mark.parametrize("name", ["xception", *A_FAMILY_EACH])
def test_pixels_and_published_weights_are_taken_as_keras_takes_them(name, tmp_path, monkeypatch):
    entry, file, asked = BACKBONES[name], tmp_path / "notop.h5", []
    build = getattr(keras.applications, entry.keras_name)

    def published(file_name, origin, cache_subdir, file_hash):
        asked.append((origin, file_hash))
        return str(file)

    monkeypatch.setattr(file_utils, "get_file", published)
    keras.utils.set_random_seed(4)
    donor = build(weights=None, include_top=False, input_shape=(96, 96, 3))
    for layer in donor.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            # What the published file has: standard deviations where variances belong.
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    with h5py.File(file, "w") as h5:
        legacy_h5_format.save_weights_to_hdf5_group(h5, donor)
    keras_own = build(weights="imagenet", include_top=False, input_shape=(96, 96, 3))
    assert asked == [(KERAS_STORAGE + entry.imagenet.place, entry.imagenet.digest)]

    model = build_network(params(name, 96), InitialWeights("imagenet", file), "float32")
    ours = keras.Model(model.input, model.get_layer(entry.last_conv).output)
    module = sys.modules[build.__module__]
    images = noise(96, 2)
    expected = np.asarray(keras_own(module.preprocess_input(images.astype(np.float32)), training=False))
    np.testing.assert_allclose(
        np.asarray(ours(images, training=False)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenetv3_small"])
def test_keras_exports_it(name, tmp_path):
    model, images = build_network(params(name), RANDOM, "float32", classes=3), noise(32)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    scores = np.asarray(model(images, training=False))
    np.testing.assert_allclose(served.serve(images.astype(np.float32)), scores, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("xception", *A_FAMILY_EACH)])
def test_the_digest_is_the_one_that_keras_names_for_this_variant(name):
    family, _, variant = name.partition("_")
    module, key = {
        "efficientnet": (applications.efficientnet, variant),
        "efficientnetv2": (applications.efficientnet_v2, "-s" if variant == "s" else variant),
        "convnext": (applications.convnext, name),
        "mobilenetv3": (applications.mobilenet_v3, f"{variant}_224_1.0_float"),
    }[family]
    assert BACKBONES[name].imagenet.digest == module.WEIGHTS_HASHES[key][1]
    assert hasattr(keras.applications, BACKBONES[name].keras_name)


def test_v2_s_has_a_scaling_of_its_own():
    """`EfficientNetV2S` begins with Rescaling(1 / 128, -1), B0 to B3 with the mean and deviation of ImageNet."""
    levels = np.array([0.0, 128.0, 255.0])
    entry = BACKBONES["efficientnetv2_s"]
    np.testing.assert_allclose(levels * entry.scale + entry.offset, [-1, 0, 0.9921875])


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenetv3_small"])
def test_bfloat16_and_back(name):
    keras.utils.set_random_seed(3)
    model = build_network(params(name), RANDOM, "bfloat16", classes=3)
    floats = [layer.name for layer in model.layers if layer.compute_dtype == "float32"]
    assert [name for name in floats if name != "image"] == ["scaling", "p_class"]
    twin = in_float32(model)
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}
    images = noise(32)
    np.testing.assert_allclose(
        np.asarray(twin(images, training=False)), np.asarray(model(images, training=False)), atol=0.02
    )


def test_the_table_is_light():
    program = "import sys, detector.params; print({'keras', 'tensorflow', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_too_small_is_refused_by_name(name, tmp_path):
    smallest = BACKBONES[name].smallest
    text = (Path(detector.__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")
    file = tmp_path / "params.yaml"

    def load(size: int):
        file.write_text(
            text.replace("backbone: xception", f"backbone: {name}").replace("image_size: 80", f"image_size: {size}")
        )
        return load_params(file).model

    assert load(smallest).image_size == smallest and load(smallest).backbone == name
    with pytest.raises(UserError, match=r"model\.image_size: .*at least"):
        load(smallest - 1)
