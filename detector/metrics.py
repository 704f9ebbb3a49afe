"""Every metric of an evaluation.

Throughout, `labels` is an int array of shape (n,), 0 = real and 1 = fake; `p_fake` a float array of shape
(n,), P(fake) in 0..1; an image is called fake when its score is at least `threshold`. What the data leave undefined is
None, never NaN. Mismatched lengths, no images, labels other than 0 and 1 and scores outside 0..1 raise `UserError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.errors import UserError

EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm, as Keras does
ECE_BINS = 15
RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_1pct", "tpr_at_fpr_01pct")
METRICS = (
    "accuracy",
    "balanced_accuracy",
    *RANKING,
    "brier",
    "loss",
    "ece",
    "false_positive_rate",
    "false_negative_rate",
)


def score(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> dict[str, float | int | None]:
    """Every metric of one set of images; keys n, n_real, n_fake, threshold and those in `METRICS`.

    accuracy                      share of the images called right
    balanced_accuracy             mean of that share among the real and among the fake images
    false_positive_rate         share of the real images called fake (FPR)
    false_negative_rate              share of the fake images called real (FNR)
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
    found = evaluate_draws(rank_scores(labels, p_fake, threshold, np.arange(len(labels))), everything, METRICS)
    n_fake = int(labels.sum())
    return {
        "n": len(labels),
        "n_real": len(labels) - n_fake,
        "n_fake": n_fake,
        "threshold": float(threshold),
        **{name: number_or_none(values[0]) for name, values in found.items()},
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
        name: {"precision": number_or_none(p), "recall": number_or_none(r), "f1": number_or_none(f), "support": int(n)}
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


def checked(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`labels` as int64 and `p_fake` as float64, both (n,) with n of 1 or more.

    Raises `UserError` for no images, differing lengths, labels not 0 or 1, scores NaN or outside 0..1.
    """
    labels, p_fake = np.asarray(labels), np.asarray(p_fake, dtype=np.float64)
    if labels.ndim != 1 or p_fake.ndim != 1:
        raise UserError(f"labels {labels.shape} and scores {p_fake.shape} must have one dimension, (n,)")
    check_lengths(p_fake, labels, "scores")
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
class Ranked:
    """What stays the same from one resample to the next: images weigh what their group was drawn."""

    sums: np.ndarray  # (groups, 6 + ECE_BINS): by group, what the pointwise metrics add up
    group: np.ndarray  # (n,): group of each image, by falling score
    fake: np.ndarray  # (n,): its label
    ends: np.ndarray  # (m + 1,): 0, then how many images score at least each distinct score


def rank_scores(labels: np.ndarray, p_fake: np.ndarray, threshold: float, codes: np.ndarray) -> Ranked:
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
    _, bin_of = binned_errors(p_fake, ECE_BINS)
    excess = np.bincount(codes * ECE_BINS + bin_of, weights=p_fake - labels, minlength=groups * ECE_BINS)
    sums = [np.bincount(codes, weights=values, minlength=groups) for values in per_image]
    order = np.argsort(-p_fake, kind="stable")
    falling = p_fake[order]
    return Ranked(
        sums=np.column_stack([*sums, excess.reshape(groups, ECE_BINS)]),
        group=codes[order],
        fake=labels[order].astype(np.float64),
        ends=np.concatenate([[0], np.flatnonzero(np.diff(falling)) + 1, [len(falling)]]),
    )


def evaluate_draws(ranked: Ranked, draws: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """The metrics of B resamples, each (B,), NaN where undefined; `draws` (B, groups) counts each group."""
    totals = draws @ ranked.sums
    real, fake, accused, missed, squared_error, log_loss = totals[:, :6].T
    images = real + fake
    false_positive_rate, false_negative_rate = ratio_of(accused, real), ratio_of(missed, fake)
    found = {
        "accuracy": 1 - (accused + missed) / images,
        "balanced_accuracy": 1 - (false_positive_rate + false_negative_rate) / 2,
        "brier": squared_error / images,
        "loss": log_loss / images,
        "ece": np.abs(totals[:, 6:]).sum(axis=1) / images,
        "false_positive_rate": false_positive_rate,
        "false_negative_rate": false_negative_rate,
    }
    if not set(RANKING).isdisjoint(metrics):
        found |= _rankings(*curve_of(ranked, draws))
    return {name: found[name] for name in metrics}


def curve_of(ranked: Ranked, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (B, m + 1), the threshold at inf, then at each distinct score, falling."""
    weight = np.take(draws, ranked.group, axis=1)
    tp, called = np.zeros((2, len(weight), weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=called[:, 1:])
    np.cumsum(np.multiply(weight, ranked.fake, out=weight), axis=1, out=tp[:, 1:])
    tp, called = np.take(tp, ranked.ends, axis=1), np.take(called, ranked.ends, axis=1)
    return tp, called - tp


def pair_counts(tp: np.ndarray, fp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    share = ratio_of(-before, after - before)
    equal = fp[rows, k - 1] + share * (fp[rows, k] - fp[rows, k - 1])

    def tpr_at(fpr: float) -> np.ndarray:
        allowed = np.floor(fpr * real + 1e-9)  # 0.01 * 700 must allow 7
        return both * ratio_of(tp[rows, (fp <= allowed[:, None]).sum(axis=1) - 1], fake)

    return {
        "auc": ratio_of(*pair_counts(tp, fp)),
        "average_precision": both * ratio_of(np.einsum("ij,ij->i", np.diff(tp), precision), fake),
        "eer": both * ratio_of(equal, real),
        "tpr_at_fpr_1pct": tpr_at(0.01),
        "tpr_at_fpr_01pct": tpr_at(0.001),
    }


def binned_errors(p_fake: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges (bins + 1,) and the bin of every score; a score on an edge belongs to the bin below it."""
    edges = np.linspace(0, 1, bins + 1)
    return edges, np.searchsorted(edges[1:-1], p_fake)


def ratio_of(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def number_or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_lengths(values: Sequence, labels: Sequence, what: str) -> None:
    if not len(labels):
        raise UserError("there is no image to evaluate; check the data")
    if len(values) != len(labels):
        raise UserError(f"there are {len(values)} {what} for {len(labels)} labels; give one for each image")


def _checked_classes(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    check_lengths(predicted, labels, "predictions")
    if not np.isin([labels, predicted], np.arange(len(classes))).all():
        raise UserError(f"labels and predictions must be 0..{len(classes) - 1}, the classes {', '.join(classes)}")
    return labels, predicted
