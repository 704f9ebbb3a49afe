"""The one place that talks to MLflow.

One run a trained model: `train` opens it, `evaluate` and `plot` add to it. A re-evaluation of the same model under
other parameters becomes a child run.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default keeps silent for minutes

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.entities import Metric, Run, RunInfo, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError, exit_on_user_error
from detector.paths import project_root

EXPERIMENT = "deepfake-detector"
MODEL = "model"
_EVALUATED = "evaluation_params"
_RESTORED = "restored_from"  # on the stand-in for a run that this store does not know: its id

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


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


@contextmanager
def training_run(params: Mapping[str, object], tags: Mapping[str, str], resume: str | None) -> Iterator[str]:
    """Open the run of a training, or go on with the killed one `resume`; yields its id.

    The run ends as FINISHED or, if the block raises, FAILED.
    """
    client, experiment = connect()
    run_id = resume if resume and _exists(client, resume) else None
    if run_id is None:
        run = client.create_run(experiment, run_name=_run_name(), tags={**tags, **_origin()})
        run_id = run.info.run_id
        _log_params(client, run_id, params)
    else:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
        raise
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))


def evaluation_run(trained_by: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """The id of the run that an evaluation under `params` belongs to.

    The training's own run if that has no evaluation yet or one under the same parameters; else a child of it. Where the
    store no longer knows the training's run (the model came from DVC's cache), a new run stands in for it.
    """
    client, experiment = connect()
    mark = repr(sorted(params.items()))
    if not _exists(client, trained_by):
        stand_ins = client.search_runs([experiment], f"tags.{_RESTORED} = '{trained_by}'")
        if not stand_ins:
            stand_ins = [
                client.create_run(experiment, run_name=_run_name(), tags={**tags, **_origin(), _RESTORED: trained_by})
            ]
            client.set_terminated(stand_ins[0].info.run_id)
        trained_by = stand_ins[0].info.run_id
    parent = client.get_run(trained_by)
    if parent.data.tags.get(_EVALUATED, mark) == mark:
        client.set_tag(trained_by, _EVALUATED, mark)
        _log_params(client, trained_by, {k: v for k, v in params.items() if k not in parent.data.params})
        return trained_by
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{trained_by}'")
    for child in children:
        if child.data.tags.get(_EVALUATED) == mark:
            return child.info.run_id
    child = client.create_run(
        experiment,
        run_name=_experiment_name() or f"{parent.info.run_name}-evaluation-{len(children) + 2}",
        tags={**tags, **_origin(), "mlflow.parentRunId": trained_by, _EVALUATED: mark},
    )
    _log_params(client, child.info.run_id, {**parent.data.params, **params})
    client.set_terminated(child.info.run_id)
    return child.info.run_id


def log_metrics(run_id: str, metrics: Mapping[str, object], step: int = 0) -> None:
    """Log the numbers of a nested mapping under dotted names; what is no number (None, text) is left out."""
    client, _ = connect()
    now = int(pd.Timestamp.now().timestamp() * 1000)
    numbers = [
        Metric(re.sub(r"[^\w\-./ :]", "_", name), float(value), now, step) for name, value in _numbers("", metrics)
    ]
    for start in range(0, len(numbers), 1000):  # the store's limit for one call
        client.log_batch(run_id, metrics=numbers[start : start + 1000])


def log_missing_epochs(run_id: str, history: list[dict]) -> None:
    """Log the epochs of `history` that the run lacks: a kill can come between a checkpoint and its log."""
    client, _ = connect()
    logged = {metric.step for metric in client.get_metric_history(run_id, "val_loss")}
    for row in history:
        if row["epoch"] not in logged:
            log_metrics(run_id, row, step=row["epoch"])


def log_artifacts(run_id: str, paths: Mapping[Path, str]) -> None:
    """Copy files or folders (path -> folder in the run) to the run."""
    client, _ = connect()
    for path, place in paths.items():
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), place or None)


def log_model(run_id: str, model_file: Path, calibration_file: Path) -> None:
    """Log the calibrated model for `mlflow.pyfunc.load_model`: image files (column `image`, bytes) to verdicts."""
    connect()
    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema([ColSpec("double", "p_fake"), ColSpec("string", "label"), ColSpec("string", "verdict")]),
    )
    package = Path(__file__).resolve().parent
    requirements = (package.parent / "requirements.txt").read_text().split()
    serving = ("filelock", "keras", "numpy", "opencv", "pandas", "pillow", "pydantic", "pyyaml", "scikit", "scipy",
               "tensorflow", "tqdm")  # fmt: skip
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example")  # it would be a picture; the signature says enough
        mlflow.pyfunc.log_model(
            name=MODEL,
            python_model=str(package / "mlflow_model.py"),
            artifacts={"model": str(model_file), "calibration": str(calibration_file)},
            signature=signature,
            code_paths=[str(package)],
            pip_requirements=[line for line in requirements if line.startswith(serving)] + ["mlflow"],
        )


def find_runs(reference: str) -> list[RunInfo]:
    """The runs with this name or id or, of 4 characters or more, beginning of an id; newest first."""
    if re.fullmatch("[0-9a-f]{32}", reference) and (runs := _find(f"attributes.run_id = '{reference}'")):
        return runs
    quote = '"' if "'" in reference else "'"
    found = [] if '"' in reference and "'" in reference else _find(f"attributes.run_name = {quote}{reference}{quote}")
    if re.fullmatch("[0-9a-f]{4,31}", reference):
        begun = _find(f"attributes.run_id LIKE '{reference}%'")
        found += [run for run in begun if run.run_id not in {other.run_id for other in found}]
    return found


def recent_runs(limit: int) -> list[RunInfo]:
    """The `limit` newest runs, newest first."""
    return _find("", limit)


def all_runs() -> list[Run]:
    """Every run with its parameters, its tags and the last value of each metric, newest first."""
    return _search("", 50_000)  # the most that MLflow gives at once


def read_artifact(run_id: str, path: str) -> bytes:
    """The content of one artifact of the run.

    Raises:
        UserError: the run has no such artifact, or it cannot be fetched.
    """
    client, _ = connect()
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
        except (MlflowException, OSError):
            raise UserError(
                f"MLflow run {run_id}: has no artifact {path}; name a run that got through its evaluation"
            ) from None


def _find(condition: str, limit: int = 1000) -> list[RunInfo]:
    return [run.info for run in _search(condition, limit)]


def _search(condition: str, limit: int) -> list[Run]:
    """Runs of the experiment, newest first; none, and no new store, where there is no store yet."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    client, experiment = connect()
    try:
        return list(client.search_runs([experiment], condition, max_results=limit))
    except MlflowException as error:  # a server that has gone away, a name that is no text
        raise UserError(f"MLflow: cannot look for runs ({str(error).splitlines()[0][:200]})") from None


def _exists(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _log_params(client: mlflow.MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    client.log_batch(run_id, params=[mlflow.entities.Param(key, str(value)) for key, value in params.items()])


def _numbers(prefix: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield prefix, value


def _experiment_name() -> str | None:
    return os.environ.get("DVC_EXP_NAME")


def _run_name() -> str:
    return _experiment_name() or f"workspace-{_git('rev-parse', '--short', 'HEAD') or 'no-commit'}"


def _origin() -> dict[str, str]:
    """Tags that lead from a run back to the code: the commit, whether it was clean, the DVC experiment."""
    found = origin()
    tags = {"mlflow.source.type": "PROJECT", "mlflow.source.name": "dvc repro"}
    if found["commit"]:
        tags |= {"mlflow.source.git.commit": found["commit"], "git.dirty": str(found["uncommitted"]).lower()}
    if found["experiment"]:
        tags["dvc.experiment"] = found["experiment"]
    return tags


def origin() -> dict[str, object]:
    """Where the code comes from: commit ("" where git knows none), uncommitted (changes), experiment (DVC's, or "")."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "-uno")),
        "experiment": _experiment_name() or "",
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def serve_ui(port: int) -> None:
    """Open the MLflow UI of the store on loopback, until Ctrl-C."""
    connect()
    if tracking_uri().startswith("http"):
        print(f"the runs are on the server {tracking_uri()}: open it in a browser")
        return
    subprocess.run([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port)])


if __name__ == "__main__":
    exit_on_user_error(lambda: serve_ui(int(sys.argv[1])))
