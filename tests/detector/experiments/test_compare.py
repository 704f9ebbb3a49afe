"""Comparing runs: what a reference means, which images are paired, what is said of the difference."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from detector.errors import UserError
from detector.experiments.compare import compare, holm, main, pair, render
from detector.experiments.references import Run, load
from detector.metrics import METRICS
from detector.tracking import runs

ROOT = Path(__file__).resolve().parents[3]


def predictions(n: int = 200, noise: float = 1.0, names=("test",), seed: int = 1, **columns) -> pd.DataFrame:
    """Scores of the same n images, of sources of two, under a model that is the worse the more noise it has."""
    labels = np.arange(n) % 2
    signal = np.random.default_rng(0).normal(size=n) + 2 * labels - 1
    logits = signal + noise * np.random.default_rng(seed).normal(size=n)
    one = pd.DataFrame(
        {
            "path": [f"Test/{i:04d}.jpg" for i in range(n)],
            "label": labels,
            "p_fake": 1 / (1 + np.exp(-logits)),
            "group": [f"g{i // 2}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
        }
    ).assign(**columns)
    return pd.concat([one.assign(set=name) for name in names], ignore_index=True)


def run(table: pd.DataFrame, threshold: float = 0.5) -> Run:
    return Run("run", table, dict.fromkeys(table["set"], threshold))


def write(folder: Path, table: pd.DataFrame, threshold: float = 0.5) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    table.to_csv(folder / "metrics" / "predictions.csv", index=False)
    evaluation = {name: {"threshold": threshold} for name in table["set"].unique()}
    (folder / "metrics" / "evaluate.json").write_text(json.dumps(evaluation))


@pytest.fixture
def project(schema, tmp_path, monkeypatch) -> Path:
    """An empty project with a git repository and a store of its own."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy2(schema, tmp_path / "mlruns" / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path, table: pd.DataFrame) -> str:
    write(folder, table)
    git(folder, "add", "metrics")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=Scores")
    return git(folder, "rev-parse", "HEAD")


def experiment(folder: Path, name: str, table: pd.DataFrame) -> str:
    """A DVC experiment as DVC stores it: a commit that only a ref below its baseline leads to."""
    baseline = git(folder, "rev-parse", "HEAD")
    made = commit(folder, table)
    git(folder, "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", made)
    git(folder, "reset", "--quiet", "--hard", baseline)
    return made


def logged(folder: Path, name: str, table: pd.DataFrame | None, monkeypatch) -> str:
    monkeypatch.setenv("DVC_EXP_NAME", name)
    with runs.training_run({}, {}, None) as run_id:
        if table is not None:
            write(folder, table)
            files = [folder / "metrics" / name for name in ("predictions.csv", "evaluate.json")]
            runs.log_artifacts(run_id, dict.fromkeys(files, "metrics"))
    return run_id


# what a reference means


def test_revisions(project):
    worse, better, newest = predictions(noise=3), predictions(noise=1), predictions(noise=2)
    first = commit(project, worse)
    git(project, "tag", "v1")
    second = experiment(project, "tidy-fern", better)
    write(project, newest)
    for reference, table, said in (
        ("main", worse, first[:12]),
        ("v1", worse, "Scores"),
        (first[:7], worse, first[:12]),
        ("dvc:HEAD", worse, first[:12]),
        ("tidy-fern", better, f"DVC experiment tidy-fern ({second[:12]})"),
        ("dvc:tidy-fern", better, second[:12]),
        (second[:10], better, second[:12]),
        ("workspace", newest, "metrics/ now"),
        ("dvc:workspace", newest, "metrics/ now"),
    ):
        found = load(reference)
        assert found.predictions["p_fake"].to_numpy() == pytest.approx(table["p_fake"].to_numpy(), abs=1e-12)
        assert found.thresholds == {"test": 0.5}
        assert found.resolved.startswith(f"{reference}: ") and said in found.resolved


def test_mlflow_runs(project, monkeypatch):
    run_id = logged(project, "tidy-fern", predictions(n=6), monkeypatch)
    shutil.rmtree(project / "metrics")
    for reference in ("tidy-fern", "mlflow:tidy-fern", run_id, run_id[:12], f"mlflow:{run_id[:12]}"):
        found = load(reference)
        assert len(found.predictions) == 6
        assert f"MLflow run tidy-fern ({run_id})" in found.resolved


def test_an_experiment_and_its_run_of_the_same_name_are_one(project, monkeypatch):
    commit(project, predictions(noise=3))
    experiment(project, "tidy-fern", predictions())
    run_id = logged(project, "tidy-fern", predictions(), monkeypatch)
    assert "DVC experiment tidy-fern" in load("tidy-fern").resolved
    assert f"the same files as MLflow run tidy-fern ({run_id})" in load("tidy-fern").resolved


def test_a_name_that_means_different_things_must_be_made_precise(project, monkeypatch):
    commit(project, predictions(noise=3))
    made = experiment(project, "tidy-fern", predictions(n=10))
    first = logged(project, "tidy-fern", predictions(n=20), monkeypatch)
    second = logged(project, "tidy-fern", predictions(n=30), monkeypatch)
    with pytest.raises(UserError, match="'tidy-fern' may mean 3 things") as error:
        load("tidy-fern")
    for precisely, n in ((f"dvc:{made[:12]}", 10), (f"mlflow:{first}", 20), (f"mlflow:{second}", 30)):
        assert f"{precisely} (" in str(error.value)
        assert len(load(precisely).predictions) == n
    with pytest.raises(UserError, match="may mean 2 things"):
        load("mlflow:tidy-fern")
    assert len(load("dvc:tidy-fern").predictions) == 10


def test_a_run_without_an_evaluation_is_passed_over_for_one_that_has_it(project, monkeypatch):
    failed = logged(project, "tidy-fern", None, monkeypatch)
    with pytest.raises(UserError, match=rf"MLflow run {failed}: has no artifact metrics/predictions\.csv"):
        load("tidy-fern")
    whole = logged(project, "tidy-fern", predictions(), monkeypatch)
    assert load("tidy-fern").resolved == f"tidy-fern: MLflow run tidy-fern ({whole})"


def test_an_unknown_name_lists_what_there_is(project, monkeypatch):
    commit(project, predictions())
    experiment(project, "tidy-fern", predictions())
    logged(project, "bonny-oak", predictions(), monkeypatch)
    for reference in ("tidy-fen", "dvc:bonny-oak", "mlflow:main", "mlflow:workspace", "", "dvc:", "dvc:--all", "a\0b"):
        with pytest.raises(UserError, match="is no MLflow run and no DVC revision") as error:
            load(reference)
        assert all(name in str(error.value) for name in ("tidy-fern", "bonny-oak", "main", "workspace"))


def test_a_revision_or_workspace_without_results(project):
    git(project, "commit", "--quiet", "--allow-empty", "--message=Nothing")
    with pytest.raises(UserError, match=r"commit .{12}: holds no metrics/predictions\.csv"):
        load("HEAD")
    with pytest.raises(UserError, match=r"metrics/predictions\.csv: not found; run `dvc repro` first"):
        load("workspace")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"\xff\xfe\0", "damaged"),
        (b"path,set,label\na,test,1\n", "no column p_fake"),
        (b"path,set,label,p_fake\n", "there is no image"),
        (b"path,set,label,p_fake\na,test,1,\nb,test,0,0.5\n", "1 of 2 scores are not in 0..1"),
        (b"path,set,label,p_fake\na,test,1,nan\n", "1 of 1 scores are not in 0..1"),
        (b"path,set,label,p_fake\na,test,1,1.5\n", "1 of 1 scores are not in 0..1"),
        (b"path,set,label,p_fake\na,test,1,high\n", "damaged"),
        (b"path,set,label,p_fake\na,test,,0.5\n", "damaged"),
        (b"path,set,label,p_fake\na,test,2,0.5\n", "labels must be 0"),
    ],
)
def test_damaged_predictions_say_whose_they_are(project, content, says):
    write(project, predictions(n=2))
    (project / "metrics" / "predictions.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"workspace: metrics/predictions\.csv: .*{says}"):
        load("workspace")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"test": {}}', '{"test": {"threshold": null}}',
                                     '{"test": {"threshold": NaN}}'])  # fmt: skip
def test_a_damaged_evaluation_says_whose_it_is(project, content):
    write(project, predictions(n=2))
    (project / "metrics" / "evaluate.json").write_text(content)
    with pytest.raises(UserError, match=r"workspace: metrics/evaluate\.json: damaged"):
        load("workspace")


def test_awkward_paths_survive(project):
    table = predictions(n=4, path=["NA", 'a,"b"\r\nc', "nan", " é"])
    write(project, table)
    assert load("workspace").predictions["path"].tolist() == table["path"].tolist()


# which images are paired


def test_images_are_paired_by_content_whatever_their_order_and_path():
    a = predictions(n=10)
    b = a.assign(path=a["path"].str.replace("Test", "other"), p_fake=1 - a["p_fake"]).sample(frac=1, random_state=0)
    found = pair(a, b.iloc[2:], "test")
    assert len(found.labels) == 8 and (found.only_a, found.only_b) == (2, 0)
    assert found.p_b == pytest.approx(1 - found.p_a)
    assert found.notes == ()


def test_copies_within_a_set_are_paired_by_path():
    same = predictions(n=6, sha256=["x", "y", "x", "z", "x", "w"])
    found = pair(same, same[::-1], "test")
    assert sorted(found.p_a) == sorted(same["p_fake"]) and (found.p_a == found.p_b).all()
    found = pair(same, same.drop(index=2), "test")
    assert (len(found.labels), found.only_a, found.only_b) == (5, 1, 0)


def test_an_image_in_two_sets_is_paired_within_each():
    both = predictions(n=6, names=("test", "test_perturbed"))
    assert len(pair(both, both, "test").labels) == len(pair(both, both, "test_perturbed").labels) == 6


def test_an_image_listed_twice_is_an_error():
    table = predictions(n=4)
    with pytest.raises(UserError, match=r"B: metrics/predictions.csv lists Test/0001.jpg of test twice"):
        pair(table, pd.concat([table, table[1:2]]), "test")


def test_labels_that_disagree_are_an_error():
    a = predictions(n=6)
    with pytest.raises(UserError, match=r"label of 2 of the 6 images of test .*\(the first is Test/0001.jpg\)"):
        pair(a, a.assign(label=[0, 0, 0, 0, 0, 1]), "test")


@pytest.mark.parametrize("old", ["a", "b", "both"])
def test_runs_that_noted_less_are_paired_by_path(old):
    new = predictions(n=6)
    less = new.drop(columns=["group", "sha256"])
    found = pair(less if old != "b" else new, less if old != "a" else new, "test")
    assert len(found.labels) == 6
    assert "paired by path" in found.notes[0]
    assert (found.groups is None) == (old == "both") == any("source of its own" in note for note in found.notes)


def test_groups_that_differ_are_those_of_b_and_that_is_said():
    a = predictions(n=6)
    assert pair(a, a.assign(group=a["group"] + "-renamed"), "test").notes == ()
    found = pair(a, a.assign(group="one"), "test")
    assert found.groups == ["one"] * 6 and "groups of B" in found.notes[0]


# what is said of the difference


def test_interval_and_p_agree_with_a_paired_t_test():
    a, b = predictions(n=1000, group=""), predictions(n=1000, noise=1.1, group="", seed=2)
    found = compare(run(a), run(b), resamples=4000)["sets"]["test"]["metrics"]["brier"]
    errors = [(table["p_fake"] - table["label"]) ** 2 for table in (a, b)]
    expected = stats.ttest_rel(errors[1], errors[0])
    low, high = expected.confidence_interval()
    assert found["difference"] == pytest.approx((errors[1] - errors[0]).mean(), abs=1e-12)
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.06 * (high - low))
    assert found["p_value"] == pytest.approx(expected.pvalue, abs=0.02)
    assert 0.001 < expected.pvalue < 0.2  # else the line above says little


def test_the_interval_of_auc_agrees_with_delong():
    a, b = predictions(n=1000, noise=2, group=""), predictions(n=1000, noise=1, group="")
    found = compare(run(a), run(b), resamples=4000)["sets"]["test"]["metrics"]["auc"]
    real, fake = a["label"] == 0, a["label"] == 1  # DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988
    wins = [np.sign(np.subtract.outer(t["p_fake"][fake].values, t["p_fake"][real].values)) / 2 + 0.5 for t in (a, b)]
    variance = sum(np.var((wins[1] - wins[0]).mean(axis=axis), ddof=1) / 500 for axis in (0, 1))
    difference = wins[1].mean() - wins[0].mean()
    assert found["difference"] == pytest.approx(difference, abs=1e-12)
    width = 2 * 1.96 * variance**0.5
    assert [found["low"], found["high"]] == pytest.approx(
        [difference - width / 2, difference + width / 2], abs=width / 15
    )


def test_copies_of_one_source_do_not_make_the_interval_narrower():
    a, b = predictions(n=200, noise=2, group=""), predictions(n=200, noise=1, group="")
    groups = [f"g{i}" for i in range(200)]
    fourfold = [
        pd.concat([t.assign(group=groups, sha256=t["sha256"] + str(k)) for k in range(4)], ignore_index=True)
        for t in (a, b)
    ]
    once = compare(run(a), run(b))["sets"]["test"]
    four = compare(run(fourfold[0]), run(fourfold[1]))["sets"]["test"]
    assert (four["n"], four["groups"]) == (800, 200) and once["groups"] == 200
    for metric in ("auc", "brier", "accuracy"):
        for end in ("low", "high"):
            assert four["metrics"][metric][end] == pytest.approx(once["metrics"][metric][end], abs=1e-9)


@pytest.mark.parametrize("metric", ["auc", "loss", "false_positive_rate"])
def test_the_better_one_is_named_whichever_way_the_metric_points(metric):
    worse, better = run(predictions(n=600, noise=4)), run(predictions(n=600, noise=0.2))
    forth = compare(worse, better, metric=metric)["sets"]["test"]
    back = compare(better, worse, metric=metric)["sets"]["test"]
    assert (forth["better"], back["better"]) == ("b", "a")
    assert forth["says"].startswith("B is better than A on test: ")
    assert back["says"].startswith("A is better than B on test: ")
    values = forth["metrics"][metric]
    assert f"{values['a']:.3f} -> {values['b']:.3f}, difference {values['difference']:+.3f}" in forth["says"]
    assert f"(95 % interval {values['low']:+.3f} to {values['high']:+.3f}), p " in forth["says"]


def test_what_an_interval_around_nothing_leaves_open():
    a, b = run(predictions(n=100)), run(predictions(n=100, seed=2))
    for metric, title in (("auc", "AUC"), ("loss", "loss")):
        one = compare(a, b, metric=metric)["sets"]["test"]
        values = one["metrics"][metric]
        assert one["better"] == "neither"
        assert one["says"].startswith(f"No difference in {title} that 100 images could show on test: ")
        better, worse = (values["high"], -values["low"]) if metric == "auc" else (-values["low"], values["high"])
        assert one["says"].endswith(f"B may still be better by {better:.3f} or worse by {worse:.3f}")


def test_a_small_difference_is_not_rounded_away():
    a = predictions(n=400)
    b = a.assign(p_fake=a["p_fake"] * 0.9998 + 0.0002 * a["label"])
    assert "difference -0.000055 (" in compare(run(a), run(b), metric="brier")["sets"]["test"]["says"]


def test_a_run_and_itself_are_alike():
    a = run(predictions())
    found = compare(a, a)["sets"]["test"]
    assert found["alike"] and found["better"] == "neither"
    assert found["says"] == "A and B score every one of the 200 images of test alike: there is no difference"
    for values in found["metrics"].values():
        assert values["difference"] == values["low"] == values["high"] == 0
        assert values["p_value"] == values["p_adjusted"] == 1


def test_another_threshold_alone_changes_no_ranking_but_the_calls():
    a = predictions()
    found = compare(run(a), run(a, threshold=0.8))["sets"]["test"]
    assert not found["alike"] and "the same in every resample" in found["says"]
    assert found["metrics"]["false_positive_rate"]["difference"] < 0
    assert (found["threshold_a"], found["threshold_b"]) == (0.5, 0.8)


def test_one_class_only():
    a, b = (predictions(noise=noise).query("label == 0") for noise in (2, 1))
    found = compare(run(a), run(b))
    assert found["sets"]["test"]["better"] is None
    assert found["sets"]["test"]["says"].startswith("No verdict on test: AUC is not defined")
    assert compare(run(a), run(b), metric="brier")["sets"]["test"]["better"] in ("a", "b", "neither")
    assert "auc" in render(found)


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_source_has_no_interval(n):
    a, b = predictions(n=n, noise=2, group="one"), predictions(n=n, noise=1, group="one")
    found = compare(run(a), run(b), metric="brier")
    assert found["sets"]["test"]["better"] is None
    assert "there is no interval: all images are of one source" in render(found)


def test_few_sources_are_noted():
    few = [predictions(n=100, noise=noise, group=[f"g{i % 29}" for i in range(100)]) for noise in (1, 2)]
    assert "with 29 sources only" in render(compare(*map(run, few)))
    assert "sources only" not in render(compare(run(predictions()), run(predictions(noise=2))))


def test_sets():
    a = run(predictions(names=("test", "test_perturbed", "old")))
    b = run(predictions(noise=2, names=("test_perturbed", "test", "new")))
    found = compare(a, b)
    assert list(found["sets"]) == ["test", "test_perturbed"]
    assert found["notes"][:2] == ["A alone scored old", "B alone scored new"]
    assert "tested by itself" in found["notes"][2]
    assert list(compare(a, b, sets=["test_perturbed"])["sets"]) == ["test_perturbed"]
    assert compare(a, b, sets=["test", "test"])["notes"] == []
    with pytest.raises(UserError, match="--set: B did not score 'old'; both scored test, test_perturbed"):
        compare(a, b, sets=["old"])
    with pytest.raises(UserError, match="--set: A and B did not score 'tset'"):
        compare(a, b, sets=["tset"])


def test_runs_that_share_no_image():
    a, b = predictions(names=("test", "more")), predictions(names=("test", "more"))
    b.loc[b["set"] == "more", "sha256"] += "x"
    found = compare(run(a), run(b))
    assert list(found["sets"]) == ["test"]
    assert "more: A and B share no image of it (200 in A, 200 in B)" in found["notes"]
    with pytest.raises(UserError, match=r"share no test image \(A scored test; B scored more\)"):
        compare(run(a[a["set"] == "test"]), run(b[b["set"] == "more"]))


def test_the_headline_stands_and_the_others_are_adjusted():
    metrics = compare(run(predictions(noise=1.5)), run(predictions()), metric="brier")["sets"]["test"]["metrics"]
    assert metrics["brier"]["p_adjusted"] == metrics["brier"]["p_value"]
    others = {name: values["p_value"] for name, values in metrics.items() if name != "brier"}
    assert holm(others) == {name: metrics[name]["p_adjusted"] for name in others}
    assert set(metrics) == set(METRICS)


def test_which_way_each_metric_points():
    good = predictions(noise=0)
    bad = good.assign(p_fake=1 - good["p_fake"])
    for name, values in compare(run(bad), run(good))["sets"]["test"]["metrics"].items():
        assert values["lower_is_better"] == (values["difference"] < 0), name


def test_the_table_names_a_better_one_by_the_adjusted_p_value():
    a, b = predictions(n=1000, group=""), predictions(n=1000, noise=1.1, group="", seed=2)
    by_chance = compare(run(a), run(b))
    assert by_chance["sets"]["test"]["metrics"]["brier"]["p_value"] < 0.05

    def row(found: dict) -> str:
        return next(line for line in render(found).splitlines() if line.startswith("  brier "))

    assert not row(by_chance).endswith("A")
    assert row(compare(run(a), run(b), metric="brier")).endswith("  A")


def test_holm_by_hand():
    # 3 p-values: 3 x .01; 2 x .02 = .04; 1 x .03 = .03, raised to .04.
    assert holm({"a": 0.02, "b": None, "c": 0.03, "d": 0.01}) == pytest.approx(
        {"a": 0.04, "b": None, "c": 0.04, "d": 0.03}
    )
    assert holm({}) == {}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_where_the_step_down_procedure_does(p_values):
    adjusted = holm(dict(enumerate(p_values)))
    rejecting = True
    for k, (p, name) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        rejecting = rejecting and p * (len(p_values) - k) < 0.05
        assert (adjusted[name] < 0.05) == rejecting
        assert p <= adjusted[name] <= 1


# the command


def test_the_command(project, monkeypatch, capsys):
    commit(project, predictions(n=600, noise=4))
    write(project, predictions(n=600, noise=0.2))
    monkeypatch.setattr(sys, "argv", ["compare", "HEAD", "workspace", "--resamples", "500"])
    main()
    first, *_ = text = capsys.readouterr().out.splitlines()
    assert first.startswith("B is better than A on test: AUC 0.")
    assert text[2].startswith("A  HEAD: commit ") and text[3] == "B  workspace: the files in metrics/ now"
    assert any(line.startswith("test: 600 images in common (300 real, 300 fake) from 300 sources") for line in text)
    assert all(any(line.startswith(f"  {metric} ") for line in text) for metric in METRICS)
    assert max(map(len, text[1:])) <= 120

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["sets"]["test"]["says"] == first
    assert found["resamples"] == 500


@pytest.mark.parametrize("option", [("--metric", "AUC"), ("--resamples", "9")])
def test_bad_options(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["compare", "HEAD", "workspace", *option])
    with pytest.raises(UserError, match=f"{option[0]}: "):
        main()


def test_help_and_errors_from_the_shell():
    helped = subprocess.run([sys.executable, "-X", "importtime", "-m", "detector", "compare", "--help"], cwd=ROOT,
                            capture_output=True, text=True)  # fmt: skip
    assert helped.returncode == 0 and "RUN_A RUN_B" in helped.stdout and "workspace" in helped.stdout
    imported = {line.split("|")[-1].strip() for line in helped.stderr.splitlines()}
    assert "numpy" in imported and not imported & {"tensorflow", "keras", "mlflow", "pandas", "scipy"}

    wrong = subprocess.run([sys.executable, "-m", "detector", "compare", "a", "b", "--metric", "c"], cwd=ROOT,
                           capture_output=True, text=True)  # fmt: skip
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --metric: ") and len(wrong.stderr.splitlines()) == 1
