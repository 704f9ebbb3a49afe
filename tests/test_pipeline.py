"""The pipeline as its user runs it, on one clone: repro, a queued sweep, resume after a kill, several kinds of fake."""

import csv
import json
import os
import re
import shutil
import signal
import time
import zipfile
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.clone import PATIENCE, ROOT, Clone, image_tree

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Clone:
    """A clone after `dvc repro`, with a stress test and an extra test set; its output is in `trained.output`."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    image_tree(clone.folder / "elsewhere", {"Real": 4, "Fake": 3})
    clone.set_params({"evaluate": {"stress_images": 2, "extra_sets": ["elsewhere"]}})
    clone.output = clone.run("dvc", "repro").stdout
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-q", "-m", "trained")
    return clone


def test_repro_writes_what_the_readme_promises(trained):
    for place in ("metrics/data.json", "metrics/train.json", "metrics/evaluate.json", "metrics/history.csv",
                  "metrics/predictions.csv", "metrics/roc.csv", "metrics/curves.csv", "metrics/bins.csv",
                  "metrics/stress.csv", "metrics/by_attribute.csv",
                  "models/model.keras", "models/calibration.json"):  # fmt: skip
        assert (trained.folder / place).stat().st_size > 0, place
    evaluation = trained.read("metrics/evaluate.json")
    pooled = evaluation.pop("pooled")
    assert [(name, metrics["n"]) for name, metrics in evaluation.items()] == [
        ("test", 16), ("test_perturbed", 16), ("elsewhere", 7)
    ]  # fmt: skip
    assert pooled["n"] == 39 and pooled["threshold"] == evaluation["test"]["threshold"]
    # The images of `test` and of `test_perturbed` share their people.
    assert pooled["n_groups"] == evaluation["test"]["n_groups"] + evaluation["elsewhere"]["n_groups"]
    for metrics in evaluation.values():
        assert metrics["reencoded"]["auc_difference"]["difference"] == pytest.approx(
            metrics["reencoded"]["auc"] - metrics["auc"]
        )
        assert {"accuracy", "loss", "auc", "per_class", "confusion", "intervals", "selective"} <= metrics.keys()
        assert set(metrics["per_class"]["fake"]) == {"precision", "recall", "f1", "support"}
        assert metrics["threshold"] == trained.read("models/calibration.json")["threshold"]
    assert evaluation["test"]["stress"]["images"] == 2
    assert evaluation["test"]["localisation"]["images"] == evaluation["test_perturbed"]["localisation"]["images"] == 8
    assert "localisation" not in evaluation["elsewhere"]
    predictions = list(csv.DictReader((trained.folder / "metrics/predictions.csv").open()))
    assert len(predictions) == 39
    assert len(list(csv.DictReader((trained.folder / "metrics/stress.csv").open()))) == 176
    assert {row["label"] for row in predictions} == {"0", "1"}
    assert all(0 <= float(row["p_fake"]) <= 1 for row in predictions)
    pictures = {file.name for file in (trained.folder / "metrics/plots").iterdir()}
    assert pictures >= {
        "accuracy.png", "loss.png", "training_log.png", "sample.png",
        "roc.png", "precision_recall.png", "robustness_ladder.png",
        *(f"{name}_{of}.png"
          for of in ("test", "test_perturbed", "elsewhere")
          for name in ("predictions", "mistakes", "heat", "reliability", "scores", "risk_coverage",
                       "confusion_matrix")),
    }  # fmt: skip
    report = (trained.folder / "metrics/report.html").read_text()
    assert "elsewhere" in report and "data:image/" in report
    assert trained.run("git", "status", "--porcelain").stdout == ""


def test_console_is_quiet(trained):
    noise = re.findall(
        r".*(?:oneDNN|cuda|cuInit|absl|Traceback|UserWarning|FutureWarning|INFO mlflow).*", trained.output
    )
    assert noise == []
    assert "\r" not in trained.output
    assert "WARNING" not in trained.output


def test_second_repro_does_nothing(trained):
    output = trained.run("dvc", "repro").stdout
    assert output.count("didn't change, skipping") == 4
    assert len(trained.runs()) == 1


def test_the_run_holds_everything(trained):
    (run,) = trained.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["evaluate.threshold"] == "auto"
    assert run.data.tags["weights"] == "random"
    assert run.data.tags["data.digest"] == trained.read("metrics/data.json")["digest"]
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    client = mlflow.MlflowClient(f"sqlite:///{trained.folder / 'mlruns' / 'mlflow.db'}")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2]
    evaluation = trained.read("metrics/evaluate.json")
    assert run.data.metrics["test.auc"] == pytest.approx(evaluation["test"]["auc"])
    again = evaluation["test"]["reencoded"]["auc_difference"]["difference"]
    assert run.data.metrics["test.reencoded.auc_difference.difference"] == pytest.approx(again)
    assert run.data.metrics["pooled.auc"] == pytest.approx(evaluation["pooled"]["auc"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"metrics", "plots"}
    assert "metrics/report.html" in {file.path for file in client.list_artifacts(run.info.run_id, "metrics")}
    versions = client.search_model_versions("name = 'deepfake-detector'")
    assert [version.run_id for version in versions] == [run.info.run_id]


def test_every_way_to_a_score_gives_the_same_one(trained):
    output = trained.run("python", "-m", "benchmarks.agreement", "16").stdout
    gaps = {
        line.split("  ")[0]: float(line.split()[-1]) for line in output.splitlines() if "largest difference" in line
    }
    assert set(gaps) == {"command line", "HTTP API", "MLflow pyfunc", "converted network"}, output
    assert max(gaps.values()) < 1e-4, output
    assert "no OpenVINO" not in output


def test_pyfunc_scores_raw_images_as_evaluate_did(trained):
    code = """
import csv, sys, pandas as pd, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
rows = [row for row in csv.DictReader(open("metrics/predictions.csv")) if row["set"] == "test"]
images = [open("data/prepared/sample/" + row["path"], "rb").read() for row in rows]
scored = model.predict(pd.DataFrame({"image": images}))
assert list(scored.columns) == ["p_fake", "label", "verdict"], scored
assert list(scored["verdict"]) == [row["verdict"] for row in rows], scored
print(max(abs(scored["p_fake"] - [float(row["p_fake"]) for row in rows])))
"""
    (run,) = trained.runs()
    uri = f"sqlite:///{trained.folder / 'mlruns' / 'mlflow.db'}"
    output = trained.run("python", "-c", code, uri, run.info.run_id).stdout
    assert float(output.splitlines()[-1]) < 1e-4


def choices(clone: Clone) -> tuple:
    """What training and calibration decided."""
    with zipfile.ZipFile(clone.folder / "models/model.keras") as model:
        weights = model.read("model.weights.h5")
    calibration = clone.read("models/calibration.json")
    return weights, clone.read("metrics/train.json"), {k: v for k, v in calibration.items() if k != "model"}


def results(clone: Clone) -> dict[str, object]:
    """The numbers of a run, which hold no time, and the members of its model file with their dates.

    Without the digest of the data in the model's card, which covers the labels of the test images.
    """
    names = ("data.json", "train.json", "evaluate.json", "history.csv", "predictions.csv")
    contents: dict[str, object] = {name: (clone.folder / "metrics" / name).read_text() for name in names}
    with zipfile.ZipFile(clone.folder / "models/model.keras") as model:
        for member in model.infolist():
            contents[member.filename] = (member.date_time, model.read(member))
        contents["detector.json"] = {**json.loads(model.read("detector.json")), "data_digest": None}
    return contents


def swap_test_labels(clone: Clone) -> None:
    manifest = clone.folder / "data/prepared/manifest.csv"
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    test = rows["split"].str.startswith("test")
    rows.loc[test, "label"] = rows.loc[test, "label"].map({"0": "1", "1": "0"})
    rows.loc[test, "class"] = rows.loc[test, "class"].map({"real": "fake", "fake": "real"})
    rows.to_csv(manifest, index=False, quoting=csv.QUOTE_NONNUMERIC)


@pytest.fixture(scope="module")
def again(trained) -> SimpleNamespace:
    """The stages once more from scratch in the trained clone, and what several tests ask about it.

    One training serves them all: the labels of the test images are swapped before it, and it is killed after its first
    epoch. Then the model is evaluated with the swapped labels and with the true ones.
    """
    runs = {run.info.run_id for run in trained.runs()}
    first = SimpleNamespace(choices=choices(trained), results=results(trained), evaluation=evaluation(trained))
    shutil.rmtree(trained.folder / "data/prepared")
    trained.stage("prepare")
    true = (trained.folder / "data/prepared/manifest.csv").read_bytes()
    swap_test_labels(trained)
    training = trained.start("python", "-m", "stages.train")
    for line in training.stdout:
        if line.startswith("epoch 1/2"):
            os.killpg(training.pid, signal.SIGKILL)
            break
    training.wait()
    resumed = trained.stage("train").stdout
    checkpoints = list((trained.folder / "models/checkpoints").iterdir())
    trained.stage("evaluate")
    swapped = SimpleNamespace(choices=choices(trained), evaluation=evaluation(trained))
    (trained.folder / "data/prepared/manifest.csv").write_bytes(true)
    trained.stage("evaluate")
    second = SimpleNamespace(results=results(trained), resumed=resumed, checkpoints=checkpoints)
    second.runs = [run for run in trained.runs() if run.info.run_id not in runs]
    trained.run("dvc", "checkout", "--force")
    assert trained.run("git", "status", "--porcelain").stdout == ""
    return SimpleNamespace(first=first, swapped=swapped, second=second)


def evaluation(clone: Clone) -> dict:
    return clone.read("metrics/evaluate.json")["test"]


def test_from_scratch_again_gives_the_same_numbers_and_model(again):
    different = [name for name, content in again.first.results.items() if again.second.results[name] != content]
    assert different == []


def test_no_choice_depends_on_the_labels_of_test_images(again):
    assert again.swapped.evaluation["auc"] == pytest.approx(1 - again.first.evaluation["auc"])
    assert again.swapped.choices == again.first.choices


def test_a_killed_training_goes_on_in_the_same_run(trained, again):
    assert "going on after epoch 1 of 2" in again.second.resumed
    assert "epoch 1/2" not in again.second.resumed and "epoch 2/2" in again.second.resumed
    assert again.second.checkpoints == []
    # The evaluation with the true labels is a child: it has other data than the first, which had the swapped ones.
    (run,) = (run for run in again.second.runs if "mlflow.parentRunId" not in run.data.tags)
    assert [other.data.tags.get("mlflow.parentRunId") for other in again.second.runs if other is not run] == [
        run.info.run_id
    ]
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{trained.folder / 'mlruns' / 'mlflow.db'}")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2]


STALE = {  # a part of the product -> the stages that `dvc status` calls changed after every file of it was edited
    "detector/reporting": {"plot"},
    "detector/metrics.py": {"evaluate", "plot"},
    "detector/synthetic": {"prepare"},
    "detector/experiments": set(),
    "detector/serve": set(),
}


@pytest.mark.parametrize("edited", STALE)
def test_an_edit_retrains_nothing_that_does_not_train(trained, edited):
    place = trained.folder / edited
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
    assert json.loads(trained.run("dvc", "status", "--json").stdout) == {}
    for file in files:
        if file.suffix in (".py", ".html", ".j2"):
            file.write_text(file.read_text() + "\n")
    assert set(json.loads(trained.run("dvc", "status", "--json").stdout)) == STALE[edited]
    if edited == "detector/synthetic":  # the images come out the same, so nothing behind them changes
        trained.run("dvc", "repro", "-s", "prepare")
        assert json.loads(trained.run("dvc", "status", "--json").stdout) == {}
    trained.run("git", "checkout", "-q", ".")


def test_another_threshold_becomes_a_child_run(trained):
    (trained_by,) = (
        run for run in trained.runs() if run.info.run_id == (trained.folder / "models/run_id").read_text().strip()
    )
    before = len(trained.runs())
    trained.set_params({"evaluate": {"threshold": 0.25}})
    trained.stage("evaluate")
    trained.stage("evaluate")
    trained.run("dvc", "checkout", "--force")
    trained.run("git", "checkout", "-q", ".")
    new = [run for run in trained.runs() if run.data.tags.get("mlflow.parentRunId") == trained_by.info.run_id]
    assert len(trained.runs()) == before + 1
    assert [run.data.params["evaluate.threshold"] for run in new] == ["0.25"]
    assert trained_by.data.params["evaluate.threshold"] == "auto"


def test_queued_experiments_are_runs_in_the_one_store(trained):
    before = {run.info.run_id for run in trained.runs()}
    trained.run("dvc", "repro", "-f", "-s", "plot")
    trained.set_params({})
    trained.run("dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.002,0.004", "-S", "train.epochs=1")
    trained.run("dvc", "queue", "start", "-j", "2")
    deadline = time.time() + PATIENCE
    while time.time() < deadline:
        status = trained.run("dvc", "queue", "status").stdout
        if status.count("Success") + status.count("Failed") == 2:
            break
        time.sleep(3)
    assert status.count("Success") == 2, status
    new = [run for run in trained.runs() if run.info.run_id not in before]
    assert sorted(run.data.params["train.learning_rate"] for run in new) == ["0.002", "0.004"]
    table = trained.run("dvc", "exp", "show", "--csv").stdout
    for run in new:
        assert run.data.tags["dvc.experiment"] == run.info.run_name
        assert run.info.run_name in table
        assert "test.auc" in run.data.metrics
    assert not (trained.folder / ".dvc/tmp/exps/mlruns").exists()


def test_a_recipe_runs_through_and_leaves_params_yaml_alone(trained):
    shutil.copy(ROOT / "params.yaml", trained.folder)  # the defaults
    trained.run("git", "commit", "-q", "-a", "-m", "defaults")
    output = trained.run("python", "-m", "detector", "recipe", "quick", "--set", "train.epochs=1", "seed=3").stdout
    assert "recipe quick is experiment quick; its results are in the workspace" in output
    assert (trained.folder / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    changed = trained.run("git", "status", "--porcelain").stdout.split()[1::2]
    assert changed and all(name == "dvc.lock" or name.startswith("metrics/") for name in changed)
    (run,) = (run for run in trained.runs() if run.info.run_name == "quick")
    assert (trained.folder / "models/run_id").read_text().strip() == run.info.run_id
    assert (run.data.params["seed"], run.data.params["train.epochs"]) == ("3", "1")
    assert run.data.metrics["test.auc"] == pytest.approx(trained.read("metrics/evaluate.json")["test"]["auc"])
    assert run.data.tags["machine"]
    for place in ("models/model.keras", "models/calibration.json", "metrics/report.html", "metrics/plots/roc.png"):
        assert (trained.folder / place).stat().st_size > 0, place
    applied = trained.run("dvc", "exp", "apply", "quick").stdout
    assert "applied" in applied and "seed: 3" in (trained.folder / "params.yaml").read_text()
    assert trained.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    trained.run("git", "checkout", "-q", ".")
    trained.set_params({})


def test_a_recipe_that_fails_leaves_the_workspace_alone(trained):
    trained.run("git", "commit", "-q", "-a", "-m", "small again")
    image_tree(trained.folder / "one class", {"Train/Real": 4})
    done = trained.run("python", "-m", "detector", "recipe", "quick", "--data", "one class", check=False)
    assert done.returncode == 2 and "error: data.path" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("error: recipe quick was not run to its end")
    assert trained.run("git", "status", "--porcelain", "-uno").stdout == ""
    shutil.rmtree(trained.folder / "one class")


def test_kinds_of_fake_and_another_backbone(tmp_path):
    clone = Clone(tmp_path)
    clone.set_params(
        {
            "data": {"sample": {"kinds": ["swap", "drawn", "retouch"]}},
            "model": {"backbone": "mobilenetv3_small", "image_size": 64},
            "evaluate": {"stress_images": 2},
        }
    )
    for name in ("prepare", "train", "evaluate", "plot"):
        clone.stage(name)
    classes = ["real", "drawn", "retouch", "swap"]
    assert clone.read("metrics/data.json")["classes"] == classes
    metrics = clone.read("metrics/evaluate.json")["test"]
    assert list(metrics["confusion"]) == list(metrics["per_class"]) == classes
    assert metrics["n_fake"] == 8 and 0 <= metrics["classes"]["macro_auc"] <= 1
    rows = pd.read_csv(clone.folder / "metrics/predictions.csv")
    np.testing.assert_allclose(rows["p_fake"], 1 - rows["probability_real"], atol=1e-9)
    np.testing.assert_allclose(rows[[f"probability_{name}" for name in classes]].sum(axis=1), 1, atol=1e-6)
    assert set(rows["called"]) <= set(classes)
    assert "Which kind of fake" in (clone.folder / "metrics/report.html").read_text()
