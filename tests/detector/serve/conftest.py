"""A service on a loopback port, its network a stand-in: a face's P(fake) is how bright its crop is."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import uvicorn

from detector.evaluation.calibration import Calibration, save_calibration
from detector.models.file import CARD
from detector.serve.app import create_app
from detector.serve.protocol import Protocol
from detector.serve.service import Region, Service

SIZE = 32


class Brightness:
    """The network; `hold` makes it wait, as a slow one would."""

    def __init__(self):
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1:] == (SIZE, SIZE, 3) and batch.dtype == np.uint8
        self.batches.append(len(batch))
        self.go.wait(20)
        return batch.reshape(len(batch), -1).mean(1, keepdims=True).astype(np.float32) / 255


def halves(image: np.ndarray, detect: bool) -> list[Region]:
    """Finds a face in either half of an image at least twice as wide as high, none in one higher than wide."""
    height, width = image.shape[:2]
    if not detect or height <= width < 2 * height:
        return [Region((0, 0, width, height), image, (0, 0, width))]
    if height > width:
        return []
    middle = width // 2
    return [
        Region((0, 0, middle, height), image[:, :middle], (0, 0, middle)),
        Region((middle, 0, width, height), image[:, middle:], (middle, 0, width - middle)),
    ]


def half_hot(crop: np.ndarray) -> np.ndarray:
    heat = np.zeros(crop.shape[:2], np.float32)
    heat[: len(heat) // 2] = 1
    return heat * (crop.mean() > 20)


class Live:
    """A running service: `url`, and what is behind it."""

    def __init__(self, url: str, service: Service, network: Brightness, server: uvicorn.Server):
        self.url, self.service, self.network, self.server = url, service, network, server
        self.address = url.removeprefix("http://").split(":")[0], int(url.rsplit(":", 1)[1])

    def post(self, path: str, *files: bytes, **options) -> requests.Response:
        parts = [("files", (f"secret-{i}.jpg", file)) for i, file in enumerate(files)]
        return requests.post(self.url + path, files=parts or {"none": (None, "")}, timeout=20, **options)

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.url + path, timeout=20, **options)

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
    def run(token: str | None = None, heatmap=half_hot, find_faces=halves) -> Iterator[Live]:
        network = Brightness()
        service = Service(card_only, network, find_faces, heatmap)
        config = uvicorn.Config(
            create_app(service, token), http=Protocol, ws="none", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=20,
        )  # fmt: skip
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service, network, server)
        finally:
            network.go.set()
            server.should_exit = True
            thread.join(20)
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
