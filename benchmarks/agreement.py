"""Do all ways to a score give the same one? `python -m benchmarks.agreement [IMAGES]`, after `dvc repro`.

Scores test images of the prepared data in five ways (evaluate's own, from metrics/predictions.csv; the command line;
the HTTP API; MLflow's pyfunc; the converted network) and prints the largest difference of each from evaluate's.
"""

import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import requests

from detector.data.shards import ShardReader, read_manifest
from detector.errors import exit_on_user_error
from detector.evaluation.calibration import read_calibration
from detector.files import read_text
from detector.images import decode, resize
from detector.inference.detector import interpret
from detector.inference.openvino import load_engine
from detector.models.file import read_card
from detector.models.outputs import network_outputs
from detector.paths import EVALUATION_RUN, MODEL, PREDICTIONS, PREPARED
from detector.serve.limits import FILES
from detector.tracking import registry, store


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    predictions = pd.read_csv(PREDICTIONS)
    predictions = predictions[predictions["set"] == "test"].set_index("path")
    manifest = read_manifest(PREPARED)
    rows = manifest[manifest["split"] == "test"]
    rows = rows.sample(min(count, len(rows)), random_state=0)
    reader = ShardReader(PREPARED, rows)
    files = [reader.read(i) for i in range(len(rows))]
    evaluated = predictions.loc[rows["path"], "p_fake"].to_numpy()

    ways = {"command line": command_line, "HTTP API": api, "MLflow pyfunc": pyfunc, "converted network": converted}
    print(f"{len(files)} test images, P(fake) from {evaluated.min():.4f} to {evaluated.max():.4f}")
    for name, way in ways.items():
        print(f"{name:20s} largest difference from evaluate {np.abs(way(files) - evaluated).max():.2e}", flush=True)


def command_line(files: list[bytes]) -> np.ndarray:
    """`python -m detector predict --no-detect`."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number:06d}.jpg").write_bytes(data)
        command = [sys.executable, "-m", "detector", "predict", "--no-detect", "--format", "csv", "--model", str(MODEL)]
        done = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    return np.array([float(row["p_fake"]) for row in csv.DictReader(io.StringIO(done.stdout))])


def api(files: list[bytes]) -> np.ndarray:
    """`POST /v1/predict?detect=false` of `python -m detector serve`."""
    command = [sys.executable, "-m", "detector", "serve", "--port", "0", "--model", str(MODEL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            scores = []
            for start in range(0, len(files), FILES):
                form = [("files", ("image", data)) for data in files[start : start + FILES]]
                answer = requests.post(f"{address}/v1/predict?detect=false", files=form, timeout=60)
                answer.raise_for_status()
                scores += [image["faces"][0]["p_fake"] for image in answer.json()["images"]]
        finally:
            server.terminate()
    return np.array(scores)


def pyfunc(files: list[bytes]) -> np.ndarray:
    """The model that evaluate logged."""
    import mlflow

    store.connect()
    model = mlflow.pyfunc.load_model(f"runs:/{read_text(EVALUATION_RUN)}/{registry.MODEL}")
    return model.predict(pd.DataFrame({"image": files}))["p_fake"].to_numpy()


def converted(files: list[bytes]) -> np.ndarray:
    """What serves the API, without HTTP."""
    card, calibration = read_card(MODEL), read_calibration(MODEL)
    images = [resize(decode(data), card.image_size) for data in files]
    batches = [np.stack(images[start : start + 32]) for start in range(0, len(images), 32)]
    return interpret(network_outputs(load_engine(MODEL), batches, calibration.flip), calibration, card).p_fake


if __name__ == "__main__":
    exit_on_user_error(main)
