"""Hostile files: mutated JPEG, PNG, WebP, GIF, BMP and TIFF files and garbage, at the API and the command line.

    python -m benchmarks.fuzz [FILES] [MODEL]        (2,000 and the champion unless said)

Sends the files four at a time to `python -m detector serve`, with the search for faces, then gives them all to
`python -m detector predict`. Fails on a status 500, on an answer without a verdict or a known error, on one that takes
more than 10 s, on a row too few, and where memory grows by more than 300 MB while files come in.
"""

import csv
import io
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests
from PIL import Image

from detector.synthetic.sample import draw_sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SLOW_SECONDS = 10
GROWTH_MB = 300


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight damages: bytes flipped, set to extremes, cut out, repeated, the end cut off or junk put behind."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if not found:
            break
        # Headers are short and matter most.
        at = int(rng.integers(min(len(found), 100) if rng.random() < 0.5 else len(found)))
        length = int(rng.integers(1, 33))
        match rng.integers(6):
            case 0:
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at : at + length] = bytes([int(rng.choice([0, 1, 127, 128, 254, 255]))]) * length
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length] * int(rng.integers(1, 50))
            case 4:
                del found[at:]
            case 5:
                found += rng.bytes(length)
    return bytes(found)


def files(count: int, seed: int = 0):
    """`count` hostile files, the same for the same seed."""
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((1, 1), (33, 20), (90, 160))]
    images += [Image.open(io.BytesIO(portrait.jpeg)) for portrait in draw_sample({"Train": 2}, 128, seed)]
    good = []
    for image in images:
        for mode in ("RGB", "L", "P"):
            for format in FORMATS:
                if format == "WEBP" or not (format == "JPEG" and mode == "P"):
                    file = io.BytesIO()
                    image.convert(mode).save(file, format)
                    good.append(file.getvalue())
        for options in ({"progressive": True}, {"optimize": True}):
            file = io.BytesIO()
            image.save(file, "JPEG", **options)
            good.append(file.getvalue())
    for number in range(count):
        if number % 10 == 9:
            yield rng.bytes(int(rng.integers(0, 3000)))
        else:
            yield mutate(good[int(rng.integers(len(good)))], rng)


def run(post, count: int, workers: int = 4) -> tuple[Counter, float]:
    """Send `count` files by `post(bytes) -> response`; outcomes, and the slowest in seconds. AssertionError if bad."""
    outcomes, slowest, lock = Counter(), 0.0, threading.Lock()

    def send(file: bytes) -> None:
        nonlocal slowest
        start = time.perf_counter()
        response = post(file)
        seconds = time.perf_counter() - start
        assert response.status_code == 200, (response.status_code, response.text[:200], file[:40])
        (image,) = response.json()["images"]
        assert (image["status"] == "error") == ("error" in image)
        with lock:
            slowest = max(slowest, seconds)
            outcomes[image["error"]["code"] if "error" in image else image["status"]] += 1

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(send, files(count)):
            pass
    assert slowest < SLOW_SECONDS, f"an answer took {slowest:.1f} s"
    return outcomes, slowest


def serving(count: int, model: list[str]) -> None:
    """The files at a running service."""
    command = [sys.executable, "-m", "detector", "serve", "--port", "0", *model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().split()[0]

            def post(file: bytes) -> requests.Response:
                return requests.post(f"{url}/v1/predict", files=[("files", ("x", file))], timeout=90)

            face = next(draw_sample({"Train": 1}, 128, 0)).jpeg
            requests.post(f"{url}/v1/explain", files=[("files", ("x", face))], timeout=90)  # Keras is loaded by then
            for file in files(200, seed=1):
                post(file)
            memory = psutil.Process(server.pid).memory_info
            before, start = memory().rss, time.perf_counter()
            outcomes, slowest = run(post, count)
            grown = (memory().rss - before) / 1e6
        finally:
            server.terminate()
    seconds = time.perf_counter() - start
    print(f"API: {count} files in {seconds:.0f} s, slowest {slowest:.2f} s, memory {grown:+.0f} MB")
    print("  " + ", ".join(f"{name} {n}" for name, n in outcomes.most_common()))
    assert grown < GROWTH_MB, "memory grew"


def scanning(count: int, model: list[str]) -> None:
    """The files in a folder, for the command line."""
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files(count)):
            (Path(folder) / f"{number:06d}.jpg").write_bytes(file)
        start = time.perf_counter()
        command = [sys.executable, "-m", "detector", "predict", "--format", "csv", *model, folder]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1, (done.returncode, done.stderr[-500:])  # some files are broken, none ends the run
    assert "Traceback" not in done.stderr
    assert len({row["path"] for row in rows}) == count
    assert all(bool(row["verdict"]) != bool(row["error"]) for row in rows)
    print(f"command line: {count} files in {seconds:.0f} s")
    print("  " + ", ".join(f"{k} {n}" for k, n in Counter(row["verdict"] or "error" for row in rows).most_common()))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    model = ["--model", sys.argv[2]] if len(sys.argv) > 2 else []
    serving(count, model)
    scanning(count, model)


if __name__ == "__main__":
    main()
