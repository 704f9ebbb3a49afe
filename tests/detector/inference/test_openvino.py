import hashlib
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from detector.errors import UserError
from detector.evaluation.calibration import UNCALIBRATED
from detector.inference import openvino as engine
from detector.inference.detector import Detector
from detector.inference.openvino import Engine, NotConverted, load_engine

pytest.importorskip("openvino")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def converted(model_file, tmp_path_factory) -> Path:
    """A copy of the model file with its conversion beside it."""
    path = tmp_path_factory.mktemp("engine") / "model.keras"
    path.write_bytes(model_file.read_bytes())
    Engine(path)
    return path


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """The same in a folder of the test's own, the conversion not there."""
    path = tmp_path / "model.keras"
    path.write_bytes(converted.read_bytes())
    return path


@pytest.fixture
def conversions(converted, monkeypatch) -> list[Path]:
    """The folders that are converted to: what was made once is copied there."""
    made = next(folder for folder in converted.with_name("model.openvino").iterdir() if folder.is_dir())
    found = []

    def stand_in(path, folder):
        found.append(folder)
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(engine, "_convert_apart", stand_in)
    return found


def test_it_says_what_keras_says(converted, network, photo):
    images = np.stack([photo(71, 71, seed) for seed in range(5)])
    found = Engine(converted).predict_on_batch(images)
    assert found.dtype == np.float32 and found.shape == (5, 1)
    np.testing.assert_allclose(found, network.predict_on_batch(images), atol=1e-4)


def test_a_batch_may_have_any_size_and_threads_may_share_it(converted, photo):
    running = Engine(converted)
    images = np.stack([photo(71, 71, seed) for seed in range(6)])
    alone = np.concatenate([running.predict_on_batch(image[None]) for image in images])
    np.testing.assert_allclose(running.predict_on_batch(images[::-1]), alone[::-1], atol=1e-5)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: running.predict_on_batch(image[None]), images))
    np.testing.assert_array_equal(np.concatenate(together), alone)


def test_a_start_with_the_conversion_needs_no_tensorflow_and_no_telemetry(converted, tmp_path):
    code = f"""
import sys
from detector.inference.openvino import Engine
import numpy as np
Engine({str(converted)!r}).predict_on_batch(np.zeros((1, 71, 71, 3), np.uint8))
print("tensorflow" in sys.modules, "keras" in sys.modules, sys.modules.get("openvino_telemetry"))
"""
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "False False None", done.stderr
    assert not list(tmp_path.iterdir())  # what telemetry would leave at home


def test_it_is_converted_once_and_kept_by_the_hash_of_the_file(copy, conversions):
    with ThreadPoolExecutor(4) as pool:
        folders = {running.folder for running in pool.map(Engine, [copy] * 4)}
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    assert folders == {copy.with_name("model.openvino") / digest}
    assert len(conversions) == 1 and not conversions[0].exists()


def test_another_model_in_the_file_is_converted_anew_and_the_old_conversion_goes(copy, conversions):
    old = Engine(copy).folder
    with copy.open("ab") as file:
        file.write(b"\0" * 22)  # still an archive, other bytes
    new = Engine(copy).folder
    assert new != old and not old.exists() and len(conversions) == 2


def test_a_damaged_conversion_is_made_again(copy, conversions):
    folder = Engine(copy).folder
    (folder / "network.xml").write_text("<damaged")
    assert Engine(copy).predict_on_batch(np.zeros((1, 71, 71, 3), np.uint8)).shape == (1, 1)
    assert len(conversions) == 2


def test_a_conversion_that_fails_leaves_nothing_and_keras_computes(copy, monkeypatch, caplog):
    def fails(path, folder):
        (folder / "network.xml").write_text("half")
        raise NotConverted("no such layer")

    monkeypatch.setattr(engine, "_convert_apart", fails)
    with caplog.at_level(logging.WARNING):
        detector = Detector(copy, UNCALIBRATED, load_engine(copy))
    assert len(caplog.messages) == 1 and "no such layer" in caplog.messages[0]
    assert detector.network is detector.model
    assert [entry.name for entry in copy.with_name("model.openvino").iterdir()] == ["lock"]


def test_without_openvino_keras_computes(copy, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        assert load_engine(copy) is None
    assert len(caplog.messages) == 1 and "no OpenVINO" in caplog.messages[0]


def test_what_the_conversion_says_at_its_end_is_the_reason(copy, tmp_path):
    copy.write_bytes(b"no archive")
    with pytest.raises(NotConverted, match="not a model of this project"):
        engine._convert_apart(copy, tmp_path)


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_what_is_no_model_is_the_users_error(tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.keras"):
        load_engine(path)
