"""Is one model better than another? `python -m detector compare RUN_A RUN_B`.

Two runs scored the same test images. A paired bootstrap (`bootstrap.paired_bootstrap`, whole groups resampled) gives
the interval of their difference over the choice of test images. It does not cover the randomness of training: another
seed of the same recipe makes another model.

One metric, the headline, is named beforehand, and its p-value stands as it is. The p-values of the others are adjusted
by Holm's method (Holm, Scandinavian Journal of Statistics 6, 1979), so that the chance of a false difference among all
of them stays at 5 %.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detector.errors import UserError
from detector.evaluation.bootstrap import FEW_GROUPS, paired_bootstrap
from detector.experiments.references import Run, load
from detector.metrics import METRICS, check_metric
from detector.paths import PREDICTIONS

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANT = 0.05

HELP = """\
Say whether the model of RUN_B is better than that of RUN_A, and by how much, on the test images that both have scored.

A run is either of
  an MLflow run     its name, its id or the beginning of its id
  a DVC revision    an experiment, branch, tag or commit; "workspace" is the files in metrics/ as they are now
If a name means several things that differ, put mlflow: or dvc: before it, as in dvc:tidy-fern.
"""
EPILOG = f"""\
{textwrap.fill("metrics: " + ", ".join(METRICS), 120)}
Accuracies and rates are those at each run's own threshold.

Images are paired by their content, and images of one group (a person, a video) are resampled together. The interval and
the p-value cover the choice of test images and not the randomness of training: another seed gives another model. Choose
--metric before you look: its p-value stands as it is, those of the other metrics are adjusted (Holm), since one of many
metrics differs by chance.

examples:
  python -m detector compare HEAD~1 workspace           what the last change did
  python -m detector compare tidy-fern bonny-oak        two experiments
  python -m detector compare main workspace --set test_perturbed --metric false_positive_rate
"""


@dataclass(frozen=True)
class Pairs:
    """The images of one test set that both runs scored, (n,) each, and how many images only one of them scored."""

    labels: np.ndarray
    p_a: np.ndarray
    p_b: np.ndarray
    groups: list[str] | None
    only_a: int
    only_b: int
    notes: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m detector compare",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_a", metavar="RUN_A", help="the run to compare with")
    parser.add_argument("run_b", metavar="RUN_B", help="the run in question")
    parser.add_argument("--set", action="append", metavar="NAME", help="a test set; may be repeated (default: all)")
    parser.add_argument("--metric", default="auc", metavar="NAME", help="the headline (default: auc)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    check_metric("--metric", arguments.metric)
    if not 100 <= arguments.resamples <= 100_000:
        raise UserError(f"--resamples: {arguments.resamples} is not in 100 .. 100000")

    runs = load(arguments.run_a), load(arguments.run_b)
    comparison = compare(*runs, arguments.set, arguments.metric, arguments.resamples)
    print(json.dumps(comparison, indent=2, allow_nan=False) if arguments.json else render(comparison))


def compare(
    a: Run, b: Run, sets: Sequence[str] | None = None, metric: str = "auc", resamples: int = 2000
) -> dict[str, object]:
    """Both runs on the images they share; what `--json` prints.

    Keys a, b (what the references were resolved to), metric, resamples, notes, and sets: {name: {n, n_real, n_fake,
    groups (their number, None where unknown), only_a, only_b, threshold_a, threshold_b, alike (whether all scores are
    the same), better (by the headline: "a", "b", "neither", or None where that is undefined), says (a sentence), notes,
    metrics}}. Every metric has what `bootstrap.paired_bootstrap` gives, lower_is_better, and p_adjusted: the headline's
    own p-value, for the others Holm's.

    Raises:
        UserError: a set is unknown, the runs share no image, or they disagree about a label.
    """
    in_a, in_b = (list(dict.fromkeys(run.predictions["set"])) for run in (a, b))
    common = [name for name in in_a if name in in_b]
    for name in sets or ():
        if name not in common:
            lacking = " and ".join(run for run, held in (("A", in_a), ("B", in_b)) if name not in held)
            raise UserError(f"--set: {lacking} did not score {name!r}; both scored {', '.join(common) or 'none'}")
    notes = [
        f"{run} alone scored {', '.join(names)}"
        for run, names in (("A", [s for s in in_a if s not in in_b]), ("B", [s for s in in_b if s not in in_a]))
        if names and not sets
    ]
    compared = {}
    for name in dict.fromkeys(sets or common):
        pairs = pair(a.predictions, b.predictions, name)
        if len(pairs.labels):
            compared[name] = _compared(pairs, name, a.thresholds[name], b.thresholds[name], metric, resamples)
        else:
            notes.append(f"{name}: A and B share no image of it ({pairs.only_a} in A, {pairs.only_b} in B)")
    if not compared:
        raise UserError(
            f"A and B share no test image (A scored {', '.join(in_a)}; B scored {', '.join(in_b)}); "
            "evaluate both on the same data"
        )
    if len(compared) > 1:
        notes.append("each test set is tested by itself: of 20 without a real difference, one will show a difference")
    resolved = {"a": a.resolved, "b": b.resolved}
    return {**resolved, "metric": metric, "resamples": resamples, "notes": notes, "sets": compared}


def pair(a: "pd.DataFrame", b: "pd.DataFrame", name: str) -> Pairs:
    """The images of the test set `name` in both tables, matched by content.

    By sha256, copies within a set by sha256 and path; by path alone where a table has no sha256. Groups are those of B,
    else of A.

    Raises:
        UserError: an image is listed twice, or its labels differ.
    """
    a, b = (table[table["set"] == name] for table in (a, b))
    notes = []
    if "sha256" in a and "sha256" in b:
        copies = set(a["sha256"][a["sha256"].duplicated()]) | set(b["sha256"][b["sha256"].duplicated()])
        key = ["sha256", "copy"]
        a, b = (table.assign(copy=table["path"].where(table["sha256"].isin(copies), "")) for table in (a, b))
    else:
        key = ["path"]
        notes.append("paired by path, not by content: the older of these runs did not record the images' SHA-256")
    for run, table in (("A", a), ("B", b)):
        if (twice := table.duplicated(key)).any():
            first = table["path"][twice].iloc[0]
            raise UserError(f"{run}: {PREDICTIONS} lists {first} of {name} twice; evaluate again")
    both = a.merge(b, on=key, suffixes=("_a", "_b"))
    path = both["path"] if key == ["path"] else both["path_a"]
    if (differ := both["label_a"] != both["label_b"]).any():
        raise UserError(
            f"A and B disagree about the label of {differ.sum()} of the {len(both)} images of {name} that both scored "
            f"(the first is {path[differ].iloc[0]}); evaluate both on the same data"
        )
    groups = _groups(both, notes)
    return Pairs(
        both["label_a"].to_numpy(),
        both["p_fake_a"].to_numpy(),
        both["p_fake_b"].to_numpy(),
        groups,
        len(a) - len(both),
        len(b) - len(both),
        tuple(notes),
    )


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's adjusted p-values: the k-th smallest of m times m - k + 1, never less than the one before, at most 1."""
    rising = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for k, (p, name) in enumerate(rising):
        highest = adjusted[name] = max(highest, min(1.0, p * (len(rising) - k)))
    return adjusted


def better_of(values: Mapping, p: str) -> str | None:
    """ "a" or "b" where interval and p-value (the key `p`) agree that there is a difference, else "neither"."""
    if values["difference"] is None or values["low"] is None:
        return None
    if values[p] >= SIGNIFICANT or values["low"] <= 0 <= values["high"]:
        return "neither"
    return "b" if (values["difference"] > 0) != values["lower_is_better"] else "a"


def sentence(name: str, n: int, metric: str, values: Mapping, better: str | None, a: str = "A", b: str = "B") -> str:
    """The verdict of `compare` by one metric on the n images of the set `name`, with the runs called `a` and `b`."""
    title = METRICS[metric].title
    if values["difference"] is None:
        return f"No verdict on {name}: {title} is not defined on its {n} common images"
    digits = _digits(values["difference"])
    change = f"{values['a']:.{digits}f} -> {values['b']:.{digits}f}, difference {values['difference']:+.{digits}f}"
    if better is None:
        return f"No verdict on {name}: {title} {change}, but there is no interval: all images are of one source"
    low, high = values["low"], values["high"]
    interval = f"95 % interval {low:+.{digits}f} to {high:+.{digits}f}"
    if better != "neither":
        winner, loser = (b, a) if better == "b" else (a, b)
        p = _p(values["p_value"], "p = ")
        return f"{winner} is better than {loser} on {name}: {title} {change} ({interval}), {p}"
    if low == high == 0:
        return f"No difference in {title} on {name}: {change}, the same in every resample"
    ahead, behind = (-low, high) if values["lower_is_better"] else (high, -low)
    return (
        f"No difference in {title} that {n} images could show on {name}: {change} ({interval}), "
        f"{_p(values['p_value'], 'p = ')}; {b} may still be better by {max(0, ahead):.{digits}f} "
        f"or worse by {max(0, behind):.{digits}f}"
    )


def render(comparison: Mapping[str, object]) -> str:
    """The result of `compare` as text: the verdicts, the runs, then a table for each test set."""
    lines = [one["says"] for one in comparison["sets"].values()]
    lines += ["", f"A  {comparison['a']}", f"B  {comparison['b']}", ""]
    notes: dict[str, list[str]] = {}
    for name, one in comparison["sets"].items():
        lines += [_heading(name, one), *([] if one["alike"] else ["", *_table(one["metrics"]), ""])]
        for note in one["notes"]:
            notes.setdefault(note, []).append(name)
    if lines[-1]:
        lines.append("")
    lines += [f"Note, {', '.join(names)}: {note}." for note, names in notes.items()]
    lines += [f"Note: {note}." for note in comparison["notes"]]
    return "\n".join(
        [
            *lines,
            f"Intervals and p come from {comparison['resamples']:,} resamples of the test images and do not cover the",
            f"randomness of training. The p of {comparison['metric']} stands as it is; the others are adjusted (Holm).",
        ]
    )


def _groups(both: "pd.DataFrame", notes: list[str]) -> list[str] | None:
    """The groups of the paired images: the column "group" where one run has groups, "group_b" where both have."""
    if "group" in both:
        return both["group"].tolist()
    if "group_b" not in both:
        notes.append("these runs did not record which images share a source: every image counts as a source of its own")
        return None
    pairs = both[["group_a", "group_b"]].drop_duplicates()
    if pairs["group_a"].duplicated().any() or pairs["group_b"].duplicated().any():
        notes.append("A and B group the images differently; the groups of B are used")
    return both["group_b"].tolist()


def _compared(
    pairs: Pairs, name: str, threshold_a: float, threshold_b: float, metric: str, resamples: int
) -> dict[str, object]:
    paired = paired_bootstrap(
        pairs.labels, pairs.p_a, pairs.p_b, pairs.groups, threshold_a, threshold_b, METRICS, n=resamples
    )
    adjusted = holm({other: values["p_value"] for other, values in paired.items() if other != metric})
    adjusted[metric] = paired[metric]["p_value"]
    metrics = {
        other: {**values, "p_adjusted": adjusted[other], "lower_is_better": METRICS[other].lower_is_better}
        for other, values in paired.items()
    }
    alike = threshold_a == threshold_b and np.array_equal(pairs.p_a, pairs.p_b)
    n, n_fake = len(pairs.labels), int(pairs.labels.sum())
    named = [group for group in pairs.groups or () if group]
    groups = None if pairs.groups is None else len(set(named)) + n - len(named)  # a missing group is one of its own
    notes = list(pairs.notes)
    if groups is not None and 1 < groups < FEW_GROUPS:
        notes.append(f"with {groups} sources only, the intervals are too narrow and the p-values too small")
    better = better_of(metrics[metric], "p_value")
    return {
        "n": n,
        "n_real": n - n_fake,
        "n_fake": n_fake,
        "groups": groups,
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "threshold_a": threshold_a,
        "threshold_b": threshold_b,
        "alike": alike,
        "better": better,
        "says": f"A and B score every one of the {n} images of {name} alike: there is no difference"
        if alike
        else sentence(name, n, metric, metrics[metric], better),
        "notes": notes,
        "metrics": metrics,
    }


def _heading(name: str, one: Mapping) -> str:
    sources = "" if one["groups"] is None else f" from {one['groups']:,} sources"
    alone = f"; {one['only_a']:,} only in A, {one['only_b']:,} only in B" if one["only_a"] or one["only_b"] else ""
    return (
        f"{name}: {one['n']:,} images in common ({one['n_real']:,} real, {one['n_fake']:,} fake){sources}{alone}; "
        f"called fake from {one['threshold_a']:.3g} (A), {one['threshold_b']:.3g} (B)"
    )


def _table(metrics: Mapping[str, Mapping]) -> list[str]:
    lines = [f"  {'metric':<22}{'A':>9}{'B':>9}{'B - A':>10}   {'95 % interval':<21}{'p':>7}  better"]
    for name, values in metrics.items():
        if values["difference"] is None:
            lines.append(f"  {name:<22}{_number(values['a']):>9}{_number(values['b']):>9}{'-':>10}")
            continue
        interval = "-" if values["low"] is None else f"{values['low']:+.4f} to {values['high']:+.4f}"
        better = {"a": "A", "b": "B"}.get(better_of(values, "p_adjusted"), "")
        lines.append(
            f"  {name:<22}{values['a']:>9.4f}{values['b']:>9.4f}{values['difference']:>+10.4f}   {interval:<21}"
            f"{_p(values['p_adjusted']):>7}  {better}".rstrip()
        )
    return lines


def _digits(difference: float) -> int:
    """Decimals that show two digits of the difference, 3 to 6."""
    return int(np.clip(1 - np.floor(np.log10(abs(difference))), 3, 6)) if difference else 3


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _p(p: float | None, equals: str = "") -> str:
    if p is None:
        return "-"
    return f"{equals}{p:.3f}" if p >= 0.001 else f"{equals.replace('=', '<') or '<'}0.001"
