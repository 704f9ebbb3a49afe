import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from detector import metrics
from detector.errors import UserError
from detector.evaluation import curves
from detector.evaluation.bootstrap import auc_within_sets, bootstrap, draw_groups, paired_bootstrap
from detector.metrics import METRICS, score

pytestmark = pytest.mark.filterwarnings("error")

# Scores on a coarse grid, so that ties, bin edges, 0 and 1 are common.
images = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=60)
thresholds = st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.9, 1.0])


def arrays(pairs):
    labels, steps = np.array(pairs).T
    return labels, steps / 30


def drawn(n, seed=0, separation=1.5, decimals=None):
    """Labels and scores of a detector of middling quality; rounded, they have ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    p_fake = 1 / (1 + np.exp(-2 * rng.normal(size=n) - separation * (2 * labels - 1)))
    return labels, p_fake if decimals is None else p_fake.round(decimals)


def reference(labels, p_fake, threshold, weight=None):
    """The metrics by scikit-learn and by search, for images of both classes."""
    called = p_fake >= threshold
    fpr, tpr, _ = sk.roc_curve(labels, p_fake, sample_weight=weight, drop_intermediate=False)
    weight = np.ones(len(labels)) if weight is None else weight
    clipped = np.clip(p_fake, 1e-7, 1 - 1e-7)
    ece = 0
    for k in range(15):
        inside = (p_fake > k / 15 if k else p_fake >= 0) & (p_fake <= (k + 1) / 15)
        if weight[inside].sum():
            gap = np.average(p_fake[inside], weights=weight[inside]) - np.average(
                labels[inside], weights=weight[inside]
            )
            ece += abs(gap) * weight[inside].sum() / weight.sum()
    return {
        "accuracy": sk.accuracy_score(labels, called, sample_weight=weight),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called, sample_weight=weight),
        "auc": sk.roc_auc_score(labels, p_fake, sample_weight=weight),
        "average_precision": sk.average_precision_score(labels, p_fake, sample_weight=weight),
        "eer": brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-14),
        "tpr_at_fpr_1pct": tpr[fpr <= 0.01 + 1e-12].max(),
        "tpr_at_fpr_01pct": tpr[fpr <= 0.001 + 1e-12].max(),
        "brier": np.average((p_fake - labels) ** 2, weights=weight),
        "loss": sk.log_loss(labels, clipped, sample_weight=weight, labels=[0, 1]),
        "ece": ece,
        "false_positive_rate": np.average(called[labels == 0], weights=weight[labels == 0]),
        "false_negative_rate": np.average(~called[labels == 1], weights=weight[labels == 1]),
    }


# --- score


@settings(max_examples=50, deadline=None)
@given(images.filter(lambda pairs: {label for label, _ in pairs} == {0, 1}), thresholds)
def test_score_agrees_with_scikit_learn(pairs, threshold):
    labels, p_fake = arrays(pairs)
    found = score(labels, p_fake, threshold)
    for name, value in reference(labels, p_fake, threshold).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("decimals", [None, 2])
def test_score_agrees_with_scikit_learn_on_many_images(decimals):
    labels, p_fake = drawn(5000, decimals=decimals)
    found = score(labels, p_fake, 0.3)
    assert found == {
        "n": 5000,
        "n_real": int((labels == 0).sum()),
        "n_fake": int(labels.sum()),
        "threshold": 0.3,
        **{name: pytest.approx(value, abs=1e-9) for name, value in reference(labels, p_fake, 0.3).items()},
    }


def test_eer_of_a_known_distribution():
    # Scores of the two classes normal, two deviations apart: FPR = FNR at the middle, one deviation away.
    quantiles = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    labels = np.repeat([0, 1], 20_000)
    p_fake = norm.cdf(np.concatenate([quantiles - 1, quantiles + 1]) / 4)
    assert score(labels, p_fake)["eer"] == pytest.approx(norm.cdf(-1), abs=1e-4)
    assert score(labels, p_fake)["auc"] == pytest.approx(norm.cdf(2**0.5), abs=1e-4)


def test_tpr_at_fpr_allows_exactly_one_in_a_hundred():
    real = np.linspace(0.9, 0.1, 300)
    labels = np.repeat([0, 1], [300, 4])

    def at(fakes):
        return score(labels, np.concatenate([real, fakes]))

    below_third, below_fourth = real[2:4].mean(), real[3:5].mean()
    found = at([0.95, below_third, below_third, below_fourth])
    assert found["tpr_at_fpr_1pct"] == 0.75  # three of 300 accused, not four
    assert found["tpr_at_fpr_01pct"] == 0.25  # none accused


def test_ece_by_hand():
    # Bins of width 1/15: two images in (0.6, 0.667], one on the edge 0.2 (of the bin below it), one at 0.
    labels = np.array([1, 0, 1, 0])
    p_fake = np.array([0.61, 0.65, 0.2, 0.0])
    by_hand = (2 * abs(0.63 - 0.5) + abs(0.2 - 1) + 0) / 4
    assert score(labels, p_fake)["ece"] == pytest.approx(by_hand)


def test_loss_is_clipped_as_keras_does():
    assert score([1, 1], [0.0, 1.0])["loss"] == pytest.approx(-math.log(1e-7) / 2, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(images, thresholds)
def test_anything_undefined_is_none_and_the_rest_is_finite(pairs, threshold):
    labels, p_fake = arrays(pairs)
    found = score(labels, p_fake, threshold)
    json.dumps(found, allow_nan=False)
    both = 0 < labels.sum() < len(labels)
    undefined = {name for name, value in found.items() if value is None}
    if both:
        assert not undefined
    else:
        absent, known = ("negative", "positive") if found["n_fake"] == 0 else ("positive", "negative")
        of_both = {*(one.name for one in metrics.of_kind("ranking")), "balanced_accuracy"}
        assert {*of_both, f"false_{absent}_rate"} <= undefined
        assert not undefined & {"accuracy", "brier", "loss", "ece", f"false_{known}_rate"}


def test_one_image_and_constant_scores():
    assert score([1], [0.5])["accuracy"] == 1.0
    assert score([0], [0.5])["false_positive_rate"] == 1.0
    constant = score([0, 1, 1], [0.5, 0.5, 0.5])
    assert (constant["auc"], constant["eer"], constant["tpr_at_fpr_1pct"]) == (0.5, 0.5, 0.0)
    assert constant["average_precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "p_fake", "message"),
    [
        ([], [], "no image"),
        ([0, 1], [0.5], "1 scores for 2 labels"),
        ([0, 1], [0.5, math.nan], "not in 0..1"),
        ([0, 1], [0.5, 1.01], "1 of 2 scores"),
        ([0, 1], [-0.01, 0.5], "-0.01"),
        ([0, 2], [0.5, 0.5], "labels must be 0"),
        ([0, 1], [[0.5], [0.5]], "one dimension"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [score, bootstrap, curves.roc_points, curves.pr_band, curves.reliability, curves.risk_coverage],
)
def test_bad_input_is_one_line(function, labels, p_fake, message):
    with pytest.raises(UserError, match=message) as caught:
        function(labels, p_fake)
    assert "\n" not in str(caught.value)


# --- the table


def test_every_metric_is_one_function_with_its_names_and_its_definition():
    rows = METRICS.values()
    assert list(METRICS) == [one.name for one in rows] and all(one.values.__doc__ for one in rows)
    assert len({one.title for one in rows}) == len({one.heading for one in rows}) == len(METRICS)
    kinds = [metrics.of_kind(kind) for kind in ("threshold", "ranking", "probability")]
    assert sorted(one.name for of_kind in kinds for one in of_kind) == sorted(METRICS)


def test_a_share_of_images_is_a_whole_number_of_them():
    labels, p_fake = drawn(77)
    found = score(labels, p_fake)
    for one in METRICS.values():
        if one.share_of:
            count = found[one.name] * found[one.share_of]
            assert count == pytest.approx(round(count), abs=1e-9) and one.percent and one.plain, one.name


def test_lower_is_better_where_a_model_that_is_always_wrong_scores_higher():
    labels = np.array([0, 1, 1, 0, 0])
    right, wrong = (score(labels, np.abs(labels - error)) for error in (0.02, 0.98))
    for name, one in METRICS.items():
        assert (right[name] < wrong[name]) == one.lower_is_better and right[name] != wrong[name], name


def test_only_all_and_nothing_are_written_as_all_and_nothing():
    auc, accuracy = METRICS["auc"], METRICS["accuracy"]
    assert [accuracy.text(p) for p in (0, 1e-4, 0.125, 0.9999, 1)] == [
        "0.0 %",
        "<0.1 %",
        "12.5 %",
        ">99.9 %",
        "100.0 %",
    ]
    assert [auc.text(p) for p in (0, 1e-4, 0.125, 0.9999, 1)] == ["0.000", "<0.001", "0.125", ">0.999", "1.000"]
    assert metrics.decimal(3.14159, 2) == "3.14" and metrics.decimal(0.997, 2) == ">0.99"
    assert [auc.text(None), accuracy.text(math.nan, "-")] == ["not defined", "-"]
    assert accuracy.between(0.85, 0.9999) == "85.0 to >99.9 %" and auc.between(0.5, 0.75) == "0.500 to 0.750"


def test_an_option_that_names_no_metric_is_refused():
    metrics.check_metric("--sort", "speed", ["speed"])
    with pytest.raises(UserError, match=r"^--metric: there is no 'AUC'; choose from accuracy, "):
        metrics.check_metric("--metric", "AUC")


def test_the_table_is_light():
    code = "import sys, detector.metrics; sys.exit(bool({'scipy', 'sklearn', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- classes


def test_confusion_and_per_class():
    classes = ["real", "gan", "diffusion", "swap"]
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 1])
    assert metrics.confusion(labels, predicted, classes) == {
        "real": {"real": 2, "gan": 1, "diffusion": 0, "swap": 0},
        "gan": {"real": 1, "gan": 1, "diffusion": 0, "swap": 0},
        "diffusion": {"real": 0, "gan": 1, "diffusion": 0, "swap": 0},
        "swap": {"real": 0, "gan": 0, "diffusion": 0, "swap": 0},
    }
    found = metrics.per_class(labels, predicted, classes)
    assert found["real"] == {name: pytest.approx(2 / 3) for name in ("precision", "recall", "f1")} | {"support": 3}
    assert found["gan"] == {
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
        "support": 2,
    }
    assert found["diffusion"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert found["swap"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    json.dumps([found, metrics.confusion(labels, predicted, classes)], allow_nan=False)


@pytest.mark.parametrize("predicted", [[0, 4], [0], [0, -1]])
def test_classes_out_of_range(predicted):
    with pytest.raises(UserError):
        metrics.per_class([0, 1], predicted, ["real", "fake"])


# --- intervals


@pytest.mark.parametrize(("n", "decimals", "grouped"), [(80, None, False), (80, 1, True), (8000, 2, True)])
def test_bootstrap_is_the_score_of_every_resample(n, decimals, grouped):
    labels, p_fake = drawn(n, decimals=decimals)
    rng = np.random.default_rng(5)
    codes = rng.integers(n // 4, size=n) if grouped else np.arange(n)
    groups = [f"person {code}" for code in codes] if grouped else None
    first_seen = {code: i for i, code in enumerate(dict.fromkeys(codes))}
    numbered = np.array([first_seen[code] for code in codes])
    resamples = 35  # of 8,000 images more than are drawn at once

    found = bootstrap(labels, p_fake, groups, 0.4, n=resamples, seed=3, confidence=0.8)

    rng = np.random.default_rng(3)
    by_weight, by_copy = [], []
    for _ in range(resamples):
        drawn_groups = rng.integers(numbered.max() + 1, size=numbered.max() + 1)
        weight = np.bincount(drawn_groups, minlength=numbered.max() + 1)[numbered]
        rows = np.repeat(np.arange(n), weight)
        by_copy.append(score(labels[rows], p_fake[rows], 0.4))
        by_weight.append(reference(labels, p_fake, 0.4, weight.astype(float)))
    for name in METRICS:
        for samples in ([s[name] for s in by_copy], [s[name] for s in by_weight]):
            low, high = np.quantile(samples, [0.1, 0.9])
            if name == "ece":  # the basic interval, around the estimate
                estimate = score(labels, p_fake)["ece"]
                low, high = max(0, min(2 * estimate - high, estimate)), max(2 * estimate - low, estimate)
            assert found[name] == {"low": pytest.approx(low, abs=1e-9), "high": pytest.approx(high, abs=1e-9)}


def test_accuracy_interval_is_close_to_the_binomial():
    labels = np.zeros(400, int)
    p_fake = np.repeat([0.9, 0.1], [80, 320])
    found = bootstrap(labels, p_fake, metrics=["accuracy"], n=20_000)["accuracy"]
    assert found["low"] == pytest.approx(binom.ppf(0.025, 400, 0.8) / 400, abs=0.0026)
    assert found["high"] == pytest.approx(binom.ppf(0.975, 400, 0.8) / 400, abs=0.0026)


def test_intervals_cover_the_truth():
    auc, accuracy = norm.cdf(1.5 / 2**0.5), norm.cdf(0.75)
    covered = np.zeros(2)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 100)
        p_fake = norm.cdf(rng.normal(size=200) + 1.5 * (labels - 0.5))
        found = bootstrap(labels, p_fake, metrics=["auc", "accuracy"], n=300, seed=rng)
        for i, (name, truth) in enumerate([("auc", auc), ("accuracy", accuracy)]):
            covered[i] += found[name]["low"] <= truth <= found[name]["high"]
    assert (covered / 200 > 0.9).all() and (covered / 200 < 0.99).all()


def test_copies_widen_the_interval_only_when_they_are_grouped():
    labels, p_fake = drawn(300)
    copies = 9
    many = np.tile(labels, copies), np.tile(p_fake, copies)
    groups = np.tile(np.arange(300), copies)

    def width(*arguments):
        return {name: found["high"] - found["low"] for name, found in bootstrap(*arguments).items()}

    alone, grouped, blind = width(labels, p_fake), width(*many, groups), width(*many)
    for name in ("accuracy", "auc", "eer", "loss"):
        assert grouped[name] == pytest.approx(alone[name], rel=1e-6)
        assert grouped[name] / blind[name] == pytest.approx(3, rel=0.15)


def test_a_missing_group_is_a_group_of_its_own():
    labels, p_fake = drawn(50)
    missing = [None, "", float("nan"), np.nan, "only"] * 10
    named = [f"image {i}" if i % 5 < 4 else "only" for i in range(50)]
    assert bootstrap(labels, p_fake, missing) == bootstrap(labels, p_fake, named)


def test_groups_may_be_any_hashable():
    labels, p_fake = drawn(40)
    keys = [("video", i % 7) for i in range(40)]
    assert bootstrap(labels, p_fake, keys) == bootstrap(labels, p_fake, np.arange(40) % 7)


def test_the_seed_decides_and_nothing_else():
    labels, p_fake = drawn(100)
    state = np.random.get_state()[1].copy()
    first = bootstrap(labels, p_fake, seed=4)
    assert first == bootstrap(labels, p_fake, seed=4)
    assert first == bootstrap(labels, p_fake, seed=np.random.default_rng(4))
    assert first != bootstrap(labels, p_fake, seed=5)
    assert (np.random.get_state()[1] == state).all()
    assert first["auc"] == bootstrap(labels, p_fake, metrics=["auc"], seed=4)["auc"]


def test_resamples_without_an_answer_are_left_out():
    few = bootstrap([0, 1, 1], [0.1, 0.6, 0.4])
    assert few["auc"] == {"low": 1.0, "high": 1.0}
    assert few["accuracy"]["low"] < few["accuracy"]["high"]
    one_class = bootstrap([0, 0, 0], [0.1, 0.6, 0.4])
    assert one_class["auc"] is None and one_class["false_negative_rate"] is None
    assert one_class["false_positive_rate"] == {"low": 0.0, "high": 1.0}
    assert set(bootstrap([1], [0.4]).values()) == {None}
    assert set(bootstrap([0, 1], [0.4, 0.6], ["same", "same"]).values()) == {None}


def test_the_interval_of_a_calibrated_models_ece_holds_the_estimate_and_goes_down_towards_the_truth():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p_fake = rng.random(400)
        labels = (rng.random(400) < p_fake).astype(int)
        estimate, found = score(labels, p_fake)["ece"], bootstrap(labels, p_fake, metrics=["ece"], n=200, seed=1)["ece"]
        assert 0 <= found["low"] <= estimate <= found["high"]
        assert found["low"] < 0.6 * estimate


# --- several test sets together


def width(interval):
    return interval["high"] - interval["low"]


def test_sets_of_their_own_scale_by_hand():
    # Each set is ranked without a fault; the fakes of one, at 0.3 and 0.4, lie below the real images of the other.
    labels = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    p_fake = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    sets = ["a"] * 4 + ["b"] * 4
    assert score(labels, p_fake)["auc"] == pytest.approx(12 / 16)
    few = auc_within_sets(labels, p_fake, sets, n=100)
    assert (few["auc"], few["difference"]) == (1, pytest.approx(12 / 16 - 1))
    many = auc_within_sets(np.tile(labels, 10), np.tile(p_fake, 10), sets * 10, n=400)
    assert many["difference"] == few["difference"]
    assert -0.5 < many["low"] < many["difference"] < many["high"] < -0.1


def test_a_set_counts_by_its_pairs_and_one_of_one_class_does_not_count():
    # Set a: 4 pairs, all right. Set b: 1 pair, a tie. Set c: fakes alone.
    labels = np.array([0, 0, 1, 1, 0, 1, 1])
    p_fake = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.05])
    found = auc_within_sets(labels, p_fake, list("aaaabbc"), n=100)
    assert found["auc"] == pytest.approx((4 + 0.5) / 5)
    # All pairs: 3 real against 4 fake images; wrong are 0.3 and 0.4 against 0.5, and 0.05 against all three.
    assert found["difference"] == pytest.approx((12 - 2 - 0.5 - 3) / 12 - 0.9)


def test_scores_on_one_scale_lose_nothing_by_pooling():
    labels, p_fake = drawn(400)
    found = auc_within_sets(labels, p_fake, [i % 3 for i in range(400)], n=300)
    assert found["low"] < 0 < found["high"] and width(found) < 0.05
    one = auc_within_sets(labels, p_fake, ["all"] * 400, n=100)
    assert (one["auc"], one["difference"]) == (pytest.approx(score(labels, p_fake)["auc"]), 0)
    assert one["low"] == one["high"] == 0


def test_sets_without_a_pair_of_their_own_have_no_auc_within():
    found = auc_within_sets([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], list("aabb"), n=100)
    assert found == dict.fromkeys(("auc", "difference", "low", "high"))


def test_one_set_is_resampled_as_ever():
    labels, p_fake = drawn(80)
    groups = [i // 2 for i in range(80)]
    assert bootstrap(labels, p_fake, groups, n=200, sets=["test"] * 80) == bootstrap(labels, p_fake, groups, n=200)


def test_a_resample_has_as_many_groups_of_each_set_as_there_are():
    # Groups 0 to 9 lie in a and b, 10 to 14 in a alone, 15 to 34 in c.
    codes = np.array([*range(10), *range(10), *range(10, 15), *range(15, 35)])
    sets = ["a"] * 10 + ["b"] * 10 + ["a"] * 5 + ["c"] * 20
    (draws,) = draw_groups(codes, 50, 0, sets)
    assert draws.shape == (50, 35)
    for members in (slice(0, 10), slice(10, 15), slice(15, 35)):
        assert (draws[:, members].sum(axis=1) == members.stop - members.start).all()
        assert draws[:, members].std(axis=0).all()


def test_two_versions_of_an_image_are_one_draw_and_ties_of_the_unrelated_cost_nothing():
    labels, p_fake = drawn(300, seed=2)
    sets = ["clean"] * 300 + ["damaged"] * 300
    twice, images = np.tile(labels, 2), list(range(300))

    def interval(second, groups):
        scores = np.concatenate([p_fake, second])
        return width(bootstrap(twice, scores, groups, metrics=["accuracy"], n=2000, sets=sets)["accuracy"])

    alone = width(bootstrap(labels, p_fake, images, metrics=["accuracy"], n=2000)["accuracy"])
    assert interval(p_fake, images * 2) == pytest.approx(alone, rel=0.05)  # a copy is no news
    assert interval(p_fake, None) == pytest.approx(alone / 2**0.5, rel=0.08)
    unrelated, rng = p_fake.copy(), np.random.default_rng(0)
    for label in (0, 1):
        unrelated[labels == label] = rng.permutation(p_fake[labels == label])
    tied, apart = interval(unrelated, images * 2), interval(unrelated, None)
    assert tied == pytest.approx(apart, rel=0.12)


def test_sets_of_one_group_each_have_no_interval():
    labels, p_fake = drawn(20)
    sets = ["a"] * 10 + ["b"] * 10
    assert bootstrap(labels, p_fake, sets, metrics=["auc"], n=100, sets=sets) == {"auc": None}
    assert auc_within_sets(labels, p_fake, sets, sets, n=100)["low"] is None
    with pytest.raises(UserError, match="there are 3 sets for 20 labels"):
        bootstrap(labels, p_fake, sets=list("abc"))


def test_bad_arguments_of_the_bootstrap():
    with pytest.raises(UserError, match="unknown metric 'f2'"):
        bootstrap([0, 1], [0.1, 0.9], metrics=["f2"])
    with pytest.raises(UserError, match="1 groups for 2"):
        bootstrap([0, 1], [0.1, 0.9], ["a"])


# --- two models


def test_a_model_does_not_differ_from_itself():
    labels, p_fake = drawn(200)
    for name, found in paired_bootstrap(labels, p_fake, p_fake).items():
        at = score(labels, p_fake)[name]
        assert found == {"a": at, "b": at, "difference": 0, "low": 0, "high": 0, "p_value": 1}


def test_the_better_model_is_found_and_order_only_turns_the_sign():
    labels, p_a = drawn(500, separation=1)
    p_b = np.clip(p_a + 0.1 * (2 * labels - 1), 0, 1)
    found = paired_bootstrap(labels, p_a, p_b, threshold_a=0.5, threshold_b=0.4, n=999)
    turned = paired_bootstrap(labels, p_b, p_a, threshold_a=0.4, threshold_b=0.5, n=999)
    assert found["auc"]["p_value"] == 0.002
    assert 0 < found["auc"]["low"] < found["auc"]["difference"] < found["auc"]["high"]
    for name in METRICS:
        assert found[name]["a"] == score(labels, p_a, 0.5)[name]
        assert found[name]["b"] == score(labels, p_b, 0.4)[name]
        assert found[name]["difference"] == found[name]["b"] - found[name]["a"]
        assert found[name]["low"] == pytest.approx(-turned[name]["high"], abs=1e-12)
        assert found[name]["p_value"] == turned[name]["p_value"]
        excludes_none = found[name]["low"] > 0 or found[name]["high"] < 0
        assert excludes_none == (found[name]["p_value"] < 0.05), name


def test_pairing_narrows_the_interval():
    labels, p_a = drawn(500)
    p_b = np.clip(p_a + np.random.default_rng(1).normal(0, 0.02, 500), 0, 1)
    paired = paired_bootstrap(labels, p_a, p_b, metrics=["auc"])["auc"]
    alone = bootstrap(labels, p_a, metrics=["auc"])["auc"]
    assert paired["high"] - paired["low"] < (alone["high"] - alone["low"]) / 3


def test_p_values_of_equally_good_models_are_uniform():
    p_values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 100)
        signal = rng.normal(size=200) + 1.5 * labels
        p_a, p_b = norm.cdf(signal + rng.normal(size=(2, 200)))
        p_values.append(paired_bootstrap(labels, p_a, p_b, metrics=["brier"], n=200)["brier"]["p_value"])
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert 0.4 < np.mean(np.array(p_values) < 0.5) < 0.6


def test_pairs_without_an_answer():
    found = paired_bootstrap([1], [0.3], [0.6])
    assert found["accuracy"] == {
        "a": 0.0, "b": 1.0, "difference": 1.0, "low": None, "high": None, "p_value": None,
    }  # fmt: skip
    assert set(found["auc"].values()) == {None}
    with pytest.raises(UserError):
        paired_bootstrap([0, 1], [0.3, 0.6], [0.3])


# --- curves


@settings(max_examples=50, deadline=None)
@given(images.filter(lambda pairs: {label for label, _ in pairs} == {0, 1}))
def test_curves_agree_with_scikit_learn(pairs):
    labels, p_fake = arrays(pairs)
    roc = curves.roc_points(labels, p_fake)
    for found, expected in zip(roc.values(), sk.roc_curve(labels, p_fake, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    pr = curves.pr_points(labels, p_fake)
    precision, recall, threshold = sk.precision_recall_curve(labels, p_fake)
    np.testing.assert_allclose(pr["recall"][1:], recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(pr["precision"][1:], precision[-2::-1], atol=1e-12)
    np.testing.assert_allclose(pr["threshold"][1:], threshold[::-1])
    area = (np.diff(pr["recall"]) * pr["precision"][1:]).sum()
    assert area == pytest.approx(score(labels, p_fake)["average_precision"])


@pytest.mark.parametrize("points", [curves.roc_points, curves.pr_points])
def test_thinning_keeps_the_shape(points):
    labels, p_fake = drawn(20_000)
    whole = np.stack(list(points(labels, p_fake, max_points=10**6).values()))
    thin = np.stack(list(points(labels, p_fake, max_points=200).values()))
    assert whole.shape[1] == 20_001 and 100 < thin.shape[1] <= 200
    assert (thin[:, [0, -1]] == whole[:, [0, -1]]).all()
    assert set(map(tuple, thin.T)) <= set(map(tuple, whole.T))
    distance = np.abs(whole[:2, :, None] - thin[:2, None, :]).sum(axis=0).min(axis=1)
    length = np.abs(np.diff(whole[:2])).sum()
    assert distance.max() <= length / 199


def test_curves_of_one_class_are_none():
    for curve in (curves.roc_points, curves.pr_points, curves.roc_band, curves.pr_band):
        assert curve([1, 1, 1], [0.2, 0.5, 0.5]) is None


@pytest.mark.parametrize("groups", [None, np.arange(600) % 150])
def test_bands(groups):
    labels, p_fake = drawn(600, decimals=2)
    roc = curves.roc_band(labels, p_fake, groups, n=300)
    pr = curves.pr_band(labels, p_fake, groups, n=300)
    for band in (roc, pr):
        assert band["grid"].shape == band["low"].shape == band["high"].shape == (201,)
        assert (band["low"] <= band["high"]).all() and (band["low"] >= 0).all() and (band["high"] <= 1).all()
    points = curves.roc_points(labels, p_fake)
    tpr = np.interp(roc["grid"], points["fpr"], points["tpr"])
    assert ((roc["low"] <= tpr) & (tpr <= roc["high"])).all()
    points = curves.pr_points(labels, p_fake)
    precision = points["precision"][np.searchsorted(points["recall"], pr["grid"])]
    assert ((pr["low"] <= precision) & (precision <= pr["high"]))[5:].all()
    assert roc["low"][-1] == 1 and pr["low"][-1] < labels.mean() < pr["high"][-1]


def test_bands_are_the_quantiles_of_the_resamples_curves():
    labels, p_fake = drawn(30, decimals=1)
    roc = curves.roc_band(labels, p_fake, n=40, seed=2, confidence=0.5)
    pr = curves.pr_band(labels, p_fake, n=40, seed=2, confidence=0.5)
    rng = np.random.default_rng(2)
    tprs, precisions = [], []
    for _ in range(40):
        rows = rng.integers(30, size=30)
        fpr, tpr, _ = sk.roc_curve(labels[rows], p_fake[rows], drop_intermediate=False)
        tprs.append(np.interp(roc["grid"], fpr, tpr))
        precision, recall, _ = sk.precision_recall_curve(labels[rows], p_fake[rows])
        precision, recall = precision[-2::-1], recall[-2::-1]
        precisions.append([precision[recall >= r][0] for r in pr["grid"]])
    np.testing.assert_allclose([roc["low"], roc["high"]], np.quantile(tprs, [0.25, 0.75], axis=0), atol=1e-12)
    np.testing.assert_allclose([pr["low"], pr["high"]], np.quantile(precisions, [0.25, 0.75], axis=0), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(images)
def test_reliability_is_what_ece_sums_up(pairs):
    labels, p_fake = arrays(pairs)
    rows = curves.reliability(labels, p_fake)
    json.dumps(rows, allow_nan=False)
    assert sum(row["count"] for row in rows) == len(labels)
    gaps = [row["count"] * abs(row["mean_score"] - row["observed"]) for row in rows if row["count"]]
    assert sum(gaps) / len(labels) == pytest.approx(score(labels, p_fake)["ece"], abs=1e-12)


def test_reliability_rows():
    labels, p_fake = drawn(1000)
    p_fake[0] = 0.0
    rows = curves.reliability(labels, p_fake, bins=10)
    assert [(row["low"], row["high"]) for row in rows] == [
        (pytest.approx(k / 10), pytest.approx((k + 1) / 10)) for k in range(10)
    ]
    observed, mean_score = calibration_curve(labels, p_fake, n_bins=10)
    assert [row["observed"] for row in rows] == pytest.approx(observed)
    assert [row["mean_score"] for row in rows] == pytest.approx(mean_score)
    for row in rows:
        n, p, z = row["count"], row["observed"], norm.ppf(0.975)
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        assert (row["observed_low"], row["observed_high"]) == pytest.approx((centre - half, centre + half))
    empty = curves.reliability([1], [0.95], bins=2)[0]
    assert empty["count"] == 0 and empty["observed"] is empty["mean_score"] is empty["observed_low"] is None


def test_risk_coverage_by_hand():
    labels = np.array([1, 0, 0, 1])
    p_fake = np.array([0.99, 0.4, 0.7, 0.1])  # surest first: 0.99 right, 0.1 wrong, 0.7 wrong, 0.4 right
    found = curves.risk_coverage(labels, p_fake)
    np.testing.assert_allclose(found["coverage"], [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found["risk"], [0, 1 / 2, 2 / 3, 1 / 2])
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 2 / 3 + 1 / 2) / 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=5))
def test_ties_in_confidence_are_averaged_over_their_orders(pairs):
    labels, steps = np.array(pairs).T
    p_fake = np.array([0.05, 0.3, 0.6, 0.99])[steps]
    wrong = (p_fake >= 0.5) != labels
    confidence = np.array([3, 1, 0.5, 4])[steps]
    areas = []
    for order in itertools.permutations(range(len(labels))):
        if (np.diff(confidence[list(order)]) <= 0).all():
            areas.append(np.mean(np.cumsum(wrong[list(order)]) / np.arange(1, len(labels) + 1)))
    assert curves.risk_coverage(labels, p_fake)["aurc"] == pytest.approx(np.mean(areas))


def test_risk_is_lower_where_the_model_is_sure():
    rng = np.random.default_rng(0)
    p_fake = rng.random(4000)
    labels = (rng.random(4000) < p_fake).astype(int)
    for threshold in (0.5, 0.8):
        found = curves.risk_coverage(labels, p_fake, threshold, max_points=50)
        assert len(found["risk"]) <= 50 and found["coverage"][-1] == 1
        wrong = 1 - score(labels, p_fake, threshold)["accuracy"]
        assert found["risk"][-1] == pytest.approx(wrong)
        assert found["aurc"] < wrong * 0.7
    assert curves.risk_coverage([0, 1], [0.0, 1.0], 1.0000001)["aurc"] == pytest.approx(0.25)
