"""Models in MLflow: logged with an evaluation's run, registered as versions, one of them the champion."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default keeps silent for minutes

import mlflow
from filelock import FileLock
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError
from detector.metrics import HEADLINES
from detector.paths import project_root
from detector.tracking.runs import one_run, read_artifact
from detector.tracking.store import connect, has_store

MODEL = "model"
REGISTERED = "deepfake-detector"
CHAMPION = "champion"
# The code that decides what a logged model says, relative to the package; a test holds it against its imports.
CODE = (
    "evaluation/calibration.py",
    "images.py",
    "inference/detector.py",
    "inference/pyfunc.py",
    "models/backend.py",
    "models/file.py",
    "models/outputs.py",
)
_CONTENT = "content"  # on a logged model: what of it decides what it says


@dataclass(frozen=True)
class Version:
    """One version of the registered model.

    Attributes:
        number: 1, 2, ...
        run_id: the run of the evaluation that it was registered by.
        created: when, in UTC.
        tags: run (its name), run_id, data.digest, model (what of its files decides a score), threshold, test.<metric>
            of n and `HEADLINES`, and promotion, the last verdict on it; each only where known.
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


def log_model(run_id: str, model_file: Path, calibration_file: Path) -> None:
    """Log the calibrated model for `mlflow.pyfunc.load_model`: image files (column `image`, bytes) to verdicts.

    Not again what the run's newest model already is: the same network, calibration and code.
    """
    client, experiment = connect()
    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema([ColSpec("double", "p_fake"), ColSpec("string", "label"), ColSpec("string", "verdict")]),
    )
    package = Path(__file__).resolve().parents[1]
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
            python_model=str(package / "inference" / "pyfunc.py"),
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
    if not has_store():
        return []
    client, _ = connect()
    with _registry_errors():
        found = client.search_model_versions(f"name = '{REGISTERED}'", max_results=10_000)
        aliases = client.get_registered_model(REGISTERED).aliases if found else {}  # a version does not always know its
    return sorted((_version(one, aliases) for one in found), key=lambda version: -version.number)


def champion(versions: Sequence[Version]) -> Version | None:
    """The one of them that is the champion, if any is."""
    return next((version for version in versions if CHAMPION in version.aliases), None)


@contextmanager
def one_promotion() -> Iterator[None]:
    """Within the block no other process of this clone judges or promotes."""
    connect()
    with FileLock(project_root() / "mlruns" / ".promotion.lock"):
        yield


def set_champion(number: int) -> None:
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
    if not has_store():
        raise UserError(f"{reference!r} is no file and no folder, and there are no MLflow runs yet; run `dvc repro`")
    client, experiment = connect()
    with _registry_errors():
        if reference.startswith("models:/"):
            return _local_files(_version_location(client, reference), reference)
        run = one_run(re.sub(r"^runs:/([0-9a-f]+)(/model)?/?$", r"\1", reference))
        return _local_files(_model_of(client, experiment, run.run_id).artifact_location, reference)


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
    for name in CODE:
        digest.update(f"{name}\0".encode() + (package / name).read_bytes())
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
        **{f"test.{name}": run.data.metrics.get(f"test.{name}") for name in ("n", *HEADLINES)},
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
        raise UserError(f"{uri}: there is none; `python -m detector registry` lists the versions") from None


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
