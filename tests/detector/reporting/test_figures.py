"""What the pictures say: their texts, lines and colours, on ordinary and on degenerate data."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from detector import metrics
from detector.evaluation import calibration
from detector.evaluation import curves as curve_data
from detector.evaluation.findings import bin_table, curve_table, with_findings, with_mean_auc
from detector.evaluation.robustness import stress_summary
from detector.reporting import figures, gallery

pytestmark = pytest.mark.filterwarnings("error")

HISTORY = [
    {
        "epoch": epoch,
        "loss": 1 / epoch,
        "accuracy": 1 - 0.4 / epoch,
        "val_loss": 0.3 + 0.05 * abs(epoch - 4),
        "val_accuracy": 0.9 - 0.3 / epoch,
        "val_auc": 0.95,
        "learning_rate": 1e-4 if epoch < 4 else 3e-5,
    }
    for epoch in range(1, 7)
]
BEST = HISTORY[3]


def images(n, height=20, width=20):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]


def scored(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1)))


def evaluated(**sets):
    """Sets of labels and scores as metrics/evaluate.json, roc.csv, curves.csv and bins.csv have them."""
    tables, found, roc = [], {}, []
    for name, (labels, p) in sets.items():
        called = (p >= 0.5).astype(int)
        found[name] = {
            **metrics.score(labels, p),
            "intervals": dict.fromkeys(metrics.METRICS),
            "uncalibrated": {"ece": metrics.score(labels, p**2)["ece"]},
            "selective": calibration.selective(labels, p, 0.5, (0.4, 0.6)),
            "per_class": metrics.per_class(labels, called, ["real", "fake"]),
            "confusion": metrics.confusion(labels, called, ["real", "fake"]),
        }
        rows = {"set": name, "group": np.arange(len(p)).astype(str), "label": labels, "p_fake": p}
        tables.append(pd.DataFrame(rows).assign(p_fake_uncalibrated=p**2))
        if (points := curve_data.roc_points(labels, p)) is not None:
            roc.append(pd.DataFrame({"set": name, "fpr": points["fpr"], "tpr": points["tpr"]}))
    predictions, ladder = pd.concat(tables), pd.DataFrame(columns=["corruption_set", "severity", "auc"])
    settings = calibration.Calibration(1.0, 0.5, (0.4, 0.6))
    curves, bins = curve_table(predictions, ladder, 0.5, 5, 0), bin_table(predictions, settings)
    roc = pd.concat([pd.DataFrame(columns=["set", "fpr", "tpr"]), *roc])
    pictures = dict(gallery.evaluation(with_findings(found, predictions), roc, curves, bins, ladder, settings))
    return found, pictures


def texts(figure):
    """Every text a reader can see, in one string."""
    found = [*figure.texts]
    for legend in figure.legends:
        found += legend.get_texts()
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
        found += [*ax.get_xticklabels(), *ax.get_yticklabels()]
        found += ax.get_legend().get_texts() if ax.get_legend() else []
    return "\n".join(text.get_text() for text in found)


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def frames(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def draw_small(figure):
    """Everything that saving does, at a tenth of the cost; the warnings of a bad layout are errors here."""
    figure.savefig(io.BytesIO(), dpi=20)


# ------------------------------------------------------------------------------------------------- training


def test_accuracy_curve_shows_both_lines_and_the_best_epoch():
    figure = figures.accuracy_curve(HISTORY, BEST)
    (ax,) = figure.axes
    np.testing.assert_allclose(line(ax, "train").get_ydata(), [row["accuracy"] for row in HISTORY])
    np.testing.assert_allclose(line(ax, "validation").get_ydata(), [row["val_accuracy"] for row in HISTORY])
    assert line(ax, "best epoch").get_xdata() == [4]
    assert not same_color(line(ax, "train").get_color(), line(ax, "validation").get_color())
    assert "Best epoch 4: on validation accuracy 82.5 %, loss 0.300, AUC 0.950" in texts(figure)


def test_loss_curve_marks_the_drops_of_the_learning_rate():
    ax, rate = figures.loss_curve(HISTORY).axes
    np.testing.assert_allclose(line(ax, "validation").get_ydata(), [row["val_loss"] for row in HISTORY])
    assert list(line(ax, "learning rate lowered").get_xdata()) == [3.5, 3.5]
    assert [label.get_text() for label in rate.get_yticklabels()] == ["3e-5", "1e-4"]
    assert ax.get_yscale() == "linear"


def test_a_falling_schedule_is_not_marked_epoch_by_epoch():
    history = [{**row, "learning_rate": 1e-4 / row["epoch"], "epoch": row["epoch"]} for row in HISTORY * 2]
    history = [{**row, "epoch": i + 1, "learning_rate": 1e-4 / (i + 1)} for i, row in enumerate(history)]
    assert "learning rate lowered" not in texts(figures.loss_curve(history))


def test_losses_far_apart_get_a_logarithmic_axis():
    history = [{**row, "val_loss": 80.0} if row["epoch"] == 1 else row for row in HISTORY]
    assert figures.loss_curve(history).axes[0].get_yscale() == "log"


def test_a_table_and_its_rows_give_the_same_curves():
    for draw in (figures.accuracy_curve, figures.loss_curve):
        ours, theirs = draw(HISTORY, BEST).axes[0], draw(pd.DataFrame(HISTORY), BEST).axes[0]
        for a, b in zip(ours.lines, theirs.lines, strict=True):
            np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


def log_rows(figure):
    """The epochs that the log shows, from top to bottom, column by column."""
    texts = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    return [int(text.get_text()) for text in sorted(texts, key=lambda text: text.get_position())]


def epochs(n):
    return [{**HISTORY[0], "epoch": k, "loss": k / 1e4} for k in range(1, n + 1)]


def test_the_log_has_a_line_an_epoch_and_marks_the_best():
    figure = figures.training_log(HISTORY, BEST)
    shown = texts(figure)
    assert log_rows(figure) == [1, 2, 3, 4, 5, 6]
    for row in HISTORY:
        assert f"{row['loss']:.4f}" in shown and f"{row['val_loss']:.4f}" in shown
        assert f"{row['accuracy'] * 100:.1f} %" in shown and f"{row['val_accuracy'] * 100:.1f} %" in shown
    assert {"1e-4", "3e-5"} <= set(shown.split("\n"))
    bold = [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_weight() == "bold" and text.get_color() != figures.MUTED
    ]
    assert bold == ["4", "0.2500", "90.0 %", "0.3000", "82.5 %", "3e-5"]
    (star,) = (text for text in figure.axes[0].texts if text.get_text() == "★")
    (band,) = figure.axes[0].patches
    assert band.get_y() < star.get_position()[1] < band.get_y() + band.get_height()
    assert "epochs every" not in shown


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (24, 1), (25, 2), (60, 2), (80, 2)])
def test_the_log_shows_all_of_up_to_eighty_epochs(n, columns):
    figure = figures.training_log(epochs(n), {"epoch": n})
    assert log_rows(figure) == list(range(1, n + 1))
    assert texts(figure).count("Learning\nrate") == columns
    assert "is shown" not in texts(figure)


@pytest.mark.parametrize(
    ("n", "best", "step"), [(81, 56, "2nd"), (240, 239, "4th"), (1000, 3, "13th"), (10_000, None, "127th")]
)
def test_of_a_long_log_every_so_many_epochs_are_shown_and_it_says_so(n, best, step):
    figure = figures.training_log(epochs(n) if best else [{"loss": 1.0}] * n, best and {"epoch": best})
    shown = log_rows(figure)
    assert {1, n, *([best] if best else [])} <= set(shown) and len(shown) <= 80 and shown == sorted(shown)
    assert f"Of {n:,} epochs every {step} is shown" in " ".join(texts(figure).split())
    apart = np.diff([k for k in shown if k != best][:-1])
    assert len(set(apart)) <= 2 and f"{min(apart)}" in step


@pytest.mark.parametrize("n", [1, 24, 60, 999])
def test_no_text_of_the_log_lies_on_another(n):
    history = [{**row, "val_loss": 0.1 + row["val_loss"], "learning_rate": 9.7e-4} for row in epochs(n)]
    figure = figures.training_log(history, history[-1])
    draw_small(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    edges = np.array([[box.x0, box.y0, box.x1, box.y1] for box in boxes])
    low, high = np.maximum(edges[:, None, :2], edges[None, :, :2]), np.minimum(edges[:, None, 2:], edges[None, :, 2:])
    overlap = (np.clip(high - low, 0, None).prod(axis=2)) * (1 - np.eye(len(edges)))
    assert overlap.max() < 1  # square pixels
    assert (edges[:, 0] > 0).all() and (edges[:, 2] < figure.bbox.width).all() and (edges[:, 1] > 0).all()


@pytest.mark.parametrize("draw", [figures.accuracy_curve, figures.loss_curve, figures.training_log])
@pytest.mark.parametrize(
    "history",
    [
        [],
        HISTORY[:1],
        [{"epoch": 1, "loss": 0.4}],
        [{"epoch": 1, "loss": None, "val_loss": float("nan")}],
        [
            {"loss": float("inf"), "val_loss": float("inf"), "learning_rate": 0},
            {"loss": "0.5", "val_loss": ""},
        ],
    ],
)
def test_training_curves_of_degenerate_histories(draw, history):
    draw_small(draw(history))
    draw_small(draw(history, {"epoch": 1, "val_loss": 0.4}))


# -------------------------------------------------------------------------------------- calls on a test set


def matrix(counts, classes=None):
    """A set's metrics with this confusion matrix."""
    classes, counts = classes or [f"class number {i}" for i in range(len(counts))], np.asarray(counts)
    rows = {name: dict(zip(classes, row.tolist(), strict=True)) for name, row in zip(classes, counts, strict=True)}
    share = {
        t: {c: n / sum(row.values()) if any(row.values()) else None for c, n in row.items()} for t, row in rows.items()
    }
    n, right = int(counts.sum()), np.trace(counts)
    sizes = {name: {"support": sum(row.values())} for name, row in rows.items()}
    accuracy = right / n if n else None
    return {"confusion": rows, "confusion_shares": share, "per_class": sizes, "n": n, "accuracy": accuracy}


def test_confusion_matrix_shows_counts_and_shares_of_the_row():
    figure = figures.confusion_matrix(matrix([[90, 10], [300, 1200]], ["Real", "Fake"]), "Calls")
    (ax,) = figure.axes
    cells = {(text.xy, text.get_text()) for text in ax.texts}
    assert {((0, 0), "90"), ((1, 0), "10"), ((0, 1), "300"), ((1, 1), "1,200")} < cells
    assert {((0, 0), "90.0 %"), ((1, 0), "10.0 %"), ((0, 1), "20.0 %"), ((1, 1), "80.0 %")} < cells
    shown = texts(figure)
    assert "Calls" in shown and "80.6 % of 1,600 images" in shown
    assert "Fake\n1,500 images" in shown
    colours = np.asarray(ax.images[0].get_array())
    assert colours[0, 0, 1] > colours[0, 0, 0] and colours[1, 1, 1] > colours[1, 1, 0]  # green
    assert colours[0, 1, 0] > colours[0, 1, 1] and colours[1, 0, 0] > colours[1, 0, 1]  # red


@pytest.mark.parametrize("k", [1, 8])
def test_confusion_matrix_of_any_size(k):
    figure = figures.confusion_matrix(matrix(np.arange(k * k).reshape(k, k)))
    assert len(figure.axes[0].texts) == 2 * k * k and "Confusion matrix" in texts(figure)
    draw_small(figure)


def test_confusion_matrix_of_a_class_without_images():
    assert texts(figures.confusion_matrix(matrix(np.zeros((2, 2), int)))).count("–") == 4


def test_confusion_matrix_of_kinds_of_fake_counts_the_kind():
    found = matrix([[2, 1], [1, 2]]) | {"classes": {"accuracy": 0.123}}
    assert "12.3 % of 6 images" in texts(figures.confusion_matrix(found))


def test_classification_report_shows_every_figure():
    labels, p_fake = scored()
    overall = metrics.score(labels, p_fake)
    of_class = metrics.per_class(labels, (p_fake >= 0.5).astype(int), ["Real", "Fake"])
    said = texts(figures.classification_report(of_class, overall, "Report"))
    assert "Report" in said and "200 images" in said
    for row in of_class.values():
        for key in ("precision", "recall", "f1"):
            assert f"{row[key] * 100:.1f} %" in said
        assert f"\n{row['support']}\n" in said
    assert f"{overall['auc']:.3f}" in said and f"{overall['accuracy'] * 100:.1f} %" in said


def test_classification_report_writes_intervals_and_leaves_undefined_figures_open():
    of_class = {"a": {"precision": None, "recall": 0.5, "f1": float("nan"), "support": 3}}
    intervals = {"accuracy": {"low": 0.1234, "high": 0.9}, "auc": None}
    figure = figures.classification_report(of_class, {"accuracy": 0.5, "auc": None}, intervals=intervals)
    said = texts(figure)
    assert said.count("–") == 3 and "12.3 to 90.0" in said and "Loss" not in said
    draw_small(figure)


def test_roc_draws_each_test_set_with_its_auc_and_operating_point():
    sets = {"first": scored(seed=1), "second": scored(seed=2)}
    found, pictures = evaluated(**sets)
    (ax,) = pictures["roc"].axes
    dots = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    lines = [drawn for drawn in ax.lines if drawn.get_linestyle() == "-"]
    for (name, (labels, p_fake)), drawn, dot in zip(sets.items(), lines, dots, strict=True):
        points = curve_data.roc_points(labels, p_fake)
        np.testing.assert_array_equal(drawn.get_xydata(), np.column_stack([points["fpr"], points["tpr"]]))
        called = p_fake >= 0.5
        assert dot.get_xydata()[0] == pytest.approx([called[labels == 0].mean(), called[labels == 1].mean()])
        assert f"AUC {found[name]['auc']:.3f}" in texts(pictures["roc"])
    assert lines[0].get_color() != lines[1].get_color()
    assert "threshold 0.50" in texts(pictures["roc"])


def test_precision_recall_draws_the_operating_point_and_the_share_of_fakes():
    labels, p_fake = scored()
    found, pictures = evaluated(test=(labels, p_fake))
    (ax,) = pictures["precision_recall"].axes
    called = p_fake >= 0.5
    (dot,) = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    assert dot.get_xydata()[0] == pytest.approx([called[labels == 1].mean(), labels[called].mean()])
    (share,) = [drawn for drawn in ax.lines if drawn.get_linestyle() == ":"]
    assert share.get_ydata()[0] == pytest.approx(labels.mean())
    assert f"average precision {found['test']['average_precision']:.3f}" in texts(pictures["precision_recall"])


@pytest.mark.parametrize("name", ["roc", "precision_recall"])
def test_bands_are_shaded_under_their_own_curve(name):
    one_class = np.ones(3, int), np.array([0.1, 0.5, 0.9])
    long_name = "a test set with a name far too long for the legend of the picture"
    _, pictures = evaluated(**{"one": one_class, long_name: scored(seed=3)})
    (ax,) = pictures[name].axes
    assert len(ax.collections) == 1
    assert same_color(ax.collections[0].get_facecolor()[0][:3], figures.TEST_SETS[1][0])
    assert "95 % interval" in texts(pictures[name]) and "only images of one class" in texts(pictures[name])


@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
def test_curves_of_no_test_set(draw):
    assert "No test set" in texts(draw({}, {}, {}))
    draw_small(draw({}, {}, {}))


def test_every_picture_of_degenerate_test_sets_is_drawn():
    sets = {"one": (np.ones(3, int), np.array([0.1, 0.5, 0.9])), "two": (np.array([0, 1]), np.array([0.2, 0.3]))}
    _, pictures = evaluated(**sets, **{f"set {i}": scored(20, i) for i in range(7)})
    for name, figure in pictures.items():
        if name.endswith(("roc", "recall", "one", "two")):
            draw_small(figure)


# ---------------------------------------------------------------------------------------- scores as numbers


def test_reliability_shows_both_stages_and_their_error():
    labels, p_fake = scored(500)
    found, pictures = evaluated(test=(labels, p_fake))
    shown = texts(pictures["reliability_test"])
    assert f"before calibration, ECE {found['test']['uncalibrated']['ece']:.3f}" in shown
    assert f"after calibration, ECE {found['test']['ece']:.3f}" in shown
    ax, counts = pictures["reliability_test"].axes
    before = curve_data.reliability(labels, p_fake**2)
    full = [row for row in before if row["count"]]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [row["observed"] for row in full])
    np.testing.assert_allclose(counts.patches[0].get_data().values, [row["count"] for row in before])


def test_reliability_without_images():
    assert "ECE –" in texts(figures.reliability([], [], (None, None)))
    draw_small(figures.reliability([], [], (None, None)))


SCORES = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.5, 0.9, 0.3, 0.8, 1.0])


def test_score_histogram_counts_right_unsure_and_wrong():
    shown = texts(figure := evaluated(test=SCORES)[1]["scores_test"])
    assert "2 of 4 real images called real, 1 unsure, 1 called fake" in shown
    assert "2 of 3 fake images called fake, 0 unsure, 1 called real" in shown
    assert "threshold 0.50" in shown and "unsure, 0.40 to 0.60" in shown
    real, fake = figure.axes
    assert sum(bar.get_height() for bars in real.containers for bar in bars) == 4
    assert sum(bar.get_height() for bars in fake.containers for bar in bars) == 3
    wrong = [bar for bar in real.containers[2] if bar.get_height()]
    assert [bar.get_x() for bar in wrong] == [pytest.approx(0.88)] and wrong[0].get_hatch()


def test_score_histogram_without_a_band_has_no_unsure_images():
    none = {"start": np.array([0.0, 0.5]), "end": np.array([0.5, 1.0]), "count": np.array([0, 0])}
    bins = {f"{kind}_{part}": none for kind in ("real", "fake") for part in ("right", "unsure", "wrong")}
    figure = figures.score_histogram(bins | {"real_wrong": none | {"count": np.array([0, 1])}}, 0.5)
    assert "0 of 1 real image called real, 1 called fake" in texts(figure) and "unsure" not in texts(figure)
    draw_small(figure)
    draw_small(figures.score_histogram(bins, 0.5, (0, 1.5)))


def test_risk_coverage_marks_the_operating_point():
    found = curve_data.risk_coverage(*scored())
    figure = figures.risk_coverage(found["coverage"], found["risk"], (0.8, 0.0123))
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.column_stack([found["coverage"], found["risk"]]))
    assert [tuple(drawn.get_xydata()[0]) for drawn in ax.lines[1:]] == [(1, found["risk"][-1]), (0.8, 0.0123)]
    assert "80.0 % called\n1.2 % wrong" in texts(figure)


@pytest.mark.parametrize(
    ("risk", "operating"),
    [([], (None, None)), ([], (0.0, 0.0)), ([0.0], (0.5, 0.0)), ([np.nan, 0.5], (0.0, None))],
)
def test_risk_coverage_of_degenerate_data(operating, risk):
    draw_small(figures.risk_coverage(np.linspace(0.5, 1, len(risk)), risk, operating))


def ladder_rows(corruption_sets=("generic", "matched"), corruptions=4):
    rows = [
        {
            "name": "none",
            "family": "none",
            "corruption_set": corruption_sets[0],
            "severity": 0,
            "auc": 0.98,
            "accuracy": 0.93,
        }
    ]
    for corruption_set in corruption_sets:
        for i in range(corruptions):
            for severity in range(1, 6):
                auc = 0.98 - (0.02 if corruption_set == "generic" else 0.04) * severity - i / 500
                row = {
                    "name": f"{corruption_set}_{i}",
                    "family": f"family {i // 3}",
                    "corruption_set": corruption_set,
                    "severity": severity,
                }
                rows.append({**row, "auc": auc, "accuracy": auc - 0.1})
    table = with_mean_auc(pd.DataFrame(rows))
    return table.to_dict("records")


def ladder_figure(rows):
    """Drawn from rows, with the means and curves that the evaluate stage has of them."""
    table = pd.DataFrame(rows, columns=["name", "family", "corruption_set", "severity", "n", "auc", "accuracy"])
    table = table.assign(corruption_set=table["corruption_set"].where(table["severity"] > 0, ""), n=40)
    table = table.astype({"auc": float, "accuracy": float})
    one = pd.DataFrame({"set": "test", "group": ["a", "b"], "label": [0, 1], "p_fake": [0.1, 0.9]})
    lines = curve_table(one, table, 0.5, 2, 0)
    curves = {
        name: {"x": own["x"].to_numpy(), "y": own["y"].to_numpy()}
        for name in ("generic", "matched")
        if len(own := lines[lines["curve"] == f"stress_{name}"])
    }
    means = stress_summary(table) if len(table) else {k: {"auc": None} for k in ("undamaged", "generic", "matched")}
    return figures.robustness_ladder(with_mean_auc(table), means, curves)


def test_robustness_ladder_keeps_the_arms_apart_and_shows_their_means():
    rows = ladder_rows(corruptions=2)
    figure = ladder_figure(rows)
    chart, generic, matched = figure.axes
    names = [label.get_text() for label in generic.get_yticklabels()]
    assert names == ["generic 0", "generic 1", "mean"]
    assert [label.get_text() for label in matched.get_yticklabels()] == ["matched 0", "matched 1", "mean"]
    np.testing.assert_allclose(line(chart, "generic").get_ydata(), [0.98, *(0.979 - 0.02 * np.arange(1, 6))])
    np.testing.assert_allclose(line(chart, "matched").get_ydata(), [0.98, *(0.979 - 0.04 * np.arange(1, 6))])
    cells = {text.get_position(): text.get_text() for text in matched.texts}
    assert cells[0, 0] == "0.94" and cells[4, 0] == "0.78" and cells[5, 0] == "0.86" and len(cells) == 18
    assert all(mean in figure.texts[1].get_text() for mean in ("0.980", "generic 0.919", "matched 0.859"))


def test_robustness_ladder_paints_losses_darker():
    _, _, matched = ladder_figure(ladder_rows()).axes
    brightness = np.asarray(matched.images[0].get_array())[0, :5].sum(axis=-1)
    assert (np.diff(brightness) < 0).all()


@pytest.mark.parametrize(
    "rows", [[], ladder_rows(("generic",), 1), [{**row, "auc": None} for row in ladder_rows()][:-3]]
)
def test_robustness_ladder_of_degenerate_data(rows):
    draw_small(ladder_figure(rows))


def models(n, seed=0, near=1.0):
    rng = np.random.default_rng(seed)
    values, speeds = 0.9 + 0.05 * near * rng.normal(size=n), 40 * np.exp(near * rng.normal(size=n))
    return [
        {"label": f"a model called {i}", "value": v, "low": v - 0.05, "high": v + 0.03, "speed": s, "parameters": p}
        for i, v, s, p in zip(range(n), values, speeds, rng.uniform(1e6, 5e7, n), strict=True)
    ]


def label_boxes(figure, rows):
    figure.draw_without_rendering()
    found = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    return {row["label"]: found[row["label"]] for row in rows if row["label"] in found}


@pytest.mark.parametrize("seed", range(3))
def test_leaderboard_names_lie_on_no_dot_and_on_no_name(seed):
    rows = models(16, seed)
    figure = figures.leaderboard(rows)
    boxes, ax = label_boxes(figure, rows), figure.axes[0]
    assert len(boxes) >= 10
    listed = list(boxes.values())
    assert not any(a.overlaps(b) for i, a in enumerate(listed) for b in listed[:i])
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in listed)
    (dots,) = ax.collections[1:]
    centres = ax.transData.transform(dots.get_offsets())
    radii = np.sqrt(dots.get_sizes()) / 2 * figure.dpi / 72
    for box in listed:
        nearest = np.clip(centres, (box.x0, box.y0), (box.x1, box.y1))
        assert (np.hypot(*(nearest - centres).T) > radii - 1.5).all()


def test_leaderboard_draws_values_intervals_and_sizes():
    rows = [{"label": "a", "value": 0.8, "low": 0.7, "high": 0.85, "speed": 50, "parameters": 4e6},
            {"label": "b", "value": 0.9, "low": 0.88, "high": 0.93, "speed": 20, "parameters": 16e6},
            {"label": "c", "value": 0.7, "speed": 30, "parameters": None},
            {"label": "d", "value": 0.95, "speed": None}]  # fmt: skip
    figure = figures.leaderboard(rows, "Accuracy", subtitle="on test")
    ax = figure.axes[0]
    bars, dots = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), [(20, 0.9), (50, 0.8), (30, 0.7)])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.88, 0.93], [0.7, 0.85], [0.7, 0.7]]
    assert dots.get_sizes()[0] == pytest.approx(4 * dots.get_sizes()[1])
    assert same_color(dots.get_facecolors()[2], "white") and not same_color(dots.get_facecolors()[1], "white")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [(20, 0.9), (50, 0.8)])
    for said in ("Accuracy", "90 %", "10 M parameters", "size unknown", "1 run without a figure or a speed", "on test"):
        assert said in texts(figure), said
    assert "d" not in [text.get_text() for text in ax.texts]


def test_leaderboard_where_less_is_better():
    rows = [{"label": str(v), "value": v, "speed": s, "parameters": 1e6} for v, s in ((0.3, 10), (0.1, 20), (0.2, 40))]
    figure = figures.leaderboard(rows, "Loss", percent=False, lower_is_better=True)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[20, 0.1], [40, 0.2]]
    assert "Loss, lower is better" in texts(figure) and "%" not in texts(figure)


def test_leaderboard_leaves_out_names_rather_than_pile_them_up():
    rows = models(90, near=0.02)
    figure = figures.leaderboard(rows)
    boxes = list(label_boxes(figure, rows).values())
    assert 1 < len(boxes) < 90
    assert f"{90 - len(boxes)} runs without room for the name" in texts(figure)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"label": "none"}],
        [{"label": "one", "value": 1.0, "speed": 30.0}],
        [{"label": "x" * 200, "value": 0, "low": 0, "high": 0, "speed": 1e-3, "parameters": 12}] * 3,
        [{"label": "$\\frac{$", "value": 0.5, "speed": speed, "parameters": 1e6} for speed in (0.02, 5e5)],
        [{"label": "n", "value": 40.0, "low": float("nan"), "high": float("inf"), "speed": 3, "parameters": 0}],
    ],
)
@pytest.mark.parametrize("percent", [True, False])
def test_leaderboard_of_next_to_nothing(rows, percent):
    draw_small(figures.leaderboard(rows, percent=percent))


# ------------------------------------------------------------------------------------------------- images


def test_prediction_grid_frames_and_marks_right_and_wrong():
    names = [("Real", "Real"), ("Real", "Fake"), ("Fake", "Real"), ("Fake", "Fake")]
    figure = figures.prediction_grid(images(4), [0, 0, 1, 1], [0.1, 0.9, 0.2, 0.8], 0.5, names, "Some predictions")
    ax = figure.axes[0]
    colours = [frame.get_edgecolor() for frame in frames(figure)]
    expected = [figures.RIGHT, figures.WRONG, figures.WRONG, figures.RIGHT]
    assert all(same_color(*pair) for pair in zip(colours, expected, strict=True))
    right, wrong, *_ = [frame.get_linewidth() for frame in frames(figure)]
    assert wrong > right
    assert [text.get_text() for text in ax.texts if text.get_text() in "✓✗"] == ["✓", "✗", "✗", "✓"]
    said = texts(figure)
    assert "Some predictions" in said and "2 of 4 images called right (✓), 2 wrong (✗), at threshold 0.50" in said
    for caption in ("is Real, called Real", "is Real, called Fake", "is Fake, called Real", "P(fake) 0.90"):
        assert caption in said


def test_prediction_grid_calls_fake_from_the_threshold_on_and_rounds_no_score_across_it():
    said = texts(figures.prediction_grid(images(2), [1, 1], [0.5, 0.4996], 0.5, [("fake", "fake"), ("fake", "real")]))
    assert "is fake, called fake\nP(fake) 0.50\n" in said
    assert "is fake, called real\nP(fake) 0.4996\n" in said


def test_prediction_grid_counts_a_fake_called_another_kind_of_fake_as_right():
    figure = figures.prediction_grid(images(2), [1, 1], [0.9, 0.2], 0.5, [("swap", "drawn"), ("swap", "real")])
    said = texts(figure)
    assert "1 of 2 images called right (✓), 1 wrong (✗)" in said and "is swap, called drawn" in said


def test_prediction_grid_without_scores_and_without_images():
    figure = figures.prediction_grid(images(2), [0, 1], [None, np.nan], 0.5, [("real", ""), ("fake", "")])
    assert "0 of 2 images called right (✓), 0 wrong (✗)" in texts(figure)
    assert not any(same_color(f.get_edgecolor(), figures.RIGHT) for f in frames(figure))
    draw_small(figure)
    draw_small(figures.prediction_grid([], [], [], 0.5, []))


def test_prediction_grid_draws_a_hundred_images_of_any_shape_without_overlap():
    pictures = images(50, 10, 30) + images(50, 30, 10)
    figure = figures.prediction_grid(pictures, [0] * 100, [0.1] * 100, 0.5, [("real", "real")] * 100)
    boxes = np.array([image.get_extent() for image in figure.axes[0].images])
    wide = (boxes[:, 1] - boxes[:, 0]) / (boxes[:, 2] - boxes[:, 3])
    np.testing.assert_allclose(wide, [3] * 50 + [1 / 3] * 50)
    centres = np.column_stack([boxes[:, :2].mean(axis=1), boxes[:, 2:].mean(axis=1)]).round(6)
    assert len(np.unique(centres, axis=0)) == 100
    assert boxes[:, :2].min() >= 0 and boxes[:, :2].max() <= figures.WIDTH
    assert boxes[:, 2:].min() >= 0 and boxes[:, 2:].max() <= figure.get_figheight()


def test_sample_sheet_titles_its_rows_and_outlines_what_was_forged():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    pair = images(2)
    figure = figures.sample_sheet(
        {"Train, real": [(pair[0], None)], "Train, fake": [(pair[1], mask), (pair[0], np.zeros((20, 20)))]},
        "Data",
    )
    ax = figure.axes[0]
    assert "Train, real" in texts(figure) and "Train, fake" in texts(figure) and "Data" in texts(figure)
    (outline,) = ax.collections
    left, right, bottom, top = ax.images[1].get_extent()
    points = np.vstack([path.vertices for path in outline.get_paths()])
    x, y = (points[:, 0] - left) / (right - left), (points[:, 1] - top) / (bottom - top)
    assert [x.min(), x.max(), y.min(), y.max()] == pytest.approx([0.25, 0.75, 0.25, 0.75], abs=0.03)
    assert ax.images[0].get_extent()[:2] == ax.images[1].get_extent()[:2]


def test_an_outline_at_the_edge_is_closed_and_an_empty_mask_has_none():
    figure = figures.sample_sheet({"all": [(images(1)[0], np.ones((20, 20)))]})
    (outline,) = figure.axes[0].collections
    vertices = outline.get_paths()[0].vertices
    np.testing.assert_allclose(vertices[0], vertices[-1])
    draw_small(figure)
    draw_small(figures.sample_sheet({}))
    draw_small(figures.sample_sheet({"nothing": []}))


def test_mistakes_are_framed_as_wrong_and_captioned():
    figure = figures.mistakes(images(3), [f"{i}.jpg\nP(fake) 0.99" for i in range(3)], "Real called fake")
    assert all(same_color(frame.get_edgecolor(), figures.WRONG) for frame in frames(figure))
    assert "Real called fake" in texts(figure) and "2.jpg" in texts(figure) and "P(fake) 0.99" in texts(figure)
    assert "There are none." in texts(figures.mistakes([], []))


def test_duplicate_pairs_stand_closer_to_one_another_than_to_the_next_pair():
    pictures = images(6)
    pairs = [((pictures[i], f"a{i}"), (pictures[i + 1], f"b{i}")) for i in (0, 2, 4)]
    figure = figures.duplicate_pairs(pairs, "Twins")
    boxes = [image.get_extent() for image in figure.axes[0].images]
    assert boxes[1][0] - boxes[0][1] < boxes[2][0] - boxes[1][1]
    assert boxes[4][0] == boxes[0][0] and boxes[4][3] > boxes[0][2]
    assert "a2" in texts(figure) and "b4" in texts(figure)
    assert "There are none." in texts(figures.duplicate_pairs([]))


# ----------------------------------------------------------------------------------------------- all of them


def test_pixels_are_shown_in_their_colours(tmp_path):
    red = np.full((30, 30, 3), (255, 0, 0), np.uint8)
    figures.save(figures.sample_sheet({"": [(red, None)]}), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.array(image.convert("RGB"))
    assert ((pixels == (255, 0, 0)).all(axis=-1)).sum() > 10_000
    assert (pixels[:5] == 255).all()


def test_saving_is_deterministic_and_deaf_to_a_matplotlibrc(tmp_path):
    draws = (
        lambda: figures.loss_curve(HISTORY, BEST),
        lambda: figures.prediction_grid(images(2), [0, 1], [0.1, 0.2], 0.5, [("real", "real"), ("fake", "real")]),
    )
    for draw in draws:
        figures.save(draw(), tmp_path / "deep" / "first.png")
        with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 10}):
            figures.save(draw(), tmp_path / "second.png")
        first = (tmp_path / "deep" / "first.png").read_bytes()
        assert first == (tmp_path / "second.png").read_bytes()
        assert b"Software" not in first and b"tEXt" not in first and b"tIME" not in first
        with Image.open(tmp_path / "second.png") as image:
            assert image.width == 1200


def test_drawing_leaves_the_settings_of_others_alone():
    before = dict(matplotlib.rcParams)
    figures.accuracy_curve(HISTORY)
    assert dict(matplotlib.rcParams) == before


def test_text_is_taken_as_it_is():
    figure = figures.mistakes(images(1), ["$\\frac{$.jpg"], "A $\\nonsense{$ title")
    assert "$\\frac{$.jpg" in texts(figure)
    draw_small(figure)


@pytest.mark.parametrize("word", ["x" * 300, "word " * 60])
def test_long_texts_stay_on_the_page(word):
    figure = figures.mistakes(images(1), [word], word)
    for row in figure.texts[0].get_text().splitlines():
        assert figures._wide(row, 15, "bold") <= figures.WIDTH - 2 * figures.MARGIN
    caption = figure.axes[0].texts[-1].get_text()
    assert "…" in caption and figures._wide(caption, 9.5) < figures.WIDTH / 4


def test_train_validation_real_and_fake_differ_for_every_eye():
    # Lightness or blue-yellow must differ: red-green is what most colour-blind people miss.
    for one, other in ((figures.REAL, figures.FAKE), (figures.TRAIN, figures.VALIDATION)):
        a, b = np.array(to_rgb(one)), np.array(to_rgb(other))
        assert max(abs(a.mean() - b.mean()), abs((a[2] - a[:2].mean()) - (b[2] - b[:2].mean()))) > 0.15


def test_importing_needs_neither_pyplot_nor_a_framework():
    code = (
        "import sys, detector.reporting.figures;"
        "print({'matplotlib.pyplot', 'tensorflow', 'keras', 'mlflow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- heat --------------------------------------------------------------------------------------------------------


def test_heat_stands_beside_its_image_in_titled_rows():
    image, overlay = images(2)
    mask = np.zeros((20, 20))
    mask[5:15, 5:15] = 1
    rows = {
        "Fake images called fake": [figures.Explained(image, overlay, True, "swap", "swap", 0.93, True, mask)],
        "Real images called real": [],
        "Real images called fake": [figures.Explained(image, overlay, False, "real", "swap", 0.4996, False)],
    }
    figure = figures.heat_sheet(rows, 0.49, "Where the model looked: test")
    said = texts(figure)
    assert "Fake images called fake (✓)" in said and "Real images called fake (✗)" in said
    assert "called real" not in said
    assert "P(fake) 0.93" in said and "is swap\ncalled swap" in said and "Outlined: what was forged" in said
    assert said.count("no heat") == 1
    drawn = [picture.get_array() for picture in figure.axes[0].images]
    np.testing.assert_array_equal(drawn[0], image)
    np.testing.assert_array_equal(drawn[1], overlay)
    assert len(drawn) == 4 and len(figure.axes[0].collections) == 1  # one outline
    draw_small(figure)


def test_heat_of_nothing():
    assert "There is no image." in texts(figures.heat_sheet({}, 0.5))
    image, overlay = images(2)
    rows = {"Real images called real": [figures.Explained(image, overlay, True, "real", "real", 0.1, True)]}
    assert "Outlined" not in texts(figures.heat_sheet(rows, 0.5))
