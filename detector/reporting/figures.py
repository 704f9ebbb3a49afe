"""Every picture of the project.

Each function takes plain data and returns a `matplotlib.figure.Figure`; `save` writes it as a PNG. Nothing
here touches pyplot, so figures need no display and are freed when dropped. Data that leave something
undefined (one epoch, one class, no image, None) give a picture that says so, never an error.

Nothing here computes a statistic: figures, curves and bands come from the files that the stages wrote and are drawn as
they are. Images are uint8 arrays (H, W, 3), RGB, of any size; labels are 0 = real and 1 = fake; scores are P(fake) in
0..1, and an image is called fake when its score is at least the threshold.

Colours are told apart with the common colour-vision deficiencies (Okabe & Ito, Color Universal Design, 2008;
Tol, Colour Schemes, SRON/EPS/TN/09-002, 2021), and nothing is said by colour alone.
"""

import math
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox

from detector.metrics import METRICS, of_kind
from detector.reporting.numbers import (
    DASH,
    between,
    count,
    decimal,
    finite,
    form_of,
    integer,
    ordinal,
    percent,
    scientific,
    score,
    thousands,
)

REAL, FAKE = "#0072B2", "#D55E00"
TRAIN, VALIDATION = "#8A929C", "#5B2A86"
RIGHT, WRONG = "#1B7F4B", "#C8102E"
INK, MUTED, LINE, FAINT = "#1F2328", "#5F6770", "#B8BEC5", "#E3E6EA"
TEST_SETS = (  # colour and dashes of the first, second, ... test set
    ("#332288", "-"), ("#DDAA33", "-"), ("#009E73", "-"), ("#CC79A7", "-"),
    ("#56B4E9", "--"), ("#882255", "--"), ("#999933", "--"), ("#444444", "--"),
)  # fmt: skip
TEST_SETS += tuple((colour, dashes) for dashes in (":", "-.") for colour, _ in TEST_SETS)
SKILL = LinearSegmentedColormap.from_list("skill", ["#7A1F0B", "#E2703A", "#FBD9B5", "#FFFFFF"])

WIDTH = 8.0  # inches; at 800 px a point is 1.4 px
MARGIN = 0.2
DPI = 150

_styled = matplotlib.style.context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "text.color": INK,
        "text.parse_math": False,  # a $ in a file name is a $
        "axes.labelcolor": INK,
        "axes.labelsize": 11,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "legend.frameon": False,
        "lines.linewidth": 2.2,
        "hatch.linewidth": 0.6,
    },
    after_reset=True,  # a matplotlibrc of the user's must not change the pictures
)


@_styled
def save(figure: Figure, path: Path | str) -> None:
    """Write `figure` as a PNG, 1200 px wide, making the folder; the same figure gives the same bytes."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


# ------------------------------------------------------------------------------------------------- training


@_styled
def accuracy_curve(history: Iterable[Mapping], best: Mapping | None = None) -> Figure:
    """Train and validation accuracy over the epochs, the kept epoch marked.

    Args:
        history: rows, or a pandas DataFrame, of epoch (from 1), loss, accuracy, val_loss, val_accuracy,
            val_auc and learning_rate. What is missing, None or not finite is left out of the lines.
        best: the row of the epoch that was kept, as train.monitor chose it; None where there is none.
    """
    run = _columns(history)
    figure = _page("Accuracy while training", _best_in_words(best, "val_accuracy"), 4.2)
    ax = figure.subplots()
    _train_and_validation(ax, run, "accuracy", best)
    shown = np.concatenate([run["accuracy"], run["val_accuracy"]])
    low = np.nanmin(shown, initial=0.95)
    ax.set(xlabel="Epoch", ylabel="Images called right")
    ax.set_ylim(max(math.floor((low - 0.01) * 20) / 20, 0), 1.005)
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure


@_styled
def loss_curve(history: Iterable[Mapping], best: Mapping | None = None) -> Figure:
    """Train and validation loss over the epochs, the learning rate below; arguments as in `accuracy_curve`.

    The kept epoch is marked, and up to six drops of the learning rate. The loss axis is logarithmic where the
    losses span more than a factor of 30.
    """
    run = _columns(history)
    figure = _page("Loss while training", _best_in_words(best, "val_loss"), 4.9)
    ax, rate = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    _train_and_validation(ax, run, "loss", best)
    ax.set_ylabel("Cross-entropy, nats")
    losses = np.concatenate([run["loss"], run["val_loss"]])
    losses = losses[np.isfinite(losses)]
    if len(losses) and 0 < losses.min() < losses.max() / 30:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter("")
    else:
        ax.set_ylim(0, losses.max() * 1.06 if len(losses) and losses.max() > 0 else 1)
    if _learning_rate(rate, ax, run):
        _legend_below(figure, ax)
    return figure


def _learning_rate(rate: Axes, loss: Axes, run: Mapping[str, np.ndarray]) -> bool:
    """Draw the learning rate on `rate`; whether its drops are marked, there and on the axes of the loss."""
    epochs, rates = run["epoch"], run["learning_rate"]
    rate.set(xlabel="Epoch", ylabel="Learning\nrate")
    known = np.isfinite(rates) & (rates > 0)
    if not known.any():
        _say(rate, "not recorded")
        return False
    rate.step(epochs[known], rates[known], where="mid", color=INK, marker="o", markersize=3, linewidth=1.5)
    rate.set_yscale("log")
    levels = np.unique(rates[known])
    rate.set_ylim(levels[0] / 2.5, levels[-1] * 2.5)
    rate.yaxis.set_major_locator(FixedLocator(levels if len(levels) <= 3 else levels[[0, -1]]))
    rate.yaxis.set_minor_locator(FixedLocator([]))
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    drops = np.flatnonzero(rates[1:] < rates[:-1] * (1 - 1e-6)) + 1
    if len(drops) <= 6:  # more is a schedule, which the lower panel shows
        for i, at in enumerate((epochs[drops - 1] + epochs[drops]) / 2):
            look = {"color": MUTED, "linestyle": ":", "linewidth": 1.4, "zorder": 1}
            loss.axvline(at, **look, label="_" if i else "learning rate lowered")
            rate.axvline(at, **look)
        return bool(len(drops))
    return False


LOG = {  # what `training_log` shows of an epoch, and how
    "epoch": ("Epoch", lambda value: f"{value:g}"),
    "loss": ("Loss", lambda value: decimal(value, 4, DASH)),
    "accuracy": ("Accuracy", lambda value: percent(value, DASH)),
    "val_loss": ("Validation\nloss", lambda value: decimal(value, 4, DASH)),
    "val_accuracy": ("Validation\naccuracy", lambda value: percent(value, DASH)),
    "learning_rate": ("Learning\nrate", scientific),
}
LOG_COLUMN = 24  # epochs that stand in one column
LOG_ROWS = 80  # epochs that are shown, in two columns


@_styled
def training_log(history: Iterable[Mapping], best: Mapping | None = None) -> Figure:
    """The log of the training, a line an epoch, the kept epoch marked; arguments as in `accuracy_curve`.

    More than `LOG_COLUMN` epochs stand in two columns; of more than `LOG_ROWS` every k-th from the first on is shown,
    with the best and the last, and the picture says so.
    """
    run = _columns(history)
    epochs, kept = len(run["epoch"]), _row_of(run, best)
    shown, step = _thinned_epochs(epochs, kept)
    said = _best_in_words(best, "val_loss").removesuffix(".") + "."
    if step > 1:
        others = "the last" if kept is None else "the best and the last"
        said += f" Of {epochs:,} epochs every {ordinal(step)} is shown, with {others}."
    blocks = 1 if len(shown) <= LOG_COLUMN else 2
    rows = -(-len(shown) // blocks)
    size, line = (11, 0.27) if blocks == 1 else (8.5, 0.205)
    body = 0.6 + line * max(rows, 1) + 0.1
    figure = _page("Training, epoch by epoch", said, body, layout=None)
    height, gap = figure.get_figheight(), 0.3
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    if not epochs:
        ax.text(WIDTH / 2, height - body / 2, "No epoch was trained", ha="center", va="center", color=MUTED)
        return figure
    wide = (WIDTH - 2 * MARGIN - gap * (blocks - 1)) / blocks
    shares = np.cumsum([0.8, 0.95, 1.05, 1.1, 1.15, 1.0])
    ends = (shares / shares[-1] * wide - 0.06).tolist()
    for block in range(blocks):
        left, top = MARGIN + block * (wide + gap), height - body + 0.5
        for end, (head, _) in zip(ends, LOG.values(), strict=True):
            ax.text(left + end, top, head, size=0.88 * size, weight="bold", ha="right", va="bottom", color=MUTED)
        ax.hlines(top + 0.05, left, left + wide, color=LINE, linewidth=1)
        for i, row in enumerate(shown[block * rows : (block + 1) * rows]):
            y = top + 0.1 + (i + 0.5) * line
            if row == kept:
                ax.add_patch(Rectangle((left, y - line / 2), wide, line, color=_tint(VALIDATION, 0.16), linewidth=0))
                ax.text(left + 0.05, y, "★", size=size, va="center_baseline", color=VALIDATION)
            for end, (name, (_, form)) in zip(ends, LOG.items(), strict=True):
                ax.text(
                    left + end, y, form(run[name][row]), size=size, ha="right", va="center_baseline",
                    weight="bold" if row == kept else "normal",
                )  # fmt: skip
    return figure


def _thinned_epochs(epochs: int, best: int | None) -> tuple[list[int], int]:
    """Indices of the epochs that the log shows, and which part of them that is: every k-th."""
    for step in range(1, epochs + 1):
        shown = sorted({*range(0, epochs, step), *([] if best is None else [best]), epochs - 1})
        if len(shown) <= LOG_ROWS:
            return shown, step
    return [], 1


def _columns(history: Iterable[Mapping]) -> dict[str, np.ndarray]:
    """Float columns, NaN where a row has no finite value; without an epoch the rows count from 1."""
    rows = _records(history)
    names = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "learning_rate")
    run = {name: np.array([finite(row.get(name)) for row in rows], dtype=float) for name in names}
    run["epoch"] = np.where(np.isnan(run["epoch"]), np.arange(1, len(rows) + 1), run["epoch"])
    return run


def _row_of(run: dict[str, np.ndarray], best: Mapping | None) -> int | None:
    """Index of the best epoch in the history; None where it is not there."""
    rows = np.flatnonzero(run["epoch"] == best["epoch"]) if best else ()
    return int(rows[0]) if len(rows) else None


def _best_in_words(best: Mapping | None, first: str) -> str:
    if not best:
        return "No validation loss was recorded, so no epoch stands out."
    words = {
        "val_loss": f"loss {decimal(best.get('val_loss'))}",
        "val_accuracy": f"accuracy {percent(best.get('val_accuracy'))}",
        "val_auc": f"AUC {decimal(best.get('val_auc'))}",
    }
    order = sorted((name for name in words if best.get(name) is not None), key=lambda name: name != first)
    return f"Best epoch {best['epoch']:g}: on validation " + ", ".join(words[name] for name in order)


def _train_and_validation(ax: Axes, run: dict[str, np.ndarray], name: str, best: Mapping | None) -> None:
    epochs, kept = run["epoch"], _row_of(run, best)
    if not len(epochs):
        _say(ax, "No epoch was trained")
        return
    marker = "o" if len(epochs) <= 40 else None
    train, validation = run[name], run[f"val_{name}"]
    ax.plot(epochs, train, color=TRAIN, linestyle=(0, (5, 2)), marker=marker, markersize=4, label="train")
    ax.plot(epochs, validation, color=VALIDATION, marker=marker, markersize=4.5, label="validation")
    if kept is not None:
        ax.axvline(epochs[kept], color=VALIDATION, linewidth=1, alpha=0.5, zorder=1)
        ax.plot(
            epochs[kept], validation[kept], "o", markersize=11, markerfacecolor="white", markeredgewidth=2.4,
            markeredgecolor=VALIDATION, zorder=5, label="best epoch",
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    pad = max(0.03 * (epochs.max() - epochs.min()), 0.4)
    ax.set_xlim(epochs.min() - pad, epochs.max() + pad)
    _legend_below(ax.figure, ax)


# -------------------------------------------------------------------------------------- calls on a test set


@_styled
def confusion_matrix(metrics: Mapping, title: str = "Confusion matrix") -> Figure:
    """Counts and shares of each true class by the class it was called.

    Args:
        metrics: of a test set, as in metrics/evaluate.json: confusion, confusion_shares, per_class, n and accuracy, of
            more than two classes that in "classes".
    """
    counts, shares, n = metrics["confusion"], metrics["confusion_shares"], metrics["n"]
    classes = list(counts)
    k = len(classes)
    words = "No image."
    if n:
        accuracy = metrics.get("classes", metrics)["accuracy"]
        words = f"{percent(accuracy)} of {count(n, 'image')} called right. "
        words += "Shares are of the images of the true class." if k <= 9 else "The tint is the share of the true class."
    figure = _page(title, words, 4.8 if k <= 3 else 5.5 if k <= 8 else 7.4)
    ax = figure.subplots()
    # The root lets small shares of wrong calls be seen.
    colours = [
        [_tint(*(RIGHT, 0.6 * (share or 0)) if true == called else (WRONG, 0.6 * (share or 0) ** 0.5))
         for called, share in row.items()]
        for true, row in shares.items()
    ]  # fmt: skip
    _table(ax, np.array(colours))
    roomy = k <= 9
    size = float(np.clip(56 / k, 10, 24)) if roomy else max(120 / k, 5)
    for (i, true), (j, called) in product(enumerate(classes), enumerate(classes)):
        look = {"ha": "center", "textcoords": "offset points", "color": _ink(colours[i][j])}
        place = {"xytext": (0, 1), "va": "bottom"} if roomy else {"xytext": (0, 0), "va": "center"}
        ax.annotate(f"{counts[true][called]:,}", (j, i), **place, size=size, weight="bold", **look)
        if roomy:
            words = percent(shares[true][called], DASH)
            ax.annotate(words, (j, i), (0, -4), va="top", size=max(size * 0.55, 8), **look)
    names = [_fit(name, 1.6, 11) for name in classes]
    ax.set_xticks(range(k), names, **({"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if k > 4 else {}))
    sizes = [count(metrics["per_class"][name]["support"], "image") for name in classes]
    apart = "\n" if roomy else ", "
    ax.set_yticks(range(k), [f"{name}{apart}{size}" for name, size in zip(names, sizes, strict=True)])
    ax.set_xlabel("Called", weight="bold")
    ax.set_ylabel("True", weight="bold")
    return figure


OVERALL = (*(metric.name for metric in of_kind("threshold")), "auc", "ece", "loss")  # in `classification_report`


@_styled
def classification_report(
    per_class: Mapping[str, Mapping[str, float | int | None]],
    overall: Mapping[str, float | int | None],
    title: str = "How well each class is recognised",
    intervals: Mapping[str, Mapping[str, float] | None] | None = None,
) -> Figure:
    """Precision, recall, F1 and number of images of every class, and the set's overall figures below.

    Args:
        per_class: class name -> {"precision", "recall", "f1", "support"}, as `metrics.per_class`.
        overall: any of the keys of `OVERALL`, and n, as `metrics.score`; those that are absent are not shown.
        intervals: metric -> {"low", "high"}, as `bootstrap.bootstrap`; written under the figure they belong to.
    """
    names = list(per_class)
    rates = [[finite(row.get(key)) for key in ("precision", "recall", "f1")] for row in per_class.values()]
    n = overall.get("n")
    figure = _page(title, count(n, "image") if n is not None else "", 2.6 + 0.62 * len(names))
    ax, foot = figure.subplots(2, height_ratios=[0.9 + 0.62 * len(names), 1.5])

    white = (1.0, 1.0, 1.0)
    colours = [
        [*(_tint(RIGHT, 0.6 * rate**2) if rate == rate else to_rgb(FAINT) for rate in row), white] for row in rates
    ]
    _table(ax, np.reshape(colours, (len(names), 4, 3)), aspect="auto")
    for i, row in enumerate(per_class.values()):
        words = [*(percent(rate, DASH) for rate in rates[i]), integer(row.get("support"))]
        for j, (word, colour) in enumerate(zip(words, colours[i], strict=True)):
            ax.text(j, i, word, ha="center", va="center", size=14, color=_ink(colour))
    ax.set_yticks(range(len(names)), [_fit(name, 1.6, 12) for name in names], size=12)
    ax.set_xticks([])
    heads = {
        "Precision": "of those called so,\nhow many are",
        "Recall": "of those that are,\nhow many are called so",
        "F1": "harmonic mean\nof the two",
        "Images": "of this class",
    }
    for j, (head, note) in enumerate(heads.items()):
        look = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        ax.annotate(head, (j, 1), (0, 31), size=12, weight="bold", va="bottom", **look)
        ax.annotate(note, (j, 1), (0, 29), size=8.5, color=MUTED, va="top", **look)

    _overall_figures(foot, overall, intervals or {})
    return figure


def _overall_figures(foot: Axes, overall: Mapping, intervals: Mapping) -> None:
    foot.set_axis_off()
    shown = [key for key in OVERALL if key in overall]
    scale = min(1, 7 / max(len(shown), 1))  # of the type, so that more than seven do not touch
    foot.set(xlim=(0, max(len(shown), 5)), ylim=(0, 1))
    for i, key in enumerate(shown):
        form, interval = form_of(key), intervals.get(key)
        words = form(overall[key], undefined=DASH)
        foot.text(i + 0.5, 0.72, words, ha="center", va="center", size=15 * scale, weight="bold")
        heading = textwrap.fill(METRICS[key].heading, 13)
        foot.text(i + 0.5, 0.5, heading, ha="center", va="top", size=9 * scale, color=MUTED, linespacing=1.1)
        if interval:
            ends = between(interval["low"], interval["high"], form).removesuffix(" %")
            foot.text(i + 0.5, 0.02, ends, ha="center", va="bottom", size=9 * scale, color=MUTED)
    if any(intervals.get(key) for key in shown):
        foot.text(0, -0.16, "Last line: 95 % interval", size=9, color=MUTED, va="top")


Curves = Mapping[str, Mapping[str, np.ndarray]]  # test set -> columns of its rows in metrics/curves.csv


@_styled
def roc(sets: Mapping[str, Mapping], curves: Curves, bands: Curves) -> Figure:
    """ROC curve of every test set.

    Args:
        sets: test set -> its metrics as in metrics/evaluate.json; what the threshold gives is marked.
        curves: x false and y true positive rates; of no set with images of one class only.
        bands: x, and low and high of y; of some sets or none.
    """

    def describe(metrics: Mapping) -> _Described:
        x, y = metrics["false_positive_rate"], 1 - metrics["false_negative_rate"]
        return _Described(f"AUC {decimal(metrics['auc'])}", (x, y), f"{percent(y)} found, {percent(x)} accused")

    figure, ax = _curves(
        "Fakes found against real images accused",
        "ROC curve: the nearer to the upper left corner, the better; the diagonal is guessing.",
        sets, curves, bands, describe,
    )  # fmt: skip
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    ax.set(xlabel="Real images called fake (false positive rate)")
    ax.set(ylabel="Fake images found (true positive rate)")
    return figure


@_styled
def precision_recall(sets: Mapping[str, Mapping], curves: Curves, bands: Curves) -> Figure:
    """Precision-recall curve of every test set: x recall, y precision; arguments as in `roc`.

    A dotted line is what calling every image fake would give: the share of fakes.
    """

    def describe(metrics: Mapping) -> _Described:
        area, precision = f"average precision {decimal(metrics['average_precision'])}", metrics["precision"]
        if precision is None:
            return _Described(area, None, "no image called fake")
        recall = 1 - metrics["false_negative_rate"]
        return _Described(area, (recall, precision), f"{percent(recall)} found, {percent(precision)} right")

    figure, ax = _curves(
        "How far to trust a call of fake",
        "Precision-recall curve: the nearer to the upper right corner, the better; dotted is guessing.",
        sets, curves, bands, describe, drawstyle="steps-pre",
    )  # fmt: skip
    for name, (colour, _) in zip(sets, cycle(TEST_SETS), strict=False):
        if name in curves:
            ax.axhline(sets[name]["share_fake"], color=colour, linewidth=1, linestyle=":")
    ax.set(xlabel="Fake images found (recall)", ylabel="Images called fake that are (precision)")
    return figure


class _Described(NamedTuple):
    area: str
    point: tuple[float, float] | None  # at the threshold
    meaning: str  # of the point


def _curves(
    title: str,
    subtitle: str,
    sets: Mapping[str, Mapping],
    curves: Curves,
    bands: Curves,
    describe: Callable[[Mapping], _Described],
    **line,
) -> tuple[Figure, Axes]:
    """Every test set's curve with its band and the point at the threshold; the legend on the right."""
    figure = _page(title, subtitle, max(5.0, 0.6 * len(sets) + 0.9))
    ax = figure.subplots()
    dot = {"marker": "o", "markersize": 9, "markeredgecolor": "white", "markeredgewidth": 1.2}
    handles, notes = [], []
    for (name, metrics), (colour, dashes) in zip(sets.items(), cycle(TEST_SETS), strict=False):
        label = _fit(name, 2, 9.5)
        if name not in curves:
            handles.append(Line2D([], [], linestyle="none", label=f"{label}\nonly images of one class"))
            continue
        if name in bands:
            band = bands[name]
            ax.fill_between(band["x"], band["low"], band["high"], color=colour, alpha=0.16, linewidth=0)
            notes = ["Shaded: 95 % interval"]
        ax.plot(curves[name]["x"], curves[name]["y"], color=colour, linestyle=dashes, zorder=3, **line)
        described = describe(metrics)
        if described.point:
            ax.plot(*described.point, color=colour, linestyle="none", zorder=5, clip_on=False, **dot)
        label += f"\n{described.area}\n{described.meaning}"
        handles.append(Line2D([], [], color=colour, linestyle=dashes, label=label, **dot))
    if sets:
        notes = [f"Dots: at the threshold {next(iter(sets.values()))['threshold']:.2f}", *notes]
    else:
        _say(ax, "No test set")
    handles += [Line2D([], [], linestyle="none", label=note) for note in notes]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.01), borderaxespad=0, fontsize=9.5,
        labelspacing=0.9, handlelength=1.7,
    )  # fmt: skip
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.set_box_aspect(1)
    ax.set_anchor("NW")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure, ax


# ---------------------------------------------------------------------------------------- scores as numbers


@_styled
def reliability(
    before: Sequence[Mapping],
    after: Sequence[Mapping],
    errors: tuple[float | None, float | None],
    title: str = "Does P(fake) mean what it says?",
) -> Figure:
    """Reliability diagram before and after calibration; below it how many images each bin holds.

    Args:
        before, after: rows of metrics/bins.csv: start, end, count, mean_score, share_fake and its interval, low to
            high; None or NaN where a bin is empty.
        errors: the calibration error (ECE) before and after.
    """
    figure = _page(
        title,
        "Images with a score, and how many of them are fake; ECE is the mean distance from the diagonal.",
        6.3,
    )
    ax, counts = figure.subplots(2, sharex=True, height_ratios=[4, 1.15])
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    looks = ({"color": TRAIN, "linestyle": "--"}, "s"), ({"color": VALIDATION, "linestyle": "-"}, "o")
    for name, rows, error, (look, marker) in zip(("before", "after"), (before, after), errors, looks, strict=True):
        keys = ("mean_score", "share_fake", "low", "high")
        full = [[finite(row[key]) for key in keys] for row in rows if row["count"]]
        x, y, low, high = np.reshape(full, (-1, 4)).T
        ax.errorbar(
            x, y, yerr=np.clip([y - low, high - y], 0, None), markersize=6, linewidth=1.8, elinewidth=1.2,
            capsize=3, label=f"{name} calibration, ECE {decimal(error, undefined=DASH)}", marker=marker, **look,
        )  # fmt: skip
        if rows:
            edges = [*(row["start"] for row in rows), rows[-1]["end"]]
            counts.stairs([row["count"] for row in rows], edges, linewidth=1.8, **look)
    ax.set(ylabel="Share that is fake", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    counts.set(xlabel="P(fake)", ylabel="Images\n(log scale)")
    _log_counts(counts)
    _legend_below(figure, ax)
    return figure


@_styled
def score_histogram(
    bins: Mapping[str, Mapping[str, np.ndarray]],
    threshold: float,
    band: tuple[float, float] | None = None,
    title: str = "Scores of real and of fake images",
) -> Figure:
    """Histogram of P(fake) of either class, with the threshold and, if given, the unsure band.

    Args:
        bins: real_right, real_unsure, real_wrong, fake_right, fake_unsure, fake_wrong -> start, end and count (k,), as
            in metrics/bins.csv.
        band: (low, high); an image with low <= P < high is not called, below it is real, from high on fake.
    """
    low, high = band or (threshold, threshold)
    figure = _page(title, "Shaded: unsure, left to a person." if band else "", 5.2)
    panels = figure.subplots(2, sharex=True, sharey=True)
    for ax, name, other, colour in zip(panels, ("real", "fake"), ("fake", "real"), (REAL, FAKE), strict=True):
        looks = {"right": _right_bar(colour), "unsure": {"color": LINE}, "wrong": _wrong_bar(colour)}
        bottom, total = 0, {}
        for part, look in looks.items():
            rows = bins[f"{name}_{part}"]
            ax.bar(rows["start"], rows["count"], width=0.037, bottom=bottom, align="edge", linewidth=0, **look)
            bottom, total[part] = bottom + rows["count"], int(np.sum(rows["count"]))
        words = f"{total['right']:,} of {count(sum(total.values()), f'{name} image')} called {name}"
        words += f", {total['unsure']:,} unsure" if band else ""
        words += f", {total['wrong']:,} called {other}"
        ax.set_title(words, loc="left", size=11.5, color=colour, weight="bold")
        ax.axvline(threshold, color=INK, linewidth=1.6, linestyle="--")
        if band:
            ax.axvspan(low, min(high, 1), **_unsure_span())
        ax.set(ylabel="Images\n(log scale)", xlim=(0, 1))
    panels[1].set_xlabel("P(fake)")
    _log_counts(panels[0])
    handles = {
        "called right": tuple(Patch(linewidth=0, **_right_bar(colour)) for colour in (REAL, FAKE)),
        "called wrong": tuple(Patch(linewidth=0, **_wrong_bar(colour)) for colour in (REAL, FAKE)),
        f"threshold {threshold:.2f}": Line2D([], [], color=INK, linewidth=1.6, linestyle="--"),
    }
    if band:
        handles[f"unsure, {low:.2f} to {min(high, 1):.2f}"] = Patch(**_unsure_span())
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), handlelength=2.4,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)},
    )  # fmt: skip
    return figure


def _right_bar(colour: str) -> dict:
    return {"facecolor": _tint(colour, 0.45)}


def _wrong_bar(colour: str) -> dict:
    return {"facecolor": colour, "hatch": "////", "edgecolor": "white"}


def _unsure_span() -> dict:
    return {"color": LINE, "alpha": 0.28, "linewidth": 0, "zorder": 0}


@_styled
def risk_coverage(
    coverage: np.ndarray,
    risk: np.ndarray,
    operating: tuple[float, float] | None = None,
    title: str = "What leaving unsure images to a person brings",
) -> Figure:
    """Error rate among the images called when only the surest are.

    Args:
        coverage: float (k,), share of the images called, rising to 1.
        risk: float (k,), share of those called wrong.
        operating: (coverage, risk) of the detector as it is set; marked.
    """
    coverage, risk = np.asarray(coverage, float), np.asarray(risk, float)
    known = np.isfinite(coverage) & np.isfinite(risk)
    coverage, risk = coverage[known], risk[known]
    points, said = [], "No image"
    if len(risk):
        points.append((coverage[-1], risk[-1], f"all called\n{percent(risk[-1])} wrong"))
        said = f"{percent(risk[-1])} of the calls are wrong when every image is called"
    if operating and operating[0] != 1 and not np.isnan([*map(finite, operating)]).any():
        share, wrong = operating
        points.append((share, wrong, f"{percent(share)} called\n{percent(wrong)} wrong"))
        said += f", {percent(wrong)} of those outside the unsure band, {percent(share)} of all"
    figure = _page(title, f"{said}.", 4.4)
    ax = figure.subplots()
    ax.plot(coverage, risk, color=VALIDATION)
    ax.fill_between(coverage, risk, color=VALIDATION, alpha=0.1, linewidth=0)
    for x, y, name in points:
        ax.plot(x, y, "o", markersize=10, color=VALIDATION, markeredgecolor="white", clip_on=False, zorder=5)
        # The second label would run into the first where nearly all images are called: it goes beneath the curve.
        place = {"xytext": (-6, -16), "va": "top"} if 0.75 < x < 1 else {"xytext": (-10, 8), "va": "bottom"}
        ax.annotate(
            name, (x, y), **place, textcoords="offset points", ha="right", weight="bold",
            color=VALIDATION, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    if not len(risk):
        _say(ax, "No image")
    top = max([*risk, *(y for _, y, _ in points)], default=0)
    ax.set(xlabel="Images called, surest first", ylabel="Wrong among those called")
    ax.set(xlim=(0, 1.005), ylim=(0, top * 1.3 or 0.05))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure


@_styled
def robustness_ladder(
    rows: Iterable[Mapping], means: Mapping, curves: Curves, title: str = "What corruptions of the images cost"
) -> Figure:
    """AUC under every corruption and severity, in a table for each corruption set, and the mean of each as a curve.

    Args:
        rows: of metrics/stress.csv: name, family, corruption_set, severity (0 is without a corruption, then 1 to 5),
            auc and mean_auc, that of the corruption over its severities (0..1 or None).
        means: "undamaged" and each corruption set -> auc, their means over everything.
        curves: each corruption set that rows holds -> x severity, y mean AUC.
    """
    corruption_sets = {name: _ladder(rows, name) for name in dict.fromkeys(("generic", "matched", *curves))}
    averages = [f"{name} {decimal(means[name]['auc'], undefined=DASH)}" for name in corruption_sets]
    words = f"AUC: {decimal(means['undamaged']['auc'], undefined=DASH)} without a corruption, "
    words += f"mean under corruptions {', '.join(averages)}. Dark is guessing."
    lines = [len(table) + 1 for table in corruption_sets.values()]
    right = sum(lines[1:]) + 3 * (len(lines) - 2)
    heights = [max(right - lines[0] - 3, 10), lines[0]]
    figure = _page(title, words, 0.27 * sum(heights) + 1.7)
    grid = figure.add_gridspec(2, 2, height_ratios=heights)
    beside = grid[:, 1].subgridspec(len(lines) - 1, 1, height_ratios=lines[1:])
    chart, *tables = (figure.add_subplot(spot) for spot in (grid[0, 0], grid[1, 0], *beside))

    looks = (TRAIN, "-", "o"), (VALIDATION, "--", "s"), (INK, ":", "^")
    lowest = 0.5
    for ax, (name, table), (colour, dashes, marker) in zip(tables, corruption_sets.items(), looks, strict=False):
        curve = curves.get(name, {"x": [], "y": []})
        chart.plot(curve["x"], curve["y"], color=colour, linestyle=dashes, marker=marker, label=name)
        lowest = np.nanmin(np.asarray(curve["y"], float), initial=lowest)
        ax.set_title(f"{name.title()} corruptions", size=11.5, weight="bold")
        _ladder_table(ax, table, [*_at_severities(curve), finite(means[name]["auc"])])
    chart.set(xlabel="Severity (0: no corruption)", ylabel="Mean AUC")
    chart.set(xticks=range(6), xlim=(-0.25, 5.25), ylim=(lowest - 0.02, 1.01))
    chart.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, borderaxespad=0.2)
    return figure


def _ladder(rows: Iterable[Mapping], corruption_set: str) -> dict[tuple[str, str], list[float]]:
    """(family, name) of each corruption of the set, by family -> its AUC at 1..5 and their mean, NaN for none."""
    table: dict[tuple[str, str], list[float]] = {}
    for row in _records(rows):
        if row["corruption_set"] == corruption_set and row["severity"] > 0:
            cells = table.setdefault((row["family"], row["name"]), [math.nan] * 5 + [finite(row["mean_auc"])])
            cells[int(row["severity"]) - 1] = finite(row["auc"])
    return dict(sorted(table.items()))


def _at_severities(curve: Mapping[str, Sequence[float]]) -> list[float]:
    """The curve's y at the severities 1 to 5."""
    known = dict(zip(curve["x"], curve["y"], strict=True))
    return [finite(known.get(severity)) for severity in range(1, 6)]


def _ladder_table(ax: Axes, table: Mapping[tuple[str, str], Sequence[float]], means: Sequence[float]) -> None:
    """Rows: corruptions and their mean; columns: severities 1 to 5 and their mean."""
    if not table:
        _say(ax, "none measured")
        return
    names, whole = list(table), np.array([*table.values(), means], dtype=float)
    colours = SKILL(np.clip((whole - 0.5) / 0.5, 0, 1))[..., :3]
    colours[np.isnan(whole)] = to_rgb(FAINT)
    _table(ax, colours, aspect="auto", gap=0.8)
    for (i, j), value in np.ndenumerate(whole):
        look = {"color": _ink(colours[i, j]), "weight": "bold" if i == len(names) or j == 5 else "normal"}
        ax.text(j, i, decimal(value, 2, DASH), ha="center", va="center", size=8.5, **look)
    labels = [_fit(name.replace("_", " "), 1.2, 9) for _, name in names]
    ax.set_xticks(range(6), ["1", "2", "3", "4", "5", "mean"], size=9)
    ax.set_yticks(range(len(names) + 1), [*labels, "mean"], size=9)
    ends = [i for i in range(1, len(names)) if names[i][0] != names[i - 1][0]]  # of the families
    ax.hlines([i - 0.5 for i in [*ends, len(names)]], -0.5, 5.5, color=MUTED, linewidth=0.9)
    ax.axvline(4.5, color=MUTED, linewidth=0.9)
    ax.set_xlabel("Severity", size=9.5)


@_styled
def leaderboard(
    rows: Sequence[Mapping],
    metric: str = "Accuracy",
    percent: bool = True,
    lower_is_better: bool = False,
    title: str = "How good, how fast, how large",
    subtitle: str = "",
) -> Figure:
    """A metric of every model over its speed, with its interval; the area of the dot is the model's size.

    A dashed line joins the models that no other equals in both and beats in one (the Pareto front); they are named
    first. Models without a value or a speed are left out, as are names that find no room; both are counted.

    Args:
        rows: label, value, speed (images a second) and, where known, low and high (the interval) and parameters
            (their number).
        metric: what value is; percent: whether it is written so.
    """
    names = ("value", "speed", "low", "high", "parameters")
    table = np.array([[finite(row.get(name)) for name in names] for row in rows], dtype=float).reshape(-1, 5)
    kept = np.flatnonzero(np.isfinite(table[:, 0]) & (table[:, 1] > 0))
    kept = kept[np.argsort(-np.nan_to_num(table[kept, 4]), kind="stable")]  # a small dot lies on a large one
    figure = _page(title, subtitle, 6, layout=None)
    height = figure.get_figheight()
    ax = figure.add_axes((0.95 / WIDTH, 1.3 / height, 1 - 1.25 / WIDTH, 4.6 / height))
    if not len(kept):
        _say(ax, "No run has both a figure and a speed")
        return figure
    value, speed, low, high, parameters = table[kept].T
    low, high = np.fmin(low, value), np.fmax(high, value)
    front = _unbeaten(speed, -value if lower_is_better else value)
    _open_axes(ax, speed, low, high, percent)
    ax.set(xlabel="Images scored a second", ylabel=metric + (", lower is better" if lower_is_better else ""))
    ax.vlines(speed, low, high, color=LINE, linewidth=1.4, zorder=1.5)
    along = np.flatnonzero(front)[np.argsort(speed[front], kind="stable")]
    ax.plot(speed[along], value[along], color=VALIDATION, linestyle="--", linewidth=1.2, zorder=1.8)
    radii = _dots(ax, speed, value, parameters, front)
    labels = [_fit(rows[i].get("label", ""), 2, 9) for i in kept]
    unnamed = _name_dots(ax, np.column_stack([speed, value]), radii, labels, front)
    _leaderboard_legend(figure, parameters, len(along) > 1)
    left_out = {"without a figure or a speed": len(rows) - len(kept), "without room for the name": unnamed}
    words = "; ".join(f"{count(n, 'run')} {why}" for why, n in left_out.items() if n)
    figure.text(0.5, 0.08 / height, words, size=9, color=MUTED, ha="center", va="bottom")
    return figure


def _dots(ax: Axes, speed: np.ndarray, value: np.ndarray, parameters: np.ndarray, front: np.ndarray) -> np.ndarray:
    """The models as dots, hollow where the size is unknown; their radii in points."""
    unknown, colours = np.isnan(parameters), np.where(front, VALIDATION, TRAIN)
    radii = np.where(unknown, 4, _radius(parameters, np.nanmax(parameters, initial=0)))
    look = {"c": np.where(unknown, "white", colours), "edgecolors": np.where(unknown, colours, "white")}
    ax.scatter(speed, value, (2 * radii) ** 2, linewidths=1.2, zorder=2, **look)
    return radii


def _name_dots(ax: Axes, dots: np.ndarray, radii: np.ndarray, labels: Sequence[str], front: np.ndarray) -> int:
    """Each label beside its dot, above or below it, the front's first; how many find no room there and are left out."""
    sides = (1, 0, "left", "center"), (-1, 0, "right", "center"), (0, 1, "center", "bottom"), (0, -1, "center", "top")
    centres = ax.transData.transform(dots)
    reach = (radii * ax.figure.dpi / 72)[:, None]
    taken = [Bbox([*corners]) for corners in zip(centres - reach, centres + reach, strict=True)]
    unnamed = 0
    for i in np.argsort(~front, kind="stable"):
        look = {"size": 9, "color": INK if front[i] else MUTED, "zorder": 4, "textcoords": "offset points"}
        look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
        for right, up, across, along in sides:
            place = (right * (radii[i] + 4), up * (radii[i] + 3))
            text = ax.annotate(labels[i], dots[i], place, ha=across, va=along, **look)
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1:
                taken.append(box)
                break
            text.remove()
        else:
            unnamed += 1
    return unnamed


def _leaderboard_legend(figure: Figure, parameters: np.ndarray, with_front: bool) -> None:
    unknown, largest = np.isnan(parameters), np.nanmax(parameters, initial=0)
    handles = []
    if with_front:
        look = {"color": VALIDATION, "linestyle": "--", "linewidth": 1.2}
        handles.append(Line2D([], [], label="none is better and faster", **look))
    dot = {"color": TRAIN, "linestyle": "none", "marker": "o", "markeredgecolor": "white"}
    for i, n in enumerate(_round_sizes(parameters[~unknown])):
        name = thousands(n) + ("" if i else " parameters")
        handles.append(Line2D([], [], markersize=2 * float(_radius(n, largest)), label=name, **dot))
    if unknown.any():
        hollow = {**dot, "color": "white", "markeredgecolor": TRAIN}
        handles.append(Line2D([], [], markersize=8, label="size unknown", **hollow))
    place = (0.5, 0.48 / figure.get_figheight())
    figure.legend(handles=handles, loc="center", bbox_to_anchor=place, ncols=5, fontsize=9, handlelength=2.8)


def _unbeaten(*merits: np.ndarray) -> np.ndarray:
    """bool (n,): those that no other equals in every merit, the more the better, and beats in one."""
    mine = np.column_stack(merits)
    as_good = (mine[None] >= mine[:, None]).all(axis=2)
    return ~(as_good & (mine[None] > mine[:, None]).any(axis=2)).any(axis=1)


def _radius(parameters: np.ndarray | float, largest: float) -> np.ndarray:
    """Radius of a dot in points: its area stands for the parameters, but for dots too small to be seen."""
    return np.maximum(15 * np.sqrt(np.nan_to_num(parameters) / max(largest, 1)), 2)


def _round_sizes(sizes: np.ndarray) -> list[float]:
    """At most three of 1, 2, 5, 10, 20, ... that lie within the sizes, the largest first; if none does, the largest."""
    if not (sizes > 0).any():
        return []
    rounds = [step * 10.0**power for power in range(15) for step in (1, 2, 5)]
    within = [n for n in rounds if sizes.min() <= n <= sizes.max()] or [sizes.max()]
    return sorted({within[0], within[len(within) // 2], within[-1]}, reverse=True)


def _open_axes(ax: Axes, speed: np.ndarray, low: np.ndarray, high: np.ndarray, percent: bool) -> None:
    """Room for all points, logarithmic across, with round numbers at the ticks."""
    beside = max(0.12 * np.log(speed.max() / speed.min()), 0.15)
    over = max(0.1 * (high.max() - low.min()), 0.02 * np.abs(high).max(), 1e-4)
    ax.set_xscale("log")
    left, right = ax.set_xlim(speed.min() * np.exp(-beside), speed.max() * np.exp(beside))
    bottom, top = ax.set_ylim(low.min() - over, high.max() + over)
    ticks = MaxNLocator(6).tick_values(left, right)
    if right / left > 5:
        decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)))
        ticks = [step * 10.0**power for power in decades for step in ((1, 2, 5) if right / left < 500 else (1,))]
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if left <= tick <= right]))
    ax.xaxis.set_minor_locator(FixedLocator([]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    levels = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(max(bottom, 0), min(top, 1) if percent else top)
    most = 1 + 1e-9 if percent else top
    ax.yaxis.set_major_locator(FixedLocator([level for level in levels if bottom <= level <= min(top, most)]))
    if percent:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


# ------------------------------------------------------------------------------------------------- images


class _Tile(NamedTuple):
    image: np.ndarray
    caption: str = ""  # one or more lines
    right: bool | None = None  # frames and marks the image
    mask: np.ndarray | None = None


@_styled
def prediction_grid(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    p_fake: Sequence[float],
    threshold: float,
    names: Sequence[tuple[str, str]],
    title: str = "Predictions on test images",
) -> Figure:
    """Test images with what they are, what they were called and P(fake).

    Right ones have a thin green frame and a tick, wrong ones a thick red frame and a cross.

    Args:
        images: n images.
        labels: n of 0 or 1.
        p_fake: n scores; None or NaN is neither right nor wrong.
        names: of each image, the class it is of and the one it was called; of two kinds of fake confused, the call
            of fake is right.
    """
    tiles, then = [], ", " if all(len(kind + called) <= 10 for kind, called in names) else "\n"
    for image, label, p, (kind, called) in zip(images, labels, map(finite, p_fake), names, strict=True):
        if p != p:
            tiles.append(_Tile(image, f"is {kind}{then}not called\nno score"))
            continue
        what = f"is {kind}{then}called {called}"
        tiles.append(_Tile(image, f"{what}\nP(fake) {score(p, threshold)}", (p >= threshold) == (label == 1)))
    right, wrong = (sum(tile.right is kind for tile in tiles) for kind in (True, False))
    said = f"{right} of {count(len(tiles), 'image')} called right (✓), {wrong} wrong (✗)"
    return _sheet(title, f"{said}, at threshold {threshold:.2f}", {"": tiles}, _across(len(tiles)))


@_styled
def sample_sheet(
    groups: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray | None]]],
    title: str = "A look at the data",
    subtitle: str = "",
) -> Figure:
    """Rows of images, each with its title.

    Args:
        groups: row title -> (image, mask) pairs; the mask, bool or 0..1 (h, w) of the image's own size, is
            what was forged, and outlined; None for no outline. Images at the same place of two rows stand
            under one another as long as a row has at most eight.
    """
    rows = {name: [_Tile(image, mask=mask) for image, mask in pairs] for name, pairs in groups.items()}
    widest = max(map(len, rows.values()), default=0)
    return _sheet(title, subtitle, rows, min(max(widest, 4), 8))


@_styled
def mistakes(images: Sequence[np.ndarray], captions: Sequence[str], title: str = "The surest mistakes") -> Figure:
    """Images that were called wrong, in the order given, each with its caption of one or more lines."""
    tiles = [_Tile(image, caption, right=False) for image, caption in zip(images, captions, strict=True)]
    return _sheet(title, "" if tiles else "There are none.", {"": tiles}, _across(len(tiles)))


class Explained(NamedTuple):
    """An image and the heat on it, if it has any: overlay, of the image's size; mask: what was forged, where known."""

    image: np.ndarray
    overlay: np.ndarray
    has_heat: bool
    kind: str
    called: str
    p_fake: float
    right: bool
    mask: np.ndarray | None = None


@_styled
def heat_sheet(
    rows: Mapping[str, Sequence[Explained]], threshold: float, title: str = "Where the model looked"
) -> Figure:
    """Images, each beside itself with its heat laid over, in titled rows; a row of none is left out."""
    tiles = {
        f"{name} ({'✓' if pairs[0].right else '✗'})": [
            tile
            for pair in pairs
            for tile in (
                _Tile(pair.image, f"is {pair.kind}\ncalled {pair.called}", pair.right),
                _Tile(
                    pair.overlay,
                    f"P(fake) {score(pair.p_fake, threshold)}\n{' ' if pair.has_heat else 'no heat'}",
                    mask=pair.mask,
                ),
            )
        ]
        for name, pairs in rows.items()
        if pairs
    }
    said = "Left the image, right in grey what in it speaks for fake: violet a little, green more, yellow most."
    if any(pair.mask is not None for pairs in rows.values() for pair in pairs):
        said += " Outlined: what was forged."
    said += f" Called fake from P(fake) {threshold:.2f} on."
    return _sheet(title, said if tiles else "There is no image.", tiles, 6, together=2)


@_styled
def duplicate_pairs(
    pairs: Sequence[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]],
    title: str = "Images that are one and the same",
    subtitle: str = "",
) -> Figure:
    """Pairs of images side by side, two pairs a line; a pair is ((image, caption), (image, caption))."""
    tiles = [_Tile(image, caption) for pair in pairs for image, caption in pair]
    return _sheet(title, subtitle or ("" if tiles else "There are none."), {"": tiles}, 4, together=2)


def _across(n: int) -> int:
    return 4 if n <= 8 else 5 if n <= 15 else 6


def _sheet(
    title: str, subtitle: str, rows: Mapping[str, Sequence[_Tile]], columns: int, together: int | None = None
) -> Figure:
    """Tiles in lines of `columns`, on one axes whose unit is the inch; every `together` tiles stand apart."""
    gap, apart = 0.14, 0.3 if together else 0
    together = together or columns
    side = (WIDTH - 2 * MARGIN - gap * (columns - 1) - apart * (columns // together - 1)) / columns
    size, line = (8.5, 0.155) if columns >= 6 else (9.5, 0.17)

    names, placed, y = [], [], 0.0
    for name, tiles in rows.items():
        if name:
            names.append((y + 0.15, name))
            y += 0.3
        for start in range(0, len(tiles), columns):
            abreast = tiles[start : start + columns]
            for i, tile in enumerate(abreast):
                placed.append((MARGIN + i * (side + gap) + i // together * apart, y, tile))
            lines = max(len(tile.caption.splitlines()) for tile in abreast)
            y += side + lines * line + (0.2 if lines else 0.1)
        y += 0.08

    body = max(y, 0.3)
    figure = _page(title, subtitle, body, layout=None)
    height = figure.get_figheight()
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    top = height - body
    for at, name in names:
        name = _fit(name, WIDTH - 2 * MARGIN, 11.5)
        ax.text(MARGIN, top + at, name, size=11.5, weight="bold", va="center")
    for x, at, tile in placed:
        _draw_tile(ax, tile, x, top + at, side)
        for i, text in enumerate(tile.caption.splitlines()):
            look = {"size": size, "ha": "center", "va": "top", "color": MUTED if i else INK}
            below = top + at + side + 0.07 + i * line
            ax.text(x + side / 2, below, _fit(text, side + 0.7 * gap, size), **look)
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    return figure


def _draw_tile(ax: Axes, tile: _Tile, x: float, y: float, side: float) -> None:
    """The image, its shape kept, in the middle of the square with its upper left corner at (x, y)."""
    h, w = tile.image.shape[:2]
    scale = side / max(h, w)
    width, height = w * scale, h * scale
    x, y = x + (side - width) / 2, y + (side - height) / 2
    ax.imshow(tile.image, extent=(x, x + width, y + height, y), aspect="auto", zorder=1)
    colour, weight = {None: (LINE, 0.6), True: (RIGHT, 2), False: (WRONG, 3.4)}[tile.right]
    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=weight, zorder=3))
    if tile.right is not None:
        ax.text(
            x + width - 0.13, y + 0.13, "✓" if tile.right else "✗", size=9, color="white", weight="bold",
            ha="center", va="center_baseline", zorder=5,
            bbox={"boxstyle": "circle,pad=0.18", "color": colour},
        )  # fmt: skip
    if tile.mask is not None and np.max(tile.mask) > 0.5:
        # A border of nothing closes the outline of a region that touches the image's edge.
        mask = np.pad(np.asarray(tile.mask, dtype=float), 1)
        across, down = x + (np.arange(w + 2) - 0.5) * scale, y + (np.arange(h + 2) - 0.5) * scale
        outline = ax.contour(across, down, mask, levels=[0.5], colors=FAKE, linewidths=1.3, zorder=4)
        outline.set_path_effects([withStroke(linewidth=2.8, foreground="white")])


# -------------------------------------------------------------------------------------- the common language


def _page(title: str, subtitle: str, body: float, layout: str | None = "constrained") -> Figure:
    """A white figure with its heading, and `body` inches below it for the rest."""
    titles = _wrapped(title, 15, "bold")
    subtitles = _wrapped(subtitle, 10.5)
    head = 0.2 + 0.28 * len(titles) + 0.2 * len(subtitles) + 0.12
    height = head + body
    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout=layout)
    if layout:
        pad = 0.09
        figure.get_layout_engine().set(w_pad=pad, h_pad=pad, rect=(0.01, 0.01, 0.98, body / height - 0.01))
    x = MARGIN / WIDTH
    figure.text(x, 1 - 0.18 / height, "\n".join(titles), size=15, weight="bold", va="top", linespacing=1.15)
    below = 1 - (0.2 + 0.28 * len(titles)) / height
    figure.text(x, below, "\n".join(subtitles), size=10.5, color=MUTED, va="top", linespacing=1.25)
    return figure


def _table(ax: Axes, colours: np.ndarray, aspect: str = "equal", gap: float = 2) -> None:
    """Cells coloured (rows, columns, 3), white lines between them, nothing else."""
    rows, columns = colours.shape[:2]
    ax.imshow(colours, aspect=aspect)
    ax.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=gap)
    ax.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=gap)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelcolor=INK)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _legend_below(figure: Figure, ax: Axes) -> None:
    for old in figure.legends:
        old.remove()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _log_counts(ax: Axes) -> None:
    """Counts from 0 on a logarithmic axis that still shows a single image."""
    ax.set_yscale("symlog", linthresh=1, linscale=0.4)
    top = 1.6 * max(ax.get_ylim()[1], 1)
    ax.set_ylim(0, top)
    ax.yaxis.set_major_locator(FixedLocator([0, *(10**k for k in range(math.floor(math.log10(top)) + 1))]))
    ax.yaxis.set_minor_locator(FixedLocator([]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _say(ax: Axes, words: str) -> None:
    """`words` in place of data."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=MUTED)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _tint(colour: str, amount: float) -> tuple[float, float, float]:
    """`colour` mixed with white: 0 white, 1 the colour."""
    return tuple(1 - (1 - np.array(to_rgb(colour))) * amount)


def _ink(colour: Sequence[float]) -> str:
    """The colour of a text on `colour`: dark or white, by its relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return INK if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.2 else "white"


def _records(rows: Iterable[Mapping]) -> list[Mapping]:
    """The rows of a list or a pandas DataFrame."""
    return rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)


@lru_cache(maxsize=4096)
def _wide(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of text, in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _fit(text: str, width: float, size: float, weight: str = "normal") -> str:
    """`text` on one line, its middle left out where it is wider than `width` inches."""
    whole = " ".join(str(text).split())

    def shortened(kept: int) -> str:
        return whole[: (kept + 1) // 2] + "…" + whole[len(whole) - kept // 2 :]

    if _wide(whole, size, weight) <= width:
        return whole
    longest = bisect_right(range(len(whole)), width, key=lambda kept: _wide(shortened(kept), size, weight)) - 1
    return shortened(max(longest, 1))


def _wrapped(text: str, size: float, weight: str = "normal") -> list[str]:
    """Lines no wider than the page; a word too long for one is cut short."""
    width = WIDTH - 2 * MARGIN
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _wide(longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(_fit(word, width, size, weight))
    return lines
