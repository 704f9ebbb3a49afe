"""The one path from the bytes of an image to verdicts: the command line, the HTTP API and the MLflow model take it.

`images.decode` -> `crop_faces` (find the faces, crop, resize) -> `Detector.score` (network, calibration, verdict).
A server that gathers batches itself calls `Detector.outputs` and `Detector.interpret` in place of `score`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from detector.errors import UserError
from detector.evaluation.calibration import Calibration, read_calibration
from detector.images import resize, shrink_to
from detector.models.faces import MARGIN, Box, FaceFinder, crop, square
from detector.models.file import ModelCard, read_card
from detector.models.outputs import network_outputs, p_fake

if TYPE_CHECKING:
    import keras

BATCH = 32


class Network(Protocol):
    """What the path asks of a network; Keras's and OpenVINO's are such."""

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size, 3) RGB -> float32 (b, 1) P(fake), or (b, classes), uncalibrated."""
        ...


@dataclass(frozen=True, eq=False)
class Crop:
    """A face, or a whole image, as the network sees it.

    Attributes:
        box: the face in the image.
        frame: what `pixels` show of the image, (left, top, right, bottom); beyond the image where the margin is.
        pixels: uint8 (size, size, 3) RGB, the input of the network.
        picture: the same at up to so many pixels a side as were asked for, uint8 (h, w, 3); None if none were.
    """

    box: Box
    frame: Box
    pixels: np.ndarray
    picture: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ScoredFace:
    """What the detector says of a face.

    Attributes:
        crop: what was scored.
        p_fake: calibrated P(fake) in 0..1.
        label: the class that it is called, whether that is sure or not.
        verdict: the same class, or "unsure".
    """

    crop: Crop
    p_fake: float
    label: str
    verdict: str


def crop_faces(
    image: np.ndarray, size: int, finder: FaceFinder | None = None, margin: float = MARGIN, picture: int = 0
) -> Iterator[Crop]:
    """The faces of an image, uint8 (h, w, 3) RGB, the largest first; no part of a large image is kept by them.

    Args:
        size: of the network's input, pixels.
        finder: None takes the whole image as one face, stretched to a square.
        margin: around a face, as `faces.square`.
        picture: pixels of the longer side of `Crop.picture`, at most; 0 for none.
    """
    whole = (0, 0, image.shape[1], image.shape[0])
    faces = [None] if finder is None else finder.find(image)
    for face in faces:
        part = image if face is None else crop(image, face, margin)
        box, frame = (whole, whole) if face is None else (face.box, square(face, margin))
        yield Crop(box, frame, resize(part, size), shrink_to(part, picture) if picture else None)


class Detector:
    """A trained model and what its scores mean.

    Attributes:
        path: the model file. card: its classes, input size and origin.
        calibration: temperature, threshold and unsure band.
        network: what scores, RGB 0..255 (batch, size, size, 3) -> P(fake) (batch, 1) or, of more than two classes,
            their probabilities (batch, classes), uncalibrated.
    """

    def __init__(self, path: Path | str, calibration: Calibration | None = None, network: Network | None = None):
        """Read a model file, and the calibration beside it unless one is given.

        Args:
            network: scores in place of the file's Keras network, which is then loaded when it is first asked for.

        Raises:
            UserError: the model file or its calibration is missing or damaged.
        """
        self.path = Path(path)
        self.card: ModelCard = read_card(path)
        self.calibration = calibration or read_calibration(self.path)
        self._model: keras.Model | None = None
        self._loading = Lock()
        self.network = network or self.model

    @property
    def model(self) -> "keras.Model":
        """The Keras network, loaded once; threads may ask for it. Raises UserError if it cannot be."""
        with self._loading:
            if self._model is None:
                from detector.models.backend import keras  # seconds

                try:
                    self._model = keras.saving.load_model(self.path, compile=False)
                except Exception as error:  # Keras and h5py raise almost anything on a damaged archive
                    reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                    raise UserError(
                        f"{self.path}: cannot be loaded ({reason}); get it again or run `dvc repro -s -f train`"
                    ) from None
            return self._model

    def score(self, crops: Iterable[Crop], batch_size: int = BATCH) -> Iterator[ScoredFace]:
        """Score crops, in order; one batch of them is held at a time."""
        crops = iter(crops)
        while batch := list(islice(crops, batch_size)):
            yield from self.interpret(batch, self.outputs(np.stack([crop.pixels for crop in batch])))

    def outputs(self, batch: np.ndarray) -> np.ndarray:
        """`network_outputs` of one batch, uint8 (b, size, size, 3)."""
        return network_outputs(self.network, [batch], self.calibration.flip)

    def interpret(self, crops: Sequence[Crop], outputs: np.ndarray) -> list[ScoredFace]:
        """What the `outputs` of these crops mean under the calibration."""
        probabilities = self.calibration.apply(outputs)
        labels = self.calibration.labels(probabilities, self.card.classes)
        verdicts = self.calibration.verdicts(probabilities, self.card.classes)
        scores = p_fake(probabilities).tolist()
        return [ScoredFace(*values) for values in zip(crops, scores, labels, verdicts, strict=True)]

    def explain(self, crop: Crop) -> np.ndarray:
        """Where in the very pixels that are scored the network sees fake: `grad_cam`, float32 (size, size), 0..1."""
        from detector.models.grad_cam import grad_cam

        return grad_cam(self.model, crop.pixels[None])[0]
