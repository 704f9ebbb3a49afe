"""What a reader wants to know beyond the metrics: counts, exact intervals, predictive value, curves with their bands.

Nothing that shows an evaluation computes: it reads metrics/evaluate.json and the CSV files beside it, where these
functions put the numbers. `labels`, `p_fake` and the threshold are those of `detector.metrics`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from detector.data.split_names import POOLED
from detector.evaluation import curves
from detector.evaluation.calibration import Calibration
from detector.metrics import EPSILON, METRICS
from detector.params import CORRUPTION_SETS

COUNTED = {metric.name: metric.share_of for metric in METRICS.values() if metric.share_of}  # -> key of the number
RARE = 0.01  # share of fakes at which `precision_if_rare` is given
CURVE_COLUMNS = ("set", "curve", "x", "y", "low", "high")
BIN_COLUMNS = ("set", "histogram", "start", "end", "count", "mean_score", "share_fake", "low", "high")
SCORE_BINS = 25


def with_findings(evaluation: Mapping[str, Mapping], predictions: pd.DataFrame) -> dict[str, dict]:
    """metrics/evaluate.json, each set with what follows from its metrics and its scores.

    counts               right, wrong, real_called_fake, fake_called_real: numbers of images at the threshold
    share_fake           of all images; larger_class: {"name", "share"}, which always saying so would call right
    precision            share of the images called fake that are; None where none is
    precision_if_rare    the same if 1 in 100 images were fake, at these error rates (Bayes' rule); None as above
    exact_intervals      of the metrics `COUNTED`: 95 %, of independent images (Clopper & Pearson, Biometrika 26, 1934)
    intervals            as they are, but one without width is no certainty: where all images of a share were called
                         alike the exact one stands in its place, marked "exact", and for other metrics None does
    auc_against_guessing "better", "worse" or "undecided" (the interval holds 0.5); None without an interval
    accuracy_against_first difference from the first set's accuracy, and whether the two intervals overlap (or None)
    confusion_shares     the confusion matrix as shares of the true class; None for a class without images

    Args:
        evaluation: test set -> metrics, of all sets together under `POOLED`.
        predictions: set, label, p_fake of every image of every set.
    """
    complete = {}
    for name, metrics in evaluation.items():
        rows = predictions if name == POOLED else predictions[predictions["set"] == name]
        complete[name] = _findings(metrics, rows["label"].to_numpy(), rows["p_fake"].to_numpy())
    first, *others = (metrics for name, metrics in complete.items() if name != POOLED)
    for other in others:
        other["accuracy_against_first"] = _against(first, other)
    return complete


def _findings(metrics: Mapping, labels: np.ndarray, p_fake: np.ndarray) -> dict[str, object]:
    called, fake = p_fake >= metrics["threshold"], labels == 1
    false_positives, false_negatives = int((called & ~fake).sum()), int((fake & ~called).sum())
    n, n_real, n_fake = metrics["n"], metrics["n_real"], metrics["n_fake"]
    shares = _shares(metrics, metrics)
    larger = ("fake", n_fake) if n_fake > n_real else ("real", n_real)
    record = {
        **metrics,
        "counts": {
            "right": n - false_positives - false_negatives,
            "wrong": false_positives + false_negatives,
            "real_called_fake": false_positives,
            "fake_called_real": false_negatives,
        },
        "share_fake": n_fake / n,
        "larger_class": {"name": larger[0], "share": larger[1] / n},
        "precision": float(fake[called].mean()) if called.any() else None,
        "precision_if_rare": _precision_at(RARE, metrics["false_positive_rate"], metrics["false_negative_rate"]),
        "exact_intervals": {name: exact_interval(*share) for name, share in shares.items()},
        "intervals": _with_exact(metrics["intervals"], metrics, shares),
    }
    auc = record["intervals"].get("auc")
    record["auc_against_guessing"] = auc and (
        "worse" if auc["high"] < 0.5 else "undecided" if auc["low"] <= 0.5 else "better"
    )
    if "selective" in metrics:
        record["selective"] = {**metrics["selective"], "share_unsure": metrics["selective"]["n_unsure"] / n}
    if "confusion" in metrics:
        record["confusion_shares"] = {
            true: {called: count / sum(row.values()) if any(row.values()) else None for called, count in row.items()}
            for true, row in metrics["confusion"].items()
        }
    if again := metrics.get("reencoded"):
        record["reencoded"] = {**again, "intervals": _with_exact(again["intervals"], again, _shares(again, metrics))}
    if heat := metrics.get("localisation"):
        hits = {"pointing_game": (round(heat["pointing_game"] * heat["images"]), heat["images"])}
        record["localisation"] = {**heat, "intervals": _with_exact(heat["intervals"], heat, hits)}
    return record


def _shares(values: Mapping, sizes: Mapping) -> dict[str, tuple[int, int]]:
    """metric -> k of n images, of the metrics `COUNTED`; 0 of 0 where the metric is undefined."""
    return {name: (round((values[name] or 0) * sizes[of]), sizes[of]) for name, of in COUNTED.items()}


def exact_interval(k: int, n: int) -> dict[str, float] | None:
    """The 95 % interval of k of n independent images (Clopper & Pearson, Biometrika 26, 1934); None for none of none.

    >>> exact_interval(0, 20)
    {'low': 0.0, 'high': 0.16843347098308548}
    """
    from scipy.stats import binomtest

    if not n:
        return None
    interval = binomtest(k, n).proportion_ci(0.95, method="exact")
    return {"low": float(interval.low), "high": float(interval.high)}


def _with_exact(intervals: Mapping, values: Mapping, shares: Mapping[str, tuple[int, int]]) -> dict[str, dict | None]:
    """`intervals` without any of no width; `shares` maps the metrics that are a share of images to k and n."""

    def wide(name: str, interval: Mapping | None) -> Mapping | None:
        if not interval or interval["low"] < interval["high"]:
            return interval
        return {**exact_interval(*shares[name]), "exact": True} if name in shares and values[name] in (0, 1) else None

    return {name: wide(name, interval) for name, interval in intervals.items()}


def _precision_at(share_fake: float, fpr: float | None, fnr: float | None) -> float | None:
    """Share of the images called fake that are, where a share `share_fake` of all images is (Bayes' rule)."""
    if fpr is None or fnr is None:
        return None
    right, wrong = (1 - fnr) * share_fake, fpr * (1 - share_fake)
    return right / (right + wrong) if right + wrong else None


def _against(first: Mapping, other: Mapping) -> dict[str, float | bool | None]:
    a, b = (metrics["intervals"]["accuracy"] for metrics in (first, other))
    overlap = a["low"] <= b["high"] and b["low"] <= a["high"] if a and b else None
    return {"difference": other["accuracy"] - first["accuracy"], "intervals_overlap": overlap}


def with_exact_accuracy(attributes: pd.DataFrame) -> pd.DataFrame:
    """metrics/by_attribute.csv: where all images of a value were called alike, the exact interval of the accuracy."""
    table = attributes.copy()
    for i, row in attributes.iterrows():
        if row["accuracy"] in (0, 1) and row["accuracy_low"] == row["accuracy_high"]:
            interval = exact_interval(int(row["accuracy"] * row["n"]), int(row["n"]))
            table.loc[i, ["accuracy_low", "accuracy_high"]] = interval["low"], interval["high"]
    return table


def with_mean_auc(ladder: pd.DataFrame) -> pd.DataFrame:
    """metrics/stress.csv with the column mean_auc: of the corruption, over its severities."""
    return ladder.assign(mean_auc=ladder.groupby("name")["auc"].transform("mean") if len(ladder) else None)


def confidence(p_fake: np.ndarray, threshold: float) -> np.ndarray:
    """How sure each call is, (n,): the distance of its score from the threshold in logits, as in `risk_coverage`."""
    clipped = np.clip(np.append(p_fake, threshold), EPSILON, 1 - EPSILON)
    logit = np.log(clipped) - np.log1p(-clipped)
    return np.abs(logit[:-1] - logit[-1])


def curve_table(predictions: pd.DataFrame, ladder: pd.DataFrame, threshold: float, n: int, seed: int) -> pd.DataFrame:
    """metrics/curves.csv: the lines of the pictures and the 95 % bands around them, with columns `CURVE_COLUMNS`.

    The curves, by their name in the column curve:
        precision_recall: x recall, y precision. risk_coverage: x share of the images called, y share of them wrong.
        roc_band, precision_recall_band: low and high of y at x, from `n` resamples of the groups.
        stress_<corruption set>: x severity, 0 to 5, y mean AUC over its corruptions; of the test set under stress.
    """
    tables = []

    def add(name: str, curve: str, **columns) -> None:
        tables.append(pd.DataFrame({"set": name, "curve": curve, **columns}, columns=CURVE_COLUMNS))

    for name, rows in predictions.groupby("set", sort=False):
        labels, p_fake, groups = rows["label"].to_numpy(), rows["p_fake"].to_numpy(), rows["group"].tolist()
        if (points := curves.pr_points(labels, p_fake)) is not None:
            add(name, "precision_recall", x=points["recall"], y=points["precision"])
        for curve, band_of in (("roc_band", curves.roc_band), ("precision_recall_band", curves.pr_band)):
            if (band := band_of(labels, p_fake, groups, n=n, seed=seed)) is not None:
                add(name, curve, x=band["grid"], low=band["low"], high=band["high"])
        risk = curves.risk_coverage(labels, p_fake, threshold)
        add(name, "risk_coverage", x=risk["coverage"], y=risk["risk"])
    for corruption_set in (name for name in CORRUPTION_SETS if (ladder["corruption_set"] == name).any()):
        own = ladder[(ladder["corruption_set"] == corruption_set) | (ladder["severity"] == 0)]
        means = own.groupby("severity")["auc"].mean()
        add("test", f"stress_{corruption_set}", x=means.index, y=means.to_numpy())
    return pd.concat(tables, ignore_index=True).astype(dict.fromkeys(CURVE_COLUMNS[2:], float))


def bin_table(predictions: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """metrics/bins.csv: the histograms of the pictures, a row a bin from start to end, with columns `BIN_COLUMNS`.

    The histograms, by their name in the column histogram:
        uncalibrated, calibrated: of P(fake) before and after calibration, as `curves.reliability` has them: count,
        mean_score, share_fake and its 95 % interval, low to high.
        real_right, real_unsure, real_wrong, fake_right, fake_unsure, fake_wrong: count of the images of the class
        that the detector calls so, or leaves as unsure.
    """
    tables = []
    low, high = calibration.unsure
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    names = {"low": "start", "high": "end", "observed": "share_fake", "observed_low": "low", "observed_high": "high"}
    for name, rows in predictions.groupby("set", sort=False):
        labels, p_fake = rows["label"].to_numpy(), rows["p_fake"].to_numpy()
        for histogram, column in (("uncalibrated", "p_fake_uncalibrated"), ("calibrated", "p_fake")):
            bins = pd.DataFrame(curves.reliability(labels, rows[column].to_numpy())).rename(columns=names)
            tables.append(bins.assign(set=name, histogram=histogram))
        called_fake, called_real = p_fake >= high, p_fake < low
        for label, kind in enumerate(("real", "fake")):
            right, wrong = (called_fake, called_real) if label else (called_real, called_fake)
            for part, inside in (("right", right), ("unsure", ~right & ~wrong), ("wrong", wrong)):
                count = np.histogram(p_fake[inside & (labels == label)], edges)[0]
                tables.append(
                    pd.DataFrame(
                        {"set": name, "histogram": f"{kind}_{part}", "start": edges[:-1], "end": edges[1:],
                         "count": count}
                    )
                )  # fmt: skip
    return pd.concat(tables, ignore_index=True)[list(BIN_COLUMNS)]
