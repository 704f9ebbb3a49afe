"""The detector at work: a model file in, P(fake) out."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from detector.data.decode import decode, resize
from detector.model.backend import keras
from detector.model.export import ModelCard, read_card


def p_fake(model: "keras.Model", batches: Iterable[np.ndarray]) -> np.ndarray:
    """Score batches of images.

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
        model: the Keras network, RGB 0..255 (batch, size, size, 3) -> P(fake) (batch, 1).
    """

    def __init__(self, path: Path | str):
        """Load a model file; UserError if it is none."""
        self.card: ModelCard = read_card(path)
        self.model = keras.saving.load_model(path, compile=False)

    def score(self, images: Iterable[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """P(fake) of images of any shape, uint8 (h, w, 3) RGB: float64 (n,)."""
        resized = [resize(image, self.card.image_size) for image in images]
        return p_fake(
            self.model, (np.stack(resized[i : i + batch_size]) for i in range(0, len(resized), batch_size))
        )

    def score_files(self, files: Iterable[bytes]) -> np.ndarray:
        """P(fake) of image files given as bytes: float64 (n,); raises `BrokenImage` for what is no image."""
        return self.score(decode(data) for data in files)

    def labels(self, scores: np.ndarray, threshold: float = 0.5) -> list[str]:
        """The class name that each P(fake) is called."""
        real, fake = self.card.classes
        return [fake if score >= threshold else real for score in scores]
