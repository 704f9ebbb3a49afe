"""The network: a backbone that scales its own pixels, and the head of the published recipe.

Input: RGB pixels 0..255, (batch, size, size, 3). Output: P(fake) in 0..1, (batch, 1), or, with more than two classes,
the probability of each, (batch, classes).
"""

import os
import warnings
import zipfile
from dataclasses import replace

from detector.errors import UserError
from detector.models.backbones import BACKBONES, Backbone
from detector.models.backend import keras
from detector.models.weights import InitialWeights
from detector.params import ModelParams


def build_network(params: ModelParams, initial: InitialWeights, precision: str, classes: int = 2) -> "keras.Model":
    """The untrained network.

    Args:
        params: the model section of params.yaml.
        initial: the backbone's weights.
        precision: float32 or bfloat16 (weights, scaling and output stay float32, all other arithmetic is bfloat16).
        classes: two give one sigmoid, P(fake); more give a softmax in the order of `ModelCard.classes`, real first.

    Raises:
        UserError: the weights file is not one of this backbone.
    """
    backbone = BACKBONES[params.backbone]
    if params.pixels == "0..1":
        backbone = replace(backbone, scale=1 / 255, offset=0.0)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        image = keras.Input((params.image_size, params.image_size, 3), name="image")
        x = _features(backbone, image, initial)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dense(params.dense_units, activation="relu", name="head_dense")(x)
        x = keras.layers.BatchNormalization(name="head_norm")(x)
        x = keras.layers.Dropout(params.dropout, name="head_dropout")(x)
        if classes == 2:
            output = keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="p_fake")(x)
        else:
            output = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="p_class")(x)
    finally:
        keras.config.set_dtype_policy("float32")
    model = keras.Model(image, output, name=params.backbone)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = params.batch_norm_momentum
    return model


def in_float32(model: "keras.Model") -> "keras.Model":
    """The same network and weights, computing in float32 and not compiled, for the model file.

    So the scores do not depend on the processor, nor the file on whether its training was resumed.
    """
    config = model.get_config()
    for layer in config["layers"]:
        if "dtype" in layer["config"]:  # a bare operation, as MobileNetV3's additions are, has none
            layer["config"]["dtype"] = "float32"
    twin = model.from_config(config)
    twin.set_weights(model.get_weights())
    return twin


def resolve_precision(precision: str) -> str:
    """float32 or bfloat16; auto is bfloat16 on a GPU and on a CPU with bfloat16 instructions.

    TensorFlow uses those instructions only through oneDNN, without which bfloat16 is many times slower than float32.
    """
    if precision != "auto":
        return precision
    if any(device.split(":")[0].lower() in ("gpu", "cuda", "tpu") for device in keras.distribution.list_devices()):
        return "bfloat16"
    if keras.backend.backend() == "tensorflow" and os.environ["TF_ENABLE_ONEDNN_OPTS"].lower() in ("0", "false"):
        return "float32"
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:  # not Linux
        flags = ""
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _features(backbone: Backbone, image: "keras.KerasTensor", initial: InitialWeights) -> "keras.KerasTensor":
    """The maps of the last convolution; the backbone's layers are the model's own, because Grad-CAM needs one graph."""
    x = keras.layers.Rescaling(backbone.scale, backbone.offset, dtype="float32", name="scaling")(image)
    if backbone.bgr:
        x = keras.ops.flip(x, axis=-1)
    build = getattr(keras.applications, backbone.keras_name)
    features = build(weights=None, include_top=False, input_tensor=x, **backbone.options)
    if initial.path is not None:
        _load(features, initial)
    if any(isinstance(layer, keras.Model | keras.layers.Normalization) for layer in features.layers):
        features = _flat(features)
    features.layers[-1].name = backbone.last_conv
    return features.output


def _flat(features: "keras.Model") -> "keras.Model":
    """A copy without the backbone's own scaling and without nested models, for which Keras has no options."""

    def call(layer, x, *args, **kwargs):
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) and layer.name != "scaling":
            return x
        if isinstance(layer, keras.Sequential):
            for inner in layer.layers:
                x = inner(x)
            return x
        return layer(x, *args, **kwargs)

    flat = keras.models.clone_model(features, input_tensors=features.input, call_function=call)
    sources = {inner.name: inner for layer in features.layers for inner in getattr(layer, "layers", [layer])}
    for layer in flat.layers:
        if layer.weights:
            layer.set_weights(sources[layer.name].get_weights())
    return flat


def _load(features: "keras.Model", initial: InitialWeights) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of every layer before it fails
            features.load_weights(initial.path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"model.weights: {initial.path} does not hold weights of {features.name} without its top ({reason}); "
            "name a .weights.h5 or .h5 file of this backbone"
        ) from None
