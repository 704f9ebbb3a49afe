"""Runs in MLflow: one a trained model.

`train` opens it, `evaluate` and `plot` add to it. A re-evaluation of the same model under other parameters becomes a
child run.
"""

import argparse
import contextlib
import logging
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default keeps silent for minutes

import mlflow
import pandas as pd
from mlflow.entities import Metric, Run, RunInfo, RunStatus
from mlflow.exceptions import MlflowException

from detector.errors import UserError
from detector.tracking.store import connect, has_store, serve_ui, tracking_uri

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
_EVALUATED = "evaluation_params"
_RESTORED = "restored_from"  # on the stand-in for a run that this store does not know: its id
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


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
    if not has_store():
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
