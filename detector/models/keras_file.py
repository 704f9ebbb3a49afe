"""A Keras classifier from elsewhere: read from its file without running code in it, and rebuilt as one of this project.

`read_keras_file` gives the model as its author saved it, with Keras 3 or with Keras 2, whose description is translated.
`rebuild` gives the same function under the contract of `detector.models.network`: RGB 0..255 in, P(fake) out, every
layer in one graph, as Grad-CAM and OpenVINO need it.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
from scipy.special import expit, softmax

from detector.errors import UserError
from detector.models.backbones import BACKBONES, STANDARD_OFFSET, STANDARD_SCALE
from detector.models.backend import keras
from detector.models.file import CARD


@dataclass(frozen=True)
class Pixels:
    """The input that a model takes for an RGB pixel of 0..255: pixel * scale + offset, blue first if `bgr`."""

    scale: float | tuple[float, float, float]
    offset: float | tuple[float, float, float]
    bgr: bool = False

    def of(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, h, w, 3) RGB -> float32 of the same shape, as the model takes them."""
        scaled = np.float32(images * np.float64(self.scale) + np.float64(self.offset))
        return scaled[..., ::-1] if self.bgr else scaled


PIXELS = {
    "0..1": Pixels(1 / 255, 0.0),
    "0..255": Pixels(1.0, 0.0),
    "-1..1": Pixels(1 / 127.5, -1.0),
    "imagenet": Pixels(STANDARD_SCALE, STANDARD_OFFSET),
    "caffe": Pixels(1.0, (-123.68, -116.779, -103.939), bgr=True),
}

# ---- the file ------------------------------------------------------------------------------------------------------


def read_keras_file(path: Path) -> "keras.Model":
    """The model in a .h5 or .keras file, not compiled.

    No code in the file is run: Lambda layers and layers of classes that do not belong to Keras are refused.

    Raises:
        UserError: it is no such file, holds only weights, or needs code that does not belong to Keras.
    """
    try:
        is_hdf5, is_zip = h5py.is_hdf5(path), zipfile.is_zipfile(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a .h5 or .keras file") from None
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'not found'}; name a .h5 or .keras file")
    if not (is_hdf5 or is_zip):
        raise UserError(f"{path}: no Keras model; name a file that `model.save` wrote, .h5 or .keras")
    with tempfile.TemporaryDirectory() as folder:
        # By content: early versions wrote HDF5 whatever the name, and Keras goes by the name.
        copy = Path(folder) / ("model.h5" if is_hdf5 else "model.keras")
        try:
            (_copy_hdf5 if is_hdf5 else _copy_archive)(path, copy)
            known = {"TFOpLambda": TensorFlowOperation, "SlicingOpLambda": TensorFlowOperation}
            return keras.saving.load_model(copy, custom_objects=known, compile=False, safe_mode=True)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # Keras, h5py and zipfile raise almost anything
            raise UserError(f"{path}: Keras cannot load it ({_innermost(error)})") from None


def _copy_hdf5(path: Path, copy: Path) -> None:
    """Copy the network, translated, and its weights, without the state of the optimizer."""
    with h5py.File(path, "r") as source, h5py.File(copy, "w") as target:
        if "model_config" not in source.attrs or "model_weights" not in source:
            raise UserError("holds weights alone, no network; save the whole model with `model.save`")
        for name, value in source.attrs.items():
            if name not in ("model_config", "training_config"):
                target.attrs[name] = value
        config = json.loads(source.attrs["model_config"])
        version = source.attrs.get("keras_version", b"2")
        target.attrs["model_config"] = json.dumps(_checked(config, version))
        source.copy("model_weights", target)


def _copy_archive(path: Path, copy: Path) -> None:
    with zipfile.ZipFile(path) as source:
        members = set(source.namelist())
        if CARD in members:
            raise UserError("is a model of this project already; use it as it is, with --model")
        if not {"config.json", "metadata.json"} <= members:
            raise UserError("no Keras model; name a file that `model.save` wrote, .h5 or .keras")
        config, version = json.loads(source.read("config.json")), json.loads(source.read("metadata.json"))
        config = _checked(config, version.get("keras_version", "2"))
        config.setdefault("module", "keras.src.models.functional" if config["class_name"] == "Functional" else "keras")
        with zipfile.ZipFile(copy, "w") as target:
            for name in members - {"config.json"}:
                with source.open(name) as old, target.open(name, "w", force_zip64=True) as new:
                    shutil.copyfileobj(old, new, 1 << 20)
            target.writestr("config.json", json.dumps(config))


def _checked(config: dict, version: str | bytes) -> dict:
    """The network's description as Keras 3 reads it, in float32; UserError if it needs code of its own."""
    _refuse_code(config)
    _set_float32(config)
    version = version.decode() if isinstance(version, bytes) else version
    return _translated(config) if version.startswith(("1.", "2.")) else config


def _refuse_code(node: object) -> None:
    if isinstance(node, list):
        for value in node:
            _refuse_code(value)
    elif isinstance(node, dict):
        name, module, registered = (node.get(key) for key in ("class_name", "module", "registered_name"))
        if name in ("Lambda", "__lambda__"):
            raise UserError("has a Lambda layer, code of its own, which is not run; use a layer of Keras instead")
        package = str(module or "keras").split(".")[0]
        if name and (package not in ("keras", "tf_keras", "builtins") or ">" in str(registered)):
            raise UserError(f"{name} is no part of Keras but code of its own, which is not run; use layers of Keras")
        for value in node.values():
            _refuse_code(value)


def _set_float32(node: object) -> None:
    """Make scores independent of the precision of the training; weights are float32 in any case."""
    if isinstance(node, list):
        for value in node:
            _set_float32(value)
    elif isinstance(node, dict):
        if isinstance(node.get("config"), dict) and {"name", "dtype"} <= node["config"].keys():
            node["config"]["dtype"] = "float32"
        for value in node.values():
            _set_float32(value)


# Keys of Keras 2 that Keras 3 refuses, and the value with which a key may be left out; ... stands for any value.
_OBSOLETE_ANYWHERE = {"rng_type": ..., "batch_input_shape": ..., "input_dtype": ...}
# The depthwise kernel has settings of its own.
_UNUSED_KERNEL = {f"kernel_{name}": ... for name in ("initializer", "regularizer", "constraint")}
OBSOLETE = {
    "DepthwiseConv2D": {"groups": 1, **_UNUSED_KERNEL},
    "SeparableConv2D": {"groups": 1, **_UNUSED_KERNEL},
    "Conv2DTranspose": {"groups": 1},
    "BatchNormalization": {"renorm": False, "virtual_batch_size": None, "fused": ...},
    "InputLayer": {"ragged": False},
}


def _translated(node: object) -> object:
    """The description of Keras 2 in the oldest form that Keras 3 reads."""
    if isinstance(node, list):
        return [_translated(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if node.get("class_name") == "Sequential":
        node["config"] = _with_input(node["config"])
    is_layer = "class_name" in node and isinstance(node.get("config"), dict) and "name" in node["config"]
    if is_layer:
        kind, config = node["class_name"], dict(node["config"])
        for key in ("module", "registered_name", "build_config"):
            node.pop(key, None)
        if kind == "Model":
            node["class_name"] = "Functional"
        if kind == "InputLayer" and "batch_input_shape" in config:
            config["batch_shape"] = config.pop("batch_input_shape")
        for key, harmless in {**_OBSOLETE_ANYWHERE, **OBSOLETE.get(kind, {})}.items():
            if key in config and harmless in (..., config[key]):
                del config[key]
        if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
            config["axis"] = config["axis"][0]
        for holder in (node, config):
            if "name" in holder:
                holder["name"] = _without_slashes(holder["name"])
        if "input_layers" in config:
            config |= _translated_graph(config)
        node["config"] = config
    return {key: _translated(value) for key, value in node.items()}


def _with_input(config: dict | list) -> dict:
    """A Sequential's description that begins with its input."""
    config = {"name": "sequential", "layers": config} if isinstance(config, list) else dict(config)
    first = config["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if shape and first["class_name"] != "InputLayer":
        start = {"class_name": "InputLayer", "config": {"name": "image", "batch_shape": shape}}
        config["layers"] = [start, *config["layers"]]
    return config


def _translated_graph(config: dict) -> dict:
    """The connections of a functional model: the inputs of each layer, and the inputs and outputs of the model."""
    layers = [dict(layer) for layer in config["layers"]]
    # Keras 2 wrote a call with one tensor without a list, and counted a first call of its own for a model in a model.
    calls = {layer["name"]: [[x] if isinstance(x[0], str) else x for x in layer["inbound_nodes"]] for layer in layers}
    kinds = {layer["name"]: layer["class_name"] for layer in layers}
    within = {name for name, kind in kinds.items() if kind in ("Functional", "Model", "Sequential")}

    def tensor(source: list, own_node_counts: bool = False) -> list:
        name, call, *rest = source
        return [_without_slashes(name), call - (name in within and not own_node_counts), *rest]

    for layer in layers:
        layer["inbound_nodes"] = [[tensor(source) for source in call] for call in calls[layer["name"]]]
    ends = {}
    for key in ("input_layers", "output_layers"):
        sources = config[key] if isinstance(config[key][0], list) else [config[key]]
        # Here, and nowhere else, Keras 3 itself leaves out that first call of a functional model.
        tensors = [tensor(source, kinds[source[0]] != "Sequential") for source in sources]
        ends[key] = tensors[0] if len(tensors) == 1 else tensors
    return {"layers": layers, **ends}


def _without_slashes(name: str) -> str:
    """A layer's name for Keras 3, which refuses slashes; weights are matched by their order."""
    return name.replace("/", "_")


class TensorFlowOperation(keras.layers.Layer):
    """Arithmetic between layers, as Keras 2 stored it, e.g. the two steps of Xception's `preprocess_input`.

    Args:
        function: TensorFlow's name for it, without "tf.".

    Raises:
        UserError: it is none of `OPERATIONS`.
    """

    OPERATIONS: ClassVar = {
        "math.truediv": keras.ops.true_divide,
        "math.divide": keras.ops.true_divide,
        "math.multiply": keras.ops.multiply,
        "math.add": keras.ops.add,
        "math.subtract": keras.ops.subtract,
        "nn.bias_add": keras.ops.add,
        "__operators__.add": keras.ops.add,
        "__operators__.getitem": lambda x, _: keras.ops.flip(x, axis=-1),
    }
    REVERSED_CHANNELS: ClassVar = [..., {"start": None, "stop": None, "step": -1}]

    def __init__(self, function: str, **options):
        super().__init__(**options)
        self.function = function
        if function not in self.OPERATIONS:
            raise UserError(f"calls tf.{function} between its layers, which is not known here; use a layer of Keras")

    def call(self, x, y=None, bias=None, slice_spec=None, name=None, data_format=None):
        if slice_spec is not None and slice_spec != self.REVERSED_CHANNELS:
            raise UserError("cuts out part of an image between its layers, which is not known here")
        other = next(value for value in (y, bias, slice_spec) if value is not None)
        if isinstance(other, list) and slice_spec is None:
            other = np.float32(other)
        return self.OPERATIONS[self.function](x, other)


def _innermost(error: Exception) -> str:
    """The reason in an error of Keras, without the messages that Keras wraps around it."""
    text = " ".join(str(error).split())
    reason = re.split(r"Exception encountered: |error encountered during deserialization was: ", text)[-1]
    return f"{type(error).__name__}: {reason[:160]}"


# ---- the network -----------------------------------------------------------------------------------------------------


def rebuild(
    model: "keras.Model", classes: Sequence[str], real: str, pixels: Pixels, size: int | None, logits: bool = False
) -> tuple["keras.Model", list[str]]:
    """The same function as a network of `detector.models.network`, in float32.

    The weights of the last layer are changed so that it gives P(fake): those of a sigmoid that gives P(real) change
    their sign, a softmax of two classes becomes a sigmoid of the difference, and in a larger softmax the real class
    comes first. No logit changes by more than its rounding.

    Args:
        model: as of `read_keras_file`.
        classes: in the order of its outputs; for one sigmoid the class at 0, then the one at 1.
        real: the name of the real class.
        pixels: the input that it takes.
        size: side of its input in pixels, if the model takes any size; else None.
        logits: whether its outputs lack the sigmoid or softmax.

    Returns:
        The network, and `classes` in the order of `ModelCard.classes`.

    Raises:
        UserError: its input or output is of another kind, or one of its layers cannot be copied.
    """
    size = _size(model, size)
    outputs = _outputs(model, classes)
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Rescaling(pixels.scale, pixels.offset, name="scaling")(image)
    if pixels.bgr:
        x = keras.ops.flip(x, axis=-1)
    try:
        features, kernel, bias, activation = _last_layer(_Copy().run(model, x))
    except UserError:
        raise
    except Exception as error:  # a size that the network cannot be of, or layers that cannot be copied
        raise UserError(f"its layers cannot be put together at {size} x {size} pixels ({_innermost(error)})") from None

    _check_activation(activation, outputs, logits)
    at = classes.index(real)
    if outputs == 1:
        order = [real, classes[1 - at]]
        kernel, bias = (kernel, bias) if at == 0 else (-kernel, -bias)
    else:
        order = [real, *sorted(set(classes) - {real})]
        places = [classes.index(name) for name in order]
        kernel, bias = kernel[:, places], bias[places]
        if outputs == 2:
            kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    last = (
        keras.layers.Dense(1, activation="sigmoid", name="p_fake")
        if outputs <= 2
        else keras.layers.Dense(outputs, activation="softmax", name="p_class")
    )
    network = keras.Model(image, last(features), name=_backbone(model))
    last.set_weights([kernel, bias])
    return network, order


def _check_activation(activation: str, outputs: int, logits: bool) -> None:
    """Raise UserError unless the last layer ends in a sigmoid or softmax, as its outputs need, or gives logits."""
    if logits and activation != "linear":
        raise UserError(f"--logits: its last layer ends in {activation} already; leave the option out")
    if not logits and activation == "linear":
        raise UserError("its outputs are not in 0..1, there is no sigmoid or softmax at its end; add --logits")
    if not logits and activation != ("sigmoid" if outputs == 1 else "softmax"):
        needed = "a sigmoid" if outputs == 1 else "a softmax"
        raise UserError(f"its last layer ends in {activation}; of {_count(outputs)} {needed} is needed")


def p_fake_of(outputs: np.ndarray, classes: Sequence[str], real: str, logits: bool = False) -> np.ndarray:
    """P(fake) from a model's own outputs: float (n, 1) or (n, classes) -> float64 (n,); arguments as of `rebuild`."""
    outputs = outputs.astype(np.float64)
    if logits:
        outputs = expit(outputs) if outputs.shape[1] == 1 else softmax(outputs, axis=1)
    at = classes.index(real)
    if outputs.shape[1] > 1:
        return 1 - outputs[:, at]
    return outputs[:, 0] if at == 0 else 1 - outputs[:, 0]


def _size(model: "keras.Model", size: int | None) -> int:
    """The side of the model's input; UserError if it takes no square RGB images."""
    if not isinstance(model, keras.Sequential) and not hasattr(model, "_run_through_graph"):
        raise UserError("is neither a functional nor a Sequential model; save it as one of these")
    if not getattr(model, "inputs", None):
        raise UserError("the shape of its input is not known; save it with an Input of (size, size, 3)")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; it must have one of each")
    shape = tuple(model.inputs[0].shape)[1:]
    dimensions = " x ".join("?" if side is None else str(side) for side in shape)
    if len(shape) != 3 or shape[2] != 3:
        grey = ": grey images" if len(shape) == 3 and shape[2] == 1 else ""
        raise UserError(f"its input is {dimensions}{grey}; only RGB images, size x size x 3, can be converted")
    sides = {side for side in shape[:2] if side is not None}
    if not sides and size is None:
        raise UserError(f"its input is {dimensions}, of any size; say which with --image-size, as it was trained")
    if len(sides | ({size} if size else set())) > 1:
        what_to_do = "leave --image-size out" if len(sides) == 1 else "only square images can be converted"
        raise UserError(f"its input is {dimensions}; {what_to_do}")
    return sides.pop() if sides else size


def _outputs(model: "keras.Model", classes: Sequence[str]) -> int:
    """How many outputs the model has; UserError if they are not for these classes."""
    shape = model.outputs[0].shape
    if len(shape) != 2 or shape[1] is None:
        raise UserError(f"its output has the shape {tuple(shape)}; (batch, 1) or (batch, classes) is needed")
    if len(classes) != max(2, shape[1]):
        raise UserError(
            f"--classes: {len(classes)} names, but it has {_count(shape[1])}: name {max(2, shape[1])}, in their order"
            + (" (first the class at 0, then the one at 1)" if shape[1] == 1 else "")
        )
    return shape[1]


def _count(outputs: int) -> str:
    return "one output" if outputs == 1 else f"{outputs} outputs"


class _Copy:
    """Copies of a model's layers, with their weights, in one graph; those of models within it, too."""

    def __init__(self):
        self._names = {"image", "scaling", "p_fake", "p_class"}

    def run(self, model: "keras.Model", x: "keras.KerasTensor") -> "keras.KerasTensor":
        """The model's output for x."""
        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                x = self._call(layer, x)
            return x
        return model._run_through_graph(x, operation_fn=lambda operation: partial(self._call, operation))

    def _call(self, operation, *inputs, **options):
        for key in ("training", "mask"):  # of training and of sequences
            options.pop(key, None)
        if isinstance(operation, keras.Model):
            if not isinstance(operation, keras.Sequential) and not hasattr(operation, "_run_through_graph"):
                raise UserError(f"{operation.name} within it is neither a functional nor a Sequential model")
            return self.run(operation, *inputs)
        if isinstance(operation, TensorFlowOperation):
            outputs = operation.call(*inputs, **options)
            outputs._keras_history.operation.name = self._name(operation)
            return outputs
        config = operation.get_config()
        if isinstance(operation, keras.layers.Layer):
            copy = type(operation).from_config({**config, "name": self._name(operation)})
        else:
            copy = type(operation).from_config(config)
            copy.name = self._name(operation)
        outputs = copy(*inputs, **options)
        if getattr(operation, "weights", None):
            copy.set_weights(operation.get_weights())
        if isinstance(copy, keras.layers.Normalization):
            copy.finalize_state()
        return outputs

    def _name(self, operation) -> str:
        """The operation's own name, with a number if another operation has it."""
        numbered = (f"{operation.name}_{number}" for number in count(1))
        name = next(name for name in chain([operation.name], numbered) if name not in self._names)
        self._names.add(name)
        return name


def _last_layer(output: "keras.KerasTensor") -> tuple["keras.KerasTensor", np.ndarray, np.ndarray, str]:
    """The dense layer that gives an output: its input, its kernel and bias, and the name of the activation."""
    layer, activation = output._keras_history.operation, "linear"
    while isinstance(layer, keras.layers.Dropout) or _activation(layer) == "linear":
        output = layer.input
        layer = output._keras_history.operation
    if isinstance(layer, keras.layers.Softmax) or type(layer).__name__ in ("Sigmoid", "Softmax"):
        activation = type(layer).__name__.lower()
    elif isinstance(layer, keras.layers.Activation):
        activation = _activation(layer)
    if activation != "linear":
        output = layer.input
        layer = output._keras_history.operation
    if isinstance(layer, keras.layers.Dense):
        own = str(keras.activations.serialize(layer.activation))
        if "linear" in (own, activation):
            kernel, *bias = layer.get_weights()
            bias = bias[0] if bias else np.zeros(kernel.shape[1], np.float32)
            return layer.input, kernel, bias, activation if own == "linear" else own
    classes = output.shape[-1]
    return output, np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32), activation


def _activation(layer) -> str | None:
    """The name of an activation that is a layer of its own."""
    is_one = isinstance(layer, keras.layers.Activation)
    return str(keras.activations.serialize(layer.activation)) if is_one else None


def _backbone(model: "keras.Model") -> str:
    """The name of the network: that of the largest model within it, or its own."""
    within = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    named = max(within, key=lambda layer: layer.count_params(), default=model)
    if any(layer.name == BACKBONES["xception"].last_conv for layer in named.layers):
        return "xception"  # built into another model, it has lost its name
    if re.fullmatch(r"(functional|model|sequential)(_\d+)?", named.name):  # a name that Keras gave
        return "unnamed"
    return re.sub(r"[^\w.-]", "_", named.name)
