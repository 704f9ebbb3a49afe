"""Keras on the backend that KERAS_BACKEND names (tensorflow by default), imported without its start-up noise.

The settings that make it fast on a CPU are made here, before the import. Variables that the user has set stay.
"""

import ctypes
import os
import sys

from detector.quiet import quiet_native_stderr

# glibc's options for `mallopt` (malloc.h): the environment variable, the option's number, and the value it gets here.
_KEEP_MEMORY = (
    ("MALLOC_MMAP_MAX_", -4, 0),  # M_MMAP_MAX: large blocks come from the heap, too
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),  # M_TRIM_THRESHOLD: the heap keeps the memory that is freed
)


def _keep_memory() -> None:
    """Have glibc keep freed memory for the next step, whose tensors have the same sizes; elsewhere do nothing.

    By default glibc returns every large tensor to the kernel, which maps it anew, page by page, at every training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for variable, option, value in _KEEP_MEMORY if mallopt else ():
        if variable not in os.environ:
            mallopt(option, value)


_keep_memory()
# TensorFlow turns oneDNN on by itself only where the processor has AVX512 VNNI, bfloat16 or AMX.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet_native_stderr():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.list_logical_devices()  # opens the devices here, where their messages are held back

__all__ = ["keras", "make_deterministic"]


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy and Keras, and have TensorFlow pick its deterministic kernels."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
