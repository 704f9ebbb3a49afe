"""Keras on the backend that KERAS_BACKEND names (tensorflow by default), imported without its start-up noise.

What makes it fast on a processor is settled here, before the import; what the user has set in the environment stays.
"""

import ctypes
import os
import sys

from detector.quiet import quiet_native_stderr

# glibc's options for `mallopt` (malloc.h): the environment variable, the option's number, and the value it gets here.
_KEEP_MEMORY = (
    ("MALLOC_MMAP_MAX_", -4, 0),  # M_MMAP_MAX: large blocks come from the heap, too,
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),  # M_TRIM_THRESHOLD: and what is freed there stays with the process
)


def _keep_memory() -> None:
    """Have glibc keep what is freed for the next step, whose tensors are as large; elsewhere do nothing.

    By default every large tensor is given back to the kernel and mapped anew, page by page, at every training step.
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

        tf.config.list_logical_devices()  # opens the devices here, where what they say is held back

__all__ = ["keras", "make_deterministic"]


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy and Keras, and have TensorFlow pick its deterministic kernels."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
