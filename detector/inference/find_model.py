"""Which model file a user means."""

import hashlib
import os
import sys
from pathlib import Path

from detector.errors import UserError
from detector.paths import MODEL, project_root


def find_model(reference: str | None) -> Path:
    """The model file that a user means; its calibration lies beside it.

    Args:
        reference: a model file; a folder with model.keras, models/model.keras or artifacts/model.keras in it; an MLflow
            run (name, id or its beginning); models:/<name>@<alias> or models:/<name>/<version>. None is the champion
            or, where there is none, models/model.keras. A path that exists is taken before a run of that name.

    Raises:
        UserError: nothing is called so, or MLflow cannot be reached.
    """
    if reference is None:
        return _champion_file() or project_root() / MODEL
    try:
        path = Path(reference).expanduser()
        if path.is_dir():
            places = [path / MODEL.name, path / MODEL, path / "artifacts" / MODEL.name]
            if found := [place for place in places if place.is_file()]:
                return found[0]
            raise UserError(f"{reference}: no {MODEL.name} in this folder; train one with `dvc repro`, or name another")
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # no permission, a name too long, no such user
        raise UserError(f"{reference}: cannot be looked at ({error}); name a model file, a folder or a run") from None
    is_uri = reference.startswith(("models:/", "runs:/"))
    if not is_uri and ("/" in reference or path.suffix == MODEL.suffix):
        raise UserError(f"{reference}: not found; name a model file, a folder, an MLflow run or a models:/ URI")

    from detector.tracking import registry  # seconds

    return registry.model_files(reference) / MODEL.name


def _champion_file() -> Path | None:
    """The champion's model file; says so on standard error where models/ holds another, newer one."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (project_root() / "mlruns" / "mlflow.db").exists():
        return None  # without the seconds of MLflow's import

    from detector.tracking import registry

    champion = registry.champion(registry.versions())
    if champion is None:
        return None
    local = project_root() / MODEL
    if local.is_file() and local.stat().st_mtime > champion.created.timestamp():
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not champion.tags.get("model", "").startswith(digest):
            print(
                f"{MODEL} is newer than the champion, {champion}, which is used; name {MODEL} to use that one, "
                "or let `make promote` decide",
                file=sys.stderr,
            )
    return registry.model_files(champion.uri) / MODEL.name
