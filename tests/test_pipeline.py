"""The pipeline as its user runs it, on a clone: repro, a queued sweep, resume after a kill, and what goes wrong."""

import ast
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SMALL = yaml.safe_load((ROOT / "recipes" / "quick.yaml").read_text())


def merged(base: dict, change: dict) -> dict:
    return {
        key: merged(value, change[key]) if isinstance(change.get(key), dict) else change.get(key, value)
        for key, value in base.items()
    }


class Clone:
    """A fresh clone of the working tree, with small parameters committed."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, files):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.set_params(SMALL)
        for command in ("init -q", "add -A", "commit -q -m small"):
            self.run("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *command.split())

    def set_params(self, change: dict) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        (self.folder / "params.yaml").write_text(yaml.safe_dump(merged(merged(params, SMALL), change), sort_keys=False))

    @property
    def environment(self) -> dict:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_", "KERAS_"))}
        identity = {
            f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        return {**inherited, **identity, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-3000:]}")
        return done

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def stage(self, name: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run("python", "-m", f"stages.{name}", check=check)

    def runs(self) -> list:
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlruns' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("deepfake-detector")
        return client.search_runs([experiment.experiment_id]) if experiment else []

    def read(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def trained(clone) -> Clone:
    """The clone after `dvc repro`, with a stress test and an extra test set; its output is in `trained.output`."""
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


def test_from_scratch_again_gives_the_same_numbers(trained):
    def numbers() -> list:
        names = ("data.json", "train.json", "evaluate.json", "history.csv", "predictions.csv")
        return [(trained.folder / "metrics" / name).read_text() for name in names]

    before, model = numbers(), (trained.folder / "models/model.keras").read_bytes()
    shutil.rmtree(trained.folder / "data/prepared")
    for name in ("prepare", "train", "evaluate"):
        trained.stage(name)
    assert numbers() == before
    assert (trained.folder / "models/model.keras").read_bytes() == model


def test_another_threshold_becomes_a_child_run(trained):
    (trained_by,) = (
        run for run in trained.runs() if run.info.run_id == (trained.folder / "models/run_id").read_text().strip()
    )
    before = len(trained.runs())
    trained.set_params({"evaluate": {"threshold": 0.25}})
    trained.stage("evaluate")
    trained.stage("evaluate")
    trained.set_params({})
    trained.run("dvc", "checkout", "--force")
    new = [run for run in trained.runs() if run.data.tags.get("mlflow.parentRunId") == trained_by.info.run_id]
    assert len(trained.runs()) == before + 1
    assert [run.data.params["evaluate.threshold"] for run in new] == ["0.25"]
    assert trained_by.data.params["evaluate.threshold"] == "auto"


def test_no_choice_depends_on_the_labels_of_test_images(trained):
    """With the labels of every test image turned round, training and calibration come out the same."""

    def choices() -> tuple:
        with zipfile.ZipFile(trained.folder / "models/model.keras") as model:
            weights = model.read("model.weights.h5")
        calibration = trained.read("models/calibration.json")
        return weights, trained.read("metrics/train.json"), {k: v for k, v in calibration.items() if k != "model"}

    before, auc = choices(), trained.read("metrics/evaluate.json")["test"]["auc"]
    manifest = trained.folder / "data/prepared/manifest.csv"
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    test = rows["split"].str.startswith("test")
    rows.loc[test, "label"] = rows.loc[test, "label"].map({"0": "1", "1": "0"})
    rows.loc[test, "class"] = rows.loc[test, "class"].map({"real": "fake", "fake": "real"})
    rows.to_csv(manifest, index=False, quoting=csv.QUOTE_NONNUMERIC)
    for name in ("train", "evaluate"):
        trained.stage(name)
    after = choices()
    assert trained.read("metrics/evaluate.json")["test"]["auc"] == pytest.approx(1 - auc)
    trained.run("dvc", "checkout", "--force")
    assert after == before


def test_queued_experiments_are_runs_in_the_one_store(trained):
    before = {run.info.run_id for run in trained.runs()}
    trained.run("dvc", "repro", "-f", "-s", "plot")
    trained.run("dvc", "exp", "run", "--queue", "-S", "train.learning_rate=0.002,0.004", "-S", "train.epochs=1")
    trained.run("dvc", "queue", "start", "-j", "2")
    deadline = time.time() + 400
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
    output = trained.run("python", "-m", "detector.recipes", "quick", "--set", "train.epochs=1", "seed=3").stdout
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
    done = trained.run("python", "-m", "detector.recipes", "quick", "--data", "one class", check=False)
    assert done.returncode == 2 and "error: data.path" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("error: recipe quick was not run to its end")
    assert trained.run("git", "status", "--porcelain", "-uno").stdout == ""
    shutil.rmtree(trained.folder / "one class")


def test_a_killed_training_goes_on_in_the_same_run(trained):
    before = {run.info.run_id for run in trained.runs()}
    trained.set_params({"train": {"epochs": 3}, "seed": 7})
    training = trained.start("python", "-m", "stages.train")
    for line in training.stdout:
        if line.startswith("epoch 1/3"):
            os.killpg(training.pid, signal.SIGKILL)
            break
    training.wait()
    output = trained.stage("train").stdout
    trained.set_params({})
    assert "going on after epoch 1 of 3" in output
    assert "epoch 1/3" not in output
    assert "epoch 3/3" in output
    (run,) = (run for run in trained.runs() if run.info.run_id not in before)
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{trained.folder / 'mlruns' / 'mlflow.db'}")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2, 3]
    assert list((trained.folder / "models/checkpoints").iterdir()) == []


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


# ---- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Clone:
    return Clone(tmp_path_factory.mktemp("broken"))


def image_tree(folder: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for place, count in counts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            cv2.imwrite(str(folder / place / f"{i}.jpg"), rng.integers(0, 255, (80, 80, 3), dtype=np.uint8))
    return folder


WHOLE = {f"{split}/{kind}": 3 for split in ("Train", "Validation", "Test") for kind in ("Real", "Fake")}


def fails_in_one_line(clone: Clone, params: dict, stage: str = "prepare") -> str:
    clone.set_params(params)
    done = clone.stage(stage, check=False)
    assert done.returncode == 2, done.stdout
    assert len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert not list((clone.folder / "data").glob("prepared*"))
    return done.stdout


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"train": {"learning_rate": "abc"}}, "train.learning_rate: must be a number"),
        ({"data": {"source": "folder", "path": "no/such/place"}}, "data.path: no/such/place is not there"),
        ({"data": {"source": "folder"}}, "data.path"),
        ({"data": {"source": "web"}}, "data.source: must be one of sample, folder, kaggle"),
    ],
)
def test_bad_parameters_end_in_one_line(broken, params, words):
    assert words in fails_in_one_line(broken, params)


def test_experiment_with_a_bad_value_fails_naming_the_key(broken):
    broken.set_params({})
    done = broken.run("dvc", "exp", "run", "-S", "train.learning_rate=abc", check=False)
    broken.run("git", "checkout", "-q", "params.yaml")
    assert done.returncode != 0
    assert "train.learning_rate: must be a number" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_folder_with_one_class(broken, tmp_path):
    folder = image_tree(tmp_path / "faces", {key: n for key, n in WHOLE.items() if "Real" in key})
    message = fails_in_one_line(broken, {"data": {"source": "folder", "path": str(folder)}})
    assert "data.path" in message
    assert "fake" in message or "one class" in message


def test_an_empty_split(broken, tmp_path):
    folder = image_tree(tmp_path / "faces", {**WHOLE, "Test/Fake": 0})
    message = fails_in_one_line(broken, {"data": {"source": "folder", "path": str(folder)}})
    assert "test" in message and "fake" in message


def test_a_split_with_broken_images_only(broken, tmp_path):
    folder = image_tree(tmp_path / "faces", {**WHOLE, "Test/Fake": 0})
    (folder / "Test/Fake/a.jpg").write_text("no image")
    message = fails_in_one_line(broken, {"data": {"source": "folder", "path": str(folder)}})
    assert "no readable fake image in its test split (1 broken" in message


@pytest.mark.parametrize("archive", [None, "zip", "gztar"])
def test_broken_images_are_excluded(broken, tmp_path, archive):
    folder = image_tree(tmp_path / "faces", WHOLE)
    whole = (folder / "Train/Real/0.jpg").read_bytes()
    (folder / "Train/Real/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "Train/Fake/text.jpg").write_text("this is no image")
    path = shutil.make_archive(str(tmp_path / "packed"), archive, folder) if archive else str(folder)
    broken.set_params({"data": {"source": "folder", "path": path}})
    output = broken.stage("prepare").stdout
    summary = broken.read("metrics/data.json")
    shutil.rmtree(broken.folder / "data/prepared")
    assert summary["images"] == 18
    examples = {e for reason in summary["excluded"]["reasons"].values() for e in reason["examples"]}
    assert examples == {"Train/Real/truncated.jpg", "Train/Fake/text.jpg"}
    assert "truncated.jpg" in output and "text.jpg" in output


def test_kaggle_without_a_network(broken, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert "data.kaggle" in fails_in_one_line(broken, {"data": {"source": "kaggle"}})


def test_imagenet_weights_without_a_network(broken, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = image_tree(tmp_path / "faces", WHOLE)
    settings = {"data": {"source": "folder", "path": str(folder)}, "model": {"weights": "imagenet"}}
    broken.set_params(settings)
    broken.stage("prepare")
    done = broken.stage("train", check=False)
    shutil.rmtree(broken.folder / "data/prepared")
    assert done.returncode == 2
    assert done.stdout.startswith("error: model.weights: ImageNet weights cannot be downloaded")
    assert len(done.stdout.strip().splitlines()) == 1
    assert broken.runs() == []


def test_train_before_prepare(broken):
    assert "dvc repro" in fails_in_one_line(broken, {}, stage="train")


# ---- the house ----------------------------------------------------------------------------------------------------


def test_every_module_a_stage_imports_is_among_its_deps():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        deps = [ROOT / dep for dep in stage["deps"]]
        missing = [
            str(file.relative_to(ROOT))
            for file in imported(ROOT / "stages" / f"{name}.py")
            if file.stat().st_size and not any(dep == file or dep in file.parents for dep in deps)
        ]
        assert missing == [], f"add to the deps of {name} in dvc.yaml"


def imported(start: Path) -> set[Path]:
    """`start` and the project's modules that it imports, directly or not, by their import statements.

    What a module imports only where it is the program itself, no stage reaches.
    """
    found, ahead = set(), [start]
    while ahead:
        file = ahead.pop()
        if file in found:
            continue
        found.add(file)
        tree = ast.parse(file.read_text())
        tree.body = [part for part in tree.body if not (isinstance(part, ast.If) and "__main__" in ast.dump(part.test))]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("detector", "stages"):
                place = ROOT / node.module.replace(".", "/")
                candidates = [place.with_suffix(".py"), place / "__init__.py"]
                candidates += [place / f"{name.name}.py" for name in node.names]
                ahead += [candidate for candidate in candidates if candidate.is_file()]
    return found


@pytest.mark.parametrize(
    "module", ["stages.plot", "detector.reporting.figures", "detector.prepare.sources", "detector.params"]
)
def test_light_modules_do_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit(bool({{'tensorflow', 'keras'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_make_help_lists_the_targets():
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("repro", "recipe", "test", "ui", "lint"):
        assert re.search(rf"^  make {target}\s+\w", output, re.M)
