"""The checkpoint from which a killed training is resumed, and the fingerprint that says which training it fits."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from detector.models.backend import keras
from detector.models.weights import InitialWeights
from detector.params import Params

# The code that decides the result of a training, relative to the package; a test compares it with the imports.
CODE = (
    "augment",
    "data/loader.py",
    "data/shards.py",
    "images.py",
    "models/backbones.py",
    "models/backend.py",
    "models/network.py",
    "models/outputs.py",
    "models/weights.py",
    "training",
)


def fingerprint(params: Params, digest: str, initial: InitialWeights, precision: str) -> str:
    """The fingerprint of a training; with other values or other code, a training starts from scratch."""
    code = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for place in (package / name for name in CODE):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            code.update(file.read_bytes())
    state = [
        params.model_dump(include={"seed", "model", "augment", "train"}),
        digest,
        [initial.origin, str(initial.path)],
        precision,
        keras.backend.backend(),
        keras.__version__,
        code.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoint:
    """The state of one training on disk: `folder`/state.json names the weights of the last and of the best epoch.

    state.json is replaced in one step after the files it names are whole, so a kill at any moment leaves either the
    former epoch or this one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._state_file = folder / "state.json"
        self._state = {"history": [], "best": None, "run_id": None}
        if self._state_file.exists():
            self._state = json.loads(self._state_file.read_text())

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator["Checkpoint"]:
        """The checkpoint in `folder`, used by one process at a time; deleted if the block ends without an exception."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            folder.mkdir(exist_ok=True)
            yield cls(folder)
            shutil.rmtree(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)

    @property
    def history(self) -> list[dict]:
        """The rows of the finished epochs."""
        return self._state["history"]

    @property
    def run_id(self) -> str | None:
        """The MLflow run that the training belongs to."""
        return self._state["run_id"]

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._write({**self._state, "run_id": run_id})

    @property
    def best_weights(self) -> Path:
        return self._weights(self._state["best"])

    def _weights(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.weights.h5"

    def load_last(self) -> "keras.Model":
        """The model as it was after the last epoch, optimizer and random state included."""
        return keras.saving.load_model(self.folder / f"last-{len(self.history)}.keras")

    def save_best(self, model: "keras.Model", epoch: int) -> None:
        """Save the weights of `model` as those of `epoch`, before `save` names it the best."""
        model.save_weights(self._weights(epoch))

    def save(self, model: "keras.Model", history: list[dict], best: int) -> None:
        """Save `model` as that of the last epoch, with its optimizer; the weights of epoch `best` are saved already."""
        epoch = len(history)
        model.save(self.folder / f"last-{epoch}.keras")
        self._write({**self._state, "history": history, "best": best})
        keep = {f"last-{epoch}.keras", self.best_weights.name, self._state_file.name}
        for file in self.folder.iterdir():
            if file.name not in keep:
                file.unlink()

    def _write(self, state: dict) -> None:
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps(state))
        os.replace(part, self._state_file)
        self._state = state
