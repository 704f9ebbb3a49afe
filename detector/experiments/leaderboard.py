"""All evaluated runs side by side: `python -m detector leaderboard`.

One row a run, read from MLflow: its metrics on one test set, its lowest AUC on the others, its size and its speed.
Metrics on different data are not comparable, so only runs on the same data are shown unless all are asked for.

The interval covers the choice of test images. Which of two runs is better is a question for
`detector.experiments.compare`: on the same images two runs can differ significantly though their intervals overlap.
"""

import argparse
import csv
import io
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from detector.data.split_names import POOLED
from detector.errors import UserError
from detector.experiments.tables import aligned
from detector.metrics import HEADLINES, METRICS, check_metric

if TYPE_CHECKING:
    from mlflow.entities import Run

Row = dict[str, str | float | int | None]

COSTS = {  # column -> what is logged of a model's size and speed
    "parameters": "size.parameters",
    "megabytes": "size.megabytes",
    "training_images_per_second": "speed.training_images_per_second",
    "scoring_images_per_second": "speed.scoring_images_per_second",
}
SORTABLE_TOO = ("worst_auc", *COSTS)  # beside the metrics
FLUSH_LEFT = (0, 1, 2)  # columns

HELP = """\
List the evaluated runs, newest first: one row a run, with its metrics, its size and its speed.

RUN is a run's name, a pattern as in 'sweep-*', or the beginning of its id; without one, all runs are meant. The runs
that used the same data as the newest of them are listed; those on other data are counted.
"""
EPILOG = f"""\
{textwrap.fill("metrics: " + ", ".join(METRICS), 120, subsequent_indent=" " * 9)}
--sort also takes {", ".join(SORTABLE_TOO)}

worst elsewhere is the lowest AUC on any other test set. The interval covers the choice of test images and not the
randomness of training; for a verdict on two runs use python -m detector compare RUN_A RUN_B. Speeds are those of the
machine that evaluated or trained the run: compare them within one machine.

examples:
  python -m detector leaderboard --sort auc                                best first
  python -m detector leaderboard 'backbones-*' --png metrics/leaderboard.png
  python -m detector leaderboard --set test_perturbed --metric auc --markdown
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m detector leaderboard",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", help="only these runs")
    parser.add_argument("--set", default="test", metavar="NAME", help="the test set (default: test)")
    parser.add_argument(
        "--metric", default="accuracy", metavar="NAME", help="shown with its interval and drawn (default: accuracy)"
    )
    parser.add_argument("--sort", metavar="NAME", help="the best first by this (default: the newest first)")
    parser.add_argument("--all", action="store_true", help="runs on other data, too")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV: every metric, ids, dates")
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the metric against speed and size")
    arguments = parser.parse_args()
    check_metric("--metric", arguments.metric)
    if arguments.sort is not None:
        check_metric("--sort", arguments.sort, SORTABLE_TOO)

    from detector.tracking import runs  # seconds

    rows, notes = leaderboard(runs.all_runs(), arguments.set, arguments.metric, arguments.runs, arguments.all)
    if arguments.sort:
        rows = best_first(rows, arguments.sort)
    if arguments.png:
        draw(rows, arguments.metric, arguments.png)
    form = as_csv if arguments.csv else as_markdown if arguments.markdown else as_text
    print(form(rows, arguments.metric))
    for note in notes:
        print(f"Note: {note}.", file=sys.stderr if arguments.csv or arguments.markdown else sys.stdout)


def leaderboard(
    runs: Sequence["Run"], test_set: str, metric: str, wanted: Sequence[str] = (), all_data: bool = False
) -> tuple[list[Row], list[str]]:
    """A row for every run that scored `test_set`, newest first, and notes about them, each a sentence.

    Args:
        runs: newest first, as `runs.all_runs`.
        metric: the one with an interval.
        wanted: names, patterns of names or beginnings of ids; none for all.
        all_data: also those on other data than the newest run in question.

    Returns:
        rows, None where nothing was logged: run, run_id, started (UTC), evaluates (of a re-evaluation the name of the
        run that trained its model), backbone, weights, image_size, data (digest), set, images, `METRICS`,
        <metric>_low, <metric>_high, worst_set and worst_auc (of the other test sets), and the keys of `COSTS`.

    Raises:
        UserError: no run is left.
    """
    scored = {run.info.run_id: _test_sets(run.data.metrics) for run in runs}
    evaluated = _wanted(runs, scored, wanted)
    on_set = [run for run in evaluated if test_set in scored[run.info.run_id]]
    if not on_set:
        names = sorted({name for run in evaluated for name in scored[run.info.run_id]})
        raise UserError(f"--set: no run has scored {test_set!r}; there are {', '.join(names)}")

    by_id = {run.info.run_id: run for run in runs}
    rows = [_row(run, by_id, test_set, metric, scored[run.info.run_id]) for run in on_set]
    shown = [row for row in rows if all_data or row["data"] == rows[0]["data"]]
    notes = []
    if others := len(rows) - len(shown):
        hidden = f"{others} runs" if others > 1 else "1 run"
        notes.append(f"{hidden} on other data left out, since their figures cannot be compared; --all shows them")
    if len({row["data"] for row in shown}) > 1:
        notes.append("these runs are not on the same data (column data): their figures cannot be compared")
    elif len({row["images"] for row in shown}) > 1:
        notes.append(f"{test_set} did not have the same number of images in all runs")
    if lacking := len(evaluated) - len(on_set):
        notes.append(f"left out for want of {test_set}: {lacking} of {len(evaluated)} evaluated runs")
    return shown, notes


def _wanted(runs: Sequence["Run"], scored: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> list["Run"]:
    """Those of the runs that have scored a test set and that a pattern of `wanted` (if there is any) means."""
    if not runs:
        raise UserError("MLflow: there are no runs yet; `dvc repro` trains and evaluates one")
    evaluated = [run for run in runs if scored[run.info.run_id]]
    if not evaluated:
        raise UserError("MLflow: no run has been evaluated yet; let `dvc repro` run to its end")
    for pattern in wanted:
        if not any(_matches(run, pattern) for run in evaluated):
            names = ", ".join(list(dict.fromkeys(run.info.run_name for run in evaluated))[:8])
            raise UserError(f"RUN: no evaluated run is called {pattern!r}; the newest are {names}")
    return [run for run in evaluated if not wanted or any(_matches(run, pattern) for pattern in wanted)]


def best_first(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows by a metric or one of `SORTABLE_TOO`, the best first, equal ones in order, those without it last."""
    lower_is_better = METRICS[key].lower_is_better if key in METRICS else key in ("parameters", "megabytes")
    sign = 1 if lower_is_better else -1
    return sorted(rows, key=lambda row: (row[key] is None, sign * (row[key] or 0)))


def draw(rows: Sequence[Row], metric: str, path: Path) -> None:
    """The metric over the scoring speed as a PNG; named by backbone, or by run where several share one."""
    from detector.reporting import figures

    backbones = [row["backbone"] for row in rows if row["scoring_images_per_second"]]  # of the dots
    subtitle = f"On {rows[0]['set']}, {rows[0]['images']:,} images, bars: 95 % intervals. "
    if len({(row["data"], row["images"]) for row in rows}) > 1:
        subtitle = f"On {rows[0]['set']}, NOT the same images in every run. Bars: 95 % intervals. "
    points = [
        {
            "label": row["backbone"] if row["backbone"] and backbones.count(row["backbone"]) == 1 else row["run"],
            "value": row[metric],
            "low": row[f"{metric}_low"],
            "high": row[f"{metric}_high"],
            "speed": row["scoring_images_per_second"],
            "parameters": row["parameters"],
        }
        for row in rows
    ]
    figure = figures.leaderboard(
        points,
        METRICS[metric].heading,
        percent=METRICS[metric].percent,
        lower_is_better=METRICS[metric].lower_is_better,
        subtitle=subtitle + "Speed: of the machine that evaluated.",
    )
    try:
        figures.save(figure, path)
    except OSError as error:
        raise UserError(f"--png: {path} cannot be written ({error.strerror or error}); name another file") from None


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """One line a run under a header, full precision, nothing where nothing is known."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().rstrip("\n")


def as_markdown(rows: Sequence[Row], metric: str) -> str:
    """A GitHub table and a line below it that says what its columns are."""
    heads, cells = _cells(rows, metric)
    lines = [heads, ["---" if i in FLUSH_LEFT else "---:" for i in range(len(heads))], *cells]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n{' '.join(_legend(rows))}"


def as_text(rows: Sequence[Row], metric: str) -> str:
    """The table for a terminal."""
    heads, cells = _cells(rows, metric)
    return "\n".join([*aligned([heads, *cells], FLUSH_LEFT), "", *_legend(rows)])


def _cells(rows: Sequence[Row], metric: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; the headline metric comes first of the metrics, with its interval."""
    others = [METRICS[name] for name in HEADLINES if name != metric]
    columns: dict[str, Callable[[Row], str]] = {
        "run": lambda row: f"{row['run']}{' *' if row['evaluates'] else ''}",
        "backbone": lambda row: row["backbone"] or "-",
        "weights": lambda row: row["weights"] or "-",
        "px": lambda row: str(row["image_size"] or "-"),
        METRICS[metric].title: lambda row: _with_interval(row, metric),
        **{other.title: lambda row, other=other: other.text(row[other.name], "-") for other in others},
        "worst elsewhere": lambda row: (
            "-" if row["worst_auc"] is None else f"{row['worst_auc']:.3f} {row['worst_set']}"
        ),
        "param.": lambda row: _short(row["parameters"], 1e6, " M"),
        "MB": lambda row: _short(row["megabytes"]),
        "scored/s": lambda row: _short(row["scoring_images_per_second"]),
        "trained/s": lambda row: _short(row["training_images_per_second"]),
    }
    if len({row["data"] for row in rows}) > 1:
        columns["data"] = lambda row: (row["data"] or "-")[:8]
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def _legend(rows: Sequence[Row]) -> list[str]:
    images = sorted({row["images"] for row in rows if row["images"] is not None})
    count = " to ".join(f"{n:,}" for n in dict.fromkeys((images[0], images[-1]))) if images else "?"
    lines = [
        f"On {rows[0]['set']}, {count} images; in brackets the 95 % interval; worst elsewhere: the lowest AUC on",
        "another test set; images a second are those of the machine that evaluated (scored) or trained the run.",
    ]
    if again := [f"{row['run']} (of {row['evaluates']})" for row in rows if row["evaluates"]]:
        lines.append(f"* the model of another run, evaluated again: {', '.join(again)}.")
    return lines


def _test_sets(metrics: Mapping[str, float]) -> list[str]:
    """The test sets that a run has scored."""
    names = (key.removesuffix(".n_real") for key in metrics if key.endswith(".n_real"))
    return [name for name in names if name != POOLED and f"{name}.threshold" in metrics]


def _matches(run: "Run", pattern: str) -> bool:
    by_id = len(pattern) >= 4 and run.info.run_id.startswith(pattern)
    return by_id or run.info.run_name == pattern or fnmatchcase(run.info.run_name, pattern)


def _row(run: "Run", by_id: Mapping[str, "Run"], test_set: str, metric: str, sets: Sequence[str]) -> Row:
    trained_by = run.data.tags.get("mlflow.parentRunId")
    parent = by_id.get(trained_by)
    metrics = {**_costs_of_training(parent), **run.data.metrics}
    params, tags = run.data.params, {**(parent.data.tags if parent else {}), **run.data.tags}

    def known(name: str) -> float | None:
        value = metrics.get(name)
        return None if value is None or math.isnan(value) else value

    def count(value: str | float | None) -> int | None:
        return int(value) if value is not None else None

    elsewhere = [(auc, name) for name in sets if name != test_set and (auc := known(f"{name}.auc")) is not None]
    worst_auc, worst_set = min(elsewhere, default=(None, None))
    return {
        "run": run.info.run_name,
        "run_id": run.info.run_id,
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        "evaluates": (parent.info.run_name if parent else trained_by[:8]) if trained_by else None,
        "backbone": params.get("model.backbone"),
        "weights": tags.get("weights"),
        "image_size": count(params.get("model.image_size")),
        "data": tags.get("data.digest"),
        "set": test_set,
        "images": count(known(f"{test_set}.n")),
        **{name: known(f"{test_set}.{name}") for name in METRICS},
        f"{metric}_low": known(f"{test_set}.intervals.{metric}.low"),
        f"{metric}_high": known(f"{test_set}.intervals.{metric}.high"),
        "worst_set": worst_set,
        "worst_auc": worst_auc,
        "parameters": count(known(COSTS["parameters"])),
        **{name: known(logged) for name, logged in COSTS.items() if name != "parameters"},
    }


def _costs_of_training(parent: "Run | None") -> dict[str, float]:
    """What a re-evaluation has in common with the run that trained its model."""
    logged = [name for key, name in COSTS.items() if key != "scoring_images_per_second"]
    return {name: parent.data.metrics[name] for name in logged if parent and name in parent.data.metrics}


def _with_interval(row: Row, name: str) -> str:
    metric, low, high = METRICS[name], row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if low is None or high is None else f" ({metric.between(low, high)})"
    return metric.text(row[name], "-") + interval


def _short(value: float | None, unit: float = 1, name: str = "") -> str:
    """Three digits, all of those before the point."""
    if value is None:
        return "-"
    value /= unit
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{name}"
