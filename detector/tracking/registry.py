"""Models in MLflow: logged with an evaluation's run, registered as versions, one of them the champion."""

import contextlib
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from detector.errors import UserError
from detector.metrics import HEADLINES
from detector.paths import project_root
from detector.tracking.runs import one_run, read_artifact
from detector.tracking.store import MlflowException, connect, first_line, has_store, locked, mlflow

MODEL = "model"
REGISTERED = "deepfake-detector"
CHAMPION = "champion"
# The code that decides the scores of a logged model, relative to the package; a test compares it with the imports.
CODE = (
    "evaluation/calibration.py",
    "images.py",
    "inference/detector.py",
    "inference/pyfunc.py",
    "models/backend.py",
    "models/file.py",
    "models/outputs.py",
)
_CONTENT = "content"  # tag of a logged model: its `_content_digest`


@dataclass(frozen=True)
class Version:
    """One version of the registered model.

    Attributes:
        number: 1, 2, ...
        run_id: the run of the evaluation that registered it.
        created: when, in UTC.
        tags: run (its name), run_id, data.digest, model (digest of the network, temperature and threshold), threshold,
            test.<metric> of n and `HEADLINES`, and promotion, the last verdict on it; each only if it is known.
        aliases: `CHAMPION` or others that a user has set.
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

    Nothing is logged if the run's newest model has the same network, calibration and code.
    """
    client, experiment = connect()
    types = mlflow.types
    inputs: list = [types.ColSpec("binary", "image")]
    outputs: list = [
        types.ColSpec("double", "p_fake"),
        types.ColSpec("string", "label"),
        types.ColSpec("string", "verdict"),
    ]
    signature = mlflow.models.ModelSignature(types.Schema(inputs), types.Schema(outputs))
    package = Path(__file__).resolve().parents[1]
    content = _content_digest(calibration_file, package)
    newest = _logged_model(client, experiment, run_id)
    if newest and newest.tags.get(_CONTENT) == content and not _is_lost(newest.artifact_location):
        return
    requirements = (package.parent / "requirements.txt").read_text().splitlines()
    serving = ("filelock", "keras", "numpy", "opencv", "pandas", "pillow", "pydantic", "pyyaml", "scikit", "scipy",
               "tensorflow", "tqdm")  # fmt: skip
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example")  # which would be an image of the data
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
    """Register the run's model as a new version, unless it is one already, and return the version.

    Raises:
        UserError: the run has no model, or the registry cannot be used.
    """
    client, experiment = connect()
    with _registry_errors():
        model = _model_of(client, experiment, run_id)
        tags, source = _version_tags(client.get_run(run_id)), f"models:/{model.model_id}"
    with _registry_errors(), locked():  # or two evaluations at once make two versions of one model
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
        known = client.search_model_versions(f"name = '{REGISTERED}'", max_results=10_000)
        aliases = client.get_registered_model(REGISTERED).aliases if known else {}  # a version may not list its own
    return sorted((_version(one, aliases) for one in known), key=lambda version: -version.number)


def champion(versions: Sequence[Version]) -> Version | None:
    """The champion among them, if there is one."""
    return next((version for version in versions if CHAMPION in version.aliases), None)


@contextmanager
def one_promotion() -> Iterator[None]:
    """Within the block no other process of this clone compares or promotes models."""
    connect()
    with locked(".promotion.lock"):
        yield


def set_champion(number: int) -> None:
    """Make this version the champion."""
    client, _ = connect()
    with _registry_errors():
        client.set_registered_model_alias(REGISTERED, CHAMPION, str(number))


def tag_version(number: int, key: str, value: str) -> None:
    """Set a tag of this version."""
    client, _ = connect()
    with _registry_errors():
        client.set_model_version_tag(REGISTERED, str(number), key, value)


def model_files(reference: str) -> Path:
    """A local folder with the files model.keras and calibration.json of a model in MLflow; do not change them.

    It is the store's own folder if the store is on this machine; else the files are downloaded once, into
    mlruns/downloads.

    Args:
        reference: an MLflow run (name, id or its beginning, runs:/<id>/model), models:/<name>@<alias> or
            models:/<name>/<version>.

    Raises:
        UserError: the reference means nothing or several things, or the files are not there.
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
        raise UserError(
            f"MLflow's model registry at {mlflow.get_registry_uri()} cannot be used ({first_line(error)}); "
            "check MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI"
        ) from None


def _content_digest(calibration_file: Path, package: Path) -> str:
    """SHA-256 of all that decides the scores of a logged model; the calibration contains the digest of the network."""
    digest = hashlib.sha256(calibration_file.read_bytes())
    for name in CODE:
        digest.update(f"{name}\0".encode() + (package / name).read_bytes())
    return digest.hexdigest()


def _logged_model(client: mlflow.MlflowClient, experiment: str, run_id: str) -> mlflow.entities.LoggedModel | None:
    """The newest model that was logged for this run."""
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", order_by=newest)
    return next((model for model in models if model.name == MODEL and model.status == "READY"), None)


def _model_of(client: mlflow.MlflowClient, experiment: str, run_id: str) -> mlflow.entities.LoggedModel:
    model = _logged_model(client, experiment, run_id)
    if model is None:
        raise UserError(f"MLflow run {run_id}: holds no model; name a run that was evaluated")
    return model


def _version_tags(run: mlflow.entities.Run) -> dict[str, str]:
    known = {
        "run": run.info.run_name,
        "run_id": run.info.run_id,
        "data.digest": run.data.tags.get("data.digest"),
        "threshold": run.data.metrics.get("test.threshold"),
        **{f"test.{name}": run.data.metrics.get(f"test.{name}") for name in ("n", *HEADLINES)},
    }
    calibration = json.loads(read_artifact(run.info.run_id, "metrics/calibration.json"))
    # Rounded, because the last digit of the same detector differs between processors.
    known["model"] = f"{calibration['model']} T {calibration['temperature']:.3f} t {calibration['threshold']:.3f}"
    return {key: str(value) for key, value in known.items() if value is not None}


def _version(version: mlflow.entities.model_registry.ModelVersion, aliases: Mapping[str, str | int]) -> Version:
    return Version(
        int(version.version),
        version.run_id or "",
        datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        version.tags,
        tuple(alias for alias, number in aliases.items() if int(number) == int(version.version)),
    )


def _version_location(client: mlflow.MlflowClient, uri: str) -> str:
    """The location of the files of models:/<name>@<alias> or models:/<name>/<version>."""
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


def _artifacts_here(location: str) -> Path | None:
    """The folder of the logged files, if `location` is on this machine."""
    if not mlflow.utils.uri.is_local_uri(location):
        return None
    return Path(mlflow.utils.file_utils.local_file_uri_to_path(location)) / "artifacts"


def _is_lost(location: str) -> bool:
    here = _artifacts_here(location)
    return here is not None and not (here / "model.keras").is_file()


def _local_files(location: str, reference: str) -> Path:
    """The local folder of the files that were logged with a model to `location`."""
    if _is_lost(location):
        raise UserError(f"{reference}: its files are no longer in {location}; `dvc repro -s -f evaluate` logs it again")
    if here := _artifacts_here(location):
        return here
    cache = project_root() / "mlruns" / "downloads"
    folder = cache / hashlib.sha256(location.encode()).hexdigest()[:32]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as part:
            try:
                mlflow.artifacts.download_artifacts(f"{location}/artifacts", dst_path=part)
            except OSError as error:
                raise UserError(f"{reference}: cannot be downloaded from {location} ({error})") from None
            with contextlib.suppress(OSError):  # another process was faster
                (Path(part) / "artifacts").rename(folder)
    return folder
