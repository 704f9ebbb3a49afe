"""Runs in MLflow, one for each trained model.

`train` opens the run, `evaluate` and `plot` add to it. Another evaluation of the same model, under other parameters,
becomes a child run.
"""

import contextlib
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import environ
from pathlib import Path

import pandas as pd

from detector.errors import UserError
from detector.tracking.store import MlflowException, connect, first_line, has_store, mlflow, tracking_uri

RESULTS = (":(exclude,top)metrics", ":(exclude,top)dvc.lock")  # tracked files that every run rewrites
VECTORS = {  # Linux's names of the instructions that decide how fast a processor is here, the fastest first
    "amx_bf16": "AMX with bfloat16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512_vnni": "AVX-512 with VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}
_EVALUATED = "evaluation_params"  # tag: the parameters that the run was evaluated under
_RESTORED = "restored_from"  # tag of a run that stands for one that this store does not know: the id of that one

# ---- opening runs --------------------------------------------------------------------------------------------------


@contextmanager
def training_run(
    params: Mapping[str, object], tags: Mapping[str, str], resume: str | None, name: str | None = None
) -> Iterator[str]:
    """Open the run of a training and yield its id; `resume` is the id of a killed training's run to go on with.

    A new run is called `name` or, without one, after the DVC experiment. It ends as FINISHED or, if the block raises an
    exception, FAILED.
    """
    client, experiment = connect()
    run_id = resume if resume and _exists(client, resume) else None
    if run_id is None:
        tags = {**_origin_tags(), **tags, "machine": machine()}
        run = client.create_run(experiment, run_name=name or _run_name(), tags=tags)
        run_id = run.info.run_id
        _log_params(client, run_id, params)
    else:
        client.update_run(run_id, status="RUNNING")
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def evaluation_run(trained_by: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """The id of the run that an evaluation under `params` belongs to.

    This is the training's own run if it has no evaluation yet or one under the same parameters, else a child of it. If
    the store does not know the training's run (the model came from DVC's cache), a new run takes its place.
    """
    client, experiment = connect()
    mark = repr(sorted(params.items()))
    if not _exists(client, trained_by):
        trained_by = _stand_in(client, experiment, trained_by, tags)
    parent = client.get_run(trained_by)
    if parent.data.tags.get(_EVALUATED, mark) == mark:
        for key, value in {_EVALUATED: mark, **tags}.items():
            if key not in parent.data.tags:  # a training has set them; a converted model has not
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
        tags={**tags, **_origin_tags(), "mlflow.parentRunId": trained_by, _EVALUATED: mark},
    )
    _log_params(client, child.info.run_id, {**parent.data.params, **params})
    client.set_terminated(child.info.run_id)
    return child.info.run_id


def _stand_in(client: mlflow.MlflowClient, experiment: str, trained_by: str, tags: Mapping[str, str]) -> str:
    """The id of the run that stands for one that the store does not know; it is made at the first call."""
    known = client.search_runs([experiment], f"tags.{_RESTORED} = '{trained_by}'")
    if known:
        return known[0].info.run_id
    tags = {**tags, **_origin_tags(), _RESTORED: trained_by}
    run = client.create_run(experiment, run_name=_run_name(), tags=tags)
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _exists(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


# ---- adding to runs ------------------------------------------------------------------------------------------------


def log_metrics(run_id: str, metrics: Mapping[str, object], step: int = 0) -> None:
    """Log the numbers of a nested mapping under dotted names; other values (None, text) are left out."""
    client, _ = connect()
    now = int(pd.Timestamp.now().timestamp() * 1000)
    numbers = [mlflow.entities.Metric(_key(name), float(value), now, step) for name, value in _numbers("", metrics)]
    for start in range(0, len(numbers), 1000):  # the store's limit for one call
        client.log_batch(run_id, metrics=numbers[start : start + 1000])


def log_missing_epochs(run_id: str, history: list[dict]) -> None:
    """Log the epochs of `history` that the run lacks: a training can be killed between its checkpoint and its log."""
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


def _log_params(client: mlflow.MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    client.log_batch(run_id, params=[mlflow.entities.Param(_key(k), str(v)) for k, v in params.items()])


def _key(name: str) -> str:
    """The name of a metric or parameter, with a _ for each character that MLflow refuses."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def _numbers(prefix: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield prefix, value


# ---- finding runs --------------------------------------------------------------------------------------------------


def find_runs(reference: str) -> list[mlflow.entities.RunInfo]:
    """The runs with this name, this id, or an id that begins so (4 characters or more); newest first."""
    if re.fullmatch("[0-9a-f]{32}", reference) and (runs := _find(f"attributes.run_id = '{reference}'")):
        return runs
    quote = '"' if "'" in reference else "'"
    quotable = quote not in reference
    found = _find(f"attributes.run_name = {quote}{reference}{quote}") if quotable else []
    if re.fullmatch("[0-9a-f]{4,31}", reference):
        by_id = _find(f"attributes.run_id LIKE '{reference}%'")
        found += [run for run in by_id if run.run_id not in {other.run_id for other in found}]
    return found


def one_run(reference: str) -> mlflow.entities.RunInfo:
    """The one run that `find_runs` finds; UserError if it finds none or several."""
    found = find_runs(reference)
    if not found:
        newest = ", ".join(dict.fromkeys(run.run_name for run in recent_runs(5))) or "none"
        raise UserError(f"{reference!r} is no file, no folder and no MLflow run; the newest runs are {newest}")
    if len(found) > 1:
        listed = ", ".join(run.run_id for run in found[:5])
        raise UserError(f"{reference!r} may mean {len(found)} MLflow runs, name one of them: {listed}")
    return found[0]


def recent_runs(limit: int) -> list[mlflow.entities.RunInfo]:
    """The `limit` newest runs, newest first."""
    return _find("", limit)


def all_runs() -> list[mlflow.entities.Run]:
    """Every run with its parameters, its tags and the last value of each metric, newest first."""
    return _search("", 50_000)  # the most that MLflow returns at once


def _find(condition: str, limit: int = 1000) -> list[mlflow.entities.RunInfo]:
    return [run.info for run in _search(condition, limit)]


def _search(condition: str, limit: int) -> list[mlflow.entities.Run]:
    """Runs of the experiment, newest first. Without a store there are none, and none is made."""
    if not has_store():
        return []
    client, experiment = connect()
    try:
        return list(client.search_runs([experiment], condition, max_results=limit))
    except MlflowException as error:  # a server that no longer answers, a condition that it refuses
        raise UserError(f"MLflow: cannot look for runs ({first_line(error)})") from None


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
            raise UserError(f"MLflow run {run_id}: has no artifact {path}; name a run that was evaluated") from None


# ---- where a run comes from ----------------------------------------------------------------------------------------


def origin() -> dict[str, object]:
    """Where the code comes from: commit ("" without git), uncommitted (bool: changes), experiment (DVC's, or "")."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "-uno", "--", ":/", *RESULTS)),
        "experiment": _experiment_name() or "",
    }


def _origin_tags() -> dict[str, str]:
    """The tags that lead from a run back to its code: the commit, whether it was clean, the DVC experiment."""
    code = origin()
    tags = {"mlflow.source.type": "PROJECT", "mlflow.source.name": "dvc repro"}
    if code["commit"]:
        tags |= {"mlflow.source.git.commit": code["commit"], "git.dirty": str(code["uncommitted"]).lower()}
    if code["experiment"]:
        tags["dvc.experiment"] = code["experiment"]
    return tags


def _run_name() -> str:
    return _experiment_name() or f"workspace-{_git('rev-parse', '--short', 'HEAD') or 'no-commit'}"


def _experiment_name() -> str | None:
    return environ.get("DVC_EXP_NAME")


def _git(*arguments: str) -> str:
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def machine(proc: Path = Path("/proc")) -> str:
    """The processor's name and its fastest vector instructions, then the NVIDIA GPUs, from Linux's /proc."""

    def read(file: Path) -> dict[str, str]:
        with contextlib.suppress(OSError):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = (line.partition(":") for line in reversed(lines))  # reversed: the first of many cores counts
            return {key.strip(): value.strip() for key, _, value in pairs}
        return {}

    processor = read(proc / "cpuinfo")
    name = processor.get("model name") or platform.processor() or platform.machine()
    flags = (processor.get("flags") or processor.get("Features", "")).split()  # on x86, on ARM
    vectors = next((words for flag, words in VECTORS.items() if flag in flags), "")
    cards = [read(file).get("Model", "NVIDIA GPU") for file in sorted(proc.glob("driver/nvidia/gpus/*/information"))]
    return ", ".join([f"{name} ({vectors})" if vectors else name, *cards])
