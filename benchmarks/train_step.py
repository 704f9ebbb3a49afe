"""Speed of training: `python -m benchmarks.train_step [--sizes 80 128 256] [--precision auto] [--steps 20]`.

For each size in pixels it prints the images per second of Xception's training step, first on images in memory, then as
in an epoch whose images are decoded and augmented meanwhile: JPEG files of 256 pixels, the geometry and brightness of
the published recipe, generic corruptions on half of the images. Weights are random, kernels deterministic, a batch has
16 images (8 from 256 pixels on), and the first steps, in which the graph is made, are not counted. The next columns are
seconds of CPU time per step, in user code and in the kernel, page faults per step, and the largest memory of the
process so far. The last one names the processor, its vector instructions, the backend and the precision.

With TensorFlow another processor can be simulated: ONEDNN_MAX_CPU_ISA=AVX2 withholds newer instructions from oneDNN,
TF_ENABLE_ONEDNN_OPTS=0 is TensorFlow without it. Name the precision then: auto asks the real processor.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterable

import cv2
import numpy as np

from detector.augment.pipeline import augment
from detector.images import decode
from detector.models.backend import keras, make_deterministic
from detector.models.network import build_network, resolve_precision
from detector.models.weights import InitialWeights
from detector.params import AugmentParams, load_params
from detector.tracking.runs import machine
from detector.training.phases import Phase, begin_phase
from detector.training.sampling import Draw, training_batches

WARM_UP = 5  # steps
FILES = 64  # different images
RECIPE = {"rotation": 20, "width_shift": 0.2, "height_shift": 0.2, "shear": 15, "zoom": 0.2, "brightness": [0.8, 1.2]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[80, 128, 256], help="pixels, 71 or more each")
    options.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    options.add_argument("--steps", type=int, default=20, help="number of measured steps, after the first ones")
    chosen = options.parse_args()
    precision = resolve_precision(chosen.precision)
    params = load_params()
    corruption = params.augment.corruption.model_copy(update={"generic": 0.5})
    augmentation = params.augment.model_copy(update={**RECIPE, "corruption": corruption})
    make_deterministic(params.seed)
    print(f"{'px':>4} {'batch':>5}  {'images':<14} {'per s':>6} {'user':>6} {'kernel':>6} {'faults':>7} {'MB':>6}  on")
    for size in chosen.sizes:
        batch_size = 8 if size >= 256 else 16
        network = build_network(
            params.model.model_copy(update={"backbone": "xception", "image_size": size}),
            InitialWeights("random"),
            precision,
        )
        phase = Phase(False, size, params.augment)
        begin_phase(network, lambda _, network=network: network, phase, params.train, chosen.steps)
        for images, draw in (("ready", ready(size)), ("augmented", augmented(size, augmentation))):
            order = np.arange((chosen.steps + WARM_UP + 1) * batch_size) % FILES
            targets = np.float32(np.arange(FILES) % 2)[:, None]
            batches = training_batches(draw, order, targets, batch_size, params.seed, epoch=1)
            seconds, user, kernel, faults = measure(network, batches, chosen.steps)
            print(
                f"{size:>4} {batch_size:>5}  {images:<14} {batch_size / seconds:>6.1f} {user:>6.2f} {kernel:>6.3f} "
                f"{faults:>7.0f} {peak_megabytes():>6.0f}  {where(precision)}",
                flush=True,
            )


def ready(size: int) -> Draw:
    images = np.random.default_rng(0).integers(0, 256, (FILES, size, size, 3), np.uint8)
    return lambda index, rng: images[index]


def augmented(size: int, params: AugmentParams) -> Draw:
    rng = np.random.default_rng(0)
    coarse = (cv2.resize(rng.integers(0, 256, (16, 16, 3), np.uint8), (256, 256)) for _ in range(FILES))
    files = [cv2.imencode(".jpg", image)[1].tobytes() for image in coarse]
    return lambda index, rng: augment(decode(files[index]), size, params, rng)


def measure(network: "keras.Model", batches: Iterable[tuple[np.ndarray, ...]], steps: int) -> np.ndarray:
    """Wall, user and kernel seconds and page faults of one training step, float (4,), the mean of `steps`."""
    marks = []

    class Marks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            float(logs["loss"])  # waits for a backend that computes while Python goes on
            used = resource.getrusage(resource.RUSAGE_SELF)
            marks.append((time.perf_counter(), used.ru_utime, used.ru_stime, used.ru_minflt))

    network.fit(batches, steps_per_epoch=steps + WARM_UP, shuffle=False, verbose=0, callbacks=[Marks()])
    return (np.array(marks[-1]) - marks[WARM_UP - 1]) / steps


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def where(precision: str) -> str:
    """The processor, its cores, the limits that the environment sets, the backend and the precision."""
    limit = ""
    if keras.backend.backend() == "tensorflow" and os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0":
        limit = " without oneDNN"
    elif name := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        limit = f" limited to {name}"
    return f"{machine()}{limit}, {os.cpu_count()} cores, {keras.backend.backend()}, {precision}"


if __name__ == "__main__":
    main()
