import zipfile

import numpy as np
import pytest

from detector.errors import UserError
from detector.evaluation.calibration import UNCALIBRATED, Calibration, save_calibration
from detector.images import BrokenImage, decode, resize
from detector.inference.detector import Detector, interpret
from detector.models.backend import keras
from detector.models.file import ModelCard
from detector.models.grad_cam import grad_cam
from detector.models.outputs import network_outputs


class MeanBrightness:
    """Stands in for a network: the score is an image's mean; `shapes` are those of the batches it got."""

    def __init__(self):
        self.shapes = []

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        self.shapes.append(batch.shape)
        return batch.reshape(len(batch), -1).mean(1, keepdims=True).astype(np.float32) / 255


def flat(*levels: int) -> np.ndarray:
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 4, 4, 3))


def score(detector: Detector, images, batch_size: int = 32) -> np.ndarray:
    return detector.predict(images, batch_size).p_fake


@pytest.fixture(scope="module")
def detector(model_file) -> Detector:
    return Detector(model_file, Calibration(threshold=0.5, unsure=(0.3, 0.6)))


@pytest.fixture(scope="module")
def photos(photo) -> list[np.ndarray]:
    """Images of all shapes, one of them of the model's own."""
    return [photo(*shape, seed=i) for i, shape in enumerate([(71, 71), (40, 90), (200, 30), (1, 1), (71, 72)])]


# ---- network_outputs --------------------


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_last_batch_is_filled_up_to_the_shape_of_the_first_and_the_filling_dropped(last):
    levels = list(range(10, 10 + 6 + last))
    model = MeanBrightness()
    scores = network_outputs(model, [flat(*levels[:3]), flat(*levels[3:6]), flat(*levels[6:])])
    assert set(model.shapes) == {(3, 4, 4, 3)}
    assert scores.dtype == np.float64 and scores.shape == (6 + last,)
    np.testing.assert_allclose(scores, np.array(levels) / 255, rtol=1e-6)


def test_a_single_short_batch_is_not_filled_up():
    model = MeanBrightness()
    assert len(network_outputs(model, [flat(1, 2)])) == 2
    assert model.shapes == [(2, 4, 4, 3)]


def test_no_batches_make_no_scores():
    scores = network_outputs(MeanBrightness(), [])
    assert scores.shape == (0,) and scores.dtype == np.float64


def test_batches_are_taken_one_by_one():
    taken = []

    def batches():
        for i in range(3):
            taken.append(i)
            yield flat(i)

    model = MeanBrightness()
    model.predict_on_batch = lambda batch: (taken.append("scored"), MeanBrightness().predict_on_batch(batch))[1]
    network_outputs(model, batches())
    assert taken == [0, "scored", 1, "scored", 2, "scored"]


# ---- Detector --------------------------------------------------------------------------------------------------


def test_the_card_is_that_of_the_file(detector):
    assert detector.card == ModelCard(["camera", "swap"], 71, "xception", "random", "d1635700")


def test_scores_are_the_networks_on_the_resized_images(detector, network, photos):
    expected = network.predict_on_batch(np.stack([resize(image, 71) for image in photos]))[:, 0]
    assert len(set(expected.tolist())) == len(photos)
    scores = score(detector, photos)
    assert scores.shape == (len(photos),) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_scores_do_not_hang_on_the_batches(detector, photos, batch_size):
    np.testing.assert_allclose(score(detector, photos, batch_size), score(detector, photos), atol=1e-6)


def test_an_image_scores_the_same_alone_and_among_others(detector, photos):
    alone = [score(detector, [image])[0] for image in photos]
    np.testing.assert_allclose(score(detector, photos), alone, atol=1e-6)


def test_files_score_as_what_they_are_decoded_to(detector, photos, encode):
    files = [
        encode(image, format) for image, format in zip(photos, ("PNG", "JPEG", "WEBP", "BMP", "JPEG"), strict=True)
    ]
    np.testing.assert_array_equal(
        detector.predict_files(iter(files)).p_fake, score(detector, [decode(file) for file in files])
    )


def test_a_broken_file_is_told(detector, photos, encode):
    with pytest.raises(BrokenImage):
        detector.predict_files([encode(photos[0]), b"no image"])


def test_nothing_to_score(detector):
    assert score(detector, []).shape == detector.predict_files([]).p_fake.shape == (0,)


def test_images_are_taken_a_batch_at_a_time(detector, photos, monkeypatch):
    taken = []

    def images():
        for i in range(5):
            taken.append(i)
            yield photos[0]

    model = MeanBrightness()
    model.predict_on_batch = lambda batch: (taken.append("scored"), MeanBrightness().predict_on_batch(batch))[1]
    monkeypatch.setattr(detector, "model", model)
    assert len(score(detector, images(), batch_size=2)) == 5
    assert taken == [0, 1, "scored", 2, 3, "scored", 4, "scored"]


def test_outputs_become_labels_and_verdicts_and_the_threshold_itself_is_fake(detector):
    found = interpret(np.array([0.0, 0.2, 0.49, 0.5, 0.6, 1.0]), detector.calibration, detector.card)
    assert found.labels == ["camera"] * 3 + ["swap"] * 3
    assert found.verdicts == ["camera"] * 2 + ["unsure"] * 2 + ["swap"] * 2
    np.testing.assert_allclose(found.p_fake, [0, 0.2, 0.49, 0.5, 0.6, 1], atol=1e-6)
    nothing = detector.predict([])
    assert nothing.labels == nothing.verdicts == [] and nothing.p_fake.shape == (0,)


def test_scores_are_calibrated_by_the_file_beside_the_model(detector, model_file, tmp_path, photos):
    copy = tmp_path / "model.keras"
    copy.write_bytes(model_file.read_bytes())
    with pytest.raises(UserError, match=r"calibration\.json: not found"):
        Detector(copy)
    save_calibration(Calibration(temperature=0.25), copy, {})
    plain, sharp = score(detector, photos), score(Detector(copy), photos)
    odds = plain / (1 - plain)
    np.testing.assert_allclose(sharp / (1 - sharp), odds**4, rtol=1e-3)


def test_a_missing_file_and_one_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="not found"):
        Detector(tmp_path / "gone.keras", UNCALIBRATED)
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(UserError, match="not a model of this project"):
        Detector(str(tmp_path / "text.keras"), UNCALIBRATED)


def test_a_model_file_with_damage_inside_is_refused(model_file, tmp_path):
    with zipfile.ZipFile(model_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    half = len(members["model.weights.h5"]) // 2
    damages = [
        {"model.weights.h5": members["model.weights.h5"][:half]},
        {"model.weights.h5": b""},
        {"config.json": b"{}"},
        {"config.json": members["config.json"][:5000]},
    ]
    path = tmp_path / "model.keras"
    for damage in damages:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | damage).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match=r"model\.keras: cannot be loaded .*; get it again or run") as caught:
            Detector(path, UNCALIBRATED)
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_under_another_suffix_is_told(model_file, tmp_path):
    (tmp_path / "model.zip").write_bytes(model_file.read_bytes())
    with pytest.raises(UserError, match=r"model\.zip: cannot be loaded"):
        Detector(tmp_path / "model.zip", UNCALIBRATED)


def test_a_model_file_cannot_bring_code_of_its_own(model_file, tmp_path):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.Lambda(lambda x: x[:, 0, 0, :1])(image))
    model.save(tmp_path / "hostile.keras")
    with zipfile.ZipFile(model_file) as archive, zipfile.ZipFile(tmp_path / "hostile.keras", "a") as hostile:
        hostile.writestr("detector.json", archive.read("detector.json"))
    with pytest.raises(UserError, match="cannot be loaded"):
        Detector(tmp_path / "hostile.keras", UNCALIBRATED)


def test_an_explanation_has_the_size_of_its_image(detector, photos):
    heat = detector.explain(photos)
    assert [map_.shape for map_ in heat] == [image.shape[:2] for image in photos]
    assert all(map_.dtype == np.float32 and map_.min() >= 0 and map_.max() <= 1 for map_ in heat)
    assert max(map_.max() for map_ in heat) > 0.5
    np.testing.assert_allclose(detector.explain(photos[:1])[0], grad_cam(detector.model, photos[0][None])[0], atol=1e-5)
    assert detector.explain([]) == []


# ---- more than two classes ---------------------------------------------------------------------------------------


class ThreeClasses:
    """Stands in for a network of three classes: the brightness of the three colours, as shares."""

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        shares = batch.mean(axis=(1, 2)) + 1e-3
        return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def test_the_outputs_of_several_classes_are_a_row_an_image():
    batch = np.zeros((3, 4, 4, 3), np.uint8)
    batch[0, ..., 0], batch[1, ..., 1], batch[2, ..., 2] = 200, 200, 200
    outputs = network_outputs(ThreeClasses(), [batch, batch[:1]])
    assert outputs.shape == (4, 3) and outputs.dtype == np.float64
    assert outputs.argmax(axis=1).tolist() == [0, 1, 2, 0]
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)
