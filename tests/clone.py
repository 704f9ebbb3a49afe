"""A clone of the working tree with small parameters, in which tests run the pipeline as its user does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SMALL = yaml.safe_load((ROOT / "recipes" / "quick.yaml").read_text())
PATIENCE = 1500  # seconds; only a command that hangs takes that long


def merged(base: dict, change: dict) -> dict:
    return {
        key: merged(value, change[key]) if isinstance(change.get(key), dict) else change.get(key, value)
        for key, value in base.items()
    }


class Clone:
    """A fresh clone of the working tree, with small parameters committed."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, files):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.set_params(SMALL)
        for command in ("init -q", "add -A", "commit -q -m small"):
            self.run("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *command.split())

    def set_params(self, change: dict) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        (self.folder / "params.yaml").write_text(yaml.safe_dump(merged(merged(params, SMALL), change), sort_keys=False))

    @property
    def environment(self) -> dict:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_", "KERAS_"))}
        identity = {
            f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        return {**inherited, **identity, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-3000:]}")
        return done

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def stage(self, name: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run("python", "-m", f"stages.{name}", check=check)

    def runs(self) -> list:
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlruns' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("deepfake-detector")
        return client.search_runs([experiment.experiment_id]) if experiment else []

    def read(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())


def image_tree(folder: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for place, count in counts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            cv2.imwrite(str(folder / place / f"{i}.jpg"), rng.integers(0, 255, (80, 80, 3), dtype=np.uint8))
    return folder
