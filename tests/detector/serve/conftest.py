"""A service on a loopback port, its network a stand-in: a face's P(fake) is how bright its crop is."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import uvicorn

from detector.evaluation.calibration import Calibration, save_calibration
from detector.inference.detector import Detector
from detector.models.faces import Face
from detector.models.file import CARD
from detector.serve import __main__ as command
from detector.serve.service import Service

SIZE = 32
PATIENCE = 60  # seconds, for a machine that is busy with other work


class Brightness:
    """The network; `hold` makes it wait, as a slow one would."""

    def __init__(self):
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1:] == (SIZE, SIZE, 3) and batch.dtype == np.uint8
        self.batches.append(len(batch))
        self.go.wait(PATIENCE)
        return batch.reshape(len(batch), -1).mean(1, keepdims=True).astype(np.float32) / 255


class Halves:
    """Finds a face in either half of an image at least twice as wide as high, none in one higher than wide."""

    def find(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        if height <= width < 2 * height:
            return [Face((0, 0, width, height), 0.9)]
        middle = width // 2
        halves = [Face((0, 0, middle, height), 0.9), Face((middle, 0, width, height), 0.9)]
        return [] if height > width else halves


def half_hot(pixels: np.ndarray) -> np.ndarray:
    heat = np.zeros(pixels.shape[:2], np.float32)
    heat[: len(heat) // 2] = 1
    return heat * (pixels.mean() > 20)


class Live:
    """A running service: `url`, and what is behind it."""

    def __init__(self, url: str, service: Service, network: Brightness, server: uvicorn.Server):
        self.url, self.service, self.network, self.server = url, service, network, server
        self.address = url.removeprefix("http://").split(":")[0], int(url.rsplit(":", 1)[1])

    patience = PATIENCE

    @staticmethod
    def until(condition: Callable[[], object]) -> None:
        """Wait until `condition` holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    def post(self, path: str, *files: bytes, **options) -> requests.Response:
        parts = [("files", (f"secret-{i}.jpg", file)) for i, file in enumerate(files)]
        return requests.post(self.url + path, files=parts or {"none": (None, "")}, timeout=PATIENCE, **options)

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, **options)

    def metric(self, line: str) -> float:
        lines = dict(entry.rsplit(" ", 1) for entry in self.get("/metrics").text.splitlines() if entry[0] != "#")
        return float(lines.get(line, 0))


@pytest.fixture(scope="session")
def card_only(tmp_path_factory):
    """A model file with a card and no network in it, and its calibration."""
    import zipfile

    path = tmp_path_factory.mktemp("served") / "model.keras"
    card = {"classes": ["real", "fake"], "image_size": SIZE, "backbone": "xception", "weights": "random",
            "data_digest": "ab" * 32}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD, json.dumps(card))
    figures = {"n": 200, "n_real": 100, "n_fake": 100, "false_positive_rate": 0.08, "false_negative_rate": 0.2}
    save_calibration(Calibration(1.0, 0.5, (0.4, 0.6)), path, figures)
    return path


@pytest.fixture
def serve(card_only) -> Callable:
    """serve(token=None): a context of a `Live` service."""

    @contextmanager
    def run(token: str | None = None, heatmap=half_hot) -> Iterator[Live]:
        network = Brightness()
        detector = Detector(card_only, network=network)
        detector.explain = lambda crop: heatmap(crop.pixels)
        service = Service(detector, Halves())
        server = command.server(service, token)
        listener = command.listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            Live.until(lambda: server.started or not thread.is_alive())
            assert server.started
            yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service, network, server)
        finally:
            network.go.set()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()

    return run


@pytest.fixture
def live(serve) -> Iterator[Live]:
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def picture(encode) -> Callable[..., bytes]:
    """picture(level, width, height, format): a flat image whose P(fake) is level / 255."""

    def draw(level: int = 200, width: int = 40, height: int = 40, format: str = "PNG") -> bytes:
        return encode(np.full((height, width, 3), level, np.uint8), format)

    return draw
