import threading
import time

import numpy as np
import pytest

from detector.serve.batching import Batcher
from detector.serve.problems import Problem


def crop(level: int) -> np.ndarray:
    return np.full((2, 2, 3), level, np.uint8)


class Network:
    """Answers a crop with its level; `go` holds it back."""

    def __init__(self, hold: bool = False):
        self.sizes, self.go, self.entered = [], threading.Event(), threading.Event()
        if not hold:
            self.go.set()

    def __call__(self, batch):
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.go.wait(10)
        if (batch == 13).any():
            raise ValueError("13")
        return batch[:, 0, 0, 0].astype(float)


def results(futures) -> list[float]:
    return [future.result(10) for future in futures]


def test_every_crop_gets_its_own_answer_whoever_it_shares_a_batch_with():
    batcher = Batcher(Network(), batch_size=4, wait_seconds=0.01, capacity=500)
    found = {}

    def client(start):
        found[start] = results(batcher.submit([crop(level) for level in range(start, start + 11)]))

    threads = [threading.Thread(target=client, args=(start,)) for start in range(20, 220, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    batcher.close()
    assert found == {start: list(range(start, start + 11)) for start in range(20, 220, 11)}


def test_what_waits_goes_through_together_and_never_more_than_a_batch():
    network = Network(hold=True)
    batcher = Batcher(network, batch_size=4, wait_seconds=0, capacity=100)
    first = batcher.submit([crop(1)])
    assert network.entered.wait(10)
    rest = [future for level in range(2, 12) for future in batcher.submit([crop(level)])]
    assert batcher.waiting == 10
    network.go.set()
    assert results(first + rest) == list(range(1, 12))
    assert network.sizes == [1, 4, 4, 2]
    batcher.close()


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    network = Network(hold=True)
    batcher = Batcher(network, batch_size=1, wait_seconds=0, capacity=3)
    taken = batcher.submit([crop(1)])
    assert network.entered.wait(10)
    taken += batcher.submit([crop(2), crop(3)])
    with pytest.raises(Problem, match="waiting") as caught:
        batcher.submit([crop(4), crop(5)])
    assert caught.value.code == "overloaded" and batcher.waiting == 2
    taken += batcher.submit([crop(6)])
    network.go.set()
    assert results(taken) == [1, 2, 3, 6]
    batcher.close()


def test_closing_finishes_what_was_taken_and_takes_no_more():
    network = Network(hold=True)
    batcher = Batcher(network, batch_size=2, wait_seconds=5, capacity=100)
    futures = batcher.submit([crop(level) for level in range(5)])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.alive:
        time.sleep(0.001)
    with pytest.raises(Problem) as caught:
        batcher.submit([crop(9)])
    assert caught.value.code == "draining"
    network.go.set()
    closing.join(10)
    assert not closing.is_alive() and results(futures) == [0, 1, 2, 3, 4]


def test_who_gave_up_is_not_computed_for():
    network = Network(hold=True)
    batcher = Batcher(network, batch_size=8, wait_seconds=0, capacity=100)
    batcher.submit([crop(1)])
    assert network.entered.wait(10)
    gone, stays = batcher.submit([crop(2), crop(3)])
    assert gone.cancel()
    network.go.set()
    assert stays.result(10) == 3 and network.sizes == [1, 1]
    batcher.close()


def test_a_batch_that_fails_fails_alone():
    batcher = Batcher(Network(), batch_size=8, wait_seconds=0, capacity=100)
    with pytest.raises(ValueError, match="13"):
        batcher.submit([crop(13)])[0].result(10)
    assert results(batcher.submit([crop(14)])) == [14] and batcher.alive
    batcher.close()
