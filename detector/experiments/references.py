"""The evaluation of a run by its name: an MLflow run, a DVC revision or the working folder.

Revisions are read with plain git, as DVC keeps experiments in it: far quicker than to import DVC.
"""

import difflib
import io
import json
import re
import subprocess
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detector.errors import UserError
from detector.metrics import checked
from detector.paths import EVALUATION, PREDICTIONS, project_root

if TYPE_CHECKING:
    import pandas as pd

WORKSPACE = "workspace"
MOST_CANDIDATES = 5
_COLUMNS = ("path", "set", "label", "p_fake", "group", "sha256")


@dataclass(frozen=True)
class Candidate:
    """One thing that a reference may mean."""

    description: str  # for people
    reference: str  # the one that means this and nothing else
    read: Callable[[Path], bytes]  # the content of one of the files under metrics/; UserError if there is none


@dataclass(frozen=True)
class Run:
    """What a run's evaluation left: every test image's score, and the threshold of every test set."""

    resolved: str
    predictions: "pd.DataFrame"  # path, set, label, p_fake and, but for old runs, group and sha256
    thresholds: Mapping[str, float]


def load(reference: str) -> Run:
    """The run that `reference` means, as `python -m detector compare --help` describes it.

    Several candidates will do where all that have been evaluated hold the same files, as an experiment and the MLflow
    run named like it do.

    Raises:
        UserError: nothing or more than one thing is called so, or its files are missing or damaged.
    """
    candidates = _candidates(reference)
    if not candidates:
        raise UserError(f"{reference!r} is no MLflow run and no DVC revision; there are {_known(reference)}")
    files, missing = {}, []
    for candidate in candidates[:MOST_CANDIDATES]:
        try:
            files[candidate.description] = candidate.read(PREDICTIONS), candidate.read(EVALUATION)
        except UserError as error:
            missing.append(error)
    if len(set(files.values())) > 1 or len(candidates) > MOST_CANDIDATES:
        listed = "; ".join(
            f"{candidate.reference} ({candidate.description})" for candidate in candidates[:MOST_CANDIDATES]
        )
        raise UserError(f"{reference!r} may mean {len(candidates)} things, name one of them: {listed}")
    if not files:
        raise missing[0]
    (description, *twins), (predictions, evaluation) = files, next(iter(files.values()))
    resolved = f"{reference}: {description}" + (f"; the same files as {', '.join(twins)}" if twins else "")
    table = _predictions(predictions, f"{reference}: {PREDICTIONS}")
    return Run(resolved, table, _thresholds(evaluation, table["set"].unique(), f"{reference}: {EVALUATION}"))


def _candidates(reference: str) -> list[Candidate]:
    store, _, name = reference.partition(":")
    if store == "dvc":
        return _revisions(name)
    if store == "mlflow":
        return _mlflow_runs(name)
    return _revisions(reference) + ([] if reference == WORKSPACE else _mlflow_runs(reference))


def _mlflow_runs(name: str) -> list[Candidate]:
    from detector.tracking import runs  # seconds

    def candidate(run_id: str, run_name: str) -> Candidate:
        return Candidate(
            f"MLflow run {run_name} ({run_id})",
            f"mlflow:{run_id}",
            lambda path: runs.read_artifact(run_id, path.as_posix()),
        )

    return [candidate(run.run_id, run.run_name) for run in runs.find_runs(name)]


def _revisions(name: str) -> list[Candidate]:
    if name == WORKSPACE:
        return [Candidate("the files in metrics/ now", f"dvc:{WORKSPACE}", _read_workspace)]
    commits = {commit: f"DVC experiment {name} ({commit[:12]})" for other, commit in _experiments() if other == name}
    plain = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") if not name.startswith("-") else None
    if plain:
        commit = plain.decode().strip()
        subject = (_git("log", "-1", "--format=%s", commit) or b"").decode(errors="replace").strip()
        commits.setdefault(commit, f"commit {commit[:12]} ({textwrap.shorten(subject, 60)})")
    return [Candidate(text, f"dvc:{commit[:12]}", _reader(commit)) for commit, text in commits.items()]


def _read_workspace(path: Path) -> bytes:
    try:
        return (project_root() / path).read_bytes()
    except OSError:
        raise UserError(f"{path}: not found; run `dvc repro` first") from None


def _reader(commit: str) -> Callable[[Path], bytes]:
    def read(path: Path) -> bytes:
        content = _git("cat-file", "blob", f"{commit}:./{path.as_posix()}")
        if content is None:
            raise UserError(f"commit {commit[:12]}: holds no {path}; name a revision with a committed evaluation")
        return content

    return read


def _experiments() -> list[tuple[str, str]]:
    """Name and commit of every DVC experiment, newest first: DVC keeps one at refs/exps/<baseline>/<name>."""
    refs = _git("for-each-ref", "--sort=-creatordate", "--format=%(objectname) %(refname)", "refs/exps") or b""
    experiments = re.findall(r"^([0-9a-f]+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38,62}/(.+)$", refs.decode(), re.MULTILINE)
    return [(name, commit) for commit, name in experiments]


def _git(*arguments: str) -> bytes | None:
    """What git prints, run in the project's root; None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True)
    except (OSError, ValueError):  # no git; a NUL in a name
        return None
    return done.stdout if done.returncode == 0 else None


def _known(reference: str) -> str:
    """What could have been meant: the likeliest names first, then the newest."""
    from detector.tracking import runs

    names = (_git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or b"").decode().split()
    revisions = [WORKSPACE, *dict.fromkeys(name for name, _ in _experiments()), *names]
    named = list(dict.fromkeys(run.run_name for run in runs.recent_runs(200)))
    return "; ".join(
        f"{kind} {', '.join(dict.fromkeys([*difflib.get_close_matches(reference, known), *known[:MOST_CANDIDATES]]))}"
        for kind, known in (("the DVC revisions", revisions), ("the MLflow runs", named))
        if known
    )


def _predictions(content: bytes, where: str) -> "pd.DataFrame":
    import pandas as pd

    types = defaultdict(lambda: str, {"label": np.int64, "p_fake": np.float64})
    try:
        table = pd.read_csv(
            io.BytesIO(content),
            usecols=lambda column: column in _COLUMNS,
            dtype=types,
            keep_default_na=False,  # a file may be called NA
            na_values={"p_fake": ["", "nan", "NaN"]},
        )
    except ValueError as error:  # pandas's own errors and UnicodeDecodeError among them
        raise UserError(f"{where}: damaged ({error}); evaluate again") from None
    if lacking := [column for column in _COLUMNS[:4] if column not in table]:
        raise UserError(f"{where}: damaged, it has no column {lacking[0]}; evaluate again")
    try:
        checked(table["label"].to_numpy(), table["p_fake"].to_numpy())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return table


def _thresholds(content: bytes, sets: Sequence[str], where: str) -> dict[str, float]:
    try:
        evaluation = json.loads(content)
        thresholds = {name: float(evaluation[name]["threshold"]) for name in sets}
        if not np.isfinite(list(thresholds.values())).all():
            raise ValueError
        return thresholds
    except (ValueError, TypeError, LookupError):
        raise UserError(f"{where}: damaged, or not of the same evaluation as {PREDICTIONS}; evaluate again") from None
