import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from detector import metrics
from detector.evaluation import bootstrap, curves
from detector.evaluation.calibration import Calibration, selective
from detector.evaluation.findings import (
    COUNTED,
    bin_table,
    confidence,
    curve_table,
    exact_interval,
    with_exact_accuracy,
    with_findings,
    with_mean_auc,
)


def predictions(*sets: tuple[str, int, int, int, int]) -> pd.DataFrame:
    """Rows of sets of (name, real, fake, real called fake, fake called real images); groups of two."""
    tables = []
    for name, n_real, n_fake, accused, missed in sets:
        p = np.concatenate([np.linspace(0.05, 0.3, n_real), np.linspace(0.7, 0.95, n_fake)])
        p[:accused], p[n_real : n_real + missed] = 0.8, 0.1
        groups = [f"{name}/{i // 2}" for i in range(len(p))]
        table = {"set": name, "group": groups, "label": np.repeat([0, 1], [n_real, n_fake]), "p_fake": p}
        tables.append(pd.DataFrame(table).assign(p_fake_uncalibrated=p**2))
    return pd.concat(tables)


def evaluated(rows: pd.DataFrame, **more) -> dict:
    found = {}
    for name, own in rows.groupby("set", sort=False):
        labels, p = own["label"].to_numpy(), own["p_fake"].to_numpy()
        found[name] = {
            **metrics.score(labels, p),
            "intervals": bootstrap.bootstrap(labels, p, own["group"].tolist(), n=50),
            "selective": selective(labels, p, 0.5, (0.4, 0.75)),
            "confusion": metrics.confusion(labels, (p >= 0.5).astype(int), ["real", "fake"]),
            **more,
        }
    return with_findings(found, rows)


def test_counts_and_shares_of_a_set():
    found = evaluated(predictions(("test", 100, 300, 5, 42)))["test"]
    assert found["counts"] == {"right": 353, "wrong": 47, "real_called_fake": 5, "fake_called_real": 42}
    assert found["larger_class"] == {"name": "fake", "share": 0.75} and found["share_fake"] == 0.75
    assert found["precision"] == 258 / 263
    assert found["selective"]["share_unsure"] == pytest.approx(1 - found["selective"]["coverage"])
    assert found["confusion_shares"] == {"real": {"real": 0.95, "fake": 0.05}, "fake": {"real": 0.14, "fake": 0.86}}
    assert found["auc_against_guessing"] == "better" and "accuracy_against_first" not in found


def test_what_a_call_of_fake_is_worth_is_bayes_rule():
    found = evaluated(predictions(("test", 100, 100, 5, 14), ("b", 10, 10, 0, 10), ("c", 10, 0, 1, 0)))
    assert found["test"]["precision_if_rare"] == pytest.approx(0.0086 / (0.0086 + 0.0495))
    assert found["b"]["precision_if_rare"] is found["b"]["precision"] is found["c"]["precision_if_rare"] is None


@given(st.integers(1, 400), st.data())
def test_the_exact_interval_is_of_clopper_and_pearson(n, data):
    k = data.draw(st.integers(0, n))
    interval = exact_interval(k, n)
    assert interval["low"] == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0, abs=1e-6)
    assert interval["high"] == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1, abs=1e-6)


def test_an_interval_without_width_gives_way_to_the_exact_one_or_to_none():
    found = evaluated(predictions(("test", 20, 20, 0, 0), ("b", 20, 20, 3, 0)))
    test, b = found.values()
    assert test["intervals"]["false_positive_rate"] == exact_interval(0, 20) | {"exact": True}
    assert test["intervals"]["accuracy"] == exact_interval(40, 40) | {"exact": True}
    assert test["intervals"]["auc"] is None and test["auc_against_guessing"] is None
    assert "exact" not in b["intervals"]["accuracy"] and b["intervals"]["false_negative_rate"]["exact"]
    for one in found.values():
        assert all(i is None or i["low"] < i["high"] for i in one["intervals"].values())
        assert list(one["exact_intervals"]) == list(COUNTED)


def test_one_group_alone_keeps_no_interval():
    rows = predictions(("test", 10, 10, 0, 0)).assign(group="one")
    assert set(evaluated(rows)["test"]["intervals"].values()) == {None}


def test_parts_of_a_set_get_exact_intervals_too():
    flat = {"low": 0.0, "high": 0.0}
    again = {"accuracy": 0.8, "auc": 0.9, "false_positive_rate": 0.0, "false_negative_rate": 0.4}
    again["intervals"] = {"false_positive_rate": flat, "auc": {"low": 1.0, "high": 1.0}}
    heat = {"images": 20, "pointing_game": 0.0, "intervals": {"pointing_game": flat, "ratio": None}}
    found = evaluated(predictions(("test", 20, 20, 1, 1)), reencoded=again, localisation=heat)["test"]
    assert found["reencoded"]["intervals"]["false_positive_rate"]["high"] == pytest.approx(0.1684, abs=1e-4)
    assert found["reencoded"]["intervals"]["auc"] is None
    assert found["localisation"]["intervals"]["pointing_game"]["high"] == pytest.approx(0.1684, abs=1e-4)


def test_a_further_set_is_set_against_the_first():
    found = evaluated(predictions(("test", 100, 100, 5, 5), ("b", 100, 100, 50, 50), ("c", 100, 100, 5, 6)))
    assert found["b"]["accuracy_against_first"] == {"difference": pytest.approx(-0.45), "intervals_overlap": False}
    assert found["c"]["accuracy_against_first"]["intervals_overlap"] is True


def test_all_sets_together_are_counted_over_all_predictions():
    rows = predictions(("test", 20, 20, 2, 1), ("b", 20, 20, 3, 4))
    whole = metrics.score(rows["label"].to_numpy(), rows["p_fake"].to_numpy()) | {"intervals": {}}
    sets = {name: whole | metrics.score(own["label"], own["p_fake"]) for name, own in rows.groupby("set", sort=False)}
    sets = {name: m | {"intervals": {"accuracy": None}} for name, m in sets.items()}
    found = with_findings(sets | {"pooled": whole}, rows)
    assert found["pooled"]["counts"]["wrong"] == 10 and "accuracy_against_first" not in found["pooled"]
    assert found["b"]["accuracy_against_first"]["intervals_overlap"] is None


def test_the_accuracy_of_a_value_is_never_certain():
    rows = [("a", 20, 1.0, 1.0, 1.0), ("b", 20, 0.0, 0.0, 0.0), ("c", 20, 0.5, 0.3, 0.7), ("d", 20, 1.0, None, None)]
    table = pd.DataFrame(rows, columns=["value", "n", "accuracy", "accuracy_low", "accuracy_high"])
    ends = with_exact_accuracy(table)[["accuracy_low", "accuracy_high"]].to_numpy(float)
    np.testing.assert_allclose(ends[:3], [(0.8316, 1), (0, 0.1684), (0.3, 0.7)], atol=1e-4)
    assert np.isnan(ends[3]).all() and table["accuracy_low"][0] == 1


def test_confidence_orders_images_as_the_risk_coverage_curve_does():
    p, threshold = np.array([0.02, 0.5, 0.62, 0.9, 1.0]), 0.6
    sure = confidence(p, threshold)
    assert list(np.argsort(sure)) == [2, 1, 3, 0, 4] and np.isfinite(sure).all()
    assert sure[3] == pytest.approx(np.log(9) - np.log(1.5))


def ladder() -> pd.DataFrame:
    rows = [("undamaged", "", 0, 0.9)]
    rows += [("jpeg", "generic", k, 0.9 - k / 10) for k in range(1, 6)]
    rows += [("blur", "matched", k, 0.8 - k / 10) for k in range(1, 6)] + [("fog", "matched", k, None) for k in (1, 2)]
    return pd.DataFrame(rows, columns=["name", "corruption_set", "severity", "auc"])


def test_the_curves_are_those_of_the_sets():
    rows = predictions(("test", 20, 30, 2, 1), ("one class", 20, 0, 3, 0))
    table = curve_table(rows, ladder(), 0.5, n=20, seed=1)
    own = rows[rows["set"] == "test"]
    labels, p = own["label"].to_numpy(), own["p_fake"].to_numpy()

    def drawn(name: str) -> pd.DataFrame:
        return table[(table["set"] == "test") & (table["curve"] == name)]

    points, band = curves.pr_points(labels, p), curves.roc_band(labels, p, own["group"].tolist(), n=20, seed=1)
    np.testing.assert_array_equal(drawn("precision_recall")["y"], points["precision"])
    np.testing.assert_array_equal(drawn("roc_band")[["x", "low", "high"]].T, list(band.values()))
    np.testing.assert_array_equal(drawn("risk_coverage")["y"], curves.risk_coverage(labels, p, 0.5)["risk"])
    np.testing.assert_allclose(drawn("stress_matched")["y"], [0.9, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert set(table.loc[table["set"] == "one class", "curve"]) == {"risk_coverage"}
    assert set(curve_table(rows, ladder()[:0], 0.5, n=2, seed=0)["curve"]).isdisjoint(("stress_generic",))


def test_the_mean_of_a_corruption_is_over_its_severities():
    means = with_mean_auc(ladder()).groupby("name")["mean_auc"].first()
    assert means["jpeg"] == pytest.approx(0.6) and means["blur"] == pytest.approx(0.5) and np.isnan(means["fog"])
    assert list(with_mean_auc(ladder()[:0]).columns)[-1] == "mean_auc"


def test_every_image_is_in_one_bin_of_its_class():
    rows = predictions(("test", 20, 30, 2, 1))
    table = bin_table(rows, Calibration(1.0, 0.5, (0.25, 0.75)))
    sizes = table.groupby("histogram")["count"].sum()
    p, fake = rows["p_fake"].to_numpy(), rows["label"].to_numpy() == 1
    unsure = (p >= 0.25) & (p < 0.75)
    assert sizes["real_wrong"] == 2 and sizes["fake_wrong"] == 1
    assert sizes["real_unsure"] == (unsure & ~fake).sum() and sizes["fake_right"] == (fake & ~unsure).sum() - 1
    assert sizes["calibrated"] == sizes["uncalibrated"] == 50
    bins = table[table["histogram"] == "calibrated"]
    error = (bins["count"] * (bins["mean_score"] - bins["share_fake"]).abs()).sum() / 50
    assert error == pytest.approx(metrics.score(rows["label"], rows["p_fake"])["ece"])
