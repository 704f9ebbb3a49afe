"""The network on the processor at its fastest: OpenVINO, made from the model file once and kept beside it.

The converted network takes what the Keras one takes, uint8 RGB of the model's size; its scaling is part of it. It
lies in `<model>.openvino/<SHA-256 of the model file>/`, so another model is never served by an old conversion. The
conversion runs in a process of its own, so that the memory that TensorFlow takes is free afterwards; a process that
finds the converted network needs no TensorFlow at all. The network is kept only if it agrees with Keras.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Lock

import numpy as np
from filelock import FileLock

from detector.errors import UserError, exit_on_user_error
from detector.evaluation.calibration import UNCALIBRATED
from detector.inference.detector import Detector
from detector.models.file import read_card

AGREEMENT = 2e-5  # uncalibrated P(fake) on the processor against Keras's; a temperature of 0.2 makes it 1e-4
CONVERSION_SECONDS = 600
_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
_NETWORK = "network.xml"

_log = logging.getLogger(__name__)


class NotConverted(Exception):
    """OpenVINO is missing, or has no such network; the message is the reason in a few words."""


class Engine:
    """A model file on OpenVINO's CPU plug-in; safe to call from several threads, one at a time computes.

    Attributes:
        folder: where the converted network lies.
    """

    def __init__(self, path: Path | str):
        """Load the converted network of a model file; convert it first if that is yet to be done (half a minute).

        Raises:
            NotConverted: OpenVINO is missing or cannot do it.
            UserError: the file is no model of this project.
        """
        read_card(path)
        core = _openvino().Core()
        for last in (False, True):
            self.folder = _converted(Path(path))
            try:
                compiled = core.compile_model(self.folder / _NETWORK, "CPU", _OPTIONS)
                break
            except RuntimeError as error:  # damaged, or written by a later OpenVINO: convert once more
                if last:
                    raise NotConverted(_reason(error)) from None
                shutil.rmtree(self.folder, ignore_errors=True)
        self._request = compiled.create_infer_request()
        self._lock = Lock()

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        """As `detector.Network`; any number of images at a time."""
        with self._lock:  # a request holds one batch's memory; more at once would not be faster
            return self._request.infer(np.ascontiguousarray(batch), share_inputs=True)[0].copy()


def load_engine(path: Path | str) -> Engine | None:
    """`Engine`; None, after one line of warning, where OpenVINO cannot be had; UserError if the file is no model."""
    try:
        return Engine(path)
    except NotConverted as reason:
        _log.warning("%s: no OpenVINO (%s); Keras computes instead, some times slower", path, reason)
        return None


def convert(path: Path, folder: Path) -> None:
    """Write the network in `path` to `folder` as OpenVINO's network.xml and network.bin, float32, any batch size.

    Raises:
        NotConverted: OpenVINO is missing, or what it made of the network says something else than Keras.
    """
    size = read_card(path).image_size
    openvino = _openvino()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    model = Detector(path, UNCALIBRATED).model
    import tensorflow as tf

    pixels = tf.TensorSpec((None, size, size, 3), tf.uint8, name="image")
    call = tf.function(lambda x: model(tf.cast(x, tf.float32), training=False), input_signature=[pixels])
    try:
        network = openvino.convert_model(call)
    except Exception as error:  # its front end raises classes of its own
        raise NotConverted(_reason(error)) from None
    openvino.save_model(network, folder / _NETWORK, compress_to_fp16=False)

    compiled = openvino.Core().compile_model(folder / _NETWORK, "CPU", _OPTIONS)
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    images[1:3] = np.array([40, 200], np.uint8)[:, None, None, None]
    gap = float(np.abs(compiled(images)[0] - model.predict_on_batch(images)).max())
    if not gap <= AGREEMENT:
        raise NotConverted(f"its scores are {gap:.1g} off Keras's")


def _converted(path: Path) -> Path:
    """The folder of the converted network, made if need be by one process while others wait for it."""
    digest = _digest(path)
    home = path.with_name(path.name.removesuffix(".keras") + ".openvino")
    folder = home / digest
    if (folder / _NETWORK).is_file():
        return folder
    try:
        home.mkdir(exist_ok=True)
        with FileLock(home / "lock"):
            if not (folder / _NETWORK).is_file():
                part = home / "part"  # may be left over from a process that was killed
                for stale in (part, folder):
                    shutil.rmtree(stale, ignore_errors=True)
                part.mkdir()
                try:
                    _convert_apart(path, part)
                    if _digest(path) != digest:
                        raise NotConverted("the file was replaced meanwhile; start again")
                    os.rename(part, folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                for old in home.iterdir():  # conversions of former models in this file
                    if old.is_dir() and old != folder:
                        shutil.rmtree(old, ignore_errors=True)
        return folder
    except PermissionError:
        raise NotConverted(f"{home} cannot be written, and the conversion is kept there") from None
    except OSError as error:
        raise NotConverted(f"{home}: {error.strerror or error}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_apart(path: Path, folder: Path) -> None:
    """`convert` in a process of its own; its warnings and TensorFlow's are kept from the console."""
    _log.info("%s: converting for OpenVINO, this once", path)
    command = [sys.executable, "-m", "detector.inference.openvino", str(path.resolve()), str(folder.resolve())]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, errors="replace", timeout=CONVERSION_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotConverted(f"not done in {CONVERSION_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotConverted(lines[-1].removeprefix("error: ")[:160])


def _openvino():
    """The package, without its telemetry, which would connect to a server on import: it is made to look missing."""
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError as error:
        raise NotConverted(_reason(error)) from None
    return openvino


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def main() -> None:
    """What `_convert_apart` runs: the model file and the folder are the arguments."""
    model, folder = map(Path, sys.argv[1:])
    try:
        convert(model, folder)
    except NotConverted as reason:
        raise UserError(str(reason)) from None


if __name__ == "__main__":
    exit_on_user_error(main)
