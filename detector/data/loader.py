"""The input pipeline: prepared images to batches, read and decoded by a few threads ahead of the model.

Pillow and OpenCV let go of Python's lock while they work, so threads are enough, and nothing here depends on the
Keras backend.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np

from detector.data.shards import ShardReader
from detector.images import resize

Item, Result = TypeVar("Item"), TypeVar("Result")

cv2.setNumThreads(1)  # the parallelism is across images; threads inside one 256-pixel image only get in its way


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in the items' order, computed by threads a few items ahead; memory is bounded by that few."""
    threads = os.cpu_count() or 1
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(items, threads + 2))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def stored_batches(
    reader: ShardReader, size: int, batch_size: int, damage: Callable[[np.ndarray, int], np.ndarray] | None = None
) -> Iterator[np.ndarray]:
    """All images of `reader`, in order, as uint8 (batch, size, size, 3), batch <= `batch_size`.

    Args:
        damage: (uint8 (h, w, 3) as stored, its index) -> uint8 (h, w, 3); without it they stay as they are.
    """

    def load(index: int) -> np.ndarray:
        image = reader.image(index)
        return resize(image if damage is None else damage(image, index), size)

    return batches(load, len(reader), batch_size)


def batches(load: Callable[[int], np.ndarray], count: int, batch_size: int) -> Iterator[np.ndarray]:
    """`load(0)` to `load(count - 1)`, arrays of one shape, stacked to at most `batch_size`; threads load ahead."""

    def stack(start: int) -> np.ndarray:
        return np.stack([load(index) for index in range(start, min(start + batch_size, count))])

    return map_ahead(stack, range(0, count, batch_size))
