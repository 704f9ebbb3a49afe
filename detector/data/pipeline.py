"""The input pipeline: prepared images to batches, read, decoded and augmented by a few threads ahead of the model.

Pillow and OpenCV let go of Python's lock while they work, so threads are enough, and nothing here depends on the
Keras backend. Every image's augmentation is drawn from (seed, epoch, image) alone: neither the number of threads nor
a resumed run changes a pixel.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np

from detector.data.decode import resize
from detector.data.shards import ShardReader

Item, Result = TypeVar("Item"), TypeVar("Result")
Draw = Callable[[int, np.random.Generator], np.ndarray]

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


def training_batches(
    draw: Draw,
    order: np.ndarray,
    targets: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    weights: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """One epoch of batches, all of one shape (what is left over waits for another epoch).

    Args:
        draw: (index of an image, generator) -> uint8 (size, size, 3), what the network gets to see of it.
        order: int (m,), the indices in the order of the epoch, as of `epoch_order`; some may stand in it repeatedly.
        targets: float32 (n, k), what the network should say of each image.
        batch_size: images a batch, at most m.
        seed, epoch: what `draw` draws from, together with the index and how often it has come already.
        weights: float (n,), what each image counts in the loss.

    Yields:
        images uint8 (batch_size, size, size, 3) RGB, targets (batch_size, k), and the weights, if given, float32
        (batch_size,).
    """
    repeats = _repeats(order)

    def load(places: np.ndarray) -> tuple[np.ndarray, ...]:
        indices = order[places]
        images = np.stack(
            [
                draw(index, np.random.default_rng([seed, epoch, index, repeat]))
                for index, repeat in zip(indices, repeats[places], strict=True)
            ]
        )
        found = (images, targets[indices])
        return found if weights is None else (*found, weights[indices].astype(np.float32))

    full = len(order) // batch_size * batch_size
    return map_ahead(load, np.arange(full).reshape(-1, batch_size))


def epoch_order(sources: np.ndarray, shares: Mapping[str, float] | None, seed: int, epoch: int) -> np.ndarray:
    """The images of one epoch, as many as there are, in a random order: int (n,).

    Args:
        sources: text (n,), the source of each image.
        shares: what part of the epoch comes from each source, of any sum; every image of a source is drawn equally
            often, give or take one. None: each image once.
    """
    rng = np.random.default_rng([seed, epoch])
    if shares is None:
        return rng.permutation(len(sources))
    ends = np.rint(np.cumsum([0, *shares.values()]) / sum(shares.values()) * len(sources)).astype(int)
    chosen = []
    for name, count in zip(shares, np.diff(ends), strict=True):
        members = np.flatnonzero(sources == name)
        rounds = -(-count // len(members))
        chosen.extend(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count] if count else [])
    return rng.permutation(np.array(chosen, int))


def _repeats(order: np.ndarray) -> np.ndarray:
    """How often each element has stood in `order` before: int (m,)."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered)
    repeats = np.empty(len(order), int)
    repeats[by_value] = np.arange(len(order)) - first
    return repeats


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
