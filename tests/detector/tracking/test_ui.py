"""The MLflow UI is opened on the project's own store, or the user is sent to the server."""

import subprocess
import sys

import pytest

from detector.tracking import store, ui


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that are run."""
    run = []
    monkeypatch.setattr(subprocess, "run", run.append)
    monkeypatch.setattr(store, "connect", lambda: None)
    return run


def test_it_opens_the_own_store_at_the_port(commands, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ui", "5001"])
    ui.main()
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert [command[1:] for command in commands] == [
        ["-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", "5001"]
    ]


def test_with_a_server_it_names_the_server(commands, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["ui"])
    ui.main()
    assert commands == [] and "http://127.0.0.1:1" in capsys.readouterr().out
