import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression

from detector.errors import UserError
from detector.evaluation.calibration import (
    NEVER,
    UNCALIBRATED,
    Calibration,
    apply_temperature,
    choose_threshold,
    choose_unsure_band,
    fit,
    fit_temperature,
    read_calibration,
    save_calibration,
    selective,
)
from detector.metrics import score
from detector.models.outputs import p_fake

pytestmark = pytest.mark.filterwarnings("error")

# Scores on a coarse grid, so that ties, 0 and 1 are common.
images = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=1, max_size=40)
rates = st.sampled_from([0.0, 0.01, 0.1, 0.25, 1 / 3, 1.0])


def arrays(pairs):
    labels, steps = np.array(pairs).T
    return labels, steps / 20


def calibrated(n, seed=0):
    """Labels drawn with the very probability that is their score."""
    rng = np.random.default_rng(seed)
    p_fake = expit(rng.normal(0, 2, n))
    return (rng.random(n) < p_fake).astype(int), p_fake


# --- temperature


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.5, 8.0])
def test_the_temperature_is_recovered(temperature):
    labels, p_fake = calibrated(20_000)
    distorted = expit(logit(p_fake) * temperature)
    kept = (distorted > 1e-7) & (distorted < 1 - 1e-7)
    found = fit_temperature(labels[kept], distorted[kept])
    assert found == pytest.approx(temperature, rel=0.05)
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(
        logit(distorted[kept])[:, None], labels[kept]
    )
    assert found == pytest.approx(1 / slope.coef_[0, 0], rel=0.01)


def test_an_overconfident_model_is_cooled_and_better_calibrated_after():
    labels, p_fake = calibrated(5000)
    overconfident = expit(3 * logit(p_fake))
    after = apply_temperature(overconfident, fit_temperature(labels, overconfident))
    before, after = score(labels, overconfident), score(labels, after)
    assert after["ece"] < before["ece"] / 3 and after["loss"] < before["loss"]
    assert (after["accuracy"], after["auc"]) == (before["accuracy"], pytest.approx(before["auc"], abs=1e-4))


@settings(max_examples=50, deadline=None)
@given(images)
def test_the_temperature_is_bounded_and_never_raises_the_loss(pairs):
    labels, p_fake = arrays(pairs)
    found = fit_temperature(labels, p_fake)
    assert 0.05 <= found <= 20
    margin = (2 * labels - 1) * logit(apply_temperature(p_fake, 1.0))

    def loss(temperature):
        return -np.log(expit(margin / temperature)).sum()

    assert loss(found) <= loss(1.0) + 1e-6
    if 0 < labels.sum() < len(labels):

        def penalised(temperature):
            return loss(temperature) + (1 / temperature - 1) ** 2 / 2

        assert penalised(found) <= min(map(penalised, np.geomspace(0.05, 20, 200))) + 1e-6


def test_the_temperature_without_much_to_go_by():
    assert fit_temperature([1, 1, 1], [0.9, 0.2, 0.6]) == 1.0  # one class
    assert fit_temperature([0], [0.3]) == 1.0
    assert fit_temperature([0, 1], [0.5, 0.5]) == pytest.approx(1.0, abs=1e-6)
    assert 0.4 < fit_temperature([0, 1, 1], [0.1, 0.8, 0.9]) < 1  # separable: sharper, but not to the bound
    labels = np.repeat([0, 1], 1000)
    few, many = fit_temperature([0, 1], [0.2, 0.8]), fit_temperature(labels, np.where(labels, 0.8, 0.2))
    assert 0.1 < many < few < 1
    assert fit_temperature([0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0]) == pytest.approx(20)  # all sure, all wrong


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.05, 20))
def test_a_temperature_keeps_order_side_and_range(scores, temperature):
    before = np.sort(scores)
    after = apply_temperature(before, temperature)
    assert (np.diff(after) >= 0).all() and (after >= 0).all() and (after <= 1).all()
    clear = np.abs(before - 0.5) > 1e-9
    assert ((after >= 0.5) == (before >= 0.5))[clear].all()
    assert apply_temperature(0.5, temperature) == 0.5


def test_a_temperature_by_hand():
    np.testing.assert_allclose(apply_temperature(np.array([0.2, 0.9]), 2.0), [1 / 3, 3 / 4])
    np.testing.assert_allclose(apply_temperature(np.array([[0.1, 0.9]]), 2.0), [[1 / 4, 3 / 4]])
    np.testing.assert_allclose(apply_temperature(np.array([0.0, 1.0], np.float32), 1.0), [1e-7, 1 - 1e-7])
    there = apply_temperature(np.linspace(0.1, 0.9, 9), 3.0)
    np.testing.assert_allclose(apply_temperature(there, 1 / 3), np.linspace(0.1, 0.9, 9))
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(UserError, match="temperature"):
            apply_temperature(np.array([0.5]), bad)


# --- threshold


@settings(max_examples=100, deadline=None)
@given(images.filter(lambda pairs: {label for label, _ in pairs} == {0, 1}), st.none() | rates)
def test_no_threshold_is_better(pairs, limit):
    labels, p_fake = arrays(pairs)
    found = choose_threshold(labels, p_fake, limit)
    options = [
        (np.mean(p_fake[labels == 1] >= t) + np.mean(p_fake[labels == 0] < t)) / 2
        for t in [*np.unique(p_fake), NEVER]
        if limit is None or np.mean(p_fake[labels == 0] >= t) <= limit
    ]
    at = score(labels, p_fake, found)
    assert at["balanced_accuracy"] == pytest.approx(max(options))
    assert limit is None or at["false_positive_rate"] <= limit
    assert 0 <= found <= NEVER
    order = np.random.default_rng(0).permutation(len(labels))
    assert choose_threshold(labels[order], p_fake[order], limit) == found


def test_a_threshold_is_in_the_middle_of_a_gap():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9]) == pytest.approx(0.25)
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == 0.5  # as good as any in its gap
    # Equally good at 0.35 and at 0.75: the nearer to 0.5.
    assert choose_threshold([0, 1, 0, 1], [0.3, 0.4, 0.7, 0.8]) == pytest.approx(0.35)
    # At 0.375 and at 0.625, equally near: the one that accuses fewer.
    assert choose_threshold([0, 1, 0, 1], [0.3125, 0.4375, 0.5625, 0.6875]) == 0.625


def test_a_threshold_between_neighbouring_floats():
    real = 0.6
    fake = np.nextafter(real, 1)
    assert score([0, 1], [real, fake], choose_threshold([0, 1], [real, fake]))["accuracy"] == 1


def test_an_allowance_is_not_spent_for_nothing():
    labels = np.array([0] * 10 + [1] * 10)
    p_fake = np.concatenate([np.linspace(0.05, 0.5, 10), np.linspace(0.6, 0.9, 10)])
    at = score(labels, p_fake, choose_threshold(labels, p_fake, 0.3))
    assert at["accuracy"] == 1


def test_a_threshold_that_no_real_image_reaches():
    labels, p_fake = np.array([0, 0, 1, 1]), np.array([0.2, 1.0, 0.9, 1.0])
    found = choose_threshold(labels, p_fake, 0.0)
    assert found == NEVER and score(labels, p_fake, found)["false_positive_rate"] == 0


@pytest.mark.parametrize("limit", [None, 0.0, 0.5])
def test_a_threshold_without_much_to_go_by(limit):
    assert choose_threshold([1, 1], [0.1, 0.9], limit) == 0.5
    assert choose_threshold([0], [0.3], limit) == 0.5
    assert choose_threshold([0, 1], [0.4, 0.4], limit) == 0.5
    assert choose_threshold([0, 0], [0.7, 0.7], 1.0) == 0.5
    assert choose_threshold([0, 0], [0.7, 0.7], 0.0) == pytest.approx(0.85)


def test_bad_rates():
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="max_false_positive_rate"):
            choose_threshold([0, 1], [0.2, 0.9], bad)
        with pytest.raises(UserError, match="target_error"):
            choose_unsure_band([0, 1], [0.2, 0.9], 0.5, bad)


# --- unsure band


@settings(max_examples=100, deadline=None)
@given(images, st.sampled_from([0.0, 0.3, 0.5, 0.77, 1.0]), rates)
def test_the_band_keeps_its_promise_and_no_narrower_one_does(pairs, threshold, target):
    labels, p_fake = arrays(pairs)
    low, high = choose_unsure_band(labels, p_fake, threshold, target)
    assert low <= threshold <= high
    found = selective(labels, p_fake, threshold, (low, high))
    json.dumps(found, allow_nan=False)
    for error in ("error_outside", "error_called_fake", "error_called_real"):
        assert found[error] is None or found[error] <= target + 1e-9
    assert found["n_called"] + found["n_unsure"] == len(labels)

    def keeps(called, right):
        return called.any() and np.mean(labels[called] != right) <= target + 1e-9

    for end in np.unique(p_fake):  # every set of images that another end could leave outside
        if threshold <= end < high and (p_fake >= end).sum() > (p_fake >= high).sum():
            assert not keeps(p_fake >= end, 1)
        if low < end <= threshold and (p_fake < end).sum() > (p_fake < low).sum():
            assert not keeps(p_fake < end, 0)


def test_no_band_where_none_is_needed():
    assert choose_unsure_band([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.5, 0.0) == (0.5, 0.5)


def test_each_side_is_held_to_the_target_by_itself():
    # 97 clear real images would let four wrong accusations pass in the mean over both sides.
    labels = np.array([0] * 97 + [0, 0, 1, 1])
    p_fake = np.array([0.01] * 97 + [0.6, 0.7, 0.8, 0.9])
    low, high = choose_unsure_band(labels, p_fake, 0.5, 0.05)
    assert (low, high) == (0.5, pytest.approx(0.75))
    assert selective(labels, p_fake, 0.5, (low, high)) == {
        "coverage": pytest.approx(99 / 101),
        "n_called": 99,
        "n_unsure": 2,
        "error_outside": 0.0,
        "error_called_fake": 0.0,
        "error_called_real": 0.0,
        "error_inside": 1.0,
    }


def test_a_side_without_evidence_is_never_called():
    labels, p_fake = [0, 0, 1, 0], [0.1, 0.2, 0.7, 0.9]
    assert choose_unsure_band(labels, p_fake, 0.5, 0.1) == (0.5, NEVER)
    assert choose_unsure_band([1, 1], [0.1, 0.2], 0.5, 0.1) == (0.0, NEVER)


def test_selective_agrees_with_score_without_a_band():
    labels, p_fake = calibrated(500)
    found = selective(labels, p_fake, 0.4, (0.4, 0.4))
    assert (found["coverage"], found["error_inside"]) == (1.0, None)
    assert found["error_outside"] == pytest.approx(1 - score(labels, p_fake, 0.4)["accuracy"])


def test_the_ends_of_a_band():
    found = selective([0, 0, 1], [0.25, 0.125, 0.75], 0.5, (0.25, 0.75))
    assert (found["n_unsure"], found["n_called"]) == (1, 2)  # low itself is unsure, high is called fake


def test_a_band_must_hold_the_threshold():
    for band in ((0.6, 0.7), (0.2, 0.4), (0.7, 0.3)):
        with pytest.raises(UserError, match="must hold the threshold"):
            selective([0, 1], [0.2, 0.9], 0.5, band)


def test_the_band_chosen_on_validation_holds_on_new_images():
    labels, p_fake = calibrated(50_000, seed=1)
    band = choose_unsure_band(labels, p_fake, 0.5, 0.05)
    found = selective(*calibrated(50_000, seed=2), 0.5, band)
    assert 0.04 < found["error_called_fake"] < 0.06 and 0.04 < found["error_called_real"] < 0.06
    assert 0.2 < found["coverage"] < 0.4 and found["error_inside"] > 0.2


# --- the three together


def test_fit_chooses_threshold_and_band_on_calibrated_scores():
    labels, p_fake = calibrated(2000)
    output = apply_temperature(p_fake, 0.4)  # overconfident
    found = fit(labels, output, "auto", 0.05, 0.1)
    again = found.apply(output)
    assert found.temperature == fit_temperature(labels, output) > 2
    assert found.threshold == choose_threshold(labels, again, 0.05)
    assert found.unsure == choose_unsure_band(labels, again, found.threshold, 0.1)
    assert fit(labels, output, 0.3, 0.05, 0.1).threshold == 0.3


def test_more_classes_are_calibrated_together_and_called_by_their_kind():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 4))
    classes = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    outputs = softmax(logits * 2.5, axis=1)  # overconfident
    found = fit(classes, outputs, "auto", 0.1, 0.2)
    assert found.temperature == pytest.approx(2.5, rel=0.06)
    probabilities = found.apply(outputs)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities, softmax(logits * 2.5 / found.temperature, axis=1), atol=2e-3)
    scores = p_fake(probabilities)
    np.testing.assert_allclose(scores, probabilities[:, 1:].sum(axis=1))
    assert found.threshold == choose_threshold((classes > 0).astype(int), scores, 0.1)
    names = ["real", "a", "b", "c"]
    labels = np.array(found.labels(probabilities, names))
    assert ((labels != "real") == (scores >= found.threshold)).all()
    called = labels != "real"
    assert (labels[called] == np.array(names)[1:][probabilities[called, 1:].argmax(axis=1)]).all()
    verdicts = np.array(found.verdicts(probabilities, names))
    unsure = (scores >= found.unsure[0]) & (scores < found.unsure[1])
    assert ((verdicts == "unsure") == unsure).all() and (verdicts[~unsure] == labels[~unsure]).all()


@given(images)
def test_two_classes_are_the_same_with_one_output_or_two(pairs):
    labels, scores = arrays(pairs)
    both = np.column_stack([1 - scores, scores])
    assert fit_temperature(labels, both) == pytest.approx(fit_temperature(labels, scores), rel=1e-5)
    np.testing.assert_allclose(apply_temperature(both, 2.0)[:, 1], apply_temperature(scores, 2.0), atol=1e-6)


def test_calls_and_verdicts_at_the_edges():
    calibration = Calibration(1.0, 0.5, (0.25, 0.75))
    scores = np.array([0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 1.0])
    assert calibration.calls(scores).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert calibration.verdicts(scores, ["a", "b"]) == ["a", "a", "unsure", "unsure", "unsure", "b", "b"]
    assert calibration.verdicts(np.empty(0), ["a", "b"]) == []
    assert UNCALIBRATED.verdicts(np.array([0.49, 0.5]), ["a", "b"]) == ["a", "b"]
    np.testing.assert_allclose(UNCALIBRATED.apply(scores), scores, atol=1e-6)


@given(st.floats(0.05, 20), st.floats(0, 1), st.floats(0, 1), st.floats(1, NEVER))
def test_a_calibration_comes_back_as_it_was_saved(tmp_path_factory, temperature, low, threshold, high):
    model = tmp_path_factory.mktemp("model") / "model.keras"
    model.write_bytes(b"weights")
    calibration = Calibration(temperature, threshold, (min(low, threshold), high))
    path = save_calibration(calibration, model, {"images": 3})
    assert path == model.with_name("calibration.json")
    assert read_calibration(model) == calibration
    assert json.loads(path.read_text())["chosen_on"] == {"images": 3}


def test_a_calibration_that_cannot_be_used(tmp_path):
    model = tmp_path / "model.keras"
    model.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"calibration.json: not found; run `dvc repro`"):
        read_calibration(model)
    path = save_calibration(UNCALIBRATED, model, {})
    model.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"calibration.json: chosen for another model .*; run `dvc repro`"):
        read_calibration(model)
    for damaged in ("{}", "[]", '{"model": 1, "temperature": "x", "threshold": 1, "unsure": [0, 1]}', "{"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"calibration.json: (damaged|not valid)"):
            read_calibration(model)
