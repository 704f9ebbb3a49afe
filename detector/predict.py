"""The detector at work: a model file in, calibrated P(fake) and verdicts out."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from detector.calibration import Calibration, read_calibration
from detector.data.decode import decode, resize
from detector.errors import UserError
from detector.model.backend import keras
from detector.model.export import ModelCard, read_card


def p_fake(model: "keras.Model", batches: Iterable[np.ndarray]) -> np.ndarray:
    """The network's output for batches of images, uncalibrated.

    Args:
        model: a network of `detector.model.network`.
        batches: uint8 (b, size, size, 3) RGB; only the last may be smaller than the first.

    Returns:
        float64 (n,), P(fake) in 0..1, in order.
    """
    scores, full = [], 0
    for batch in batches:
        full = full or len(batch)
        # One shape for all: a compiled backend would spend a minute on the last batch's.
        padded = np.concatenate([batch, np.zeros((full - len(batch), *batch.shape[1:]), batch.dtype)])
        scores.append(np.asarray(model.predict_on_batch(padded))[: len(batch), 0])
    return np.concatenate(scores).astype(np.float64) if scores else np.empty(0)


class Detector:
    """A trained model and what its scores mean.

    Attributes:
        card: classes, input size, origin.
        model: the Keras network, RGB 0..255 (batch, size, size, 3) -> P(fake) (batch, 1), uncalibrated.
        calibration: temperature, threshold and unsure band.
    """

    def __init__(self, path: Path | str, calibration: Calibration | None = None):
        """Load a model file, and the calibration beside it unless one is given; UserError if either is none."""
        self.card: ModelCard = read_card(path)
        self.calibration = calibration or read_calibration(Path(path))
        try:
            self.model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # Keras and h5py raise almost anything on a damaged archive
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise UserError(f"{path}: cannot be loaded ({reason}); get it again or run `dvc repro -f train`") from None

    def score(self, images: Iterable[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """P(fake) of images of any shape, uint8 (h, w, 3) RGB: float64 (n,); memory is bounded by one batch."""

        def batches() -> Iterator[np.ndarray]:
            resized = (resize(image, self.card.image_size) for image in images)
            while batch := list(islice(resized, batch_size)):
                yield np.stack(batch)

        return self.calibration.apply(p_fake(self.model, batches()))

    def score_files(self, files: Iterable[bytes]) -> np.ndarray:
        """P(fake) of image files given as bytes: float64 (n,); raises `BrokenImage` for what is no image."""
        return self.score(decode(data) for data in files)

    def labels(self, scores: np.ndarray) -> list[str]:
        """The class that each P(fake) is called, whether it is sure or not."""
        return [self.card.classes[call] for call in self.calibration.calls(scores)]

    def verdicts(self, scores: np.ndarray) -> list[str]:
        """The class that each P(fake) is called, or "unsure"."""
        return self.calibration.verdicts(scores, self.card.classes)
