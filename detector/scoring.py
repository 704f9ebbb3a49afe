"""Every number and curve the evaluation reports, with its interval.

Throughout, `labels` is an int array of shape (n,), 0 = real and 1 = fake; `p_fake` a float array of shape
(n,), P(fake) in 0..1; an image is called fake when its score is at least `threshold`. `groups` holds n
hashables: images with the same one share a source (photo, video, person) and are resampled together; a
missing one (None, "" or NaN) is a source of its own. `sets` holds n hashables, the test set of each image, where
images of several are scored together. What the data leave undefined is None, never NaN.
Mismatched lengths, no images, labels other than 0 and 1 and scores outside 0..1 raise `UserError`.

Intervals are percentile bootstrap intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch.
13) that draw whole groups with replacement (Cameron, Gelbach & Miller, Review of Economics and Statistics 90,
2008, the pairs cluster bootstrap). Their limits: with fewer than about 50 groups they are too narrow; a
metric on its bound (no error seen) gets an interval of no width, which is not certainty. Resampling adds noise
that ECE takes for miscalibration, so its interval alone is the basic one, mirrored at the estimate.

Of several test sets together, groups are drawn within strata (Davison & Hinkley, Bootstrap Methods and their
Application, 1997, ch. 3): a stratum is the groups that lie in the same sets. So every resample has as many groups of
each set as there are, and a group that lies in two, such as one photo clean and damaged, comes or goes in both. A
group alone in its stratum is in every resample and adds nothing to the width.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detector.errors import UserError

EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm, as Keras does
ECE_BINS = 15
POOLED = "pooled"  # where results stand by test set: all of them together; no test set bears the name
FEW_GROUPS = 50  # with 30 to 34 a simulated 95 % interval of the AUC held the truth in 87 to 91 of 100 trials
RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_1pct", "tpr_at_fpr_01pct")
METRICS = (
    "accuracy",
    "balanced_accuracy",
    *RANKING,
    "brier",
    "loss",
    "ece",
    "false_accusation_rate",
    "missed_fake_rate",
)

Seed = int | np.random.Generator
Interval = dict[str, float]


def score(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> dict[str, float | int | None]:
    """Every metric of one set of images; keys n, n_real, n_fake, threshold and those in `METRICS`.

    accuracy                      share of the images called right
    balanced_accuracy             mean of that share among the real and among the fake images
    false_accusation_rate         share of the real images called fake (FPR)
    missed_fake_rate              share of the fake images called real (FNR)
    auc                           area under the ROC curve, ties counted half
    average_precision             sum of (R_k - R_{k-1}) P_k over the distinct scores, not interpolated
    eer                           rate at which FPR = FNR on the ROC curve, linear between its points
    tpr_at_fpr_1pct, _01pct       largest TPR of the thresholds with an FPR of at most 1 %, 0.1 %; with fewer
                                  than 100, 1000 real images that allows no real image called fake
    brier                         mean squared error of P(fake) (Brier, Monthly Weather Review 78, 1950)
    loss                          mean negative log-likelihood in nats (binary cross-entropy), P clipped at
                                  1e-7 as Keras does
    ece                           expected calibration error of P(fake) in 15 bins of equal width, closed on
                                  the right: the mean over images of |mean score - share of fakes| in their
                                  bin. Binned by P(fake), as in Naeini et al., AAAI 2015, so that it is what
                                  `reliability` shows; Guo et al., ICML 2017, bin the winning class's P
    """
    labels, p_fake = checked(labels, p_fake)
    everything = np.ones((1, len(labels)))
    found = _evaluate(_rank(labels, p_fake, threshold, np.arange(len(labels))), everything, METRICS)
    n_fake = int(labels.sum())
    return {
        "n": len(labels),
        "n_real": len(labels) - n_fake,
        "n_fake": n_fake,
        "threshold": float(threshold),
        **{name: _number(values[0]) for name, values in found.items()},
    }


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts by true and predicted class; `labels` and `predicted` are int arrays (n,) indexing `classes`."""
    from sklearn.metrics import confusion_matrix

    labels, predicted = _checked_classes(labels, predicted, classes)
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    return {true: dict(zip(classes, row.tolist(), strict=True)) for true, row in zip(classes, counts, strict=True)}


def per_class(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Precision, recall, f1 and support (number of images) of every class; arguments as in `confusion`.

    The precision of a class never predicted and the recall of a class without images are None.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels, predicted = _checked_classes(labels, predicted, classes)
    *rates, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    return {
        name: {"precision": _number(p), "recall": _number(r), "f1": _number(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, *rates, support, strict=True)
    }


def class_scores(
    classes: np.ndarray, probabilities: np.ndarray, called: np.ndarray, names: Sequence[str]
) -> dict[str, object]:
    """What is known of more than two classes, beyond real and fake.

    Args:
        classes, called: int (n,), true class and the one called, indices of `names`.
        probabilities: float (n, k), calibrated, rows that add up to 1.
        names: k of them.

    Returns:
        accuracy           share of the images called their own class
        balanced_accuracy  mean recall of the classes that have images
        macro_f1           mean F1 of these classes
        macro_auc          mean over these classes of the AUC of P(class), the class against the rest; None with one
        loss               mean negative log-likelihood of the true class in nats
        ece                calibration error of the likeliest class's probability, in 15 bins (Guo et al., ICML 2017)
        one_vs_rest        class -> auc, average_precision, brier and ece of P(class), as `score` has them
    """
    classes, called, probabilities = np.asarray(classes), np.asarray(called), np.asarray(probabilities, np.float64)
    rates = [row for row in per_class(classes, called, names).values() if row["support"]]
    kept = ("auc", "average_precision", "brier", "ece")
    against = {}
    for k, name in enumerate(names):
        found = score((classes == k).astype(int), probabilities[:, k].clip(0, 1))
        against[name] = {metric: found[metric] for metric in kept}
    aucs = [row["auc"] for row in against.values() if row["auc"] is not None]
    likeliest, own = probabilities.argmax(axis=1), probabilities[np.arange(len(classes)), classes]
    return {
        "accuracy": float(np.mean(called == classes)),
        "balanced_accuracy": float(np.mean([row["recall"] for row in rates])),
        "macro_f1": float(np.mean([row["f1"] or 0.0 for row in rates])),
        "macro_auc": float(np.mean(aucs)) if aucs else None,
        "loss": float(-np.log(np.clip(own, EPSILON, 1)).mean()),
        "ece": score((likeliest == classes).astype(int), probabilities.max(axis=1).clip(0, 1))["ece"],
        "one_vs_rest": against,
    }


def bootstrap(
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    threshold: float = 0.5,
    metrics: Sequence[str] = METRICS,
    n: int = 1000,
    seed: Seed = 0,
    confidence: float = 0.95,
    sets: Sequence[Hashable] | None = None,
) -> dict[str, Interval | None]:
    """{metric: {"low", "high"}} from `n` resamples of the groups (without `groups`, of the images).

    A resample in which a metric is undefined does not count for it; where none counts, and where there are
    fewer than two groups (with `sets`, in every stratum), the interval is None.
    """
    labels, p_fake = checked(labels, p_fake)
    _known(metrics)
    codes = _codes(groups, labels)
    ranked = _rank(labels, p_fake, threshold, codes)
    chunks = [_evaluate(ranked, draws, metrics) for draws in _draws(codes, n, seed, sets)]
    found = {name: _interval(_joined(chunks, name), confidence) for name in metrics}
    if found.get("ece"):
        found["ece"] = _reflected(found["ece"], score(labels, p_fake)["ece"])
    return found


def _reflected(interval: Interval, estimate: float) -> Interval:
    """The basic bootstrap interval (Davison & Hinkley, 1997, ch. 5), within 0..1 and around the estimate.

    Noise of sampling looks like miscalibration, so that the estimate lies above the truth and a resample's above the
    estimate; mirrored at the estimate, the one bias undoes the other.
    """
    low, high = 2 * estimate - interval["high"], 2 * estimate - interval["low"]
    return {"low": max(0.0, min(low, estimate)), "high": min(1.0, max(high, estimate))}


def paired_bootstrap(
    labels: np.ndarray,
    p_a: np.ndarray,
    p_b: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    threshold_a: float = 0.5,
    threshold_b: float = 0.5,
    metrics: Sequence[str] = METRICS,
    n: int = 1000,
    seed: Seed = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, float | None]]:
    """Two models on the same images: {metric: {"a", "b", "difference", "low", "high", "p_value"}}.

    The difference is b - a, low and high its interval; every resample is the same for both models. The
    two-sided p-value inverts the percentile interval; with B resamples and their differences d* it is

        p = min(1, 2 min(#{d* <= 0} + 1, #{d* >= 0} + 1) / (B + 1))

    (Davison & Hinkley, Bootstrap Methods and their Application, 1997, ch. 4), never below 2 / (B + 1).
    """
    labels, p_a = checked(labels, p_a)
    _, p_b = checked(labels, p_b)
    _known(metrics)
    codes = _codes(groups, labels)
    a, b = _rank(labels, p_a, threshold_a, codes), _rank(labels, p_b, threshold_b, codes)
    everything = np.ones((1, codes.max() + 1))
    at_a, at_b = _evaluate(a, everything, metrics), _evaluate(b, everything, metrics)
    chunks = []
    for draws in _draws(codes, n, seed):
        of_a, of_b = _evaluate(a, draws, metrics), _evaluate(b, draws, metrics)
        chunks.append({name: of_b[name] - of_a[name] for name in metrics})

    found = {}
    for name in metrics:
        differences = _joined(chunks, name)
        interval = _interval(differences, confidence) or {"low": None, "high": None}
        rarer = min((differences <= 0).sum(), (differences >= 0).sum()) + 1
        found[name] = {
            "a": _number(at_a[name][0]),
            "b": _number(at_b[name][0]),
            "difference": _number(at_b[name][0] - at_a[name][0]),
            **interval,
            "p_value": min(1.0, float(2 * rarer / (len(differences) + 1))) if len(differences) else None,
        }
    return found


def auc_within_sets(
    labels: np.ndarray,
    p_fake: np.ndarray,
    sets: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: Seed = 0,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """What the AUC of several test sets together loses to their scores lying on different scales.

    The pooled AUC is the chance that a fake image scores above a real one, whichever sets the two are from; this one
    asks it of two images of one set, so that a shift of all scores of a set leaves it alone. The first falls below
    the second where what is high for one set is low for another, and every set would need a threshold of its own.

    Returns:
        auc: the mean of the sets' AUCs, weighted by their pairs of a fake and a real image. difference: the pooled
        AUC minus that; low, high: its interval, from the resamples that `bootstrap` draws with these `sets` and seed.
    """
    labels, p_fake = checked(labels, p_fake)
    codes, of_set = _codes(groups, labels), _codes(sets, labels)
    whole = _rank(labels, p_fake, 0.5, codes)
    parts = [_rank(labels[own], p_fake[own], 0.5, codes[own]) for own in (of_set == k for k in range(of_set.max() + 1))]

    def within_and_across(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right, pairs = np.sum([_pairs(*_curve(part, draws)) for part in parts], axis=0)
        return _ratio(right, pairs), _ratio(*_pairs(*_curve(whole, draws)))

    (within,), (across,) = within_and_across(np.ones((1, codes.max() + 1)))
    differences = [np.subtract(*reversed(within_and_across(draws))) for draws in _draws(codes, n, seed, sets)]
    differences = np.concatenate(differences) if differences else np.empty(0)
    interval = _interval(differences[~np.isnan(differences)], confidence) or {"low": None, "high": None}
    return {"auc": _number(within), "difference": _number(across - within), **interval}


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
    edges, bin_of = _binned(p_fake, bins)
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


def checked(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`labels` as int64 and `p_fake` as float64, both (n,) with n of 1 or more.

    Raises `UserError` for no images, differing lengths, labels not 0 or 1, scores NaN or outside 0..1.
    """
    labels, p_fake = np.asarray(labels), np.asarray(p_fake, dtype=np.float64)
    if labels.ndim != 1 or p_fake.ndim != 1:
        raise UserError(f"labels {labels.shape} and scores {p_fake.shape} must have one dimension, (n,)")
    _same_length(p_fake, labels, "scores")
    if not np.isin(labels, (0, 1)).all():
        raise UserError("labels must be 0 (real) or 1 (fake); check the classes of the data")
    bad = p_fake[~((p_fake >= 0) & (p_fake <= 1))]
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(p_fake)} scores are not in 0..1 (the first is {bad[0]}); "
            "check the model: has its training diverged?"
        )
    return labels.astype(np.int64), p_fake


@dataclass(frozen=True)
class _Ranked:
    """What stays the same from one resample to the next: images weigh what their group was drawn."""

    sums: np.ndarray  # (groups, 6 + ECE_BINS): by group, what the pointwise metrics add up
    group: np.ndarray  # (n,): group of each image, by falling score
    fake: np.ndarray  # (n,): its label
    ends: np.ndarray  # (m + 1,): 0, then how many images score at least each distinct score


def _rank(labels: np.ndarray, p_fake: np.ndarray, threshold: float, codes: np.ndarray) -> _Ranked:
    groups = codes.max() + 1
    called_fake = p_fake >= threshold
    likelihood = np.clip(np.where(labels == 1, p_fake, 1 - p_fake), EPSILON, 1 - EPSILON)
    per_image = (
        labels == 0,
        labels == 1,
        (labels == 0) & called_fake,
        (labels == 1) & ~called_fake,
        (p_fake - labels) ** 2,
        -np.log(likelihood),
    )
    _, bin_of = _binned(p_fake, ECE_BINS)
    excess = np.bincount(codes * ECE_BINS + bin_of, weights=p_fake - labels, minlength=groups * ECE_BINS)
    sums = [np.bincount(codes, weights=values, minlength=groups) for values in per_image]
    order = np.argsort(-p_fake, kind="stable")
    falling = p_fake[order]
    return _Ranked(
        sums=np.column_stack([*sums, excess.reshape(groups, ECE_BINS)]),
        group=codes[order],
        fake=labels[order].astype(np.float64),
        ends=np.concatenate([[0], np.flatnonzero(np.diff(falling)) + 1, [len(falling)]]),
    )


def _evaluate(ranked: _Ranked, draws: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """The metrics of B resamples, each (B,), NaN where undefined; `draws` (B, groups) counts each group."""
    totals = draws @ ranked.sums
    real, fake, accused, missed, squared_error, log_loss = totals[:, :6].T
    images = real + fake
    false_accusation_rate, missed_fake_rate = _ratio(accused, real), _ratio(missed, fake)
    found = {
        "accuracy": 1 - (accused + missed) / images,
        "balanced_accuracy": 1 - (false_accusation_rate + missed_fake_rate) / 2,
        "brier": squared_error / images,
        "loss": log_loss / images,
        "ece": np.abs(totals[:, 6:]).sum(axis=1) / images,
        "false_accusation_rate": false_accusation_rate,
        "missed_fake_rate": missed_fake_rate,
    }
    if not set(RANKING).isdisjoint(metrics):
        found |= _rankings(*_curve(ranked, draws))
    return {name: found[name] for name in metrics}


def _curve(ranked: _Ranked, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (B, m + 1), the threshold at inf, then at each distinct score, falling."""
    weight = np.take(draws, ranked.group, axis=1)
    tp, called = np.zeros((2, len(weight), weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=called[:, 1:])
    np.cumsum(np.multiply(weight, ranked.fake, out=weight), axis=1, out=tp[:, 1:])
    tp, called = np.take(tp, ranked.ends, axis=1), np.take(called, ranked.ends, axis=1)
    return tp, called - tp


def _pairs(tp: np.ndarray, fp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a fake and a real image, (B,) each: those with the fake ahead, ties counted half, and all."""
    area = np.einsum("ij,ij->i", np.diff(fp), tp[:, 1:] + tp[:, :-1]) / 2
    return area, tp[:, -1] * fp[:, -1]


def _rankings(tp: np.ndarray, fp: np.ndarray) -> dict[str, np.ndarray]:
    fake, real = tp[:, -1], fp[:, -1]
    both = np.where((fake > 0) & (real > 0), 1.0, np.nan)
    rows = np.arange(len(tp))

    called = tp[:, 1:] + fp[:, 1:]
    precision = tp[:, 1:] / np.maximum(called, 1)  # counts are whole: below 1 nothing is called

    # FPR - FNR rises along the curve; its sign changes between points k - 1 and k.
    balance = fp * fake[:, None] + tp * real[:, None] - (fake * real)[:, None]
    k = np.maximum((balance < 0).sum(axis=1), 1)
    before, after = balance[rows, k - 1], balance[rows, k]
    share = _ratio(-before, after - before)
    equal = fp[rows, k - 1] + share * (fp[rows, k] - fp[rows, k - 1])

    def tpr_at(fpr: float) -> np.ndarray:
        allowed = np.floor(fpr * real + 1e-9)  # 0.01 * 700 must allow 7
        return both * _ratio(tp[rows, (fp <= allowed[:, None]).sum(axis=1) - 1], fake)

    return {
        "auc": _ratio(*_pairs(tp, fp)),
        "average_precision": both * _ratio(np.einsum("ij,ij->i", np.diff(tp), precision), fake),
        "eer": both * _ratio(equal, real),
        "tpr_at_fpr_1pct": tpr_at(0.01),
        "tpr_at_fpr_01pct": tpr_at(0.001),
    }


def _draws(codes: np.ndarray, n: int, seed: Seed, sets: Sequence[Hashable] | None = None) -> Iterator[np.ndarray]:
    """`n` resamples as float counts (B, groups), B at a time: few enough for the processor's cache."""
    rng = np.random.default_rng(seed)
    groups = int(codes.max()) + 1
    strata = [np.arange(groups)] if sets is None else _strata(codes, sets)
    if all(len(members) < 2 for members in strata):
        return
    at_once = max(1, 2**18 // len(codes))
    for start in range(0, n, at_once):
        rows = min(at_once, n - start)
        drawn = [members[rng.integers(len(members), size=(rows, len(members)))] for members in strata]
        picks = np.concatenate(drawn, axis=1) + groups * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _strata(codes: np.ndarray, sets: Sequence[Hashable]) -> list[np.ndarray]:
    """The numbers of the groups that lie in the same sets, an array for each combination of sets that there is."""
    _same_length(sets, codes, "sets")
    lies_in: dict[int, set[Hashable]] = defaultdict(set)
    for code, name in zip(codes.tolist(), sets, strict=True):
        lies_in[code].add(name)
    strata: dict[frozenset[Hashable], list[int]] = defaultdict(list)
    for code, names in lies_in.items():
        strata[frozenset(names)].append(code)
    return [np.array(members) for members in strata.values()]


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
    codes = _codes(groups, labels)
    ranked = _rank(labels, p_fake, 0.5, codes)
    grid = np.arange(201) / 200
    heights = [
        height(tp, fp, grid)
        for draws in _draws(codes, n, seed)
        for tp, fp in zip(*_curve(ranked, draws), strict=True)
        if tp[-1] and fp[-1]
    ]
    if not heights:
        return None
    low, high = np.quantile(heights, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {"grid": grid, "low": low, "high": high}


def _whole_curve(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives and the threshold (m + 1,) of the images as they are."""
    ranked = _rank(labels, p_fake, 0.5, np.arange(len(labels)))
    (tp,), (fp,) = _curve(ranked, np.ones((1, len(labels))))
    return tp, fp, np.concatenate([[np.inf], np.unique(p_fake)[::-1]])


def _thinned(x: np.ndarray, y: np.ndarray, max_points: int) -> np.ndarray:
    """Indices of at most `max_points` points, both ends among them, evenly spaced along the curve."""
    if len(x) <= max_points:
        return np.arange(len(x))
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(length, np.linspace(0, length[-1], max_points)))


def _binned(p_fake: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges (bins + 1,) and the bin of every score; a score on an edge belongs to the bin below it."""
    edges = np.linspace(0, 1, bins + 1)
    return edges, np.searchsorted(edges[1:-1], p_fake)


def _interval(samples: np.ndarray, confidence: float) -> Interval | None:
    if not len(samples):
        return None
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}


def _joined(chunks: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """The resamples in which the metric is defined."""
    samples = np.concatenate([chunk[name] for chunk in chunks]) if chunks else np.empty(0)
    return samples[~np.isnan(samples)]


def _codes(groups: Sequence[Hashable] | None, labels: np.ndarray) -> np.ndarray:
    """(n,) int: the images' groups numbered from 0."""
    if groups is None:
        return np.arange(len(labels))
    _same_length(groups, labels, "groups")
    numbers: dict[Hashable, int] = {}
    keys = (("missing", i) if _missing(group) else ("group", group) for i, group in enumerate(groups))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _missing(value: Hashable) -> bool:
    return value is None or value == "" or value != value  # only NaN differs from itself


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _known(metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}")


def _same_length(values: Sequence, labels: Sequence, what: str) -> None:
    if not len(labels):
        raise UserError("there is no image to evaluate; check the data")
    if len(values) != len(labels):
        raise UserError(f"there are {len(values)} {what} for {len(labels)} labels; give one for each image")


def _checked_classes(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    _same_length(predicted, labels, "predictions")
    if not np.isin([labels, predicted], np.arange(len(classes))).all():
        raise UserError(f"labels and predictions must be 0..{len(classes) - 1}, the classes {', '.join(classes)}")
    return labels, predicted
