"""What goes wrong: bad parameters, folders and networks end in one line that says what to do."""

import shutil

import pytest

from tests.clone import Clone, image_tree

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Clone:
    return Clone(tmp_path_factory.mktemp("broken"))


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
