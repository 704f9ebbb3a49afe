import gc
import itertools
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data.decode import resize
from detector.data.pipeline import epoch_order, map_ahead, stored_batches, training_batches
from detector.data.shards import ShardReader, read_manifest
from detector.errors import UserError

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


# ---- map_ahead -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_results_come_in_the_items_order(threads, count):
    def slow_at_first(i: int) -> int:
        time.sleep(0.004 if i % 3 == 0 else 0)
        return i * i

    assert list(map_ahead(slow_at_first, range(count))) == [i * i for i in range(count)]


def test_items_are_taken_only_a_few_ahead_of_the_results(threads):
    taken = []
    results = map_ahead(lambda item: item, (taken.append(i) or i for i in range(1000)))
    for done in range(50):
        assert next(results) == done
        assert len(taken) <= done + 1 + threads + 2
    results.close()


def test_nothing_happens_before_the_first_result_is_asked_for():
    touched = []
    map_ahead(touched.append, [1, 2, 3])
    assert touched == []


def test_the_work_is_done_in_as_many_threads_as_there_are_processors(threads):
    together = threading.Barrier(threads, timeout=20)
    list(map_ahead(lambda _: together.wait(), range(threads)))  # passes only if all wait at once


def test_an_error_in_the_function_comes_at_its_place(threads):
    def fails_at_five(i: int) -> int:
        if i == 5:
            raise UserError("five")
        return i

    results = map_ahead(fails_at_five, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="five"):
        next(results)
    assert list(results) == []


def test_an_error_in_the_items_is_passed_on(threads):
    def items():
        yield from range(20)
        raise OSError("archive cut short")

    results = map_ahead(lambda i: i, items())
    with pytest.raises(OSError, match="cut short"):
        list(results)


@pytest.mark.parametrize("end", ["close", "forget"])
def test_to_stop_early_ends_the_work(threads, end):
    before = threading.active_count()
    done = []
    results = map_ahead(lambda i: done.append(i) or i, itertools.count())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    if end == "close":
        results.close()
    else:
        del results
        gc.collect()
    finished = len(done)
    assert finished <= 3 + threads + 2
    time.sleep(0.02)
    assert len(done) == finished and threading.active_count() == before


def test_work_that_waits_for_a_thread_is_not_begun_after_a_stop(threads):
    begun, released = [], threading.Event()

    def first_at_once(i: int) -> None:
        begun.append(i)
        if i:
            released.wait(20)

    results = map_ahead(first_at_once, itertools.count())
    next(results)
    threading.Timer(0.05, released.set).start()
    results.close()
    assert len(begun) <= 1 + threads


# ---- training_batches ------------------------------------------------------------------------------------------


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


# ---- stored_batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7, 16, 100])
def test_stored_images_come_all_in_order_and_unaltered(train, threads, batch_size):
    batches = list(stored_batches(train.reader, SIZE, batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch_size
    images = np.concatenate(batches)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.stack([resize(image, SIZE) for image in train.reader.images()]))


def test_damage_comes_before_the_resizing_and_knows_the_row(train):
    seen = {}

    def damage(image: np.ndarray, index: int) -> np.ndarray:
        seen[index] = image.shape
        return 255 - image

    images = np.concatenate(list(stored_batches(train.reader, SIZE, 4, damage)))
    stored = list(train.reader.images())
    assert seen == {i: image.shape for i, image in enumerate(stored)}
    np.testing.assert_array_equal(images, np.stack([resize(255 - image, SIZE) for image in stored]))


def test_no_images_make_no_batches(prepared):
    nothing = ShardReader(prepared, read_manifest(prepared)[:0])
    assert len(nothing) == 0
    assert list(stored_batches(nothing, SIZE, 4)) == []
