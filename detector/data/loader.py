"""The input pipeline: prepared images to batches, read and decoded by a few threads ahead of the model.

Pillow and OpenCV release Python's global lock while they work, so threads are enough, and nothing here depends on the
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

cv2.setNumThreads(1)  # images are processed in parallel; threads within one small image only slow that down


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map`, in the order of the items, computed by threads a few items ahead, which bounds the memory."""
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
    reader: ShardReader, size: int, batch_size: int, corrupt: Callable[[np.ndarray, int], np.ndarray] | None = None
) -> Iterator[np.ndarray]:
    """All images of `reader`, in order, as uint8 (batch, size, size, 3), batch <= `batch_size`.

    Args:
        corrupt: (uint8 (h, w, 3) as stored, its index) -> uint8 (h, w, 3); None leaves the images as they are.
    """

    def load(index: int) -> np.ndarray:
        image = reader.image(index)
        return resize(image if corrupt is None else corrupt(image, index), size)

    def stack(start: int) -> np.ndarray:
        return np.stack([load(index) for index in range(start, min(start + batch_size, len(reader)))])

    return map_ahead(stack, range(0, len(reader), batch_size))
