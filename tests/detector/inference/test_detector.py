import zipfile

import numpy as np
import pytest

from detector.errors import UserError
from detector.evaluation.calibration import UNCALIBRATED, Calibration, save_calibration
from detector.images import resize
from detector.inference.detector import Detector, crop_faces
from detector.models.backend import keras
from detector.models.faces import Face, crop, square
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


def whole(detector: Detector, images):
    return (crop for image in images for crop in crop_faces(image, detector.card.image_size))


def score(detector: Detector, images, batch_size: int = 32) -> np.ndarray:
    return np.array([face.p_fake for face in detector.score(whole(detector, images), batch_size)])


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


def test_nothing_to_score(detector):
    assert list(detector.score([])) == []


def test_images_are_taken_a_batch_at_a_time(detector, photos, monkeypatch):
    taken = []

    def images():
        for i in range(5):
            taken.append(i)
            yield photos[0]

    model = MeanBrightness()
    model.predict_on_batch = lambda batch: (taken.append("scored"), MeanBrightness().predict_on_batch(batch))[1]
    monkeypatch.setattr(detector, "network", model)
    assert len(score(detector, images(), batch_size=2)) == 5
    assert taken == [0, 1, "scored", 2, 3, "scored", 4, "scored"]


def test_outputs_become_labels_and_verdicts_and_the_threshold_itself_is_fake(detector):
    outputs = np.array([0.0, 0.2, 0.49, 0.5, 0.6, 1.0])
    [crop] = whole(detector, flat(9))
    faces = detector.interpret([crop] * 6, outputs)
    assert [face.label for face in faces] == ["camera"] * 3 + ["swap"] * 3
    assert [face.verdict for face in faces] == ["camera"] * 2 + ["unsure"] * 2 + ["swap"] * 2
    np.testing.assert_allclose([face.p_fake for face in faces], outputs, atol=1e-6)
    assert all(face.crop is crop for face in faces)


def test_another_network_scores_in_place_of_keras_which_is_not_loaded(tmp_path, model_file, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(keras.saving, "load_model", fail)
    detector = Detector(model_file, UNCALIBRATED, MeanBrightness())
    np.testing.assert_allclose(score(detector, flat(0, 51, 255)), [0, 0.2, 1], atol=1e-6)
    with pytest.raises(UserError, match="cannot be loaded"):
        detector.explain(next(whole(detector, flat(9))))


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


def test_an_explanation_is_of_the_pixels_that_are_scored(detector, photos):
    for one in whole(detector, photos):
        heat = detector.explain(one)
        assert heat.shape == (71, 71) and heat.dtype == np.float32
        np.testing.assert_array_equal(heat, grad_cam(detector.model, one.pixels[None])[0])


# ---- crop_faces ----


class TwoFaces:
    """Stands in for a FaceFinder."""

    faces = (Face((40, 30, 140, 160), 0.9), Face((0, 0, 30, 40), 0.8))

    def find(self, image):
        return list(self.faces)


def test_faces_are_cropped_with_their_margin_and_resized(photo):
    image = photo(200, 300)
    found = list(crop_faces(image, 64, TwoFaces(), 0.3, picture=100))
    assert len(found) == 2
    for one, face in zip(found, TwoFaces.faces, strict=True):
        assert (one.box, one.frame) == (face.box, square(face, 0.3))
        np.testing.assert_array_equal(one.pixels, resize(crop(image, face, 0.3), 64))
        assert one.picture.shape == (min(100, one.frame[2] - one.frame[0]),) * 2 + (3,)


def test_without_a_finder_the_whole_image_is_the_face(photo):
    image = photo(200, 300)
    [one] = crop_faces(image, 64)
    assert one.box == one.frame == (0, 0, 300, 200) and one.picture is None
    np.testing.assert_array_equal(one.pixels, resize(image, 64))


@pytest.mark.parametrize("size", [32, 2000])
def test_a_crop_keeps_nothing_of_a_large_image(size):
    class Large:
        def find(self, image):
            return [Face((0, 0, 2000, 2000), 0.9)]

    image = np.zeros((2000, 3000, 3), np.uint8)
    [one] = crop_faces(image, size, Large(), 0, picture=2000)
    assert one.pixels.shape == (size, size, 3)
    assert not np.may_share_memory(one.pixels, image) and not np.may_share_memory(one.picture, image)


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
