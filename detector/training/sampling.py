"""What a training sees, in which order: the images of an epoch, pairs of one group, batches.

Every image's augmentation is drawn from (seed, epoch, image) alone: neither the number of threads nor a resumed run
changes a pixel.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from detector.augment.mixup import mix_pairs
from detector.data.loader import map_ahead

Draw = Callable[[int, np.random.Generator], np.ndarray]


def training_batches(
    draw: Draw,
    order: np.ndarray,
    targets: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    weights: np.ndarray | None = None,
    paired: np.ndarray | None = None,
    mixup: float = 0,
) -> Iterator[tuple[np.ndarray, ...]]:
    """One epoch of batches, all of one shape (what is left over waits for another epoch).

    Args:
        draw: (index of an image, generator) -> uint8 (size, size, 3), what the network gets to see of it.
        order: int (m,), the indices in the order of the epoch, as of `epoch_order`; some may stand in it repeatedly.
        targets: float32 (n, k), what the network should say of each image.
        batch_size: images a batch, at most m.
        seed, epoch: what `draw` draws from, together with the index and how often it has come already.
        weights: float (n,), what each image counts in the loss.
        paired: bool (m // 2,), where order[2 k] and order[2 k + 1] are a pair, as of `paired_order`: the second is
            drawn with the random numbers of the first, so that both are augmented alike. None: there are no pairs.
        mixup: alpha of `mix_pairs`, which mixes each pair that one batch holds; 0 mixes none.

    Yields:
        images uint8 (batch_size, size, size, 3) RGB, targets (batch_size, k), and the weights, if given, float32
        (batch_size,).
    """
    drawn_as = np.stack([order, _repeats(order)], axis=1)  # what, with seed and epoch, the generator of a place is of
    if paired is not None:
        first = 2 * np.flatnonzero(paired)
        drawn_as[first + 1] = drawn_as[first]

    def load(places: np.ndarray) -> tuple[np.ndarray, ...]:
        indices = order[places]
        images = np.stack(
            [
                draw(index, np.random.default_rng([seed, epoch, *drawn]))
                for index, drawn in zip(indices, drawn_as[places], strict=True)
            ]
        )
        batch = [images, targets[indices]]
        if weights is not None:
            batch.append(weights[indices].astype(np.float32))
        if paired is not None and mixup:
            within = first[(first >= places[0]) & (first < places[-1])] - places[0]
            pairs = np.stack([within, within + 1], axis=1)
            rng = np.random.default_rng([seed, epoch, places[0], 0, 1])  # of five numbers, no image's is
            share = rng.beta(mixup, mixup, len(pairs))
            for values in batch:
                values[pairs] = mix_pairs(values[pairs], share)
        return tuple(batch)

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


def paired_order(
    order: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same images with the real and the fake ones of a group side by side, as far as they come in equal number.

    Args:
        order: int (m,), the images of an epoch, as of `epoch_order`.
        labels: int (n,), the class of each image of the data, 0 = real.
        groups: text (n,), the group of each.
        seed, epoch: what the new order is drawn from.

    Returns:
        The order, int (m,), and for each two places of it, from the first on, whether they hold such a pair: bool
        (m // 2,). A batch of even size holds whole pairs.
    """
    rng = np.random.default_rng([seed, epoch, 0, 0, 2])  # another generator than any image has
    waiting: dict[tuple[str, bool], list[int]] = defaultdict(list)
    pairs = []
    for index in order:
        partners = waiting[groups[index], not labels[index]]
        if partners:
            pairs.append((partners.pop(), index))
        else:
            waiting[groups[index], bool(labels[index])].append(index)
    alone = rng.permutation(np.array(sorted(i for indices in waiting.values() for i in indices), int))
    even = len(alone) // 2 * 2
    twos = np.concatenate([np.array(pairs, int).reshape(-1, 2), alone[:even].reshape(-1, 2)])
    turn = rng.permutation(len(twos))
    return np.concatenate([twos[turn].ravel(), alone[even:]]), turn < len(pairs)


def _repeats(order: np.ndarray) -> np.ndarray:
    """How often each element has stood in `order` before: int (m,)."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered)
    repeats = np.empty(len(order), int)
    repeats[by_value] = np.arange(len(order)) - first
    return repeats
