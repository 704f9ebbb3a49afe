import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from detector.augment.corruption import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from detector.evaluation.bootstrap import bootstrap
from detector.evaluation.calibration import UNCALIBRATED, Calibration
from detector.evaluation.localization import localisation, with_known_forgery
from detector.evaluation.robustness import RUNG_COLUMNS, in_one_format, reencode, stress_ladder, stress_summary
from detector.evaluation.summary import ATTRIBUTE_COLUMNS, by_attribute, choose_calibration, evaluate, pooled, showcase
from detector.images import decode
from detector.metrics import METRICS, score

KINDS = ["camera", "swap"]
CALIBRATED = Calibration(temperature=2.0, threshold=0.6, unsure=(0.4, 0.8))


def rows_of(n: int, split: str = "test", seed: int = 0, **attributes) -> pd.DataFrame:
    """Rows of a manifest, as many real as fake, in pairs of one group."""
    return pd.DataFrame(
        {
            "path": [f"{i:03d}.jpg" for i in range(n)],
            "split": split,
            "class": ["camera", "swap"] * (n // 2),
            "label": [0, 1] * (n // 2),
            "group": [f"g{i // 2}" for i in range(n)],
            "width": 8,
            "height": 8,
            "bytes": 100,
            "sha256": [f"{seed}{i:063d}" for i in range(n)],
            "shard": "s",
            "offset": 0,
            **attributes,
        }
    )


def outputs_for(rows: pd.DataFrame, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rows["label"].to_numpy() * 0.3 + rng.random(len(rows)) * 0.7, 0, 1)


class Network:
    """Stands in for a network: what it says of an image is its brightness; it keeps what it was shown."""

    def __init__(self, images: list[np.ndarray]):
        self.images, self.calls = images, []

    def __call__(self, rows: pd.DataFrame, damage) -> np.ndarray:
        index = rows["path"].str.removesuffix(".jpg").astype(int)
        shown = [self.images[i] for i in index]
        if damage is not None:
            shown = [damage(image, at) for at, image in enumerate(shown)]
        self.calls.append((rows, damage, shown))
        return np.array([image.mean() / 255 for image in shown])


@pytest.fixture
def network(photo) -> Network:
    return Network([photo(24, 20, seed=i) for i in range(40)])


# ---- choose_calibration ----------------------------------------------------------------------------------------


@pytest.fixture
def settings(defaults):
    def change(**values):
        how = defaults.evaluate.calibration
        own = {key: values.pop(key) for key in list(values) if key in type(how).model_fields}
        return defaults.evaluate.model_copy(update={**values, "calibration": how.model_copy(update=own)})

    return change


@pytest.mark.parametrize(("images", "passes"), [("clean", [False]), ("perturbed", [True]), ("mixed", [False, True])])
def test_validation_images_are_scored_as_the_parameters_say(network, settings, images, passes):
    rows = rows_of(40, "validation")
    _, chosen_on = choose_calibration(rows, network, KINDS, settings(images=images, strength=[0.5, 1.0]), seed=3)
    assert [damage is not None for _, damage, _ in network.calls] == passes
    for _, damage, shown in network.calls:
        same = [np.array_equal(a, b) for a, b in zip(shown, network.images, strict=True)]
        assert sum(same) < 4 if damage else all(same)  # a weak one may change nothing
    assert chosen_on["n"] == 40 * len(passes)
    assert (chosen_on["images"], chosen_on["scored"]) == (40, images)


def test_the_damage_is_the_same_each_time_and_another_with_another_seed(network, settings):
    rows = rows_of(40, "validation")
    for seed in (3, 3, 4):
        choose_calibration(rows, network, KINDS, settings(images="perturbed", strength=[0.5, 1.0]), seed)
    once, again, other = (shown for _, _, shown in network.calls)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_of_many_validation_images_a_part_of_both_classes_is_enough(network, settings):
    rows = pd.concat([rows_of(36, "validation"), rows_of(40, "validation")[36:].assign(label=1)])
    choose_calibration(rows, network, KINDS, settings(images="clean", max_images=10), seed=0)
    ((part, _, _),) = network.calls
    assert len(part) == 10 and sorted(part["path"]) == list(part["path"]) and part["path"].is_unique
    assert set(part["label"]) == {0, 1}


def test_a_given_threshold_is_kept_and_an_automatic_one_keeps_its_limit(settings, network):
    rows = rows_of(40, "validation")

    def said(rows, damage):
        return outputs_for(rows)

    given, _ = choose_calibration(rows, said, KINDS, settings(images="clean", threshold=0.37), seed=0)
    assert given.threshold == 0.37
    for limit in (0.0, 0.1, 0.5):
        how = settings(images="clean", threshold="auto", max_false_positive_rate=limit)
        _, chosen_on = choose_calibration(rows, said, KINDS, how, seed=0)
        assert chosen_on["false_positive_rate"] <= limit


# ---- evaluate --------------------------------------------------------------------------------------------------


def test_the_numbers_are_of_calibrated_scores_at_the_chosen_threshold():
    rows = rows_of(60)
    outputs = outputs_for(rows)
    found = evaluate(rows, outputs, CALIBRATED, ["camera", "swap"], resamples=200, seed=1)
    p_fake = 1 / (1 + np.sqrt((1 - outputs) / outputs))  # temperature 2 halves the logit
    expected = score(rows["label"], p_fake, 0.6)
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert found.metrics["uncalibrated"]["brier"] == pytest.approx(np.mean((outputs - rows["label"]) ** 2))
    assert found.metrics["uncalibrated"]["brier"] != pytest.approx(found.metrics["brier"])
    np.testing.assert_allclose(found.predictions["p_fake"], p_fake)
    np.testing.assert_allclose(found.predictions["p_fake_uncalibrated"], outputs)
    expected = np.select([p_fake < 0.4, p_fake >= 0.8], ["camera", "swap"], "unsure")
    assert list(found.predictions["verdict"]) == list(expected)
    assert {"camera", "swap", "unsure"} == set(expected)
    unsure = (p_fake >= 0.4) & (p_fake < 0.8)
    assert found.metrics["selective"]["n_unsure"] == unsure.sum()
    called = (p_fake >= 0.6).astype(int)
    assert found.metrics["confusion"]["camera"]["swap"] == ((called == 1) & (rows["label"] == 0)).sum()
    assert (found.roc["set"] == "test").all() and np.trapezoid(found.roc["tpr"], found.roc["fpr"]) == pytest.approx(
        found.metrics["auc"]
    )


def test_every_metric_has_an_interval_around_it_that_is_wider_for_clustered_images():
    rows = rows_of(80)
    outputs = outputs_for(rows)
    apart = evaluate(rows, outputs, UNCALIBRATED, ["a", "b"], resamples=500, seed=1).metrics
    assert set(apart["intervals"]) == set(METRICS)
    for name in ("accuracy", "auc", "brier"):
        assert apart["intervals"][name]["low"] < apart[name] < apart["intervals"][name]["high"]
    copies = pd.concat([rows] * 4, ignore_index=True)  # four looks at one image are one image
    copied = evaluate(copies, np.tile(outputs, 4), UNCALIBRATED, ["a", "b"], resamples=500, seed=1).metrics

    def width(metrics: dict) -> float:
        return metrics["intervals"]["auc"]["high"] - metrics["intervals"]["auc"]["low"]

    assert width(copied) == pytest.approx(width(apart), rel=0.15)


def test_a_set_of_one_class_has_no_ranking_and_no_curve():
    rows = rows_of(20)
    rows = rows[rows["label"] == 1].reset_index(drop=True)
    found = evaluate(rows, outputs_for(rows), UNCALIBRATED, ["real", "fake"], resamples=100, seed=0)
    assert found.metrics["auc"] is None and found.metrics["false_positive_rate"] is None
    assert found.metrics["intervals"]["auc"] is None
    assert found.metrics["accuracy"] is not None
    assert list(found.roc.columns) == ["set", "fpr", "tpr", "threshold"] and found.roc.empty


@pytest.fixture
def three_kinds() -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of three classes and the outputs of a fair network."""
    rows = rows_of(90)
    rows["class"] = ["camera", "swap", "paste"] * 30
    rows["label"] = (rows["class"] != "camera").astype(int)
    logits = np.random.default_rng(0).normal(size=(90, 3))
    logits[np.arange(90), np.tile([0, 2, 1], 30)] += 1.5
    return rows, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_of_three_classes_the_binary_metrics_are_those_of_any_kind_of_fake(three_kinds):
    rows, outputs = three_kinds
    found = evaluate(rows, outputs, UNCALIBRATED, ["camera", "paste", "swap"], resamples=100, seed=0)
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(rows["label"], 1 - outputs[:, 0]))
    np.testing.assert_allclose(found.predictions["p_fake"], 1 - outputs[:, 0], atol=1e-6)
    np.testing.assert_allclose(
        found.predictions[["probability_camera", "probability_paste", "probability_swap"]], outputs, atol=1e-6
    )
    called = found.predictions["called"]
    assert sum(map(sum, (row.values() for row in found.metrics["confusion"].values()))) == 90
    for true in ("camera", "paste", "swap"):
        for call in ("camera", "paste", "swap"):
            assert found.metrics["confusion"][true][call] == ((rows["class"] == true) & (called == call)).sum()
    classes = found.metrics["classes"]
    assert classes["accuracy"] == pytest.approx(np.mean(called == rows["class"]))
    truth = rows["class"].map({"camera": 0, "paste": 1, "swap": 2})
    assert classes["macro_auc"] == pytest.approx(roc_auc_score(truth, outputs, multi_class="ovr"))
    assert classes["macro_f1"] == pytest.approx(f1_score(rows["class"], called, average="macro"))
    assert classes["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(rows["class"], called))
    assert classes["loss"] == pytest.approx(log_loss(truth, outputs))


def test_a_kind_of_fake_may_be_called_fake(three_kinds):
    rows, outputs = three_kinds
    rows["class"] = rows["class"].replace({"paste": "fake"})
    found = evaluate(rows, outputs, UNCALIBRATED, ["camera", "fake", "swap"], resamples=100, seed=0).predictions
    np.testing.assert_allclose(found["p_fake"], 1 - outputs[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["probability_fake"], outputs[:, 1], atol=1e-6)


def test_a_set_with_a_class_that_the_model_does_not_know_is_real_or_fake(three_kinds):
    rows, outputs = three_kinds
    rows.loc[rows["class"] == "paste", "class"] = "collage"
    found = evaluate(rows, outputs, UNCALIBRATED, ["camera", "paste", "swap"], resamples=100, seed=0)
    assert list(found.metrics["confusion"]) == ["camera", "fake"]
    assert found.metrics["per_class"]["fake"]["support"] == 60
    assert "classes" not in found.metrics
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(rows["label"], 1 - outputs[:, 0]))


# ---- one format ------------------------------------------------------------------------------------------------


def fine_colour(image: np.ndarray) -> float:
    """A detector that has learnt the format: a JPEG with halved colour has no colour that changes pixel by pixel."""
    colour = image[..., 0].astype(float) - image[..., 2]
    return float(np.exp(-np.abs(np.diff(colour, axis=1)).mean() / 8))


def test_a_detector_that_has_learnt_the_format_is_found_out(photo, encode):
    """Real images are PNG files, fakes JPEGs, and nothing else tells them apart."""
    noise = np.random.default_rng(0)
    rows = rows_of(60)
    images = []
    for i, label in enumerate(rows["label"]):
        pixels = np.uint8(photo(48, 48, seed=i) * 0.8 + noise.integers(0, 40, (48, 48, 3)))
        images.append(decode(encode(pixels, "JPEG", quality=90) if label else encode(pixels, "PNG")))
    as_they_are, again = (np.array([fine_colour(change(image)) for image in images]) for change in (np.copy, reencode))
    found = evaluate(rows, as_they_are, UNCALIBRATED, KINDS, resamples=300, seed=0, reencoded=again)
    assert found.metrics["auc"] == 1
    found_out = found.metrics["reencoded"]
    assert 0.3 < found_out["auc"] < 0.7
    assert found_out["auc_difference"]["high"] < -0.2
    assert found_out["intervals"]["auc"]["low"] < 0.5
    np.testing.assert_allclose(found.predictions["p_fake_reencoded"], again, atol=1e-6)


def test_an_honest_detector_loses_nothing(network):
    rows = rows_of(40)
    plain, again = network(rows, None), network(rows, reencode)  # brightness outlasts a JPEG
    found = in_one_format(rows, plain, again, 0.5, resamples=200, seed=0)
    assert found["auc_difference"]["low"] <= 0 <= found["auc_difference"]["high"]
    assert abs(found["auc_difference"]["difference"]) < 0.02


def test_every_image_goes_through_the_same_jpeg_at_its_own_size(photo, encode):
    image = photo(37, 51, seed=3)
    found = reencode(image, 7)
    assert found.shape == image.shape and found.dtype == np.uint8 and not np.array_equal(found, image)
    np.testing.assert_array_equal(found, reencode(image, 8))  # nothing is drawn
    theirs = decode(encode(image, "JPEG", quality=75, subsampling=2))
    assert np.abs(found.astype(int) - theirs).mean() < 1  # another encoder, the same format


def test_figures_in_one_format_by_hand():
    rows = rows_of(8)  # real and fake in turn
    plain = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6])
    again = np.array([0.1, 0.9, 0.2, 0.8, 0.7, 0.3, 0.4, 0.6])  # the third pair has changed places
    found = in_one_format(rows, plain, again, 0.5, resamples=200, seed=0)
    assert found["accuracy"] == 6 / 8
    assert found["false_positive_rate"] == found["false_negative_rate"] == 1 / 4
    assert found["auc"] == 13 / 16  # the fake at 0.3 is below 0.7 and 0.4, the one at 0.6 below 0.7
    assert found["auc_difference"]["difference"] == 13 / 16 - 1
    assert found["intervals"] == bootstrap(
        rows["label"], again, rows["group"].tolist(), 0.5, list(found["intervals"]), n=200
    )
    assert set(found["intervals"]) == set(METRICS)
    same = in_one_format(rows, plain, plain, 0.5, resamples=200, seed=0)
    assert same["auc_difference"] == {"difference": 0, "low": 0, "high": 0}


def test_a_set_of_one_class_has_no_auc_in_one_format_either():
    rows = rows_of(20)
    rows = rows[rows["label"] == 1].reset_index(drop=True)
    found = evaluate(rows, outputs_for(rows), UNCALIBRATED, KINDS, 100, 0, outputs_for(rows, seed=1)).metrics
    assert found["reencoded"]["auc_difference"] == dict.fromkeys(("difference", "low", "high"))
    assert found["reencoded"]["accuracy"] is not None


def test_without_it_nothing_speaks_of_one_format():
    rows = rows_of(20)
    found = evaluate(rows, outputs_for(rows), UNCALIBRATED, KINDS, resamples=100, seed=0)
    assert "reencoded" not in found.metrics and "p_fake_reencoded" not in found.predictions


# ---- all sets together -----------------------------------------------------------------------------------------


def scored_sets(**scores: np.ndarray) -> pd.DataFrame:
    """Predictions of sets of these names, real and fake in turn."""
    tables = []
    for name, p_fake in scores.items():
        rows = rows_of(len(p_fake), name)
        rows["group"] = name + "/" + rows["group"]
        tables.append(evaluate(rows, np.asarray(p_fake), UNCALIBRATED, KINDS, 100, 0).predictions)
    return pd.concat(tables)


def test_a_detector_that_needs_a_threshold_per_set_is_found_out():
    rng = np.random.default_rng(0)
    base = np.tile([0.1, 0.35], 40) + rng.random(80) * 0.1
    table = scored_sets(test=base, elsewhere=base + 0.5)  # each without a fault: below and above 0.3, or 0.8
    found = pooled(table, 0.5, resamples=300, seed=0)
    for _, rows in table.groupby("set"):
        assert score(rows["label"], rows["p_fake"])["auc"] == 1
    assert (found["n"], found["n_real"], found["n_fake"], found["threshold"]) == (160, 80, 80, 0.5)
    # At 0.5 all of one set are called real and all of the other fake; a quarter of the pairs is the wrong way round.
    assert found["accuracy"] == found["balanced_accuracy"] == 0.5
    assert found["false_positive_rate"] == found["false_negative_rate"] == 0.5
    assert found["auc"] == pytest.approx(0.75)
    assert found["within_sets"]["auc"] == 1 and found["within_sets"]["difference"] == pytest.approx(-0.25)
    assert found["within_sets"]["high"] < -0.2
    assert found["intervals"]["accuracy"] == {"low": 0.5, "high": 0.5}
    # One that has one scale for both does not lose by it.
    fair = pooled(scored_sets(test=base, elsewhere=base), 0.3, resamples=300, seed=0)
    assert fair["auc"] == fair["accuracy"] == 1 and fair["within_sets"]["difference"] == 0


def test_every_image_counts_alike():
    right, wrong = np.tile([0.1, 0.9], 30), np.tile([0.9, 0.1], 5)
    found = pooled(scored_sets(test=right, other=wrong), 0.5, resamples=100, seed=0)
    assert found["n"] == 70 and found["accuracy"] == pytest.approx(60 / 70)
    assert found["false_positive_rate"] == pytest.approx(5 / 35)
    # 0.9 for 30 of 35 fakes and 5 of 35 real ones, 0.1 for the others: both bins are off by 0.9 - 30 / 35.
    assert found["ece"] == pytest.approx(0.9 - 30 / 35)
    assert set(found["intervals"]) == set(METRICS)


def test_two_versions_of_one_image_are_resampled_together():
    scores = outputs_for(rows_of(80))
    once = pooled(scored_sets(test=scores), 0.5, resamples=500, seed=0)
    twice = pooled(scored_sets(test=scores, test_perturbed=scores), 0.5, resamples=500, seed=0)
    assert twice["n"] == 160 and once["n_groups"] == twice["n_groups"] == 40
    assert twice["intervals"]["accuracy"] == pytest.approx(once["intervals"]["accuracy"])  # a copy is no news


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (("test/p1", "test"), ("test_perturbed/p1", "test_perturbed"), True),
        (("test/test-0001", "test"), ("test_perturbed/test-0001", "test_perturbed"), True),
        (("Test/Fake/1.png", "test"), ("Test-Fog/Fake/1.jpg", "test_fog"), True),
        (("Fake/Testing/1.png", "test"), ("Fake/Test_Fog/1.JPEG", "test_fog"), True),
        (("videos/test/v.1", "test"), ("videos/test_fog/v.1", "test_fog"), True),
        (("Test/Real/1.png", "test"), ("Real/1.jpg", "elsewhere"), True),
        (("test/v.1", "test"), ("test_fog/v.2", "test_fog"), False),
        (("Test/Fake/1.png", "test"), ("Test_Fog/Real/1.png", "test_fog"), False),
        (("videos/test/1", "test"), ("portraits/test_fog/1", "test_fog"), False),
        (("test/test", "test"), ("test/Test", "test"), False),
    ],
)
def test_which_groups_of_two_sets_are_one(one, other, alike):
    predictions = scored_sets(a=np.array([0.2, 0.8]), b=np.array([0.3, 0.7]))
    (group_a, set_a), (group_b, set_b) = one, other
    predictions["group"], predictions["set"] = [group_a] * 2 + [group_b] * 2, [set_a] * 2 + [set_b] * 2
    assert pooled(predictions, 0.5, resamples=100, seed=0)["n_groups"] == (1 if alike else 2)


# ---- by_attribute ----------------------------------------------------------------------------------------------


def test_every_metric_for_each_value():
    rows = rows_of(60, camera=["phone", "phone", "", ""] * 15, one="same", name=[str(i) for i in range(60)])
    p_fake = outputs_for(rows)
    table = by_attribute(rows, p_fake, 0.5, resamples=200, seed=0)
    assert tuple(table.columns) == ATTRIBUTE_COLUMNS
    assert list(table["value"]) == ["unknown", "phone"] and set(table["attribute"]) == {"camera"}
    phone = (rows["camera"] == "phone").to_numpy()
    row = table[table["value"] == "phone"].iloc[0]
    assert row["n"] == 30
    assert row["accuracy"] == pytest.approx(np.mean((p_fake >= 0.5)[phone] == rows["label"][phone]))
    assert row["auc"] == pytest.approx(roc_auc_score(rows["label"][phone], p_fake[phone]))
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert pd.isna(row["auc_vs_other_class"])


def test_an_attribute_that_says_the_class_once_more_is_left_out():
    rows = rows_of(20, method=["camera", "swap"] * 10, half=["a", "a", "b", "b"] * 5)
    table = by_attribute(rows, outputs_for(rows), 0.5, resamples=100, seed=0)
    assert set(table["attribute"]) == {"half"}


def test_a_method_of_forging_is_set_against_all_real_images():
    rows = rows_of(60, method=["camera", "swap", "camera", "paste"] * 15)
    p_fake = outputs_for(rows)
    table = by_attribute(rows, p_fake, 0.5, resamples=100, seed=0).set_index("value")
    paste = ((rows["method"] == "paste") | (rows["label"] == 0)).to_numpy()
    assert table.loc["paste", "auc_vs_other_class"] == pytest.approx(roc_auc_score(rows["label"][paste], p_fake[paste]))
    assert pd.isna(table.loc["paste", "auc"])
    assert table.loc["paste", "n_real"] == 0


def test_without_attributes_the_table_is_empty_but_has_its_columns():
    table = by_attribute(rows_of(10), np.full(10, 0.5), 0.5, resamples=100, seed=0)
    assert table.empty and tuple(table.columns) == ATTRIBUTE_COLUMNS


# ---- stress ----------------------------------------------------------------------------------------------------


def test_the_ladder_has_every_rung_once_and_the_same_images_on_each(network):
    ladder = stress_ladder(rows_of(40), network, UNCALIBRATED, images=6, seed=2)
    assert tuple(ladder.columns) == RUNG_COLUMNS
    assert len(ladder) == 1 + len(CORRUPTIONS) * len(SEVERITIES)
    assert not ladder.duplicated(["name", "severity"]).any()
    assert (ladder["n"] == 6).all()
    ((rows, _, shown),) = network.calls
    paths = rows["path"].to_numpy().reshape(len(ladder), 6)
    assert (paths == paths[0]).all()
    # Rung by rung, the images are what `corrupt` makes of them, from one draw for all severities.
    originals = [network.images[int(path[:3])] for path in paths[0]]
    for rung in (0, 1, 5, 77, 175):
        name, severity = ladder["name"][rung], ladder["severity"][rung]
        for i, image in enumerate(originals):
            expected = corrupt(image, name, severity / 5, np.random.default_rng([2, i])) if severity else image
            np.testing.assert_array_equal(shown[rung * 6 + i], expected)


def test_a_rung_is_scored_like_a_set(network):
    rows = rows_of(40)
    ladder = stress_ladder(rows, network, CALIBRATED, images=1000, seed=2)
    whole = score(rows["label"], CALIBRATED.apply(network(rows, None)), CALIBRATED.threshold)
    assert ladder.iloc[0]["name"] == "undamaged"
    assert ladder.iloc[0]["auc"] == pytest.approx(whole["auc"])
    assert ladder.iloc[0]["accuracy"] == pytest.approx(whole["accuracy"])


def test_the_summary_is_the_mean_of_each_arm(network):
    ladder = stress_ladder(rows_of(40), network, UNCALIBRATED, images=20, seed=2)
    found = stress_summary(ladder)
    assert found["images"] == 20
    names = [name for name, corruption in CORRUPTIONS.items() if corruption.corruption_set == "matched"]
    assert found["matched"]["auc"] == pytest.approx(np.mean(ladder["auc"][ladder["name"].isin(names)]))
    assert found["undamaged"]["accuracy"] == ladder["accuracy"][0]


def test_a_corruption_of_the_set_other_is_scored_as_its_own_set(network, monkeypatch):
    before = stress_summary(stress_ladder(rows_of(40), network, UNCALIBRATED, images=20, seed=2))
    negative = Corruption("negative", "colour", "other", lambda image, strength, rng: 255 - image)
    monkeypatch.setitem(CORRUPTIONS, "negative", negative)
    ladder = stress_ladder(rows_of(40), network, UNCALIBRATED, images=20, seed=2)
    own = ladder[ladder["corruption_set"] == "other"]
    assert (own["name"] == "negative").sum() == 5
    after = stress_summary(ladder)
    assert after["other"]["auc"] == pytest.approx(own["auc"].mean())
    assert all(after[name] == before[name] for name in ("undamaged", "generic", "matched"))


def test_the_summary_of_one_class_has_no_auc(network):
    rows = rows_of(40)
    ladder = stress_ladder(rows[rows["label"] == 1], network, UNCALIBRATED, images=4, seed=2)
    found = stress_summary(ladder)
    assert found["generic"]["auc"] is None and 0 <= found["generic"]["accuracy"] <= 1
    assert isinstance(found["generic"]["accuracy"], float)


# ---- where it looked -------------------------------------------------------------------------------------------


def test_the_surest_calls_of_each_kind_are_shown_one_of_a_group():
    rows = rows_of(80)
    outputs = np.random.default_rng(1).random(80)
    table = evaluate(rows, outputs, CALIBRATED, ["camera", "swap"], resamples=100, seed=0).predictions
    shown = showcase(table, 0.6)
    called = shown["p_fake"] >= 0.6
    assert list(zip(shown["label"], called, strict=True)) == (
        [(1, True)] * 3 + [(0, False)] * 3 + [(0, True)] * 3 + [(1, False)] * 3
    )
    p = shown["p_fake"].to_numpy()
    assert (np.diff(p[:3]) <= 0).all() and (np.diff(p[3:6]) >= 0).all()
    assert p[0] == table.loc[table["label"] == 1, "p_fake"].max()
    assert p[6] == table.loc[table["label"] == 0, "p_fake"].max()
    shared = showcase(table.assign(group="same"), 0.6)
    assert list(shared.columns) == list(table.columns) and len(shared) == 4
    shuffled = table.sample(frac=1, random_state=0)
    assert list(showcase(shuffled, 0.6)["path"]) == list(shown["path"])


def test_a_kind_of_call_that_does_not_occur_is_not_shown():
    rows = rows_of(10)
    table = evaluate(rows, rows["label"].to_numpy() * 0.9, UNCALIBRATED, ["a", "b"], resamples=100, seed=0).predictions
    assert len(showcase(table, 0.5)) == 6


def squares(places: list[tuple[int, int]]) -> np.ndarray:
    masks = np.zeros((len(places), 20, 20), np.float32)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[y : y + 5, x : x + 5] = 1
    return masks


CORNERS = [(0, 0), (0, 15), (15, 0), (15, 15)] * 10
GROUPS = [f"g{i // 2}" for i in range(40)]


def test_heat_in_the_region_and_nowhere_else():
    forged = squares(CORNERS)
    found = localisation(forged, forged, GROUPS, resamples=200, seed=0)
    assert (found["images"], found["without_heat"]) == (40, 0)
    assert found["heat_share"] == pytest.approx(1) and found["pointing_game"] == 1
    assert found["region_share"] == pytest.approx(1 / 16) and found["ratio"] == pytest.approx(16)
    assert found["elsewhere_share"] == pytest.approx(9 / 39)  # a quarter of the regions is the same corner


def test_heat_without_aim_is_chance():
    heat = np.random.default_rng(0).random((40, 20, 20))
    found = localisation(heat, squares(CORNERS), GROUPS, resamples=500, seed=0)
    assert found["intervals"]["ratio"]["low"] < 1 < found["intervals"]["ratio"]["high"]
    assert found["elsewhere_share"] == pytest.approx(found["heat_share"], rel=0.1)


def test_heat_that_always_lies_in_the_middle_is_found_out():
    forged = squares([(7 + i % 2, 7 + i // 2 % 2) for i in range(40)])
    middle = np.repeat(squares([(8, 8)]), 40, axis=0)
    found = localisation(middle, forged, GROUPS, resamples=200, seed=0)
    assert found["ratio"] > 8
    assert found["elsewhere_share"] == pytest.approx(found["heat_share"], rel=0.05)


def test_images_without_heat_point_nowhere_and_have_no_share():
    forged = squares(CORNERS)
    heat = forged.copy()
    heat[:10] = 0
    found = localisation(heat, forged, GROUPS, resamples=200, seed=0)
    assert found["without_heat"] == 10
    assert found["heat_share"] == pytest.approx(1) and found["pointing_game"] == 0.75
    cold = localisation(np.zeros_like(forged), forged, GROUPS, resamples=200, seed=0)
    assert cold["heat_share"] is None and cold["ratio"] is None and cold["elsewhere_share"] is None
    assert cold["pointing_game"] == 0 and cold["intervals"]["ratio"] is None


def test_the_intervals_of_localisation_are_clustered():
    rng = np.random.default_rng(3)
    forged = squares([CORNERS[i] for i in rng.integers(0, 4, 40)])
    heat = rng.random((40, 20, 20)) + forged * rng.random((40, 1, 1)) * 3
    names = [str(i) for i in range(40)]

    def width(found: dict) -> float:
        return found["intervals"]["ratio"]["high"] - found["intervals"]["ratio"]["low"]

    apart = localisation(heat, forged, names, resamples=1000, seed=0)
    copied = localisation(np.tile(heat, (4, 1, 1)), np.tile(forged, (4, 1, 1)), names * 4, resamples=1000, seed=0)
    assert copied["ratio"] == pytest.approx(apart["ratio"])
    assert width(copied) == pytest.approx(width(apart), rel=0.1)
    assert localisation(heat, forged, ["one"] * 40, 100, 0)["intervals"]["ratio"] is None
    assert apart == localisation(heat, forged, names, resamples=1000, seed=0)


def test_without_masks_nothing_is_localised(tmp_path):
    assert with_known_forgery(rows_of(10), tmp_path, seed=0).empty
    (tmp_path / "sample").mkdir()
    rows = rows_of(600)
    fakes = rows.loc[rows["label"] == 1, "path"]
    with zipfile.ZipFile(tmp_path / "sample/masks.zip", "w") as masks:
        for path in fakes:
            masks.writestr(f"{path}.png", b"")
    known = with_known_forgery(rows, tmp_path, seed=0)
    assert len(known) == 200 and (known["label"] == 1).all()
    turned = rows.assign(label=1 - rows["label"])  # real images that only their label calls fake have no mask
    assert with_known_forgery(turned, tmp_path, seed=0).empty
