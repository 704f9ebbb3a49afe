"""The command line, the HTTP API's service and the MLflow model give the same scores to the same bytes."""

import asyncio
import contextlib
import json
import zipfile
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from detector.evaluation.calibration import Calibration, save_calibration
from detector.inference import pyfunc
from detector.inference.detector import Detector
from detector.inference.scan import scan
from detector.models.faces import Face
from detector.models.file import CARD, ModelCard
from detector.serve.service import Service


class TwoFaces:
    """Stands in for a FaceFinder."""

    def find(self, image):
        return [Face((5, 10, 45, 60), 0.9), Face((30, 0, 50, 20), 0.9)]


class Pattern:
    """Stands in for a network: how much an image is like a fixed pattern, so that every pixel and its place count."""

    def predict_on_batch(self, batch):
        pattern = np.random.default_rng(0).normal(size=batch.shape[1:])
        return expit((batch * pattern).sum(axis=(1, 2, 3), keepdims=True)[:, 0, 0] / 10_000).astype(np.float32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Detector:
    """A model file with a card alone, and a calibration that moves the scores."""
    path = tmp_path_factory.mktemp("agreement") / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD, json.dumps(asdict(ModelCard(["real", "fake"], 71, "xception", "random", ""))))
    save_calibration(Calibration(0.5, 0.93, (0.9, 0.95), flip=True), path, {})
    return Detector(path, network=Pattern())


@pytest.fixture(scope="module")
def files(photo, encode) -> list[bytes]:
    shapes = [(71, 71), (40, 90), (200, 130), (71, 72), (300, 500)]
    formats = ("PNG", "JPEG", "WEBP", "BMP", "JPEG")
    return [encode(photo(*shape, seed=i), kind) for i, (shape, kind) in enumerate(zip(shapes, formats, strict=True))]


def by_scan(detector, files, finder):
    rows = scan([(str(i), lambda data=data: data) for i, data in enumerate(files)], detector, finder)
    return [row.face for row in rows]


def by_service(detector, files, detect):
    async def scored():
        with contextlib.closing(Service(detector, TwoFaces())) as service:
            answers = await asyncio.gather(*(service.predict(file, detect) for file in files))
        return [face for _, faces in answers for face in faces]

    return asyncio.run(scored())


def test_whole_images_score_the_same_everywhere(detector, files, monkeypatch):
    faces = by_scan(detector, files, None)
    scores = [face.p_fake for face in faces]
    assert np.ptp(scores) > 0.05
    service = by_service(detector, files, False)
    np.testing.assert_allclose([face.p_fake for face in service], scores, atol=1e-4)
    scorer = pyfunc.ImageScorer()
    monkeypatch.setattr("detector.inference.detector.Detector", {detector.path: detector}.get)
    scorer.load_context(SimpleNamespace(artifacts={"model": detector.path}))
    table = scorer.predict(None, pd.DataFrame({"image": files}))
    np.testing.assert_allclose(table["p_fake"], scores, atol=1e-4)
    assert table["verdict"].tolist() == [face.verdict for face in faces] == [face.verdict for face in service]
    assert scorer.predict(None, pd.DataFrame({"image": []}))["p_fake"].dtype.kind == "f"


def test_faces_score_the_same_on_the_command_line_and_in_the_service(detector, files):
    faces, service = by_scan(detector, files, TwoFaces()), by_service(detector, files, True)
    assert len(faces) == len(service) == 2 * len(files)
    np.testing.assert_allclose([face.p_fake for face in service], [face.p_fake for face in faces], atol=1e-4)
    assert [face.crop.box for face in service] == [face.crop.box for face in faces]
    for one, other in zip(faces, service, strict=True):
        np.testing.assert_array_equal(one.crop.pixels, other.crop.pixels)
