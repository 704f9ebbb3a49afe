from pathlib import Path

import pytest

import detector
from detector.errors import UserError
from detector.paths import existing_path, project_root


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_the_root_is_the_clone_that_queued_the_experiment(root, monkeypatch):
    assert project_root() == root.resolve()
    for unset in (lambda: monkeypatch.setenv("DVC_ROOT", ""), lambda: monkeypatch.delenv("DVC_ROOT")):
        unset()
        assert project_root() == Path(detector.__file__).resolve().parent.parent


def test_relative_paths_start_at_the_root_wherever_the_program_runs(root, monkeypatch, tmp_path_factory):
    (root / "faces").mkdir()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert existing_path("data.path", "faces") == root.resolve() / "faces"
    assert existing_path("data.path", "./faces/../faces/") == root.resolve() / "faces"


def test_absolute_and_home_paths_stay_what_they_are(root, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other").resolve()
    monkeypatch.setenv("HOME", str(other))
    (other / "x.zip").touch()
    assert existing_path("data.path", str(other / "x.zip")) == other / "x.zip"
    assert existing_path("data.path", "~/x.zip") == other / "x.zip"


def test_links_are_followed(root):
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    assert existing_path("data.path", "link") == root.resolve() / "real"


@pytest.mark.parametrize(
    "value",
    ["nowhere", "file/inside", "dangling", "loop", "~no-such-user-here/x", "a\0b", "x" * 5000, "x" * 300, "a/" * 3000],
    ids=lambda value: repr(value[:20]),
)
def test_a_path_that_is_not_there_is_told_with_its_key(root, value):
    (root / "file").touch()
    (root / "dangling").symlink_to("gone")
    (root / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^model\.weights: .*; name a path that exists$"):
        existing_path("model.weights", value)


def test_the_message_says_where_it_looked(root):
    with pytest.raises(UserError) as caught:
        existing_path("data.path", "nowhere")
    assert str(caught.value).startswith(f"data.path: nowhere is not there (looked for {root / 'nowhere'})")


def test_a_path_that_may_not_be_looked_at(root, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "resolve", refuse)
    monkeypatch.setattr("detector.paths.project_root", lambda: root)
    with pytest.raises(UserError, match=r"data\.path: cannot look at 'x': Permission denied"):
        existing_path("data.path", "x")
