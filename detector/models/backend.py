"""Keras on the backend that KERAS_BACKEND names (tensorflow by default), imported without its start-up noise."""

import os

from detector.quiet import quiet_native_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet_native_stderr():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.list_logical_devices()  # opens the devices here, where what they say is held back

__all__ = ["keras", "make_deterministic"]


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy and Keras, and have TensorFlow pick its deterministic kernels."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
