import gc
import itertools
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from detector.data.loader import map_ahead, stored_batches
from detector.data.shards import ShardReader, read_manifest
from detector.errors import UserError
from detector.images import resize

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
    assert len(done) == finished and threading.active_count() <= before  # another test's threads may end meanwhile


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
