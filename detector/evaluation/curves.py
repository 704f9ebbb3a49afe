"""The curves of an evaluation, for pictures: ROC, precision and recall, reliability, risk against coverage.

`labels`, `p_fake` and the threshold are those of `detector.metrics`.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from detector.evaluation.bootstrap import Seed, draw_groups, group_codes
from detector.metrics import ECE_BINS, EPSILON, binned_errors, checked, curve_of, rank_scores


def roc_points(labels: np.ndarray, p_fake: np.ndarray, max_points: int = 500) -> dict[str, np.ndarray] | None:
    """The ROC curve, (0, 0) to (1, 1): "fpr", "tpr", "threshold" (the first is inf); None with one class.

    At most `max_points` points (2 or more), evenly spaced along the curve: no dropped point is further than
    2 / (max_points - 1) from a kept one, horizontal and vertical distance added.
    """
    labels, p_fake = checked(labels, p_fake)
    tp, fp, scores = _whole_curve(labels, p_fake)
    if not tp[-1] or not fp[-1]:
        return None
    fpr, tpr = fp / fp[-1], tp / tp[-1]
    kept = _thinned(fpr, tpr, max_points)
    return {"fpr": fpr[kept], "tpr": tpr[kept], "threshold": scores[kept]}


def pr_points(labels: np.ndarray, p_fake: np.ndarray, max_points: int = 500) -> dict[str, np.ndarray] | None:
    """The precision-recall curve by rising recall: "recall", "precision", "threshold"; None with one class.

    The first point has recall 0, the precision of the second, and threshold inf. A step curve: between two
    points the later one's precision holds, since a straight line would flatter (Davis & Goadrich, ICML 2006).
    Thinned evenly along its length as in `roc_points`.
    """
    labels, p_fake = checked(labels, p_fake)
    tp, fp, scores = _whole_curve(labels, p_fake)
    if not tp[-1] or not fp[-1]:
        return None
    recall, precision = tp / tp[-1], tp[1:] / (tp + fp)[1:]
    precision = np.concatenate([precision[:1], precision])
    kept = _thinned(recall, precision, max_points)
    return {"recall": recall[kept], "precision": precision[kept], "threshold": scores[kept]}


def roc_band(
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: Seed = 0,
    confidence: float = 0.95,
) -> dict[str, np.ndarray] | None:
    """Pointwise bootstrap band of the TPR: "grid" (FPR 0, .005 .. 1), "low" and "high", each (201,).

    Resampled as in `bootstrap`, linear between the points of a resample. None where that has no answer.
    """

    def tpr(tp: np.ndarray, fp: np.ndarray, grid: np.ndarray) -> np.ndarray:
        # Of several points above one another np.interp takes the last, the highest.
        return np.interp(grid, fp / fp[-1], tp / tp[-1])

    return _band(labels, p_fake, groups, n, seed, confidence, tpr)


def pr_band(
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: Seed = 0,
    confidence: float = 0.95,
) -> dict[str, np.ndarray] | None:
    """Pointwise bootstrap band of the precision: "grid" (recall 0, .005 .. 1), "low" and "high", each (201,).

    Resampled as in `bootstrap`, a step curve as in `pr_points`. None where that has no answer.
    """

    def precision(tp: np.ndarray, fp: np.ndarray, grid: np.ndarray) -> np.ndarray:
        total = tp + fp
        first = np.searchsorted(total, 0, side="right")  # before it the resample holds no image
        reached = np.maximum(np.searchsorted(tp / tp[-1], grid), first)
        return tp[reached] / total[reached]

    return _band(labels, p_fake, groups, n, seed, confidence, precision)


def reliability(labels: np.ndarray, p_fake: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, float | int | None]]:
    """Rows of the reliability diagram: `bins` bins of equal width over P(fake), each closed on the right.

    Keys low, high (the bin's edges), count, mean_score, observed (share of fakes) and observed_low,
    observed_high: its 95 % Wilson interval (Wilson, JASA 22, 1927), which takes the images as independent. An
    empty bin has count 0 and None. With 15 bins, the count-weighted mean of |mean_score - observed| is
    `score`'s ece.
    """
    from scipy.stats import binomtest

    labels, p_fake = checked(labels, p_fake)
    edges, bin_of = binned_errors(p_fake, bins)
    rows = []
    for k in range(bins):
        inside = bin_of == k
        count, fakes = int(inside.sum()), int(labels[inside].sum())
        wilson = binomtest(fakes, count).proportion_ci(0.95, method="wilson") if count else None
        rows.append(
            {
                "low": float(edges[k]),
                "high": float(edges[k + 1]),
                "count": count,
                "mean_score": float(p_fake[inside].mean()) if count else None,
                "observed": fakes / count if count else None,
                "observed_low": float(wilson.low) if count else None,
                "observed_high": float(wilson.high) if count else None,
            }
        )
    return rows


def risk_coverage(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5, max_points: int = 500
) -> dict[str, np.ndarray | float]:
    """Error rate when only the surest images are called (Geifman & El-Yaniv, NeurIPS 2017).

    "coverage" (share called, rising to 1) and "risk" (error rate among them), both (k,), thinned as in
    `roc_points`, and "aurc", the mean risk over the n coverages 1/n .. 1 (Geifman et al., ICLR 2019; lower is
    better). An image's confidence is |logit P - logit threshold|: moving the threshold equals adding a bias
    to the logit, and both sides keep the same scale. Equal confidences share their errors evenly, which is
    the mean over the ways to order them.
    """
    labels, p_fake = checked(labels, p_fake)
    clipped = np.clip(np.append(p_fake, threshold), EPSILON, 1 - EPSILON)
    logit = np.log(clipped) - np.log1p(-clipped)
    _, tied, counts = np.unique(-np.abs(logit[:-1] - logit[-1]), return_inverse=True, return_counts=True)
    wrong = (p_fake >= threshold) != labels
    errors = np.repeat(np.bincount(tied, weights=wrong) / counts, counts)
    called = np.arange(1, len(labels) + 1)
    coverage, risk = called / len(labels), np.cumsum(errors) / called
    kept = _thinned(coverage, risk, max_points)
    return {"coverage": coverage[kept], "risk": risk[kept], "aurc": float(risk.mean())}


def _band(
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: Sequence[Hashable] | None,
    n: int,
    seed: Seed,
    confidence: float,
    height: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray] | None:
    """Quantiles over the resamples of `height(tp, fp, grid)`, one resample's curve at the grid's points."""
    labels, p_fake = checked(labels, p_fake)
    codes = group_codes(groups, labels)
    ranked = rank_scores(labels, p_fake, 0.5, codes)
    grid = np.arange(201) / 200
    heights = [
        height(tp, fp, grid)
        for draws in draw_groups(codes, n, seed)
        for tp, fp in zip(*curve_of(ranked, draws), strict=True)
        if tp[-1] and fp[-1]
    ]
    if not heights:
        return None
    low, high = np.quantile(heights, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {"grid": grid, "low": low, "high": high}


def _whole_curve(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives and the threshold (m + 1,) of the images as they are."""
    ranked = rank_scores(labels, p_fake, 0.5, np.arange(len(labels)))
    (tp,), (fp,) = curve_of(ranked, np.ones((1, len(labels))))
    return tp, fp, np.concatenate([[np.inf], np.unique(p_fake)[::-1]])


def _thinned(x: np.ndarray, y: np.ndarray, max_points: int) -> np.ndarray:
    """Indices of at most `max_points` points, both ends among them, evenly spaced along the curve."""
    if len(x) <= max_points:
        return np.arange(len(x))
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(length, np.linspace(0, length[-1], max_points)))
