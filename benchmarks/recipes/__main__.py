"""The ablation of the training recipe: one queued DVC experiment a row and seed, then a table of what came out.

    python -m benchmarks.recipes queue --data A B C --extra D --seeds 1 2 3 -S model.image_size=256 -S train.epochs=20
    dvc queue start && dvc queue logs ...        (or --run, which runs them one after the other)
    python -m benchmarks.recipes table           writes results.json, table.md and docs/recipes.png

A row's figures are those of its MLflow runs, by name: <row>-<seed>. The one with the lowest validation loss, on
validation images as they are and damaged, heads results.json; test figures stand beside it and choose nothing.
"""

import argparse
import io
import json
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from detector import tracking
from detector.errors import UserError, exit_on_user_error
from detector.params import flatten, load_params
from detector.paths import project_root
from detector.results import write_json
from detector.scoring import POOLED

HERE = Path(__file__).resolve().parent
FIGURES = ("auc", "accuracy", "ece", "false_accusation_rate")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    queue = actions.add_parser("queue", help="queue the experiments")
    queue.add_argument("--data", nargs="+", required=True, help="folders or archives to train on")
    queue.add_argument("--extra", nargs="*", default=[], help="further test sets, never trained on")
    queue.add_argument("--seeds", nargs="+", type=int, default=[1])
    queue.add_argument("--rows", nargs="+", help="some of the rows alone")
    queue.add_argument("--run", action="store_true", help="run each now instead of queueing it")
    table = actions.add_parser("table", help="collect what the runs gave")
    table.add_argument("--prefix", default="", help="of the runs' names, as given to queue by --prefix")
    queue.add_argument("--prefix", default="", help="before the names of the experiments")
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
    else:
        write_table(options.prefix, options.common)


def commands(options: argparse.Namespace) -> list[list[str]]:
    """The `dvc exp run` of every row and seed."""
    recipes = yaml.safe_load((HERE / "recipes.yaml").read_text())
    rows = options.rows or list(recipes["rows"])
    if unknown := sorted(set(rows) - set(recipes["rows"])):
        raise UserError(f"--rows: {unknown[0]} is none of {', '.join(recipes['rows'])}")
    data = {"data.path": options.data, "evaluate.extra_sets": options.extra}
    found = []
    for seed in options.seeds:
        for row in rows:
            changes = {**recipes["base"], **data, **recipes["rows"][row], "seed": seed}
            settings = [f"{key}={_hydra(value)}" for key, value in changes.items()] + options.common
            how = ["--temp"] if options.run else ["--queue"]  # either leaves params.yaml alone
            found.append(
                ["dvc", "exp", "run", *how, "-f", "-n", f"{options.prefix}{row}-{seed}"]
                + [part for setting in settings for part in ("-S", setting)]
            )
    return found


def _hydra(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)


def write_table(prefix: str, common: list[str]) -> None:
    """results.json, table.md and the picture, from the newest run of each row and seed.

    Args:
        common: key=value of what was queued with -S in place of what recipes.yaml says; the rest need not be repeated.
    """
    recipes = yaml.safe_load((HERE / "recipes.yaml").read_text())
    rows = list(recipes["rows"])
    instead = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in common)}
    runs: dict[str, dict[int, object]] = defaultdict(dict)
    setting, other = None, set()
    for run in tracking.all_runs():  # the newest first
        row, _, seed = run.info.run_name.removeprefix(prefix).rpartition("-")
        if run.info.run_name.startswith(prefix) and row in rows and seed.isdigit() and "test.auc" in run.data.metrics:
            settings = {**recipes["base"], **recipes["rows"][row]}
            if not follows(run, {**settings, **{key: instead[key] for key in settings.keys() & instead.keys()}}):
                other.add(run.info.run_name)
                continue
            setting = setting or compared_under(run)
            if compared_under(run) == setting:
                runs[row].setdefault(int(seed), run)
            else:
                other.add(run.info.run_name)
    if other:
        print(
            "left out, as not what recipes.yaml and -S say, or of other data, image size, initial weights or epochs "
            f"than the newest run: {', '.join(sorted(other))}"
        )
    if not runs:
        raise UserError("no run of the ablation is in MLflow; run `python -m benchmarks.recipes queue --run ...` first")
    found = {row: {seed: outcome(run) for seed, run in sorted(runs[row].items())} for row in rows if runs[row]}
    table = {row: summary(list(outcomes.values())) for row, outcomes in found.items()}
    (HERE / "table.md").write_text(markdown(table))
    row = chosen(table)
    picture = project_root() / "docs" / "recipes.png"
    drawn(table, row).savefig(picture, dpi=130)
    run = next(iter(runs[row].values()))
    final = {
        "test_sets": {
            name: {figure: values[figure]["mean"] for figure in FIGURES}
            for name, values in table[row]["test_sets"].items()
        },
        "row": row,
        "seeds": sorted(runs[row]),
        "commit": run.data.tags.get("mlflow.source.git.commit", ""),
        "image_size": int(run.data.params["model.image_size"]),
        "epochs": int(run.data.params["train.epochs"]),
        "backend": run.data.tags.get("backend", ""),
        "command": command_of(run, row, sorted(runs[row])),
    }
    ablation = {row: {"seeds": sorted(runs[row]), **values} for row, values in table.items()}
    write_json(HERE / "results.json", {**final, "ablation": ablation})
    print(markdown(table))
    print(f"{HERE / 'results.json'}, {HERE / 'table.md'}, {picture}")


def follows(run, settings: dict[str, object]) -> bool:
    """Whether the run was made with these parameters."""
    return all(_parameter(run, key) == value for key, value in settings.items())


def _parameter(run, key: str) -> object:
    text = run.data.params.get(key)
    return None if text in (None, "None") else yaml.safe_load(text)


def compared_under(run) -> dict[str, str]:
    """What the rows of one table have in common."""
    of_all = ("data.", "model.image_size", "model.weights", "train.epochs", "train.source_weights")
    of_all += ("evaluate.extra_sets",)
    return {key: value for key, value in run.data.params.items() if key.startswith(of_all)}


def chosen(table: dict[str, dict]) -> str:
    """The row with the lowest validation loss; the first of several."""
    return min(table, key=lambda row: table[row]["validation_loss"]["mean"])


def command_of(run, row: str, seeds: list[int]) -> str:
    """What gives such a run again; the data by the names of their folders."""
    params = run.data.params
    names = [Path(path).name for path in yaml.safe_load(params["data.path"])]
    extra = [key.removeprefix("evaluate.extra_sets.") for key in params if key.startswith("evaluate.extra_sets.")]
    recipes = yaml.safe_load((HERE / "recipes.yaml").read_text())
    own = {*recipes["base"], *recipes["rows"][row], "data.path", "evaluate.extra_sets", "seed", "model.weights"}
    shipped = {key: str(value) for key, value in flatten(load_params(project_root() / "params.yaml")).items()}
    settings = {**recipes["base"], **recipes["rows"][row]}
    other = (key for key, value in settings.items() if _parameter(run, key) != value)
    common = [f"-S {shlex.quote(f'{key}={params[key]}')}" for key in other]
    for key in shipped.keys() - own:
        inner = {name.removeprefix(f"{key}."): value for name, value in params.items() if name.startswith(f"{key}.")}
        value = "{" + ",".join(f"{name}:{part}" for name, part in inner.items()) + "}" if inner else params.get(key)
        if value not in (None, shipped[key]):
            common.append(f"-S {shlex.quote(f'{key}={value}')}")
    if shipped["model.weights"] != params["model.weights"]:
        common.append(f"-S model.weights={Path(params['model.weights']).name}")
    return (
        f"python -m benchmarks.recipes queue --run --rows {row} --seeds {' '.join(map(str, seeds))} "
        f"--data {' '.join(names)} --extra {' '.join(extra)} {' '.join(sorted(common))}"
    )


def outcome(run) -> dict:
    """Validation loss, and the figures of each test set: a source of the test split, or a further set."""

    def read(name: str) -> bytes:
        return tracking.read_artifact(run.info.run_id, f"metrics/{name}")

    evaluation = json.loads(read("evaluate.json"))
    attributes = pd.read_csv(io.BytesIO(read("by_attribute.csv")))
    sources = attributes[(attributes["set"] == "test") & (attributes["attribute"] == "source")]
    sets = {row["value"]: row for row in sources.to_dict("records")} or {"test": evaluation["test"]}
    sets |= {name: values for name, values in evaluation.items() if name not in ("test", POOLED)}
    sets = {name: {figure: values[figure] for figure in FIGURES} for name, values in sets.items()}
    return {"validation_loss": json.loads(read("calibration.json"))["chosen_on"]["loss"], "test_sets": sets}


def summary(outcomes: list[dict]) -> dict:
    """Mean over the seeds and, of two or more, the 95 % interval of the mean (Student's t)."""
    names = list(outcomes[0]["test_sets"])
    return {
        "validation_loss": _mean([found["validation_loss"] for found in outcomes]),
        "test_sets": {
            name: {figure: _mean([found["test_sets"][name][figure] for found in outcomes]) for figure in FIGURES}
            for name in names
        },
    }


def _mean(values: list[float]) -> dict[str, float | None]:
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def markdown(table: dict[str, dict]) -> str:
    """One row a recipe: validation loss, then AUC / accuracy of every test set."""
    names = list(next(iter(table.values()))["test_sets"])
    lines = ["| row | validation loss | " + " | ".join(names) + " |", "| --- |" + " --- |" * (len(names) + 1)]
    for row, values in table.items():
        cells = [f"{values['validation_loss']['mean']:.3f}"]
        for name in names:
            auc, accuracy = (values["test_sets"][name][figure] for figure in ("auc", "accuracy"))
            spread = "" if auc["low"] is None else f" ± {auc['high'] - auc['mean']:.3f}"
            cells.append(f"{auc['mean']:.3f}{spread} / {accuracy['mean']:.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def drawn(table: dict[str, dict], row: str) -> Figure:
    """AUC of every row, a panel a test set, the first as a line; `row` in another colour."""
    names, rows = list(next(iter(table.values()))["test_sets"]), list(table)
    figure = Figure(figsize=(3 * len(names) + 1.5, 0.32 * len(rows) + 1.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharex=True, sharey=True))
    for panel, name in zip(panels, names, strict=True):
        values = [table[row]["test_sets"][name]["auc"] for row in rows]
        for place, value in enumerate(values):
            if value["low"] is not None:
                panel.plot([value["low"], value["high"]], [place, place], color="0.6", linewidth=3)
            panel.plot(value["mean"], place, "o", color="tab:orange" if rows[place] == row else "tab:blue")
        panel.axvline(values[0]["mean"], color="0.8", linewidth=1, zorder=0)
        panel.set(title=name, xlabel="test AUC", yticks=range(len(rows)), yticklabels=rows)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure


if __name__ == "__main__":
    exit_on_user_error(main)
