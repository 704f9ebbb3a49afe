"""The registered models: one version an evaluation, what a reference means, who becomes champion."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock, Timeout

from detector.errors import UserError
from detector.experiments.promote import main, promote, table
from detector.inference.find_model import find_model
from detector.tracking import registry, runs, store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def project(schema, tmp_path, monkeypatch) -> Path:
    """A project with a store of its own, and its root as the working folder."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy2(schema, tmp_path / "mlruns" / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(noise: float, n: int = 300, fakes_from: float = 0.0, names=("test",)) -> pd.DataFrame:
    """Scores of the same n images under a model that is the worse the more noise it has."""
    labels = np.arange(n) % 2
    logits = 2 * labels - 1 + noise * np.random.default_rng(3).normal(size=n) + fakes_from
    one = pd.DataFrame(
        {
            "path": [f"Test/{i:04d}.jpg" for i in range(n)],
            "label": labels,
            "p_fake": 1 / (1 + np.exp(-logits)),
            "group": [f"g{i // 2}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
        }
    )
    return pd.concat([one.assign(set=name) for name in names], ignore_index=True)


GOOD, BAD = scores(0.5), scores(2.5)


@pytest.fixture
def evaluate(project, monkeypatch) -> Callable[..., str]:
    """evaluate(name, table, ...): the id of an evaluated run, of the training `of` or its own, not yet registered."""

    def log_files(run_id: str) -> None:
        """What `registry.log_model` comes to, but for the code and half a second."""
        client, experiment = store.connect()
        model = client.create_logged_model(experiment, registry.MODEL, run_id)
        for name in ("model.keras", "calibration.json"):
            (project / "logged" / "artifacts").mkdir(parents=True, exist_ok=True)
            shutil.copy2(project / "models" / name, project / "logged" / "artifacts" / name)
        client.log_model_artifacts(model.model_id, str(project / "logged"))
        client.finalize_logged_model(model.model_id, "READY")

    def write_and_log(
        name: str, table: pd.DataFrame, model="a", settings="", of=None, threshold=0.5, whole=False
    ) -> str:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        if of is None:
            with runs.training_run({"train.epochs": 3}, {"data.digest": "d1635700" * 8}, None) as of:
                pass
        run_id = runs.evaluation_run(of, {"evaluate.extra_sets": settings}, {"data.digest": "d1635700" * 8})
        sets = {one: {"threshold": threshold, "n": len(table), "auc": 0.9} for one in table["set"].unique()}
        for folder in ("metrics", "models"):
            (project / folder).mkdir(exist_ok=True)
        table.to_csv("metrics/predictions.csv", index=False)
        Path("metrics/evaluate.json").write_text(json.dumps(sets))
        Path("metrics/run_id").write_text(run_id + "\n")
        Path("models/model.keras").write_text(model)
        Path("models/calibration.json").write_text(
            json.dumps({"model": sha256(model.encode()).hexdigest(), "temperature": 1.2, "threshold": threshold})
        )
        runs.log_metrics(run_id, sets)
        files = ("metrics/predictions.csv", "metrics/evaluate.json", "models/calibration.json")
        runs.log_artifacts(run_id, {Path(file): "metrics" for file in files})
        if whole:
            registry.log_model(run_id, Path("models/model.keras"), Path("models/calibration.json"))
        else:
            log_files(run_id)
        return run_id

    return write_and_log


@pytest.fixture
def register(evaluate) -> Callable[..., registry.Version]:
    return lambda *arguments, **named: registry.register(evaluate(*arguments, **named))


# ---- versions -----------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_is(register):
    version = register("tidy-fern", GOOD, threshold=0.4)
    assert (version.number, version.aliases) == (1, ())
    assert version.tags["run"] == "tidy-fern"
    assert version.tags["run_id"] == version.run_id
    assert version.tags["data.digest"] == "d1635700" * 8
    assert (version.tags["threshold"], version.tags["test.auc"], version.tags["test.n"]) == ("0.4", "0.9", "300.0")
    assert version.tags["model"] == f"{sha256(b'a').hexdigest()} T 1.200 t 0.400"
    assert "tidy-fern" in table(registry.versions())


def test_evaluating_the_same_again_makes_no_second_version(evaluate, register):
    first = register("tidy-fern", GOOD, whole=True)
    again = register("tidy-fern", GOOD, of=first.run_id, whole=True)
    assert again == first
    client, experiment = store.connect()
    assert len(client.search_logged_models([experiment])) == 1
    other_model = register("tidy-fern", GOOD, model="b", of=first.run_id, whole=True)
    other_settings = register("tidy-fern", GOOD, of=first.run_id, settings="more")
    assert [first.number, other_model.number, other_settings.number] == [1, 2, 3]
    assert [first.run_id == other.run_id for other in (other_model, other_settings)] == [True, False]


def test_the_logged_code_holds_no_compiled_files(register, project):
    register("tidy-fern", GOOD, whole=True)
    (code,) = (project / "mlruns" / "artifacts" / "models").glob("*/artifacts/code/detector")
    assert (code / "inference" / "detector.py").is_file()
    assert not list(code.rglob("__pycache__"))


def test_a_run_without_a_model_is_one_line(project):
    with runs.training_run({}, {}, None) as run_id:
        pass
    with pytest.raises(UserError, match="holds no model"):
        registry.register(run_id)


def test_a_registry_that_is_not_there_is_one_line(evaluate, monkeypatch):
    run_id = evaluate("tidy-fern", GOOD)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"model registry at http://127\.0\.0\.1:1 cannot be used"):
        registry.register(run_id)


def test_processes_that_register_at_once(evaluate):
    runs = [evaluate("tidy-fern", GOOD), evaluate("bonny-oak", BAD)]
    code = """
import multiprocessing, sys
from detector.tracking import registry, runs, store
with multiprocessing.get_context("fork").Pool(4) as pool:
    print(*(version.number for version in pool.map(registry.register, sys.argv[1:], chunksize=1)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *runs * 2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = [int(number) for number in done.stdout.split()]
    assert sorted(numbers[:2]) == [1, 2]
    assert numbers == numbers[:2] * 2
    assert {version.run_id for version in registry.versions()} == set(runs)


def test_looking_for_versions_makes_no_store(project):
    (project / "mlruns" / "mlflow.db").unlink()
    assert registry.versions() == []
    assert champion() is None
    with pytest.raises(UserError, match="'tidy-fern' is no file and no folder, and there are no MLflow runs yet"):
        find_model("tidy-fern")
    assert not (project / "mlruns" / "mlflow.db").exists()
    with pytest.raises(UserError, match="no model is registered"):
        table([])


# ---- what a reference means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["model.keras", "models/model.keras", "artifacts/model.keras", "other.keras"])
def test_files_and_folders(project, place):
    file = project / "there" / place
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_model(str(file)) == file
    if file.name == "model.keras":
        assert find_model(str(project / "there")) == file
    else:
        with pytest.raises(UserError, match=r"there: no model\.keras in this folder"):
            find_model(str(project / "there"))


def test_runs_and_versions(register, project):
    first, second = register("tidy-fern", GOOD), register("bonny-oak", BAD, model="b")
    promote(first.run_id)
    found = {
        reference: find_model(reference).read_text()
        for reference in (
            "tidy-fern", "bonny-oak", first.run_id, second.run_id[:8], f"runs:/{second.run_id}/model",
            "models:/deepfake-detector/1", "models:/deepfake-detector/2", "models:/deepfake-detector@champion",
        )
    }  # fmt: skip
    assert list(found.values()) == ["a", "b", "a", "b", "b", "a", "b", "a"]
    assert (project / "mlruns" / "artifacts") in find_model("tidy-fern").parents  # in its place, no copy
    assert find_model("tidy-fern").with_name("calibration.json").is_file()


def test_what_is_not_there_is_one_line(register):
    register("tidy-fern", GOOD)
    for reference, words in {
        "no-such-run": "no-such-run.*no MLflow run; the newest runs are tidy-fern",
        "nowhere/model.keras": "nowhere/model.keras: not found",
        "~nobody-of-that-name/x": "cannot be looked at",
        "x" * 5000: "cannot be looked at",
        "models:/deepfake-detector/7": "there is none",
        "models:/deepfake-detector@old": "there is none",
        "models:/other/1": "there is none",
        "models:/deepfake-detector": "not understood",
        "models:/deepfake-detector/Production": "not understood",
    }.items():
        with pytest.raises(UserError, match=words):
            find_model(reference)


def test_files_that_were_deleted_are_logged_anew(register, project):
    first = register("tidy-fern", GOOD, whole=True)
    shutil.rmtree(project / "mlruns" / "artifacts" / "models")
    with pytest.raises(UserError, match="tidy-fern: its files are no longer in"):
        find_model("tidy-fern")
    register("tidy-fern", GOOD, of=first.run_id, whole=True)
    assert find_model("tidy-fern").read_text() == "a"


def test_a_run_name_that_two_runs_bear(register):
    register("tidy-fern", GOOD)
    register("tidy-fern", BAD)
    with pytest.raises(UserError, match="may mean 2 MLflow runs"):
        find_model("tidy-fern")


def test_nothing_named_is_the_champion_else_the_local_model(register, project, capsys):
    local = project / "models" / "model.keras"
    assert find_model(None) == local
    champion = register("tidy-fern", GOOD)
    assert find_model(None) == local
    promote(None)
    os.utime(local, (champion.created.timestamp() + 60,) * 2)
    assert find_model(None) == find_model("tidy-fern") != local
    assert capsys.readouterr().err == ""  # it is newer, but the same
    (project / "models" / "calibration.json").unlink()
    local.write_text("b")
    os.utime(local, (champion.created.timestamp() - 60,) * 2)
    assert find_model(None) == find_model("tidy-fern")
    assert capsys.readouterr().err == ""  # another, but an older one
    os.utime(local, (champion.created.timestamp() + 60,) * 2)
    assert find_model(None) == find_model("tidy-fern")
    (line,) = capsys.readouterr().err.splitlines()
    assert "models/model.keras is newer than the champion, version 1 (tidy-fern)" in line


def test_a_local_model_needs_no_mlflow(project):
    (project / "mlruns" / "mlflow.db").unlink()
    code = """
import sys
from detector.inference.find_model import find_model
find_model(None), find_model("models/model.keras"), find_model("models")
sys.exit(bool({"mlflow", "tensorflow", "keras", "pandas"} & set(sys.modules)))
"""
    (project / "models").mkdir()
    (project / "models" / "model.keras").touch()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_a_model_on_a_server_is_fetched_once(register, project, monkeypatch):
    version = register("tidy-fern", GOOD)
    client, _ = store.connect()
    place = client.get_model_version_download_uri(registry.REGISTERED, "1")
    fetched = []

    def download(artifact_uri: str, dst_path: str) -> None:
        fetched.append(artifact_uri)
        shutil.copytree(Path(place) / "artifacts", Path(dst_path) / "artifacts")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(
        mlflow.MlflowClient, "get_model_version_download_uri", lambda *_: "mlflow-artifacts:/1/models/m-1/artifacts"
    )
    found = [find_model(version.uri) for _ in range(2)]
    assert fetched == ["mlflow-artifacts:/1/models/m-1/artifacts/artifacts"]
    assert found[0] == found[1]
    assert found[0].read_text() == "a"
    assert {file.name for file in found[0].parent.iterdir()} == {"model.keras", "calibration.json"}
    assert list((project / "mlruns" / "downloads").iterdir()) == [found[0].parent]


# ---- promotion ----------------------------------------------------------------------------------------------------


def champion() -> int | None:
    return next((one.number for one in registry.versions() if "champion" in one.aliases), None)


def test_the_first_one_becomes_champion(register):
    assert champion() is None
    register("tidy-fern", GOOD)
    better, verdict = promote(None)
    assert better
    assert verdict == "Promoted: version 1 (tidy-fern) is the first champion, there was none to compare with."
    crowned = store.connect()[0].get_model_version_by_alias("deepfake-detector", "champion")
    assert champion() == 1 and int(crowned.version) == 1
    assert registry.versions()[0].tags["promotion"].endswith(verdict)
    assert promote(None) == (True, "Already the champion: version 1 (tidy-fern).")


def test_only_a_better_one_takes_its_place(register):
    register("middling", scores(1.5))
    promote(None)
    register("bad", BAD)
    better, verdict = promote(None)
    assert not better
    assert "version 1 (middling), the champion, is better than version 2 (bad) on test: AUC 0.8" in verdict
    assert champion() == 1
    assert "Not promoted" in registry.versions()[0].tags["promotion"]
    register("good", GOOD)
    better, verdict = promote("good")
    assert better
    assert "Promoted: version 3 (good) is better than version 1 (middling), the champion, on test: AUC 0." in verdict
    assert "(95 % interval +0.1" in verdict
    assert champion() == 3


def test_a_difference_that_may_be_chance_is_none(register):
    register("one", scores(1.5, n=60))
    promote(None)
    slightly = scores(1.5, n=60)
    slightly["p_fake"] = scores(1.49, n=60)["p_fake"]
    register("two", slightly, model="b")
    better, verdict = promote(None)
    assert (better, champion()) == (False, 1)
    assert "No difference in AUC that 60 images could show" in verdict
    assert "with 30 sources only" in verdict


def test_the_same_scores_are_no_better(register):
    first = register("one", GOOD)
    promote(None)
    register("one", GOOD, of=first.run_id, settings="more")
    assert promote(None)[1].startswith("Not promoted: version 2 (one) scores all 300 images of test as version 1 (one)")


def test_one_with_more_false_positives_is_refused(register):
    register("middling", scores(1.5))
    promote(None)
    register("harsh", scores(0.5, fakes_from=3.0))
    better, verdict = promote(None)
    assert (better, champion()) == (False, 1)
    assert "(harsh) is better than version 1 (middling), the champion, on test: AUC" in verdict
    assert "; but version 1 (middling), the champion, is better than version 2 (harsh)" in verdict
    assert "false positive rate" in verdict
    better, _ = promote(None, metric="false_positive_rate")
    assert not better


def test_without_real_images_the_false_positive_rates_are_unknown(register):
    for name, fakes in (("one", BAD), ("two", GOOD)):
        alone = fakes[fakes["label"] == 1].assign(set="fakes_alone")
        register(name, pd.concat([fakes, alone]), model=name)
        if name == "one":
            promote(None)
    with pytest.raises(UserError, match="--set: fakes_alone holds no real image, so the false positive"):
        promote(None, name="fakes_alone", metric="false_negative_rate")
    assert champion() == 1


def test_versions_of_one_run_are_not_compared_with_themselves(register):
    first = register("one", BAD)
    promote(None)
    register("one", GOOD, model="b", of=first.run_id)
    with pytest.raises(UserError, match=r"version 2 \(one\): shares its run with version 1 \(one\), the champion"):
        promote(None)
    assert promote(None, force=True)[0] and champion() == 2


def test_the_deleted_run_of_another_evaluation_is_passed_over(register):
    register("one", BAD)
    promote(None)
    good = register("two", GOOD, model="b")
    again = register("two", GOOD, model="b", of=good.run_id, settings="more")
    store.connect()[0].delete_run(good.run_id)
    better, verdict = promote(None)
    assert better and champion() == again.number, verdict


def test_only_one_promotes_at_a_time(register, project, monkeypatch):
    register("one", BAD)
    promote(None)
    register("two", GOOD, model="b")

    def compared(*_):
        with pytest.raises(Timeout):
            FileLock(project / "mlruns" / ".promotion.lock").acquire(timeout=0)
        return True, "for the test"

    monkeypatch.setattr("detector.experiments.promote._compared", compared)
    assert promote(None) == (True, "Promoted: for the test.") and champion() == 2


def test_the_metric_decides(register):
    register("sure", GOOD)
    promote(None)
    doubtful = GOOD.assign(p_fake=0.5 + (GOOD["p_fake"] - 0.5) / 4)  # the same order, other probabilities
    register("doubtful", doubtful, model="b")
    assert "No difference in AUC" in promote(None)[1]
    assert "the champion, is better" in promote(None, metric="brier")[1]
    assert champion() == 1


def test_other_images_or_labels_cannot_be_compared(register):
    register("one", BAD)
    promote(None)
    for other, words in (
        (GOOD.assign(sha256="f" + GOOD["sha256"].str[1:]), "0 images in common, of 300 and 300"),
        (GOOD.iloc[:200], "200 images in common, of 300 and 200"),
        (GOOD.assign(label=1 - GOOD["label"]), "the labels of 300 images differ"),
        (GOOD.assign(set="elsewhere"), "version 5 .* was not scored on 'test'"),
        (GOOD.drop(columns="sha256"), "do not name the images' SHA-256"),
    ):
        register("other", other, model="b" * len(registry.versions()))
        with pytest.raises(UserError, match=words):
            promote(None)
    assert champion() == 1


def test_the_champion_evaluated_again_elsewhere_counts(register):
    first = register("one", BAD)
    promote(None)
    other = GOOD.assign(sha256="f" + GOOD["sha256"].str[1:])
    sets = pd.concat([other, scores(0.5, names=["elsewhere"])])
    candidate = register("two", sets, model="b")
    with pytest.raises(UserError, match=r"version 1 \(one\) was not scored on 'elsewhere'"):
        promote(candidate.uri, "elsewhere")
    register("one", scores(2.5, names=["test", "elsewhere"]), of=first.run_id, settings="elsewhere")
    better, verdict = promote(candidate.uri, "elsewhere")
    assert better
    assert "is better than version 1 (one), the champion, on elsewhere" in verdict


def test_force_goes_back(register, capsys, monkeypatch):
    register("one", BAD)
    promote(None)
    register("two", GOOD, model="b")
    promote(None)
    assert champion() == 2
    arguments = ["registry", "promote", "models:/deepfake-detector/1"]
    for further, code, number in ([], 1, 2), (["--force"], 0, 1), ([], 0, 1):
        monkeypatch.setattr(sys, "argv", arguments + further)
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code, champion()) == (code, number)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["Not promoted", "Promoted", "Already the champion"]
    monkeypatch.setattr(sys, "argv", ["registry"])
    main()
    assert "champion" in capsys.readouterr().out


def test_a_run_of_before_the_registry_is_registered(evaluate, register):
    old = evaluate("old", GOOD)
    register("new", BAD)
    assert promote(old)[1].startswith("Promoted: version 2 (old)")


def test_wrong_arguments_are_one_line(register, monkeypatch):
    with pytest.raises(UserError, match="no model is registered"):
        promote(None)
    register("one", GOOD)
    with pytest.raises(UserError, match="there are 1 to 1"):
        promote("models:/deepfake-detector/9")
    with pytest.raises(UserError, match="no MLflow run"):
        promote("tidy-fern")
    monkeypatch.setattr(sys, "argv", ["registry", "promote", "--metric", "beauty"])
    with pytest.raises(UserError, match="--metric: there is no 'beauty'"):
        main()
