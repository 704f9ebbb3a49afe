"""The ablation of the training recipe: one queued DVC experiment a row and seed, then a table of what came out.

    python -m benchmarks.recipes queue --data A B C --extra D --seeds 1 2 3 -S evaluate.stress_images=0
    dvc queue start && dvc queue logs ...        (or --run, which runs them one after the other)
    python -m benchmarks.recipes table           writes results.json, table.md and docs/recipes.png

A row's figures are those of the MLflow runs that bear its name, alone (as a recipe run by name has it) or with
a number behind it. The row with the lowest validation loss, on validation images as they are and damaged, heads
results.json; test figures stand beside it and choose nothing.
"""

import argparse
import io
import json
import os
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detector.errors import UserError, exit_on_user_error
from detector.evaluation.bootstrap import bootstrap
from detector.experiments import recipes
from detector.files import write_json
from detector.metrics import METRICS, Metric, score
from detector.params import flatten, load_params, parse_yaml, read_yaml
from detector.paths import project_root
from detector.tracking import runs

HERE = Path(__file__).resolve().parent
IN_TABLE = tuple(METRICS[name] for name in ("auc", "accuracy"))  # results.json has every metric
# What the rows of one table have in common, where no recipe says it.
COMMON = ("data.", "train.source_weights", "evaluate.calibration.", "evaluate.extra_sets")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    queue = actions.add_parser("queue", help="queue the experiments")
    queue.add_argument("--data", nargs="+", required=True, help="folders or archives to train on, or kaggle")
    queue.add_argument("--extra", nargs="*", default=[], help="further test sets, never trained on")
    queue.add_argument("--seeds", nargs="+", type=int, default=[1])
    queue.add_argument("--rows", nargs="+", help="some of the rows alone")
    queue.add_argument("--run", action="store_true", help="run each now instead of queueing it")
    queue.add_argument("--prefix", default="", help="before the names of the experiments")
    table = actions.add_parser("table", help="collect what the runs gave")
    table.add_argument("--prefix", default="", help="of the runs' names, as given to queue by --prefix")
    table.add_argument("--store", type=Path, help="another clone, in whose MLflow store the runs lie")
    for action in (queue, table):
        action.add_argument(
            "-S", dest="common", action="append", default=[], help="a parameter of all rows, as in dvc exp run"
        )
    options = parser.parse_args()
    if options.action == "queue":
        failed = 0
        for command in commands(options):
            print(shlex.join(command), flush=True)
            failed += subprocess.run(command, check=False).returncode != 0
        if failed:
            raise UserError(f"{failed} of the experiments failed; what they say stands above")
        return
    if options.store:
        store = options.store.resolve() / "mlruns" / "mlflow.db"
        if not store.is_file():
            raise UserError(f"--store: {store} is not there; name the root of a clone that has runs")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
    write_table(options.prefix, options.common)


def all_rows() -> dict[str, dict[str, object]]:
    """The parameters of every row: those of its recipe, and what it changes in them."""
    table = read_yaml(HERE / "recipes.yaml")
    rows = {}
    for row, changes in table["rows"].items():
        own = {key: value for key, value in changes.items() if key != "base"}
        rows[row] = {**recipes.read(changes.get("base", table["base"])), **own}
    return rows


def commands(options: argparse.Namespace) -> list[list[str]]:
    """The `dvc exp run` of every row and seed."""
    table = all_rows()
    rows = options.rows or list(table)
    if unknown := sorted(set(rows) - set(table)):
        raise UserError(f"--rows: {unknown[0]} is none of {', '.join(table)}")
    data = {**recipes.of_data(options.data), "evaluate.extra_sets": options.extra}
    found = []
    for seed in options.seeds:
        for row in rows:
            how = ["--temp"] if options.run else ["--queue"]  # either leaves params.yaml alone
            found.append(
                ["dvc", "exp", "run", *how, "-f", "-n", f"{options.prefix}{row}-{seed}"]
                + recipes.overrides({**data, **table[row], "seed": seed})
                + [part for setting in options.common for part in ("-S", setting)]
            )
    return found


def write_table(prefix: str, common: list[str]) -> None:
    """results.json, table.md and the picture, from the newest run of each row and seed.

    Args:
        common: key=value of what was queued with -S in place of what the recipes say; the rest need not be repeated.
    """
    instead = dict(recipes.setting(text) for text in common)
    rows = {
        row: {**settings, **{key: instead[key] for key in settings.keys() & instead.keys()}}
        for row, settings in all_rows().items()
    }
    everything = {run.info.run_id: run for run in runs.all_runs()}  # the newest first
    found = runs_of_rows(everything.values(), rows, prefix)
    table = {}
    for row in (row for row in rows if found[row]):
        of_row = [found[row][seed] for seed in sorted(found[row])]
        table[row] = {
            "seeds": sorted(found[row]),
            "command": command_of(of_row[0], row, sorted(found[row])),
            "runs": [origin(run, everything.get(run.data.tags.get("mlflow.parentRunId"), run)) for run in of_row],
            **summary([outcome(run, intervals=len(of_row) == 1) for run in of_row]),
        }
    best = chosen(table)
    run = found[best][table[best]["seeds"][0]]
    head = {
        "test_sets": {
            name: {figure: values[figure]["mean"] for figure in METRICS}
            for name, values in table[best]["test_sets"].items()
        },
        "row": best,
        "seeds": table[best]["seeds"],
        "commit": table[best]["runs"][0]["commit"],
        "image_size": _parameter(run, "model.image_size"),
        "epochs": _parameter(run, "train.epochs"),
        "backend": run.data.tags.get("backend", ""),
        "command": table[best]["command"],
    }
    picture = project_root() / "docs" / "recipes.png"
    drawn(table, best).savefig(picture, dpi=130)
    (HERE / "table.md").write_text(markdown(table))
    write_json(HERE / "results.json", {**head, "ablation": table})
    print(markdown(table))
    print(f"{HERE / 'results.json'}, {HERE / 'table.md'}, {picture}")


def runs_of_rows(newest_first: Iterable, rows: Mapping[str, Mapping], prefix: str) -> dict[str, dict[int, object]]:
    """row -> seed -> its newest run; a run of a row's name with other parameters is left out and named.

    Raises:
        UserError: no run is left.
    """
    found: dict[str, dict[int, object]] = defaultdict(dict)
    pinned = {key for settings in rows.values() for key in settings}
    newest, left_out = None, {}
    for run in newest_first:
        name = run.info.run_name
        row = name.removeprefix(prefix)
        row = row if row in rows else re.sub(r"-\d+$", "", row)
        if not name.startswith(prefix) or row not in rows or "test.auc" not in run.data.metrics:
            continue
        other = [key for key, value in rows[row].items() if _parameter(run, key) != value]
        if not other:
            newest = newest or run
            other = sorted(key for key in differing(run, newest) if key.startswith(COMMON) and key not in pinned)
        if other:
            left_out[name] = other
        else:
            found[row].setdefault(_parameter(run, "seed"), run)
    for name, keys in sorted(left_out.items()):
        print(f"left out: {name}, which differs from its recipe and -S, or from the newest run, in {', '.join(keys)}")
    if not found:
        raise UserError("no run of the ablation is in MLflow; run `python -m benchmarks.recipes queue --run ...` first")
    return found


def differing(run, other) -> set[str]:
    """The parameters that are not the same in two runs."""
    return {key for key, _ in run.data.params.items() ^ other.data.params.items()}


def _parameter(run, key: str) -> object:
    text = run.data.params.get(key)
    return None if text in (None, "None") else parse_yaml(text)


def chosen(table: dict[str, dict]) -> str:
    """The row that validation shows to be the best."""
    return min(table, key=lambda row: table[row]["validation_loss"]["mean"])


def command_of(run, row: str, seeds: list[int]) -> str:
    """What gives such runs again; the data by the names of their folders."""
    params, settings = run.data.params, all_rows()[row]
    paths = _parameter(run, "data.path") or params["data.source"]
    data = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
    extra = [key.removeprefix("evaluate.extra_sets.") for key in params if key.startswith("evaluate.extra_sets.")]
    given = {"data.source", "data.path", "evaluate.extra_sets", "seed"}
    common = {key: params[key] for key, value in settings.items() if _parameter(run, key) != value}
    for key, default in flatten(load_params(project_root() / "params.yaml")).items():
        inner = {name.removeprefix(f"{key}."): value for name, value in params.items() if name.startswith(f"{key}.")}
        value = "{" + ",".join(f"{name}:{part}" for name, part in inner.items()) + "}" if inner else params.get(key)
        if key not in given | settings.keys() and value not in (None, str(default)):
            common[key] = value
    if "model.weights" in common:
        common["model.weights"] = Path(common["model.weights"]).name
    words = ["python", "-m", "benchmarks.recipes", "queue", "--run", "--rows", row, "--seeds", *map(str, seeds)]
    words += ["--data", *data, *(["--extra", *extra] if extra else [])]
    return shlex.join([*words, *(part for key in sorted(common) for part in ("-S", f"{key}={common[key]}"))])


def origin(run, trained_by) -> dict[str, object]:
    """What went into a run.

    Args:
        trained_by: the run that trained its model, itself unless another evaluation had been first.

    Returns:
        seed; run (its name); images_seen in training, each as often as it came; image_sizes, in pixels, in their order;
        machine; commit.
    """

    def read(name: str) -> dict:
        return json.loads(runs.read_artifact(trained_by.info.run_id, f"metrics/{name}"))

    images, batch_size = sum(read("data.json")["counts"]["train"].values()), _parameter(run, "train.batch_size")
    batch_size = min(batch_size, images)
    sizes = [_parameter(run, key) for key in ("train.progressive.image_size", "model.image_size")]
    return {
        "seed": _parameter(run, "seed"),
        "run": run.info.run_name,
        "images_seen": read("train.json")["epochs"] * (images // batch_size) * batch_size,
        "image_sizes": [size for size in sizes if size],
        "machine": trained_by.data.tags.get("machine", ""),
        "commit": trained_by.data.tags.get("mlflow.source.git.commit", ""),
    }


def outcome(run, intervals: bool) -> dict:
    """Validation loss, and the figures of each test set: a source of the test split, or a further set.

    Args:
        intervals: whether each figure comes with its 95 % interval from resampling the groups of the test images.
    """

    def read(name: str) -> bytes:
        return runs.read_artifact(run.info.run_id, f"metrics/{name}")

    evaluation = json.loads(read("evaluate.json"))
    attributes = pd.read_csv(io.BytesIO(read("by_attribute.csv")), dtype=str)
    images = pd.read_csv(io.BytesIO(read("predictions.csv")), dtype={"path": str, "set": str, "group": str})
    sets = dict(tuple(images.groupby("set", sort=False)))
    sources = attributes.loc[(attributes["set"] == "test") & (attributes["attribute"] == "source"), "value"]
    if len(sources):  # whose name each path begins with
        test = sets.pop("test")
        sets = {name: test[test["path"].str.startswith(f"{name}/")] for name in sources} | sets
    found = {}
    for name, rows in sets.items():
        threshold = evaluation[rows["set"].iloc[0]]["threshold"]
        labels, p_fake, groups = rows["label"].to_numpy(), rows["p_fake"].to_numpy(), rows["group"].tolist()
        values = score(labels, p_fake, threshold)
        spread = {}
        if intervals:
            resamples, seed = _parameter(run, "evaluate.bootstrap"), _parameter(run, "seed")
            spread = bootstrap(labels, p_fake, groups, threshold, n=resamples, seed=seed)
        unknown = {"low": None, "high": None}
        found[name] = {figure: {"mean": values[figure], **(spread.get(figure) or unknown)} for figure in METRICS}
    return {"validation_loss": json.loads(read("calibration.json"))["chosen_on"]["loss"], "test_sets": found}


def summary(outcomes: list[dict]) -> dict:
    """Mean over the seeds, with the 95 % interval of the mean (Student's t); of one seed what `outcome` says."""
    sets = outcomes[0]["test_sets"]
    if len(outcomes) > 1:

        def mean(name: str, figure: str) -> dict[str, float | None]:
            return _mean([found["test_sets"][name][figure]["mean"] for found in outcomes])

        sets = {name: {figure: mean(name, figure) for figure in METRICS} for name in sets}
    return {"validation_loss": _mean([found["validation_loss"] for found in outcomes]), "test_sets": sets}


def _mean(values: list[float | None]) -> dict[str, float | None]:
    from scipy.stats import t

    if None in values:  # there is no AUC of one class
        return {"mean": None, "low": None, "high": None}
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def markdown(table: dict[str, dict]) -> str:
    """One row a recipe: seeds, validation loss, then AUC and accuracy of every test set with their intervals."""
    names = list(next(iter(table.values()))["test_sets"])
    titles = ", ".join(metric.title for metric in IN_TABLE)
    lines = ["| row | seeds | validation loss | " + " | ".join(f"{name}: {titles}" for name in names) + " |"]
    lines += ["|" + " --- |" * (len(names) + 3)]
    for row, values in table.items():
        cells = [", ".join(map(str, values["seeds"])), f"{values['validation_loss']['mean']:.3f}"]
        for name in names:
            figures = values["test_sets"][name]
            cells.append(", ".join(_with_interval(metric, figures[metric.name]) for metric in IN_TABLE))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(metric: Metric, value: dict[str, float | None]) -> str:
    interval = "" if value["low"] is None else f" ({metric.between(value['low'], value['high'])})"
    return metric.text(value["mean"], "none") + interval


def drawn(table: dict[str, dict], row: str) -> Figure:
    """AUC of every row with its interval, a panel a test set, the first as a line; `row` in another colour."""
    names, rows = list(next(iter(table.values()))["test_sets"]), list(table)
    figure = Figure(figsize=(3 * len(names) + 1.5, 0.32 * len(rows) + 2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharex=True, sharey=True))
    for panel, name in zip(panels, names, strict=True):
        values = [table[row]["test_sets"][name]["auc"] for row in rows]
        for place, value in enumerate(values):
            if value["low"] is not None:
                panel.plot([value["low"], value["high"]], [place, place], color="0.6", linewidth=3)
            if value["mean"] is not None:
                panel.plot(value["mean"], place, "o", color="tab:orange" if rows[place] == row else "tab:blue")
        if values[0]["mean"] is not None:
            panel.axvline(values[0]["mean"], color="0.8", linewidth=1, zorder=0)
        panel.set(title=name, xlabel="test AUC", yticks=range(len(rows)), yticklabels=rows)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    known = {
        "lowest validation loss": Line2D([], [], marker="o", linestyle="", color="tab:orange"),
        "the other rows": Line2D([], [], marker="o", linestyle="", color="tab:blue"),
        f"AUC of {rows[0]}": Line2D([], [], color="0.8", linewidth=1),
    }
    if any(table[row]["test_sets"][name]["auc"]["low"] is not None for row in rows for name in names):
        known["95 % interval"] = Line2D([], [], color="0.6", linewidth=3)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    exit_on_user_error(main)
