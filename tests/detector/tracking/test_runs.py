"""Runs: opened, resumed, added to, re-evaluated as children, and a fresh store that many processes open at once."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from detector.errors import UserError
from detector.tracking import runs, store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(schema, tmp_path, monkeypatch):
    """A store of the test's own."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy2(schema, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / "mlruns"


def run_of(run_id: str) -> "mlflow.entities.Run":
    return store.connect()[0].get_run(run_id)


def trained(params=None) -> str:
    with runs.training_run(params or {"train.epochs": 3}, {"weights": "random"}, None) as run_id:
        pass
    return run_id


def test_the_store_is_absolute_and_in_the_root(folder, monkeypatch):
    assert store.tracking_uri() == f"sqlite:///{folder}/mlflow.db"
    run_id = trained()
    assert run_of(run_id).info.artifact_uri.startswith(str(folder / "artifacts"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store.tracking_uri() == "http://127.0.0.1:1"


def test_a_training_is_a_run(folder):
    with runs.training_run({"a.b": 1, "c": None}, {"weights": "random"}, None) as run_id:
        assert run_of(run_id).info.status == "RUNNING"
        runs.log_metrics(run_id, {"loss": 0.5, "name": "text", "none": None, "flag": True, "of": {"test": 1}}, step=3)
    run = run_of(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a.b": "1", "c": "None"}
    assert run.data.tags["weights"] == "random"
    assert run.data.metrics == {"loss": 0.5, "of.test": 1.0}
    (logged,) = store.connect()[0].get_metric_history(run_id, "loss")
    assert logged.step == 3


def test_many_metrics_go_in_portions(folder):
    run_id = trained()
    runs.log_metrics(run_id, {f"m{i}": i for i in range(1203)})
    assert len(run_of(run_id).data.metrics) == 1203


def test_a_failed_training_is_marked_and_can_go_on(folder):
    with pytest.raises(RuntimeError), runs.training_run({"a": 1}, {}, None) as run_id:
        raise RuntimeError
    assert run_of(run_id).info.status == "FAILED"
    with runs.training_run({"a": 1}, {}, run_id) as again:
        assert run_of(again).info.status == "RUNNING"
    assert again == run_id
    assert run_of(run_id).info.status == "FINISHED"


def test_a_resumed_run_that_the_store_has_lost_is_opened_anew(folder):
    with runs.training_run({"a": 1}, {}, "0" * 32) as run_id:
        pass
    assert run_id != "0" * 32
    assert run_of(run_id).data.params == {"a": "1"}


def test_experiment_name_and_origin(folder, monkeypatch):
    assert run_of(trained()).info.run_name.startswith("workspace-")
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-fern")
    run = run_of(trained())
    assert run.info.run_name == "tidy-fern"
    assert run.data.tags["dvc.experiment"] == "tidy-fern"


@pytest.mark.parametrize(
    ("cpuinfo", "cards", "said"),
    [
        (
            "model name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2\n\nmodel name\t: AMD EPYC 7763\n",
            0,
            "AMD EPYC 7763 (AVX2)",
        ),
        ("model name : X\nflags : avx2 avx512f avx512_bf16", 2, "X (AVX-512 with bfloat16), NVIDIA H100, NVIDIA H100"),
        ("processor : 0\nFeatures : fp asimd", 0, "(NEON)"),
        (None, 0, ""),
    ],
)
def test_the_machine_in_words(tmp_path, cpuinfo, cards, said):
    if cpuinfo:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    for number in range(cards):
        folder = tmp_path / "driver/nvidia/gpus" / str(number)
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100\nIRQ:   37\n")
    found = runs.machine(tmp_path)
    assert found.endswith(said) and found


def test_only_a_change_of_the_code_is_uncommitted_not_what_a_run_writes(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    files = [tmp_path / name for name in ("metrics/train.json", "dvc.lock", "params.yaml")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.chdir(tmp_path)
    for file, expected in zip(files, (False, False, True), strict=True):
        file.write_text("2")
        assert runs.origin()["uncommitted"] is expected
    monkeypatch.chdir(tmp_path / "metrics")
    assert runs.origin()["uncommitted"] is True


def test_names_that_mlflow_refuses_are_mended(folder):
    key = "train.source_weights.faces (2), 50 %"
    with runs.training_run({key: 1}, {}, None) as run_id:
        runs.log_metrics(run_id, {"val_auc_faces (2)": 0.5})
    assert run_of(run_id).data.params == {"train.source_weights.faces _2__ 50 _": "1"}
    assert runs.evaluation_run(run_id, {key: 1, "evaluate.threshold": 0.5}, {}) == run_id


def test_artifacts_of_a_run_that_the_store_does_not_know(folder, tmp_path):
    trained()
    with pytest.raises(UserError, match=r"MLflow run 0000.*: not in sqlite.*; run `dvc repro -s -f evaluate`"):
        runs.log_artifacts("0" * 32, {tmp_path: "plots"})


def test_an_evaluation_belongs_to_the_run_that_trained(folder):
    parent = trained()
    settings = {"evaluate.threshold": 0.5}
    assert runs.evaluation_run(parent, settings, {}) == parent
    assert runs.evaluation_run(parent, settings, {}) == parent
    assert run_of(parent).data.params == {"train.epochs": "3", "evaluate.threshold": "0.5"}


def test_other_settings_make_one_child_each_and_overwrite_nothing(folder):
    parent = trained()
    runs.evaluation_run(parent, {"evaluate.threshold": 0.5}, {})
    child = runs.evaluation_run(parent, {"evaluate.threshold": 0.3}, {})
    assert child != parent
    assert runs.evaluation_run(parent, {"evaluate.threshold": 0.3}, {}) == child
    other = runs.evaluation_run(parent, {"evaluate.threshold": 0.7}, {})
    assert len({parent, child, other}) == 3
    assert run_of(child).data.tags["mlflow.parentRunId"] == parent
    assert run_of(child).data.params == {"train.epochs": "3", "evaluate.threshold": "0.3"}
    assert run_of(parent).data.params["evaluate.threshold"] == "0.5"
    assert runs.evaluation_run(parent, {"evaluate.threshold": 0.5}, {}) == parent


def test_a_model_from_the_cache_gets_a_run_that_says_so(folder):
    run_id = runs.evaluation_run("f" * 32, {"evaluate.threshold": 0.5}, {"data.digest": "d"})
    run = run_of(run_id)
    assert run.data.tags["restored_from"] == "f" * 32
    assert run.data.params == {"evaluate.threshold": "0.5"}
    assert runs.evaluation_run("f" * 32, {"evaluate.threshold": 0.5}, {"data.digest": "d"}) == run_id


def test_artifacts(folder, tmp_path):
    run_id = trained()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.png").write_bytes(b"x")
    (tmp_path / "n.json").write_text("{}")
    runs.log_artifacts(run_id, {tmp_path / "plots": "plots", tmp_path / "n.json": "metrics"})
    client = store.connect()[0]
    assert [f.path for f in client.list_artifacts(run_id, "plots")] == ["plots/a.png"]
    assert [f.path for f in client.list_artifacts(run_id, "metrics")] == ["metrics/n.json"]


def test_runs_are_found_by_name_id_and_beginning_of_an_id(folder, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-fern")
    first, second = trained(), trained()
    monkeypatch.setenv("DVC_EXP_NAME", "it's so")
    third = trained()
    ids = {reference: [run.run_id for run in runs.find_runs(reference)] for reference in
           ("tidy-fern", "it's so", first, first[:12], "0" * 32, "fern", "%", "both ' and \"", "")}  # fmt: skip
    assert ids == {
        "tidy-fern": [second, first],
        "it's so": [third],
        first: [first],
        first[:12]: [first],
        "0" * 32: [],
        "fern": [],
        "%": [],
        "both ' and \"": [],
        "": [],
    }
    assert [run.run_id for run in runs.recent_runs(2)] == [third, second]
    assert [run.info.run_id for run in runs.all_runs()] == [third, second, first]
    assert runs.all_runs()[0].data.tags["weights"] == "random"


def test_a_run_that_shares_its_name_with_the_beginning_of_an_id(folder, monkeypatch):
    first = trained()
    monkeypatch.setenv("DVC_EXP_NAME", first[:8])
    second = trained()
    assert [run.run_id for run in runs.find_runs(first[:8])] == [second, first]


def test_a_deleted_run_is_not_found(folder):
    run_id = trained()
    store.connect()[0].delete_run(run_id)
    assert runs.find_runs(run_id) == runs.recent_runs(5) == []


def test_looking_for_a_run_makes_no_store(folder):
    (folder / "mlflow.db").unlink()
    assert runs.find_runs("tidy-fern") == runs.recent_runs(5) == []
    assert not (folder / "mlflow.db").exists()


def test_an_artifact_is_read_as_it_is(folder, tmp_path):
    run_id = trained()
    (tmp_path / "n.csv").write_bytes(b"a\r\n\xff")
    runs.log_artifacts(run_id, {tmp_path / "n.csv": "metrics"})
    assert runs.read_artifact(run_id, "metrics/n.csv") == b"a\r\n\xff"
    with pytest.raises(UserError, match=f"{run_id}: has no artifact metrics/other.csv"):
        runs.read_artifact(run_id, "metrics/other.csv")


def test_an_unreachable_server_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: http://127\.0\.0\.1:1"):
        store.connect()


def test_processes_that_open_a_fresh_store_at_once(folder):
    (folder / "mlflow.db").unlink()
    code = "from detector.tracking import runs\nwith runs.training_run({'a': 1}, {}, None): pass"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, error.decode()[-2000:]
    client, experiment = store.connect()
    assert len(client.search_runs([experiment])) == 4
    assert len(client.search_experiments(filter_string="name = 'deepfake-detector'")) == 1


def test_an_evaluation_tells_a_run_what_its_training_could_not(folder):
    with runs.training_run({}, {"weights": "converted", "mlflow.source.name": "convert"}, None, "mine") as run_id:
        pass
    assert runs.evaluation_run(run_id, {"evaluate.data": "d1"}, {"data.digest": "d1", "weights": "?"}) == run_id
    run = store.connect()[0].get_run(run_id)
    told = [run.data.tags[key] for key in ("data.digest", "weights", "mlflow.source.name")]
    assert run.info.run_name == "mine" and told == ["d1", "converted", "convert"]
    child = runs.evaluation_run(run_id, {"evaluate.data": "d2"}, {"data.digest": "d2"})
    assert child != run_id and store.connect()[0].get_run(child).data.tags["data.digest"] == "d2"
