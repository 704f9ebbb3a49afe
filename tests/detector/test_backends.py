"""The same code trains alike on TensorFlow and on JAX."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Dropout is off, as each backend has random numbers of its own; everything else that moves a weight is on.
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from detector.models.backend import keras, make_deterministic
from detector.params import load_params
from detector.training.checkpoint import Checkpoint
from detector.training.loop import train
from detector.training.split import Split

class Images:
    def __init__(self, n):
        self.labels = np.arange(n) % 2
        rng = np.random.default_rng(n)
        self.pixels = np.uint8(rng.integers(0, 120, (n, 16, 16, 3)) + 100 * self.labels[:, None, None, None])
    def __len__(self):
        return len(self.pixels)
    def image(self, index):
        return self.pixels[index]
    def split(self):
        return Split(self, self.labels, np.full(len(self), "", object), np.arange(len(self)).astype(str))

def network():
    image = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    for i, filters in enumerate((8, 16)):
        x = keras.layers.SeparableConv2D(filters, 3, name=f"conv{i}")(x)
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization(name=f"norm{i}", momentum=0.5)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.BatchNormalization(momentum=0.5, name="head_norm")(x)
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid", name="p_fake")(x))

params = load_params()
settings = params.train.model_copy(update={
    "epochs": 3, "head_epochs": 1, "batch_size": 8, "schedule": "cosine", "warmup": 0.2, "ema_decay": 0.9,
    "ema_norm_images": 16, "weight_decay": 0.01, "clip_norm": 1.0, "label_smoothing": 0.1, "learning_rate": 0.003,
    "head_learning_rate": 0.003})
params = params.model_copy(update={"train": settings, "model": params.model.model_copy(update={"image_size": 16})})
make_deterministic(1)
model = network()
start = np.load(sys.argv[1]) if Path(sys.argv[1]).exists() else None
if start is None:
    np.savez(sys.argv[1], *model.get_weights())
else:
    model.set_weights([start[name] for name in start.files])
with Checkpoint.open(Path(sys.argv[2])) as checkpoint:
    splits = Images(32).split(), Images(12).split()
    model, history = train(lambda size: model, params, *splits, checkpoint, lambda *_: None)
images = np.stack([Images(12).image(i) for i in range(12)])
scores = model.predict_on_batch(images)
print(json.dumps({"backend": keras.backend.backend(), "history": history,
                  "scores": np.asarray(scores, float).ravel().tolist()}))
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_a_training_on_jax_gives_what_it_gives_on_tensorflow(tmp_path):
    def trained(backend: str) -> dict:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "start.npz"), str(tmp_path / backend)]
        environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    ours, theirs = trained("tensorflow"), trained("jax")
    assert (ours["backend"], theirs["backend"]) == ("tensorflow", "jax")
    for a, b in zip(ours["history"], theirs["history"], strict=True):
        assert a == pytest.approx(b, abs=5e-3)
    assert np.std(ours["scores"]) > 0.01  # it says something
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=5e-3)
