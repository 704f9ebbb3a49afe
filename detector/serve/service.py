"""The service without its HTTP: images in, scored faces and heat maps out, on bounded threads."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from detector.files import read_json
from detector.images import BrokenImage, decode, decoded_pixels
from detector.inference.detector import Crop, Detector, ScoredFace, crop_faces
from detector.models.faces import LARGEST, FaceFinder
from detector.models.grad_cam import at_size
from detector.serve import limits
from detector.serve.batching import Batcher
from detector.serve.metrics import Metrics
from detector.serve.problems import Problem


@dataclass(frozen=True)
class Photo:
    """An upright image's width and height in pixels, and its faces, largest first."""

    width: int
    height: int
    crops: list[Crop]


class Service:
    """A detector at work for many clients at once.

    Attributes:
        detector: the model and its calibration.
        digest: SHA-256 of the model file.
        chosen_on: what the calibration says of the images on which it was chosen.
        metrics: counters for Prometheus.
    """

    def __init__(self, detector: Detector, finder: FaceFinder):
        """Start the threads."""
        self.detector = detector
        calibration = read_json(detector.path.with_name("calibration.json"))
        self.digest: str = calibration["model"]
        self.chosen_on: dict = calibration.get("chosen_on") or {}
        self._finder = finder
        self._images = ThreadPoolExecutor(limits.IMAGES_AT_ONCE, "image")
        self._explaining = ThreadPoolExecutor(1, "explain")
        self.metrics = Metrics(lambda: self._batcher.waiting)
        self._batcher = Batcher(
            detector.outputs, limits.BATCH, limits.WAIT_SECONDS, limits.CROPS, self.metrics.batch.observe
        )

    @property
    def ready(self) -> bool:
        """Whether it takes work."""
        return self._batcher.alive

    async def predict(self, file: bytes, detect: bool) -> tuple[Photo, list[ScoredFace]]:
        """Find and score the faces of one image file.

        Args:
            detect: look for faces; False takes the whole image as one.

        Raises:
            Problem: the file is no image, or too much is waiting.
        """
        photo = await self._photo(file, detect)
        faces = await self._score(photo.crops)
        for face in faces:
            self.metrics.faces.labels(face.verdict).inc()
        return photo, faces

    async def explain(self, file: bytes, number: int, detect: bool) -> tuple[ScoredFace, bytes | None]:
        """Score one face of an image file, and draw the heat map of the same pixels.

        Returns:
            The face, and a PNG (`heatmap_png`); None where no place speaks for fake.

        Raises:
            Problem: the file is no image, or has no such face, or too much is waiting.
        """
        photo = await self._photo(file, detect)
        if number >= len(photo.crops):
            raise Problem("no_such_face", f"the image has {len(photo.crops)} faces, counted from 0")
        crop = photo.crops[number]
        heatmap = self._submit(self._explaining, lambda: heatmap_png(self.detector.explain(crop), crop))
        try:
            (face,) = await self._score([crop])
            return face, await heatmap
        finally:
            heatmap.cancel()  # when the request has timed out or failed, no work for it goes on waiting

    def close(self) -> None:
        """Finish what was taken and end the threads."""
        self._images.shutdown()
        self._batcher.close()
        self._explaining.shutdown(cancel_futures=True)

    async def _photo(self, file: bytes, detect: bool) -> Photo:
        try:
            photo = await self._submit(self._images, self._read, file, detect)
        except Problem as problem:
            self.metrics.images.labels(problem.code).inc()
            raise
        self.metrics.images.labels("faces" if photo.crops else "no_face").inc()
        return photo

    @staticmethod
    def _submit(pool: ThreadPoolExecutor, function: Callable, *arguments) -> "asyncio.Future":
        try:
            future: Future = pool.submit(function, *arguments)
        except RuntimeError:  # the pool is shut down
            raise Problem("draining") from None
        return asyncio.wrap_future(future)

    def _read(self, file: bytes, detect: bool) -> Photo:
        check(file)
        try:
            image = decode(file)
        except BrokenImage as reason:
            raise Problem("not_an_image" if str(reason).startswith("not an image") else "broken_image") from None
        crops = crop_faces(image, self.detector.card.image_size, self._finder if detect else None)
        return Photo(image.shape[1], image.shape[0], list(crops)[: limits.FACES])

    async def _score(self, crops: list[Crop]) -> list[ScoredFace]:
        if not crops:
            return []
        futures = self._batcher.submit([crop.pixels for crop in crops])
        outputs = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return self.detector.interpret(crops, np.stack(outputs))


def check(file: bytes) -> None:
    """Refuse by its header what would cost too much to decode; Problem: empty_file, not_an_image, too_many_pixels."""
    if not file:
        raise Problem("empty_file")
    try:
        with Image.open(io.BytesIO(file), formats=limits.FORMATS) as image:
            pixels = decoded_pixels(image)
    except Image.DecompressionBombError:
        raise Problem("too_many_pixels") from None
    except Exception:  # Pillow's plug-ins raise almost anything on hostile bytes
        raise Problem("not_an_image") from None
    if pixels > limits.PIXELS:
        raise Problem("too_many_pixels")


def heatmap_png(heat: np.ndarray, crop: Crop) -> bytes | None:
    """The part of a crop's heat map within the face's box, as a PNG.

    Args:
        heat: float32 (size, size), 0..1, of `crop.pixels`.

    Returns:
        A PNG of the size of the box, smaller where the crop is larger than `LARGEST`: cyan to magenta, which no skin
        is, more opaque with the heat. None where there is no heat.
    """
    left, top, right, bottom = crop.frame
    scale = min(1, LARGEST / max(right - left, bottom - top))
    heat = at_size(heat, max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale)))
    edges = zip(crop.box, (left, top, left, top), strict=True)
    x, y, x_end, y_end = (max(0, round((edge - origin) * scale)) for edge, origin in edges)
    heat = heat[y:y_end, x:x_end]
    if not heat.any():
        return None
    colour = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_COOL)[..., ::-1]
    file = io.BytesIO()
    Image.fromarray(np.dstack([colour, np.rint(np.sqrt(heat) * 255).astype(np.uint8)])).save(file, "PNG")
    return file.getvalue()
