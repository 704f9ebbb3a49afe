"""What a training sees, and in which order: the images of an epoch, pairs of one group, batches, sample weights.

The augmentation of an image is drawn from (seed, epoch, image) alone, so neither the number of threads nor a resumed
training changes a pixel.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from detector.augment.mixup import mix_pairs
from detector.data.loader import map_ahead
from detector.errors import UserError
from detector.params import TrainParams
from detector.training.split import Split

Draw = Callable[[int, np.random.Generator], np.ndarray]


class Sampler:
    """Gives each epoch of a training its images, in order and in batches.

    Args:
        training: the images.
        classes: of the network: 2 have one target, P(fake), more have one each.
        shares: what part of an epoch comes from each source, as of `source_shares`.
        params, seed: of the training.

    Attributes:
        batch_size: images in a batch, at most as many as there are.
        steps: batches in an epoch; the images of an incomplete batch wait for another epoch.
    """

    def __init__(
        self, training: Split, classes: int, shares: Mapping[str, float] | None, params: TrainParams, seed: int
    ):
        labels = training.labels
        self.batch_size = min(params.batch_size, len(labels))
        self.steps = len(labels) // self.batch_size
        self._training, self._shares, self._seed = training, shares, seed
        targets = labels if classes == 2 else np.eye(classes)[labels]
        self._targets = targets.astype(np.float32).reshape(len(labels), -1)
        self._weights = sample_weights(labels, params.class_weights, _frequency(training.sources, shares))
        self._in_pairs = params.paired_batches and training.pairs > 0
        self._mixup = params.mixup

    def batches(self, draw: Draw, epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of an epoch, as of `training_batches`."""
        order, paired = self._order(epoch)
        return training_batches(
            draw, order, self._targets, self.batch_size, self._seed, epoch, self._weights, paired, self._mixup
        )

    def images(self, draw: Draw, epoch: int, count: int) -> Iterator[np.ndarray]:
        """The first images of an epoch once more, unmixed, in whole batches: as many as fit into `count`, or one.

        Yields:
            uint8 (batch_size, size, size, 3); nothing if `count` is 0.
        """
        first = self._order(epoch)[0][: max(self.batch_size, count) if count else 0]
        batches = training_batches(draw, first, self._targets, self.batch_size, self._seed, epoch)
        return (images for images, _ in batches)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The images of an epoch and which of them are pairs, as of `paired_order`, if they come in pairs."""
        order = epoch_order(self._training.sources, self._shares, self._seed, epoch)
        if not self._in_pairs:
            return order, None
        return paired_order(order, self._training.labels, self._training.groups, self._seed, epoch)


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
    """One epoch of batches, all of one shape; an incomplete last batch is left out.

    Args:
        draw: (index of an image, generator) -> uint8 (size, size, 3), the augmented image.
        order: int (m,), the indices in the order of the epoch, as of `epoch_order`; an index may be repeated.
        targets: float32 (n, k), what the network should give for each image.
        batch_size: images in a batch, at most m.
        seed, epoch: seeds of `draw`, together with the index and the number of times that it has come before.
        weights: float (n,), the sample weights.
        paired: bool (m // 2,), where order[2 k] and order[2 k + 1] are a pair, as of `paired_order`: both are drawn
            with the random numbers of the first, so that they are augmented alike. None: there are no pairs.
        mixup: both parameters of the beta distribution from which a pair's share is drawn; 0: pairs are not mixed.

    Yields:
        images uint8 (batch_size, size, size, 3) RGB, targets (batch_size, k), and the weights, if given, float32
        (batch_size,).
    """
    keys = np.stack([order, _repeats(order)], axis=1)  # with seed and epoch, the seed of each place's generator
    if paired is not None:
        first = 2 * np.flatnonzero(paired)
        keys[first + 1] = keys[first]

    def load(places: np.ndarray) -> tuple[np.ndarray, ...]:
        indices = order[places]
        images = np.stack(
            [
                draw(index, np.random.default_rng([seed, epoch, *key]))
                for index, key in zip(indices, keys[places], strict=True)
            ]
        )
        batch = [images, targets[indices]]
        if weights is not None:
            batch.append(weights[indices].astype(np.float32))
        if paired is not None and mixup:
            within = first[(first >= places[0]) & (first < places[-1])] - places[0]
            pairs = np.stack([within, within + 1], axis=1)
            rng = np.random.default_rng([seed, epoch, places[0], 0, 1])  # five numbers: no image has this seed
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
        shares: what part of the epoch comes from each source, relative to their sum; the images of a source are drawn
            equally often, give or take one. None: each image once.
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
    """The same images with the real and the fake images of a group side by side, as many as can be paired.

    Args:
        order: int (m,), the images of an epoch, as of `epoch_order`.
        labels: int (n,), the class of each image of the data, 0 = real.
        groups: text (n,), the group of each.
        seed, epoch: what the new order is drawn from.

    Returns:
        The new order, int (m,), and bool (m // 2,): whether its places 2 k and 2 k + 1 hold such a pair. A batch of
        even size holds whole pairs.
    """
    rng = np.random.default_rng([seed, epoch, 0, 0, 2])  # five numbers: no image has this seed
    unpaired: dict[tuple[str, bool], list[int]] = defaultdict(list)  # by group and whether they are fake
    pairs = []
    for index in order:
        partners = unpaired[groups[index], not labels[index]]
        if partners:
            pairs.append((partners.pop(), index))
        else:
            unpaired[groups[index], bool(labels[index])].append(index)
    alone = rng.permutation(np.array(sorted(i for indices in unpaired.values() for i in indices), int))
    even = len(alone) // 2 * 2
    couples = np.concatenate([np.array(pairs, int).reshape(-1, 2), alone[:even].reshape(-1, 2)])
    shuffled = rng.permutation(len(couples))
    return np.concatenate([couples[shuffled].ravel(), alone[even:]]), shuffled < len(pairs)


def source_shares(training: Split, validation: Split, weights: dict[str, float] | None) -> dict[str, float] | None:
    """What part of an epoch comes from each source, by `train.source_weights`; None if these are not set.

    Raises:
        UserError: the weights do not name the sources of the data.
    """
    if weights is None:
        return None
    present, validated = sorted(set(training.sources)), set(validation.sources)
    if sorted(weights) != present or not validated <= set(present):
        named = ", ".join(name or "unnamed" for name in present)
        extra = sorted(validated - set(present))
        more = f"; {extra[0] or 'unnamed'} is in validation alone" if extra else ""
        raise UserError(
            f"train.source_weights: names {', '.join(weights)}, but the sources of the training images are "
            f"{named}{more}; give each of these a weight, or set it to null"
        )
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def sample_weights(labels: np.ndarray, how: str, frequency: np.ndarray | None = None) -> np.ndarray | None:
    """The weight of each image in the loss, float (n,), 1 on average; None if all weigh the same.

    Args:
        labels: int (n,), the classes.
        how: balanced (n / (classes * images of the class), so that each class weighs the same), none, or auto: balanced
            if there are more than two classes.
        frequency: float (n,), how often each comes in an epoch; None: once.
    """
    _, place = np.unique(labels, return_inverse=True)
    counts = np.bincount(place, frequency)
    if how == "none" or (how == "auto" and len(counts) == 2) or np.ptp(counts) < 1e-9 * len(labels):
        return None
    return counts.sum() / (len(counts) * counts[place])


def _frequency(sources: np.ndarray, shares: Mapping[str, float] | None) -> np.ndarray | None:
    """How often each image comes in an epoch, float (n,); None if the sources have no shares."""
    if shares is None:
        return None
    names, place, counts = np.unique(sources.astype(str), return_inverse=True, return_counts=True)
    return (np.array([shares[name] for name in names]) * len(sources) / counts)[place]


def _repeats(order: np.ndarray) -> np.ndarray:
    """How often each element has stood in `order` before: int (m,)."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered)
    repeats = np.empty(len(order), int)
    repeats[by_value] = np.arange(len(order)) - first
    return repeats
