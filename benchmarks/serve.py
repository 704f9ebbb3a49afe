"""The service under load, on loopback.

    python -m benchmarks.serve MODEL [SECONDS]

Against the bare engine on the same crops: images a second of the API with `detect=false`, with latencies; 64 clients at
once; overload; SIGTERM under load. The clients share the machine's cores with the service.
"""

import contextlib
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

SERVER = """
import sys, types
from pathlib import Path
import numpy as np
import detector.inference.openvino, detector.models.faces
from detector.inference.detector import Detector
from detector.serve import __main__ as command, limits
if {stand_in}:
    class Brightness:
        def predict_on_batch(self, batch):
            return batch.reshape(len(batch), -1).mean(1, keepdims=True).astype(np.float32) / 255
    detector.inference.openvino.load_engine = lambda path: Brightness()
    Detector.model = None
detector.models.faces.FaceFinder = lambda: None
sys.modules["detector.inference.find_model"] = types.SimpleNamespace(find_model=Path)
for name, value in {limits}.items():
    setattr(limits, name, value)
sys.argv[1:] = ["--port", "{port}", "--model", {model!r}]
command.main()
"""


@contextlib.contextmanager
def service(model: Path, stand_in: bool = False, **limits):
    """(url, process) of the service, without the search for faces, whose cost is not this page's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = SERVER.format(stand_in=stand_in, port=port, model=str(model), limits=limits)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline(), "the service did not start"
        url = f"http://127.0.0.1:{port}"
        requests.get(url + "/readyz", timeout=60).raise_for_status()
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def standing_in():
    """(url, process) of a service whose network is a stand-in: for what does not hang on a model."""
    import json
    import tempfile
    import zipfile

    from detector.evaluation.calibration import Calibration, save_calibration
    from detector.models.file import CARD

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.keras"
        card = {"classes": ["real", "fake"], "image_size": 64, "backbone": "xception", "weights": "", "data_digest": ""}
        with zipfile.ZipFile(model, "w") as archive:
            archive.writestr(CARD, json.dumps(card))
        save_calibration(Calibration(), model, {})
        with service(model, stand_in=True) as running:
            yield running


def poster(url: str, query: str = "detect=false"):
    """post(file, ...) -> response, over one connection a thread; forms by hand, for the clients share the cores."""
    local, address = threading.local(), url.removeprefix("http://")
    headers = {"content-type": "multipart/form-data; boundary=b"}

    def post(*files: bytes) -> "Answer":
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(address, timeout=90)
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n%b\r\n'
        body = b"".join(part % file for file in files) + b"--b--\r\n"
        try:
            local.connection.request("POST", f"/v1/predict?{query}", body, headers)
            answer = local.connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException):
            local.connection.close()
            raise

    return post


class Answer(NamedTuple):
    """What a service answered."""

    status_code: int
    body: bytes


def images(size: int, count: int = 32) -> list[bytes]:
    """JPEG files of soft noise, size x size."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), np.uint8))
        file = io.BytesIO()
        small.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def load(url: str, clients: int, seconds: float, files: list[bytes], per_request: int):
    """(images a second, latencies in s, statuses) of clients that send one request after another."""
    post, latencies, statuses, end = poster(url), [], [], time.perf_counter() + seconds

    def client(number: int) -> None:
        turn = number
        while time.perf_counter() < end:
            start = time.perf_counter()
            response = post(*(files[(turn + i) % len(files)] for i in range(per_request)))
            latencies.append(time.perf_counter() - start)
            statuses.append(response.status_code)
            turn += per_request

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    good = statuses.count(200)
    return good * per_request / (time.perf_counter() - start), latencies, statuses


def bare(model: Path, size: int, batch: int, seconds: float) -> float:
    """Images a second of the engine alone."""
    from detector.inference.openvino import Engine

    engine = Engine(model)
    crops = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    engine.predict_on_batch(crops)
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        engine.predict_on_batch(crops)
        done += batch
    return done / (time.perf_counter() - start)


def main() -> None:
    from detector.models.file import read_card
    from detector.serve.limits import BATCH

    model = Path(sys.argv[1]).resolve()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10
    size = read_card(model).image_size
    files = images(size)
    with service(model) as (url, process):
        load(url, 8, 2, files, 1)
        # In turn, for a machine that is shared is not the same from one minute to the next.
        for clients, per_request in ((8, 8), (32, 1), (64, 1)):
            ratios = []
            for _ in range(3):
                alone = bare(model, size, BATCH, seconds / 3)
                rate, latencies, statuses = load(url, clients, seconds / 3, files, per_request)
                ratios.append(rate / alone)
                p50, p99 = np.percentile(latencies, [50, 99])
                errors = f"{len(statuses) - statuses.count(200)} errors of {len(statuses)}"
                print(
                    f"{clients} clients x {per_request} images: {rate:.1f} images/s, {rate / alone:.0%} of the bare "
                    f"engine's {alone:.1f}, p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, {errors}"
                )
            print(f"  median {np.median(ratios):.0%} of the engine")

        post = poster(url)
        with ThreadPoolExecutor(24) as pool:
            taken = [pool.submit(post, *files[:4]) for _ in range(24)]
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGTERM)
            outcomes = []
            for future in taken:
                try:
                    outcomes.append(future.result().status_code)
                except (OSError, http.client.HTTPException) as error:
                    outcomes.append(type(error).__name__)
        print(f"SIGTERM under load: { ({o: outcomes.count(o) for o in outcomes}) }, exit code {process.wait(60)}")

    with service(model, REQUESTS=8) as (url, _):
        _, latencies, statuses = load(url, 32, 3, files, 4)
        print(f"overload (room for 8 requests, 32 clients): { ({s: statuses.count(s) for s in statuses}) }")


if __name__ == "__main__":
    main()
