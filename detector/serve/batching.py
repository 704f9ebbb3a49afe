"""One network, many clients: their crops go through it together."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread

import numpy as np

from detector.serve.problems import Problem

_log = logging.getLogger(__name__)


class Batcher:
    """Feeds a network from a bounded queue, in a thread of its own.

    A batch is what waits when the network becomes free, so batches grow with the load and a lone image waits at
    most `wait_seconds`.
    """

    def __init__(
        self,
        outputs: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        wait_seconds: float,
        capacity: int,
        observe: Callable[[int], None] = lambda size: None,
    ):
        """
        Args:
            outputs: uint8 (b, size, size, 3) -> one entry a crop.
            batch_size: crops at a time, at most.
            wait_seconds: how long the first crop of a batch waits for others.
            capacity: crops that may wait.
            observe: told the size of every batch.
        """
        self._outputs, self._observe = outputs, observe
        self._batch_size, self._wait, self._capacity = batch_size, wait_seconds, capacity
        self._queue: deque[tuple[np.ndarray, Future]] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Crops in the queue."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def submit(self, crops: Sequence[np.ndarray]) -> list[Future]:
        """One future a crop, of its entry of the network's output; all of them are taken or none.

        Raises:
            Problem: overloaded, there is no room for all of them; draining, after `close`.
        """
        with self._changed:
            if self._closed:
                raise Problem("draining")
            if len(self._queue) + len(crops) > self._capacity:
                raise Problem("overloaded")
            entries = [(crop, Future()) for crop in crops]
            self._queue.extend(entries)
            self._changed.notify()
        return [future for _, future in entries]

    def close(self) -> None:
        """Take nothing more, finish what was taken, and return when that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            batch = [(crop, future) for crop, future in batch if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._observe(len(batch))
            try:
                outputs = self._outputs(np.stack([crop for crop, _ in batch]))
                for (_, future), output in zip(batch, outputs, strict=True):
                    future.set_result(output)
            except Exception as error:  # one bad batch is its clients' error, not the end of the service
                _log.exception("a batch failed")
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _next(self) -> list[tuple[np.ndarray, Future]]:
        """The next batch, as soon as it is full or has waited; empty when closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            until = time.monotonic() + self._wait
            while len(self._queue) < self._batch_size and not self._closed:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(self._batch_size, len(self._queue)))]
