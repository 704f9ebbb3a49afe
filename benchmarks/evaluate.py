"""How much of the stage evaluate passes outside the network, on drawn images and an untrained Xception.

    python -m benchmarks.evaluate [--images 2000] [--size 256] [--stress 0]

Prints the seconds of the whole stage from its first line to its last (imports are not counted), those inside the
network's calls (its compilation at the first one included), and the share of the rest.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import yaml


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2000, help="test images, half of them perturbed")
    options.add_argument("--size", type=int, default=256, help="side of images and network, pixels")
    options.add_argument("--stress", type=int, default=0, help="evaluate.stress_images")
    chosen = options.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["data"]["sample"] |= {"train": 4, "validation": 40, "test": chosen.images // 2, "size": chosen.size}
    params["model"]["image_size"] = chosen.size
    params["evaluate"]["stress_images"] = chosen.stress
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        Path("params.yaml").write_text(yaml.safe_dump(params))
        whole, inside = measure()
    print(f"evaluate: {whole:.1f} s, {inside:.1f} s of it in the network, {1 - inside / whole:.1%} outside")


def measure() -> tuple[float, float]:
    """Seconds of the whole stage, and of the network's calls."""
    from detector.models.backend import keras
    from detector.models.file import ModelCard, save_model
    from detector.models.network import build_network
    from detector.models.weights import InitialWeights
    from detector.params import load_params
    from detector.paths import MODEL, TRAINING_RUN
    from stages import evaluate, prepare

    params = load_params()
    prepare.main()
    network = build_network(params.model, InitialWeights("random"), "float32")
    card = ModelCard(["real", "fake"], params.model.image_size, params.model.backbone, "random", "-")
    MODEL.parent.mkdir()
    save_model(network, card, MODEL)
    TRAINING_RUN.write_text("-\n")

    inside, call = 0.0, keras.Model.predict_on_batch

    def timed(*args, **kwargs):
        nonlocal inside
        started = time.perf_counter()
        result = call(*args, **kwargs)
        inside += time.perf_counter() - started
        return result

    keras.Model.predict_on_batch = timed
    started = time.perf_counter()
    evaluate.main()
    return time.perf_counter() - started, inside


if __name__ == "__main__":
    main()
