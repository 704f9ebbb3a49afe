"""The MLflow store: one SQLite file and one folder of artifacts under mlruns/, or what MLFLOW_TRACKING_URI names."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default keeps silent for minutes

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError
from detector.paths import project_root

EXPERIMENT = "deepfake-detector"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite store of the clone, also from within a DVC experiment's copy."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlruns' / 'mlflow.db'}"


def connect() -> tuple[mlflow.MlflowClient, str]:
    """The client and the experiment's id; store and experiment are made at the first call.

    Processes that make a SQLite schema at the same time break it, so the first touch is made under a lock.

    Raises:
        UserError: the store cannot be opened.
    """
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    store = project_root() / "mlruns"
    store.mkdir(exist_ok=True)
    artifacts = str(store / "artifacts") if uri.startswith("sqlite:") else None
    try:
        with FileLock(store / ".lock"):
            client = mlflow.MlflowClient(uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                return client, experiment.experiment_id
            return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0][:200]
        if "MLFLOW_TRACKING_URI" not in os.environ:
            raise UserError(
                f"mlruns/mlflow.db: cannot be used ({reason}); delete it, the next run makes a new one"
            ) from None
        raise UserError(
            f"MLFLOW_TRACKING_URI: {uri} cannot be used ({reason}); start the server, or unset the variable"
        ) from None


def has_store() -> bool:
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def serve_ui(port: int) -> None:
    """Open the MLflow UI of the store on loopback, until Ctrl-C."""
    connect()
    if tracking_uri().startswith("http"):
        print(f"the runs are on the server {tracking_uri()}: open it in a browser")
        return
    subprocess.run([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port)])
