"""The leaderboard: which runs it lists, what it says of each, in which order and in which form."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detector.errors import UserError
from detector.experiments.leaderboard import as_csv, as_markdown, as_text, best_first, leaderboard, main
from detector.metrics import METRICS
from detector.tracking import runs, store

ROOT = Path(__file__).resolve().parents[3]
COSTS = {
    "size": {"parameters": 20_861_480, "megabytes": 83.44},
    "speed": {"scoring_images_per_second": 27.35, "training_images_per_second": 5.2},
}


@pytest.fixture(autouse=True)
def project(schema, tmp_path, monkeypatch) -> Path:
    """A project with a store of its own."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy2(schema, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def scores(accuracy: float, n: int = 200, **further) -> dict:
    """What `evaluate` logs of a test set, in part."""
    interval = {"low": accuracy - 0.05, "high": accuracy + 0.04}
    return {
        **{"n": n, "n_real": n // 2, "threshold": 0.4, "accuracy": accuracy, "auc": accuracy + 0.05},
        **{"false_positive_rate": 0.125, "ece": 0.0321, "intervals": {"accuracy": interval, "ece": None}},
        **{"stress": {"images": 30, "undamaged": {"auc": 0.1}}, **further},
    }


@pytest.fixture
def log(monkeypatch):
    """log(name, metrics, ...): a run in the store; its id. The next one is newer."""

    def log(name: str, metrics: dict, digest: str | None = "d1" * 32, backbone="xception", evaluates=None) -> str:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        if evaluates:
            params = {"evaluate.threshold": name}
            run_id = runs.evaluation_run(evaluates, params, {"data.digest": digest})
        else:
            params = {"model.backbone": backbone, "model.image_size": 80} if backbone else {}
            tags = {"weights": "random"} | ({"data.digest": digest} if digest else {})
            with runs.training_run(params, tags, None) as run_id:
                pass
        runs.log_metrics(run_id, metrics)
        return run_id

    return log


def names(rows: list[dict]) -> list[str]:
    return [row["run"] for row in rows]


def listed(*arguments, **options) -> list[dict]:
    return leaderboard(runs.all_runs(), *(arguments or ("test", "accuracy")), **options)[0]


def command(monkeypatch, capsys, *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["leaderboard", *arguments])
    main()
    return capsys.readouterr()


# which runs, and what is known of them


def test_a_row_has_everything_that_was_logged(log):
    sets = {"test": scores(0.9), "test_dark": scores(0.7), "other": scores(0.6)}
    run_id = log("tidy-fern", {**sets, **COSTS})
    (row,) = listed()
    assert row["started"].endswith("+00:00") and row.pop("started")
    expected = {
        **{"run": "tidy-fern", "run_id": run_id, "evaluates": None, "backbone": "xception", "weights": "random"},
        **{"image_size": 80, "data": "d1" * 32, "set": "test", "images": 200, "accuracy": 0.9, "auc": 0.95},
        **{"false_positive_rate": 0.125, "ece": 0.0321, "accuracy_low": 0.85, "accuracy_high": 0.94},
        **{"worst_set": "other", "worst_auc": 0.65, "parameters": 20_861_480, "megabytes": 83.44},
        **{"scoring_images_per_second": 27.35, "training_images_per_second": 5.2},
    }
    assert row == {**dict.fromkeys(METRICS), **{k: pytest.approx(v) if v == v else v for k, v in expected.items()}}


def test_only_test_sets_are_listed(log):
    """Neither a set in one format nor all sets together is one more set."""
    in_one_format = {"accuracy": 0.1, "auc": 0.1, "intervals": {"auc": {"low": 0.0, "high": 0.2}}}
    sets = {name: scores(accuracy, reencoded=in_one_format) for name, accuracy in (("test", 0.9), ("other", 0.6))}
    log("tidy-fern", {**sets, "pooled": scores(0.2)})
    (row,) = listed()
    assert (row["worst_set"], row["worst_auc"]) == ("other", pytest.approx(0.65))
    with pytest.raises(UserError, match=r"no run has scored 'pooled'; there are other, test$"):
        listed("pooled", "accuracy")


def test_what_an_old_run_lacks_is_none(log):
    log("old", {"test": {"n": 3, "n_real": 3, "threshold": 0.5, "accuracy": 1.0}}, digest=None, backbone=None)
    (row,) = listed()
    assert row["accuracy"] == 1 and row["images"] == 3
    lacking = {"backbone", "image_size", "data", "auc", "worst_auc", "worst_set", "accuracy_low", "parameters"}
    assert {row[name] for name in lacking} == {None}
    assert as_text([row], "accuracy").splitlines()[1].split() == ["old", "-", "random", "-", "100.0", "%", *"-------"]


def test_another_set_and_metric(log):
    log("tidy-fern", {"test": scores(0.9), "test_dark": scores(0.7, n=50)})
    (row,) = listed("test_dark", "ece")
    assert (row["set"], row["images"], row["accuracy"]) == ("test_dark", 50, 0.7)
    assert (row["worst_set"], row["ece_low"], "accuracy_low" in row) == ("test", None, False)


def test_runs_without_an_evaluation_are_left_out(log):
    log("first", {"test": scores(0.8)})
    log("second", {"test": scores(0.9)})
    log("killed", {"loss": 0.3, "best": {"val_auc": 0.9}})
    assert names(listed()) == ["second", "first"]


def test_a_re_evaluation_knows_its_model(log):
    sets = {"test": scores(0.9)}
    parent = log("tidy-fern", COSTS)
    runs.evaluation_run(parent, {"evaluate.threshold": "auto"}, {})
    runs.log_metrics(parent, sets)
    log("calm-sea", {"test": scores(0.8), "speed": {"scoring_images_per_second": 99.0}}, evaluates=parent)
    again, first = rows = listed()
    assert (again["run"], again["evaluates"], first["evaluates"]) == ("calm-sea", "tidy-fern", None)
    for name in ("backbone", "weights", "image_size", "parameters", "megabytes", "training_images_per_second"):
        assert again[name] == first[name] is not None, name
    assert (first["scoring_images_per_second"], again["scoring_images_per_second"]) == (27.35, 99.0)
    text = as_text(rows, "accuracy")
    assert text.splitlines()[1].startswith("calm-sea *") and "calm-sea (of tidy-fern)" in text

    runs.log_metrics(parent, {"test": scores(0.9)})
    store.connect()[0].delete_run(parent)
    (orphan,) = listed()
    assert (orphan["evaluates"], orphan["parameters"]) == (parent[:8], None)


def test_the_speed_of_scoring_is_never_taken_from_another_evaluation(log):
    parent = log("tidy-fern", {**COSTS, "test": scores(0.9)})
    runs.evaluation_run(parent, {"evaluate.threshold": "auto"}, {})
    log("calm-sea", {"test": scores(0.8)}, evaluates=parent)
    assert listed()[0]["scoring_images_per_second"] is None


def test_runs_on_other_data_are_counted_not_shown(log):
    log("elsewhere", {"test": scores(0.99)}, digest="e" * 64)
    log("old", {"test": scores(0.98)}, digest=None)
    log("first", {"test": scores(0.8)})
    log("second", {"test": scores(0.9)})
    rows, notes = leaderboard(runs.all_runs(), "test", "accuracy")
    assert names(rows) == ["second", "first"]
    assert [note.split(",")[0] for note in notes] == ["2 runs on other data left out"]
    assert "data" not in as_text(rows, "accuracy").splitlines()[0].split()

    rows, notes = leaderboard(runs.all_runs(), "test", "accuracy", all_data=True)
    assert names(rows) == ["second", "first", "old", "elsewhere"]
    assert "not on the same data" in notes[0]
    ends = [line.split()[-1] for line in as_text(rows, "accuracy").splitlines()[:5]]
    assert ends == ["data", "d1d1d1d1", "d1d1d1d1", "-", "eeeeeeee"]


def test_the_data_are_those_of_the_newest_run_in_question(log):
    log("mine-1", {"test": scores(0.8), "extra": scores(0.5)}, digest="e" * 64)
    log("theirs", {"test": scores(0.9)})
    assert names(listed()) == ["theirs"]
    assert names(listed(wanted=["mine-*"])) == names(listed("extra", "auc")) == ["mine-1"]


def test_sets_of_one_name_that_differ_are_told(log):
    log("first", {"test": scores(0.8)})
    log("second", {"test": scores(0.9, n=100), "extra": scores(0.5)})
    assert "same number of images" in leaderboard(runs.all_runs(), "test", "auc")[1][0]
    assert leaderboard(runs.all_runs(), "extra", "auc")[1] == ["left out for want of extra: 1 of 2 evaluated runs"]


def test_runs_by_name_pattern_and_id(log):
    ids = {name: log(name, {"test": scores(0.8)}) for name in ("net-1", "net-2", "other", "[odd]")}
    assert names(listed(wanted=["net-*", "other"])) == ["other", "net-2", "net-1"]
    assert names(listed(wanted=[ids["net-1"][:10], "net-1"])) == ["net-1"]
    assert names(listed(wanted=["[odd]"])) == ["[odd]"]
    with pytest.raises(UserError, match=r"'nett'; the newest are \[odd\], other, net-2, net-1"):
        listed(wanted=["net-1", "nett"])


def test_nothing_to_list_says_what_to_do(project, log):
    with pytest.raises(UserError, match="no runs yet; `dvc repro`"):
        listed()
    log("killed", {"loss": 0.3})
    with pytest.raises(UserError, match="no run has been evaluated yet; let `dvc repro`"):
        listed()
    log("tidy-fern", {"test": scores(0.9), "test_dark": scores(0.6)})
    with pytest.raises(UserError, match="--set: no run has scored 'tset'; there are test, test_dark"):
        listed("tset", "auc")


# order and form


def test_the_best_comes_first_whichever_way_the_metric_points():
    rows = [{"run": name, "auc": x, "ece": x, "megabytes": x, "scoring_images_per_second": x}
            for name, x in (("none", None), ("low", 0.1), ("high", 0.9), ("also high", 0.9))]  # fmt: skip
    for key in ("auc", "scoring_images_per_second"):
        assert names(best_first(rows, key)) == ["high", "also high", "low", "none"]
    for key in ("ece", "megabytes"):
        assert names(best_first(rows, key)) == ["low", "high", "also high", "none"]


def test_the_table(log):
    log("tidy-fern", {"test": scores(0.9), "test_dark": scores(0.6), **COSTS}, backbone="mobilenet_v3_large")
    text = as_text(listed(), "accuracy").splitlines()
    assert text[0].split("  ")[0] == "run" and max(map(len, text)) <= 150
    assert re.split(" {2,}", text[1]) == [
        "tidy-fern", "mobilenet_v3_large", "random", "80", "90.0 % (85.0 to 94.0 %)", "12.5 %", "0.950",
        "0.650 test_dark", "20.9 M", "83.4", "27.4", "5.20",
    ]  # fmt: skip
    cells = as_text(listed("test", "ece"), "ece").splitlines()[:2]
    assert re.split(" {2,}", cells[0])[4:8] == ["ECE", "accuracy", "false positive rate", "AUC"]
    assert re.split(" {2,}", cells[1])[4:8] == ["0.032", "90.0 %", "12.5 %", "0.950"]


def test_markdown_is_a_table_whatever_the_names(log):
    log("a|b", {"test": scores(0.9)})
    lines = as_markdown(listed(), "accuracy").splitlines()
    assert lines[2].startswith("| a\\|b | xception | random | 80 | 90.0 % (85.0 to 94.0 %) | 12.5 % | 0.950 | - | - ")
    assert {line.replace("\\|", "").count("|") for line in lines[:3]} == {len(lines[0].split(" | ")) + 1}
    assert lines[3] == "" and lines[4].startswith("On test, 200 images; in brackets the 95 % interval")


def test_csv_can_be_read_back(log):
    log('a, "b"', {"test": scores(0.9123456789), **COSTS})
    (row,) = csv.DictReader(io.StringIO(as_csv(listed(), "accuracy")))
    assert (row["run"], row["accuracy"], row["parameters"], row["brier"]) == ('a, "b"', "0.9123456789", "20861480", "")
    assert set(METRICS) | {"accuracy_low", "worst_auc", "data", "run_id"} <= set(row)


# the command


def test_the_command(project, log, monkeypatch, capsys):
    log("elsewhere", {"test": scores(0.99)}, digest="e" * 64)
    log("worse", {"test": scores(0.8), **COSTS})
    log("better", {"test": scores(0.9), **COSTS})
    log("worst", {"test": scores(0.7), **COSTS})
    out, err = command(monkeypatch, capsys, "--sort", "auc", "--png", str(project / "new" / "board.png"))
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["run", "better", "worse", "worst"]
    assert out.splitlines()[-1].startswith("Note: 1 run on other data") and not err
    assert (project / "new" / "board.png").read_bytes().startswith(b"\x89PNG")

    out, err = command(monkeypatch, capsys, "--csv")
    assert [row["run"] for row in csv.DictReader(io.StringIO(out))] == ["worst", "better", "worse"]
    assert err.startswith("Note: 1 run on other data")
    (project / "file").touch()
    with pytest.raises(UserError, match=r"--png: .*board\.png cannot be written"):
        command(monkeypatch, capsys, "--png", str(project / "file" / "board.png"))


def test_dots_are_called_by_what_tells_them_apart(project, log, monkeypatch):
    from detector.experiments.leaderboard import draw
    from detector.reporting import figures

    drawn = []
    monkeypatch.setattr(figures, "leaderboard", lambda points, *_, **look: drawn.append((points, look)))
    monkeypatch.setattr(figures, "save", lambda *_: None)
    log("one", {"test": scores(0.9), **COSTS})
    log("two", {"test": scores(0.8), **COSTS}, backbone="resnet50")
    draw(listed("test", "ece"), "ece", project / "a.png")
    log("three", {"test": scores(0.7, n=100), **COSTS}, backbone="resnet50")
    log("undrawn", {"test": scores(0.7)})
    draw(listed(), "accuracy", project / "a.png")
    (first, ece), (second, accuracy) = drawn
    assert [point["label"] for point in first] == ["resnet50", "xception"]
    assert [point["label"] for point in second[1:]] == ["three", "two", "xception"]
    assert second[2] == {"label": "two", "value": 0.8, "low": 0.75, "high": pytest.approx(0.84), "speed": 27.35,
                         "parameters": 20_861_480}  # fmt: skip
    assert (ece["percent"], ece["lower_is_better"], accuracy["percent"], accuracy["lower_is_better"]) == (
        False, True, True, False,
    )  # fmt: skip
    assert "200 images" in ece["subtitle"] and "NOT the same images" in accuracy["subtitle"]


@pytest.mark.parametrize("option", [("--metric", "AUC"), ("--sort", "speed")])
def test_bad_options(monkeypatch, capsys, option):
    with pytest.raises(UserError, match=f"{option[0]}: there is no '{option[1]}'; choose from accuracy, "):
        command(monkeypatch, capsys, *option)


def test_help_and_errors_from_the_shell(project):
    shell = {"cwd": ROOT, "capture_output": True, "text": True}
    module = [sys.executable, "-X", "importtime", "-m", "detector", "leaderboard"]
    helped = subprocess.run([*module, "--help"], **shell)
    assert helped.returncode == 0 and "--markdown" in helped.stdout
    assert all(metric in helped.stdout for metric in METRICS)
    imported = {line.split("|")[-1].strip() for line in helped.stderr.splitlines()}
    assert "numpy" in imported and not imported & {"tensorflow", "keras", "mlflow", "pandas", "scipy", "matplotlib"}

    (project / "mlruns" / "mlflow.db").unlink()
    wrong = subprocess.run([sys.executable, "-m", "detector", "leaderboard"], **shell)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: MLflow: there are no runs yet") and len(wrong.stderr.splitlines()) == 1
    assert not (project / "mlruns" / "mlflow.db").exists()
