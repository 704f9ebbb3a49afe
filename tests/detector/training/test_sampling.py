import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data.shards import ShardReader, read_manifest
from detector.errors import UserError
from detector.images import resize
from detector.params import load_params
from detector.training.sampling import Sampler, epoch_order, paired_order, training_batches
from detector.training.split import Split

SIZE = 8


@pytest.fixture(params=[1, 2, 7], ids=lambda n: f"{n} threads")
def threads(request, monkeypatch) -> int:
    monkeypatch.setattr(os, "cpu_count", lambda: request.param)
    return request.param


@pytest.fixture
def train(prepared) -> SimpleNamespace:
    """The 16 training images: `reader`, `labels`, and by `colour` of an image its label."""
    manifest = read_manifest(prepared)
    rows = manifest[manifest["split"] == "train"]
    reader, labels = ShardReader(prepared, rows), rows["label"].to_numpy()
    colours = [int(image[0, 0, 0]) for image in reader.images()]
    assert len(set(colours)) == 16
    targets = labels[:, None].astype(np.float32)
    return SimpleNamespace(reader=reader, targets=targets, label_of=dict(zip(colours, labels.tolist(), strict=True)))


def unaltered(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return image


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, image.shape, np.uint8)


def epoch_of(*arguments, **options) -> list:
    return list(epoch_iterator(*arguments, **options))


def epoch_iterator(train, batch_size=4, augmentation=unaltered, seed=1, epoch=1, size=SIZE):
    def draw(index, rng):
        return augmentation(resize(train.reader.image(index), size), rng)

    order = epoch_order(np.full(16, ""), None, seed, epoch)
    return training_batches(draw, order, train.targets, batch_size, seed, epoch)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 16])
def test_an_epoch_shows_each_image_at_most_once_with_its_own_label(train, threads, batch_size):
    batches = epoch_of(train, batch_size)
    assert len(batches) == 16 // batch_size
    seen = []
    for images, labels in batches:
        assert images.shape == (batch_size, SIZE, SIZE, 3) and images.dtype == np.uint8
        assert labels.shape == (batch_size, 1) and labels.dtype == np.float32
        assert (images == images[:, :1, :1, :1]).all()  # of one colour, as they were
        colours = images[:, 0, 0, 0].tolist()
        assert labels[:, 0].tolist() == [train.label_of[colour] for colour in colours]
        seen += colours
    assert len(seen) == len(set(seen)) == 16 // batch_size * batch_size


def test_the_same_seed_and_epoch_give_the_same_bytes_with_any_number_of_threads(train, monkeypatch):
    epochs = []
    for count in (1, 1, 3, 8, None):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        epochs.append(epoch_of(train, augmentation=noise))
    for other in epochs[1:]:
        for (images, labels), (same_images, same_labels) in zip(epochs[0], other, strict=True):
            np.testing.assert_array_equal(images, same_images)
            np.testing.assert_array_equal(labels, same_labels)


def test_order_and_augmentation_change_with_the_epoch_and_the_seed(train):
    drawn = [(seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in (1, 2, 3)]
    orders = {tuple(np.concatenate([x[:, 0, 0, 0] for x, _ in epoch_of(train, seed=s, epoch=e)])) for s, e in drawn}
    assert len(orders) == len(drawn)
    looks = {epoch_of(train, 16, noise, s, e)[0][0].tobytes() for s, e in drawn}
    assert len(looks) == len(drawn)


def test_an_images_augmentation_is_its_own_whatever_the_batch(train):
    def marked(image, rng):
        out = image.copy()
        out[0, 0] = rng.integers(0, 256, 3)
        return out

    def by_colour(batch_size):
        return {int(i[1, 1, 0]): i[0, 0].tolist() for x, _ in epoch_of(train, batch_size, marked) for i in x}

    marks = by_colour(16)
    assert len({tuple(mark) for mark in marks.values()}) == 16  # no two images share their draws
    for batch_size in (1, 5, 8):
        assert by_colour(batch_size).items() <= marks.items()


def test_an_image_that_comes_again_is_drawn_anew():
    def number(_, rng):
        return rng.integers(0, 256, (2, 2, 3), np.uint8)

    order = np.array([5, 3, 5, 5, 3, 0])
    targets = np.arange(6, dtype=np.float32)[:, None]
    [(images, found)] = training_batches(number, order, targets, 6, seed=1, epoch=1)
    assert found[:, 0].tolist() == order.tolist()
    assert len({image.tobytes() for image in images}) == 6
    [(alone, _)] = training_batches(number, np.array([5, 3]), targets, 2, seed=1, epoch=1)
    np.testing.assert_array_equal(alone, images[:2])  # the first time it is what it is where none comes again


@given(st.data(), st.integers(0, 99), st.integers(1, 9))
def test_an_epoch_takes_its_share_of_every_source(data, seed, epoch):
    sources = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=3, max_size=60)) + list("abc"))
    shares = data.draw(st.fixed_dictionaries({name: st.floats(0.1, 10) for name in "abc"}))
    order = epoch_order(sources, shares, seed, epoch)
    assert len(order) == len(sources)
    for name, share in shares.items():
        members = np.flatnonzero(sources == name)
        times = [int((order == member).sum()) for member in members]
        assert sum(times) == pytest.approx(share / sum(shares.values()) * len(sources), abs=1)
        assert max(times) - min(times) <= 1


def test_without_shares_an_epoch_is_every_image_once():
    assert sorted(epoch_order(np.full(9, ""), None, 1, 1)) == list(range(9))


def test_a_batch_is_not_changed_by_the_next(train):
    load = epoch_iterator(train, 4, noise)
    first = next(load)
    kept = first[0].copy()
    assert len(list(load)) == 3
    np.testing.assert_array_equal(first[0], kept)


def test_a_damaged_shard_ends_the_epoch_with_its_name(train, monkeypatch):
    def damaged(_):
        raise UserError("train-00000.tfrecord: damaged")

    monkeypatch.setattr(train.reader, "read", damaged)
    with pytest.raises(UserError, match="damaged"):
        epoch_of(train)


# ---- pairs -------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(0, 99), st.integers(1, 9))
def test_real_and_fake_of_a_group_stand_side_by_side(data, seed, epoch):
    n = data.draw(st.integers(1, 40))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    groups = np.array(data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n)), object)
    order = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=60)), int)  # some come repeatedly, some never
    again, paired = paired_order(order, labels, groups, seed, epoch)
    assert sorted(again) == sorted(order)
    assert len(paired) == len(order) // 2
    for first, second in again[: 2 * len(paired)].reshape(-1, 2)[paired]:
        assert groups[first] == groups[second] and (labels[first] == 0) != (labels[second] == 0)
    fake, of_group = labels[order] > 0, groups[order]
    most = sum(min(np.sum(fake[of_group == g]), np.sum(~fake[of_group == g])) for g in set(of_group))
    assert paired.sum() == most  # as many as there can be


def test_pairs_are_dealt_anew_in_every_epoch():
    labels, groups = np.arange(40) % 2, (np.arange(40) // 2).astype(str)
    orders = {tuple(paired_order(np.arange(40), labels, groups, s, e)[0]) for s in (1, 2) for e in (1, 2)}
    assert len(orders) == 4


def pairs_of(paired, mixup, weights=None, draw=None):
    def drawn(index, rng):
        return np.full((2, 2, 3), 10 * index, np.uint8) if draw is None else draw(index, rng)

    targets = (np.arange(8) % 2).astype(np.float32)[:, None]
    return list(training_batches(drawn, np.arange(8), targets, 4, 1, 1, weights, np.array(paired), mixup))


def test_a_pair_is_augmented_alike_and_nobody_else():
    def number(_, rng):
        return rng.integers(0, 256, (2, 2, 3), np.uint8)

    images = np.concatenate([batch[0] for batch in pairs_of([True, False, True, False], 0, draw=number)])
    alike = {(a, b) for a in range(8) for b in range(a + 1, 8) if np.array_equal(images[a], images[b])}
    assert alike == {(0, 1), (4, 5)}


def test_a_pair_is_mixed_with_its_targets_and_weights_and_nobody_else_is():
    weights = np.arange(1.0, 9.0)
    batches = pairs_of([True, False, False, True], 0.5, weights)
    images, targets, counted = (np.concatenate(values) for values in zip(*batches, strict=True))
    assert images.dtype == np.uint8 and targets.dtype == counted.dtype == np.float32
    for place in (2, 3, 4, 5):
        assert images[place, 0, 0, 0] == 10 * place
        assert targets[place, 0] == place % 2
        assert counted[place] == place + 1
    for first in (0, 6):
        share = float(targets[first + 1, 0])  # of the fake one in itself
        assert 0 <= share <= 1
        assert targets[first, 0] == pytest.approx(1 - share)
        assert images[first, 0, 0, 0] == pytest.approx(10 * (first + 1 - share), abs=0.6)
        assert images[first + 1, 0, 0, 0] == pytest.approx(10 * (first + share), abs=0.6)
        assert counted[first] == pytest.approx(first + 2 - share, abs=1e-5)
    shares = [float(targets[place, 0]) for place in (1, 7)]
    assert shares[0] != shares[1]


def test_mixing_is_the_same_with_any_number_of_threads(monkeypatch):
    epochs = []
    for count in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        epochs.append(np.concatenate([batch[0] for batch in pairs_of([True] * 4, 0.5)]))
    np.testing.assert_array_equal(*epochs)


# ---- the sampler -------------------------------------------------------------------------------------------------


def sampler_of(n: int = 12, **changes) -> Sampler:
    labels = np.arange(n) % 2
    training = Split(None, labels, np.full(n, "", object), (np.arange(n) // 2).astype(str))
    params = load_params().train.model_copy(update={"batch_size": 4, "class_weights": "none", **changes})
    return Sampler(training, 2, None, params, seed=3)


def numbered(index: int, _: np.random.Generator) -> np.ndarray:
    return np.full((2, 2, 3), index, np.uint8)


@pytest.mark.parametrize("paired", [False, True])
def test_the_images_of_an_epoch_come_once_more_in_whole_batches(paired):
    sampler = sampler_of(paired_batches=paired)
    assert (sampler.batch_size, sampler.steps) == (4, 3)
    epoch = np.concatenate([batch[0] for batch in sampler.batches(numbered, 2)])
    again = list(sampler.images(numbered, 2, 10))
    assert [len(images) for images in again] == [4, 4]
    np.testing.assert_array_equal(np.concatenate(again), epoch[:8])
    assert [len(images) for images in sampler.images(numbered, 2, 1)] == [4]
    assert list(sampler.images(numbered, 2, 0)) == []


def test_a_sampler_puts_pairs_into_one_batch_if_it_is_asked_to():
    def pairs(sampler: Sampler) -> list[bool]:
        numbers = [batch[0][:, 0, 0, 0] for batch in sampler.batches(numbered, 1)]
        return [set(batch // 2) == set(batch[::2] // 2) for batch in numbers]

    assert all(pairs(sampler_of(paired_batches=True)))
    assert not all(pairs(sampler_of()))


def test_a_sampler_has_no_more_images_in_a_batch_than_there_are():
    assert sampler_of(6, batch_size=64).batch_size == 6
