"""The detector at work: a model file in, calibrated P(fake) and verdicts out; `python -m detector predict PATH...`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detector.errors import UserError
from detector.evaluation.calibration import Calibration, read_calibration
from detector.images import decode, resize
from detector.models.file import ModelCard, read_card
from detector.models.outputs import p_fake

if TYPE_CHECKING:
    pass
from detector.models.outputs import network_outputs


@dataclass(frozen=True)
class Prediction:
    """What a detector says of n images.

    Attributes:
        p_fake: float64 (n,), calibrated P(fake) in 0..1.
        probabilities: float64 (n,), the same, or of more than two classes (n, classes), calibrated.
        labels: the class that each image is called, whether that is sure or not.
        verdicts: the same class, or "unsure".
    """

    p_fake: np.ndarray
    probabilities: np.ndarray
    labels: list[str]
    verdicts: list[str]


def interpret(outputs: np.ndarray, calibration: Calibration, card: ModelCard) -> Prediction:
    """What `network_outputs` mean under the calibration of the model with this card."""
    probabilities = calibration.apply(outputs)
    return Prediction(
        p_fake(probabilities),
        probabilities,
        calibration.labels(probabilities, card.classes),
        calibration.verdicts(probabilities, card.classes),
    )


class Detector:
    """A trained model and what its scores mean.

    Attributes:
        card: classes, input size, origin.
        model: the Keras network, RGB 0..255 (batch, size, size, 3) -> P(fake) (batch, 1) or, of more
            than two classes, their probabilities (batch, classes), uncalibrated.
        calibration: temperature, threshold and unsure band.
    """

    def __init__(self, path: Path | str, calibration: Calibration | None = None):
        """Load a model file, and the calibration beside it unless one is given; UserError if either is none."""
        self.card: ModelCard = read_card(path)
        self.calibration = calibration or read_calibration(Path(path))
        from detector.models.backend import keras  # seconds

        try:
            self.model: keras.Model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # Keras and h5py raise almost anything on a damaged archive
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise UserError(
                f"{path}: cannot be loaded ({reason}); get it again or run `dvc repro -s -f train`"
            ) from None

    def predict(self, images: Iterable[np.ndarray], batch_size: int = 32) -> Prediction:
        """Judge images of any shape, uint8 (h, w, 3) RGB; memory is bounded by one batch of them."""

        def batches() -> Iterator[np.ndarray]:
            resized = (resize(image, self.card.image_size) for image in images)
            while batch := list(islice(resized, batch_size)):
                yield np.stack(batch)

        return interpret(network_outputs(self.model, batches(), self.calibration.flip), self.calibration, self.card)

    def predict_files(self, files: Iterable[bytes]) -> Prediction:
        """Judge image files given as bytes; raises `BrokenImage` for what is no image."""
        return self.predict(decode(data) for data in files)

    def explain(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Where in each image, uint8 (h, w, 3) RGB, the network sees fake: `explain.grad_cam`, float32 (h, w), 0..1."""
        from detector.models.grad_cam import at_size, grad_cam

        if not images:
            return []
        heat = grad_cam(self.model, np.stack([resize(image, self.card.image_size) for image in images]))
        return [at_size(map_, *image.shape[:2]) for map_, image in zip(heat, images, strict=True)]
