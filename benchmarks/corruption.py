"""Speed of the corruptions on one core, in CPU time: `python -m benchmarks.corruption`."""

import time

import cv2
import numpy as np

from detector.augment.corruption import CORRUPTIONS, SEVERITIES, corrupt, perturb


def _seconds(call, repeats: int) -> float:
    """Median time of `call(generator)`, after one warm-up call."""
    call(np.random.default_rng(0))
    times = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        start = time.process_time()
        call(rng)
        times.append(time.process_time() - start)
    return float(np.median(times))


def main() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    coarse, grain = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 9, (256, 256, 3), np.uint8)
    image = cv2.add(cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC), grain)

    print(f"{'us per 256x256 image at severity':<34}" + "".join(f"{k:>8}" for k in SEVERITIES))
    for name, corruption in CORRUPTIONS.items():
        row = [_seconds(lambda rng, n=name, k=k: corrupt(image, n, k / 5, rng), 31) * 1e6 for k in SEVERITIES]
        print(f"{corruption.family:<12}{name:<22}" + "".join(f"{us:8.0f}" for us in row))

    images = 4000
    start = time.process_time()
    for _ in range(images):
        perturb(image, rng)
    rate = images / (time.process_time() - start)
    print(f"\nperturb, generic and matched, 1 to 3 corruptions an image: {rate:.0f} images/s")


if __name__ == "__main__":
    main()
