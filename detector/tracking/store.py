"""The MLflow store: one SQLite file and one folder of artifacts under mlruns/, or what MLFLOW_TRACKING_URI names.

MLflow is imported here, after its settings; the other modules take it from here.
"""

import logging
import os
from pathlib import Path

from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError
from detector.paths import project_root

# What the user has set in the environment stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # with the default, a missing server takes minutes

import mlflow
from mlflow.exceptions import MlflowException

__all__ = ["MlflowException", "connect", "first_line", "has_store", "locked", "mlflow", "tracking_uri"]

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

EXPERIMENT = "deepfake-detector"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite store of the clone, also from within a DVC experiment's copy."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlruns' / 'mlflow.db'}"


def has_store() -> bool:
    """Whether there is a store already; a server always counts as one."""
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def connect() -> tuple[mlflow.MlflowClient, str]:
    """The client and the experiment's id; the first call makes the store and the experiment.

    Processes that make a SQLite schema at the same time break it, so the store is opened under a lock.

    Raises:
        UserError: the store cannot be opened.
    """
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    artifacts = str(project_root() / "mlruns" / "artifacts") if uri.startswith("sqlite:") else None
    try:
        with locked():
            client = mlflow.MlflowClient(uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                return client, experiment.experiment_id
            return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except (MlflowException, SQLAlchemyError) as error:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            raise UserError(
                f"mlruns/mlflow.db: cannot be used ({first_line(error)}); delete it, the next run makes a new one"
            ) from None
        raise UserError(
            f"MLFLOW_TRACKING_URI: {uri} cannot be used ({first_line(error)}); start the server, or unset the variable"
        ) from None


def locked(name: str = ".lock") -> FileLock:
    """A lock that one process of this clone holds at a time, as a context manager; `name` is its file in mlruns/."""
    folder = project_root() / "mlruns"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / name)


def first_line(error: Exception) -> str:
    """The first line of an error message, for a message of one line."""
    return str(error).splitlines()[0][:200]
