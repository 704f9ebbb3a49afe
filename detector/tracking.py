"""The one place that talks to MLflow.

One run a trained model: `train` opens it, `evaluate` and `plot` add to it. A re-evaluation of the same model under
other parameters becomes a child run. The model of every evaluation is a version of the registered model, one of which
may be its champion.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default keeps silent for minutes

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.entities import LoggedModel, Metric, Run, RunInfo, RunStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError, exit_on_user_error
from detector.paths import project_root

EXPERIMENT = "deepfake-detector"
MODEL = "model"
REGISTERED = "deepfake-detector"
CHAMPION = "champion"
HEADLINES = ("n", "auc", "accuracy", "false_accusation_rate", "brier")  # of the test set, on every version
RESULTS = (":(exclude,top)metrics", ":(exclude,top)dvc.lock")  # tracked, and rewritten by every run
VECTORS = {  # what Linux calls the instructions that decide a processor's speed here, the quickest first
    "amx_bf16": "AMX with bfloat16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512_vnni": "AVX-512 with VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}
_CONTENT = "content"  # on a logged model: what of it decides what it says
_EVALUATED = "evaluation_params"
_RESTORED = "restored_from"  # on the stand-in for a run that this store does not know: its id

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Version:
    """One version of the registered model.

    Attributes:
        number: 1, 2, ...
        run_id: the run of the evaluation that it was registered by.
        created: when, in UTC.
        tags: run (its name), run_id, data.digest, model (what of its files decides a score), threshold, test.<metric>
            of `HEADLINES`, and promotion, the last verdict on it; each only where known.
        aliases: `CHAMPION` or others that a user gave.
    """

    number: int
    run_id: str
    created: datetime
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        return f"models:/{REGISTERED}/{self.number}"

    def __str__(self) -> str:
        return f"version {self.number} ({self.tags.get('run', self.run_id)})"


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
def training_run(
    params: Mapping[str, object], tags: Mapping[str, str], resume: str | None, name: str | None = None
) -> Iterator[str]:
    """Open the run of a training, or go on with the killed one `resume`; yields its id.

    A new run is called `name` or, without one, as the DVC experiment. It ends as FINISHED or, if the block raises,
    FAILED.
    """
    client, experiment = connect()
    run_id = resume if resume and _exists(client, resume) else None
    if run_id is None:
        tags = {**_origin(), **tags, "machine": machine()}
        run = client.create_run(experiment, run_name=name or _run_name(), tags=tags)
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
        for key, value in {_EVALUATED: mark, **tags}.items():
            if key not in parent.data.tags:  # the training says what it was trained on; a converted model cannot
                client.set_tag(trained_by, key, value)
        _log_params(client, trained_by, {k: v for k, v in params.items() if _key(k) not in parent.data.params})
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
    numbers = [Metric(_key(name), float(value), now, step) for name, value in _numbers("", metrics)]
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
    """Copy files or folders (path -> folder in the run) to the run.

    Raises:
        UserError: the store does not know the run.
    """
    client, _ = connect()
    if not _exists(client, run_id):
        raise UserError(
            f"MLflow run {run_id}: not in {tracking_uri()}; run `dvc repro -s -f evaluate`, then `dvc repro`"
        )
    for path, place in paths.items():
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), place or None)


def log_model(run_id: str, model_file: Path, calibration_file: Path) -> None:
    """Log the calibrated model for `mlflow.pyfunc.load_model`: image files (column `image`, bytes) to verdicts.

    Not again what the run's newest model already is: the same network, calibration and code.
    """
    client, experiment = connect()
    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema([ColSpec("double", "p_fake"), ColSpec("string", "label"), ColSpec("string", "verdict")]),
    )
    package = Path(__file__).resolve().parent
    content = _content(calibration_file, package)
    newest = _logged_model(client, experiment, run_id)
    if newest and newest.tags.get(_CONTENT) == content and not _is_lost(newest.artifact_location):
        return
    requirements = (package.parent / "requirements.txt").read_text().splitlines()
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
            tags={_CONTENT: content},
            pip_requirements=[line for line in requirements if line.startswith(serving)] + ["mlflow"],
        )


def register(run_id: str) -> Version:
    """The run's model as a version of the registered model: a new one, unless that model has one already.

    Raises:
        UserError: the run holds no model, or the registry cannot be used.
    """
    client, experiment = connect()
    with _registry_errors():
        model = _model_of(client, experiment, run_id)
        tags, source = _version_tags(client.get_run(run_id)), f"models:/{model.model_id}"
    with _registry_errors(), FileLock(project_root() / "mlruns" / ".lock"):  # or two evaluations make two of one
        try:
            client.create_registered_model(REGISTERED, description="A face crop to P(fake), one version an evaluation")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.search_model_versions(f"name = '{REGISTERED}' and run_id = '{run_id}'")
        version = next((version for version in known if version.source == source), None)
        if version is None:
            version = client.create_model_version(REGISTERED, source, run_id, tags, model_id=model.model_id)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(REGISTERED, str(version.version), key, value)
        number = int(version.version)
    return next(one for one in versions() if one.number == number)


def versions() -> list[Version]:
    """All versions of the registered model, newest first; none where there is no store or no registered model yet.

    Raises:
        UserError: the registry cannot be used.
    """
    if not _has_store():
        return []
    client, _ = connect()
    with _registry_errors():
        found = client.search_model_versions(f"name = '{REGISTERED}'", max_results=10_000)
        aliases = client.get_registered_model(REGISTERED).aliases if found else {}  # a version does not always know its
    return sorted((_version(one, aliases) for one in found), key=lambda version: -version.number)


@contextmanager
def one_promotion() -> Iterator[None]:
    """Within the block no other process of this clone judges or promotes."""
    connect()
    with FileLock(project_root() / "mlruns" / ".promotion.lock"):
        yield


def crown(number: int) -> None:
    """Make this version the champion."""
    client, _ = connect()
    with _registry_errors():
        client.set_registered_model_alias(REGISTERED, CHAMPION, str(number))


def tag_version(number: int, key: str, value: str) -> None:
    """Note something on a version of the registered model."""
    client, _ = connect()
    with _registry_errors():
        client.set_model_version_tag(REGISTERED, str(number), key, value)


def model_files(reference: str) -> Path:
    """A local folder with the files model.keras and calibration.json of a model in MLflow; not to be changed.

    Where the store keeps them on this machine, it is their own place; else they are fetched, once, into
    mlruns/downloads.

    Args:
        reference: an MLflow run (name, id or its beginning, runs:/<id>/model), models:/<name>@<alias> or
            models:/<name>/<version>.

    Raises:
        UserError: nothing or more than one thing is called so, or its files are not there.
    """
    if not _has_store():
        raise UserError(f"{reference!r} is no file and no folder, and there are no MLflow runs yet; run `dvc repro`")
    client, experiment = connect()
    with _registry_errors():
        if reference.startswith("models:/"):
            return _local_files(_version_location(client, reference), reference)
        run = one_run(re.sub(r"^runs:/([0-9a-f]+)(/model)?/?$", r"\1", reference))
        return _local_files(_model_of(client, experiment, run.run_id).artifact_location, reference)


def one_run(reference: str) -> RunInfo:
    """The one run that `find_runs` finds; UserError if there is none or more than one."""
    found = find_runs(reference)
    if not found:
        newest = ", ".join(dict.fromkeys(run.run_name for run in recent_runs(5))) or "none"
        raise UserError(f"{reference!r} is no file, no folder and no MLflow run; the newest runs are {newest}")
    if len(found) > 1:
        listed = ", ".join(run.run_id for run in found[:5])
        raise UserError(f"{reference!r} may mean {len(found)} MLflow runs, name one of them: {listed}")
    return found[0]


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
    if not _has_store():
        return []
    client, experiment = connect()
    try:
        return list(client.search_runs([experiment], condition, max_results=limit))
    except MlflowException as error:  # a server that has gone away, a name that is no text
        raise UserError(f"MLflow: cannot look for runs ({str(error).splitlines()[0][:200]})") from None


def _has_store() -> bool:
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


@contextmanager
def _registry_errors() -> Iterator[None]:
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"MLflow's model registry at {mlflow.get_registry_uri()} cannot be used ({reason}); "
            "check MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI"
        ) from None


def _content(calibration_file: Path, package: Path) -> str:
    """SHA-256 of what decides what a logged model says; the calibration names the network by its hash."""
    digest = hashlib.sha256(calibration_file.read_bytes())
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _logged_model(client: mlflow.MlflowClient, experiment: str, run_id: str) -> LoggedModel | None:
    """The newest model that was logged for this run."""
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", order_by=newest)
    return next((model for model in found if model.name == MODEL and model.status == "READY"), None)


def _model_of(client: mlflow.MlflowClient, experiment: str, run_id: str) -> LoggedModel:
    model = _logged_model(client, experiment, run_id)
    if model is None:
        raise UserError(f"MLflow run {run_id}: holds no model; name a run that got through its evaluation")
    return model


def _version_tags(run: Run) -> dict[str, str]:
    known = {
        "run": run.info.run_name,
        "run_id": run.info.run_id,
        "data.digest": run.data.tags.get("data.digest"),
        "threshold": run.data.metrics.get("test.threshold"),
        **{f"test.{name}": run.data.metrics.get(f"test.{name}") for name in HEADLINES},
    }
    calibration = json.loads(read_artifact(run.info.run_id, "metrics/calibration.json"))
    # Rounded: another processor gives another last digit to what is the same detector.
    known["model"] = f"{calibration['model']} T {calibration['temperature']:.3f} t {calibration['threshold']:.3f}"
    return {key: str(value) for key, value in known.items() if value is not None}


def _version(found: ModelVersion, aliases: Mapping[str, str | int]) -> Version:
    return Version(
        int(found.version),
        found.run_id or "",
        datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        found.tags,
        tuple(alias for alias, number in aliases.items() if int(number) == int(found.version)),
    )


def _version_location(client: mlflow.MlflowClient, uri: str) -> str:
    """Where the files of models:/<name>@<alias> or models:/<name>/<version> are."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not match:
        raise UserError(f"{uri}: not understood; write models:/{REGISTERED}@{CHAMPION} or models:/{REGISTERED}/3")
    name, alias, number = match.groups()
    try:
        number = number or str(client.get_model_version_by_alias(name, alias).version)
        return client.get_model_version_download_uri(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"{uri}: there is none; `python -m detector.registry` lists the versions") from None


def _is_lost(location: str) -> bool:
    return is_local_uri(location) and not (Path(local_file_uri_to_path(location)) / "artifacts/model.keras").is_file()


def _local_files(location: str, reference: str) -> Path:
    """The folder of the files that were logged to `location` with a model."""
    if _is_lost(location):
        raise UserError(f"{reference}: its files are no longer in {location}; `dvc repro -s -f evaluate` logs it anew")
    if is_local_uri(location):
        return Path(local_file_uri_to_path(location)) / "artifacts"
    cache = project_root() / "mlruns" / "downloads"
    folder = cache / hashlib.sha256(location.encode()).hexdigest()[:32]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as part:
            try:
                mlflow.artifacts.download_artifacts(f"{location}/artifacts", dst_path=part)
            except OSError as error:
                raise UserError(f"{reference}: cannot be fetched from {location} ({error})") from None
            with contextlib.suppress(OSError):  # another process was quicker
                (Path(part) / "artifacts").rename(folder)
    return folder


def _exists(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _log_params(client: mlflow.MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    found = [mlflow.entities.Param(_key(name), str(value)) for name, value in params.items()]
    client.log_batch(run_id, params=found)


def _key(name: str) -> str:
    """As MLflow takes it."""
    return re.sub(r"[^\w\-./ :]", "_", name)


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
        "uncommitted": bool(_git("status", "--porcelain", "-uno", "--", ":/", *RESULTS)),
        "experiment": _experiment_name() or "",
    }


def machine(proc: Path = Path("/proc")) -> str:
    """The processor's name and its widest vector instructions, then the NVIDIA GPUs, as Linux has them in `proc`."""

    def read(file: Path) -> dict[str, str]:
        with contextlib.suppress(OSError):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = (line.partition(":") for line in reversed(lines))  # of many cores the first
            return {key.strip(): value.strip() for key, _, value in pairs}
        return {}

    processor = read(proc / "cpuinfo")
    name = processor.get("model name") or platform.processor() or platform.machine()
    flags = (processor.get("flags") or processor.get("Features", "")).split()  # on x86, on ARM
    vectors = next((said for flag, said in VECTORS.items() if flag in flags), "")
    cards = [read(file).get("Model", "NVIDIA GPU") for file in sorted(proc.glob("driver/nvidia/gpus/*/information"))]
    return ", ".join([f"{name} ({vectors})" if vectors else name, *cards])


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser("python -m detector ui", description="Open the MLflow UI, until Ctrl-C.")
    parser.add_argument("port", metavar="PORT", type=int, nargs="?", default=5000, help="default: 5000")
    serve_ui(parser.parse_args().port)


def serve_ui(port: int) -> None:
    """Open the MLflow UI of the store on loopback, until Ctrl-C."""
    connect()
    if tracking_uri().startswith("http"):
        print(f"the runs are on the server {tracking_uri()}: open it in a browser")
        return
    subprocess.run([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port)])


if __name__ == "__main__":
    exit_on_user_error(main)
