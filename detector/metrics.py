"""Every metric of an evaluation: one decorated function each. To add a metric, add such a function.

Whatever scores, resamples, compares, ranks or shows a metric reads `METRICS`, the table that the functions fill.

Throughout, `labels` is an int array of shape (n,), 0 = real and 1 = fake; `p_fake` a float array of shape
(n,), P(fake) in 0..1; an image is called fake when its score is at least `threshold`. What the data leave undefined is
None, never NaN. Mismatched lengths, no images, labels other than 0 and 1 and scores outside 0..1 raise `UserError`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from detector.errors import UserError

EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm, as Keras does
ECE_BINS = 15
UNDEFINED = "not defined"

Kind = Literal["threshold", "ranking", "probability"]


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, named and shown.

    Attributes:
        name: its key in metrics/evaluate.json, in MLflow and on the command line.
        values: the metric of B resamples, float (B,), NaN where it is undefined.
        title: the field's term as it stands within a sentence, such as "false positive rate".
        kind: whether it depends on the calls at the threshold ("threshold"), on the order of the scores alone
            ("ranking", undefined where one class is missing) or on P(fake) as a probability ("probability").
        plain: the same for readers who do not know the term, such as "real images called fake".
        percent: whether it is shown in per cent, with one decimal, or as a number with three.
        headline: whether the console and the tables of several runs show it.
        share_of: of a metric that is a share of images, the key of their number in `score`.
        inflated_by_noise: whether resampling raises it, so that its interval is mirrored at the estimate.
    """

    name: str
    values: Callable[["Counts"], np.ndarray]
    title: str
    kind: Kind
    plain: str = ""
    percent: bool = False
    lower_is_better: bool = False
    headline: bool = False
    share_of: Literal["n", "n_real", "n_fake"] | None = None
    inflated_by_noise: bool = False

    @property
    def heading(self) -> str:
        """The plain words, or else the title, with a capital letter."""
        words = self.plain or self.title
        return words[0].upper() + words[1:]

    def text(self, value: float | None, undefined: str = UNDEFINED) -> str:
        """The value rounded, with its unit, such as "90.0 %"; `undefined` for None, NaN and the infinite."""
        return percent(value, undefined) if self.percent else decimal(value, undefined=undefined)

    def between(self, low: float, high: float) -> str:
        """An interval, such as "85.0 to 94.0 %"."""
        return f"{self.text(low).removesuffix(' %')} to {self.text(high)}"


METRICS: dict[str, Metric] = {}


def metric(title: str, kind: Kind, **shown) -> Callable[[Callable], Callable]:
    """Enter the decorated function into `METRICS` under its own name; the arguments are attributes of `Metric`."""

    def enter(values: Callable[["Counts"], np.ndarray]) -> Callable[["Counts"], np.ndarray]:
        METRICS[values.__name__] = Metric(values.__name__, values, title, kind, **shown)
        return values

    return enter


def finite(value: float | str | None) -> float:
    """A float; NaN for None, for what is no number and for the infinite."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def percent(value: float | None, undefined: str = UNDEFINED) -> str:
    """A share of 0..1 in per cent with one decimal, such as "12.5 %"; only 0 and 1 are rounded to 0 and 100 %."""
    value = finite(value)
    if math.isnan(value):
        return undefined
    text = f"{value * 100:.1f} %"
    return {"0.0 %": "<0.1 %", "100.0 %": ">99.9 %"}.get(text, text) if 0 < value < 1 else text


def decimal(value: float | None, digits: int = 3, undefined: str = UNDEFINED) -> str:
    """A number with so many decimals; as in `percent`, 0.9997 is not 1.000 but ">0.999"."""
    value = finite(value)
    if math.isnan(value):
        return undefined
    text, least = f"{value:.{digits}f}", 10**-digits
    ends = {f"{0:.{digits}f}": f"<{least:.{digits}f}", f"{1:.{digits}f}": f">{1 - least:.{digits}f}"}
    return ends.get(text, text) if 0 < value < 1 else text


# --- The metrics. Each function computes one of B resamples at once, from `Counts`.


@metric("accuracy", "threshold", plain="images called right", percent=True, headline=True, share_of="n")
def accuracy(counts: "Counts") -> np.ndarray:
    """Share of the images called right."""
    return 1 - (counts.false_positives + counts.false_negatives) / counts.images


@metric("balanced accuracy", "threshold", percent=True)
def balanced_accuracy(counts: "Counts") -> np.ndarray:
    """Mean of the share called right among the real and among the fake images."""
    return 1 - (false_positive_rate(counts) + false_negative_rate(counts)) / 2


@metric(
    "false positive rate",
    "threshold",
    plain="real images called fake",
    percent=True,
    lower_is_better=True,
    headline=True,
    share_of="n_real",
)
def false_positive_rate(counts: "Counts") -> np.ndarray:
    """Share of the real images called fake (FPR)."""
    return ratio_of(counts.false_positives, counts.real)


@metric(
    "false negative rate",
    "threshold",
    plain="fake images called real",
    percent=True,
    lower_is_better=True,
    share_of="n_fake",
)
def false_negative_rate(counts: "Counts") -> np.ndarray:
    """Share of the fake images called real (FNR)."""
    return ratio_of(counts.false_negatives, counts.fake)


@metric("AUC", "ranking", headline=True)
def auc(counts: "Counts") -> np.ndarray:
    """Area under the ROC curve, ties counted half."""
    return ratio_of(*pair_counts(*counts.curve))


@metric("average precision", "ranking")
def average_precision(counts: "Counts") -> np.ndarray:
    """Sum of (R_k - R_{k-1}) P_k over the distinct scores, not interpolated."""
    tp, fp = counts.curve
    precision = tp[:, 1:] / np.maximum(tp[:, 1:] + fp[:, 1:], 1)  # counts are whole: below 1 nothing is called
    return counts.both * ratio_of(np.einsum("ij,ij->i", np.diff(tp), precision), tp[:, -1])


@metric("EER", "ranking", plain="equal error rate", percent=True, lower_is_better=True)
def eer(counts: "Counts") -> np.ndarray:
    """Equal error rate: where FPR = FNR on the ROC curve, linear between its points."""
    tp, fp = counts.curve
    fake, real, rows = tp[:, -1], fp[:, -1], np.arange(len(tp))
    # FPR - FNR rises along the curve; its sign changes between points k - 1 and k.
    balance = fp * fake[:, None] + tp * real[:, None] - (fake * real)[:, None]
    k = np.maximum((balance < 0).sum(axis=1), 1)
    before, after = balance[rows, k - 1], balance[rows, k]
    share = ratio_of(-before, after - before)
    equal = fp[rows, k - 1] + share * (fp[rows, k] - fp[rows, k - 1])
    return counts.both * ratio_of(equal, real)


@metric("TPR at 1 % FPR", "ranking", plain="fakes found at 1 % false positives", percent=True)
def tpr_at_fpr_1pct(counts: "Counts") -> np.ndarray:
    """Largest TPR of the thresholds with an FPR of at most 1 %; below 100 real images that allows none called fake."""
    return _tpr_at_fpr(counts, 0.01)


@metric("TPR at 0.1 % FPR", "ranking", plain="fakes found at 0.1 % false positives", percent=True)
def tpr_at_fpr_01pct(counts: "Counts") -> np.ndarray:
    """Largest TPR of the thresholds with an FPR of at most 0.1 %; below 1000 real images that allows none."""
    return _tpr_at_fpr(counts, 0.001)


def _tpr_at_fpr(counts: "Counts", fpr: float) -> np.ndarray:
    tp, fp = counts.curve
    allowed = np.floor(fpr * fp[:, -1] + 1e-9)  # 0.01 * 700 must allow 7
    best = tp[np.arange(len(tp)), (fp <= allowed[:, None]).sum(axis=1) - 1]
    return counts.both * ratio_of(best, tp[:, -1])


@metric("Brier score", "probability", lower_is_better=True)
def brier(counts: "Counts") -> np.ndarray:
    """Mean squared error of P(fake) (Brier, Monthly Weather Review 78, 1950)."""
    return counts.squared_error / counts.images


@metric("loss", "probability", lower_is_better=True)
def loss(counts: "Counts") -> np.ndarray:
    """Mean negative log-likelihood in nats (binary cross-entropy), P clipped at 1e-7 as Keras does."""
    return counts.log_loss / counts.images


@metric("ECE", "probability", plain="calibration error", lower_is_better=True, inflated_by_noise=True)
def ece(counts: "Counts") -> np.ndarray:
    """Expected calibration error of P(fake) in 15 bins of equal width, closed on the right.

    The mean over images of |mean score - share of fakes| in their bin. Binned by P(fake), as in Naeini et al., AAAI
    2015, so that it is what `reliability` shows; Guo et al., ICML 2017, bin the winning class's P.
    """
    return np.abs(counts.bin_errors).sum(axis=1) / counts.images


HEADLINES = tuple(name for name, entry in METRICS.items() if entry.headline)


def of_kind(kind: Kind) -> list[Metric]:
    """The metrics of one kind, in the order of the table."""
    return [entry for entry in METRICS.values() if entry.kind == kind]


def check_metric(option: str, name: str, others: Sequence[str] = ()) -> None:
    """Refuse with `UserError` the value of `option` that is neither a metric nor one of `others`."""
    if name not in (known := (*METRICS, *others)):
        raise UserError(f"{option}: there is no {name!r}; choose from {', '.join(known)}")


def score(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> dict[str, float | int | None]:
    """Every metric of one set of images; keys n, n_real, n_fake, threshold and those in `METRICS`."""
    labels, p_fake = checked(labels, p_fake)
    every_image_once = np.ones((1, len(labels)))
    values = evaluate_draws(rank_scores(labels, p_fake, threshold, np.arange(len(labels))), every_image_once, METRICS)
    n_fake = int(labels.sum())
    return {
        "n": len(labels),
        "n_real": len(labels) - n_fake,
        "n_fake": n_fake,
        "threshold": float(threshold),
        **{name: number_or_none(value) for name, (value,) in values.items()},
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
    """What all resamples share; an image counts as often in a resample as its group was drawn."""

    sums: np.ndarray  # (groups, 6 + ECE_BINS): by group, what the pointwise metrics add up
    group: np.ndarray  # (n,): group of each image, by falling score
    fake: np.ndarray  # (n,): its label
    ends: np.ndarray  # (m + 1,): 0, then how many images score at least each distinct score


def rank_scores(labels: np.ndarray, p_fake: np.ndarray, threshold: float, codes: np.ndarray) -> Ranked:
    """The images summed up by group and ordered by score; `codes` int (n,), the number of each image's group."""
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


class Counts:
    """What the metrics of B resamples are computed from.

    Attributes:
        images, real, fake, false_positives, false_negatives: float (B,), numbers of images; positive means fake.
        squared_error, log_loss: float (B,), summed over the images.
        bin_errors: float (B, ECE_BINS), score minus label summed over the images of each bin of P(fake).
    """

    def __init__(self, ranked: Ranked, draws: np.ndarray):
        self._ranked, self._draws = ranked, draws
        totals = draws @ ranked.sums
        self.real, self.fake, self.false_positives, self.false_negatives = totals[:, :4].T
        self.squared_error, self.log_loss = totals[:, 4:6].T
        self.bin_errors = totals[:, 6:]
        self.images = self.real + self.fake

    @cached_property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """As `curve_of`: computed for the first metric that needs it."""
        return curve_of(self._ranked, self._draws)

    @property
    def both(self) -> np.ndarray:
        """(B,): 1, or NaN where a resample lacks a class."""
        return np.where((self.fake > 0) & (self.real > 0), 1.0, np.nan)


def evaluate_draws(ranked: Ranked, draws: np.ndarray, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """The metrics of B resamples, each (B,), NaN where undefined; `draws` (B, groups) counts each group."""
    counts = Counts(ranked, draws)
    return {name: METRICS[name].values(counts) for name in metrics}


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
