"""The service without its HTTP: images in, judged faces and heatmaps out, on bounded threads."""

import asyncio
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from detector.evaluation.calibration import Calibration, read_calibration
from detector.files import read_json
from detector.images import BrokenImage, decode, decoded_pixels, resize
from detector.inference.detector import interpret
from detector.models.file import ModelCard, read_card
from detector.models.grad_cam import at_size
from detector.models.outputs import network_outputs
from detector.serve import limits
from detector.serve.batching import Batcher
from detector.serve.metrics import Metrics
from detector.serve.problems import Problem

if TYPE_CHECKING:
    from detector.inference.openvino import Predictor

Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels of the upright image, right and bottom beyond it


@dataclass(frozen=True)
class Region:
    """A face as it goes to the network.

    Attributes:
        box: the face in the image. crop: uint8 (h, w, 3), the face with its margin.
        square: left, top and side of the crop in the image; partly outside it where the margin sticks out.
    """

    box: Box
    crop: np.ndarray
    square: tuple[int, int, int]


@dataclass(frozen=True)
class Seen:
    """What is kept of a `Region`, however large: `pixels`, uint8 (size, size, 3), are all that the network sees."""

    box: Box
    square: tuple[int, int, int]
    shape: tuple[int, int]  # of the crop, height and width
    pixels: np.ndarray

    @classmethod
    def of(cls, region: Region, size: int) -> "Seen":
        pixels = resize(region.crop, size)
        shares = np.may_share_memory(pixels, region.crop)  # a copy lets go of the image
        return cls(region.box, region.square, region.crop.shape[:2], pixels.copy() if shares else pixels)


@dataclass(frozen=True)
class Judgement:
    """What the detector says of one face: calibrated P(fake) in 0..1, the class it is called, and that or "unsure"."""

    box: Box
    p_fake: float
    label: str
    verdict: str


@dataclass(frozen=True)
class Judged:
    """An image's width and height in pixels, upright, and its faces, largest first."""

    size: tuple[int, int]
    faces: list[Judgement]


class Faces:
    """Finds faces with `detector.models.faces`; where `detect` is false the whole image is the one."""

    def __init__(self):
        from detector.models.faces import FaceFinder

        self._find = FaceFinder().find

    def __call__(self, image: np.ndarray, detect: bool) -> list[Region]:
        if not detect:
            height, width = image.shape[:2]
            return [Region((0, 0, width, height), image, (0, 0, width))]
        from detector.models.faces import crop, square

        return [Region(face.box, crop(image, face), square(face)) for face in self._find(image)[: limits.FACES]]


class Service:
    """A model at work for many clients at once.

    Attributes:
        model: the model file. digest: its SHA-256. card, calibration: what belongs to it.
        chosen_on: what its calibration says of the images it was chosen on.
        metrics: what to count in.
        draining: set when the service is being stopped; what was taken is finished.
    """

    def __init__(
        self,
        model: Path,
        engine: "Predictor",
        find_faces: Callable[[np.ndarray, bool], list[Region]],
        heatmap: "Callable[[np.ndarray], np.ndarray] | None" = None,
    ):
        """Read what belongs to the model file and start the threads.

        Args:
            engine: the network. find_faces: as `Faces`. heatmap: uint8 (size, size, 3) -> float32 (size, size) in
                0..1; None is Grad-CAM of the model.

        Raises:
            UserError: the model file or its calibration is missing or damaged.
        """
        self.model = Path(model)
        self.card: ModelCard = read_card(model)
        self.calibration: Calibration = read_calibration(self.model)
        beside = read_json(self.model.with_name("calibration.json"))
        self.chosen_on: dict = beside.get("chosen_on") or {}
        self.digest: str = beside["model"]
        self.draining = False
        self._engine = engine
        self._find_faces = find_faces
        self._heatmap = heatmap or GradCam(self.model)
        self._images = ThreadPoolExecutor(limits.IMAGES_AT_ONCE, "image")
        self._explaining = ThreadPoolExecutor(1, "explain")
        self._batcher = Batcher(
            self._outputs, limits.BATCH, limits.WAIT_SECONDS, limits.CROPS, lambda n: self.metrics.batch.observe(n)
        )
        self.metrics = Metrics(lambda: self._batcher.waiting)

    @property
    def ready(self) -> bool:
        """Whether it takes work."""
        return self._batcher.alive and not self.draining

    async def judge(self, file: bytes, detect: bool) -> Judged:
        """Find and judge the faces of one image file; Problem if it is none, or too much is waiting."""
        size, seen = await self._seen(file, detect)
        futures = self._batcher.submit([one.pixels for one in seen])
        outputs = await asyncio.gather(*map(asyncio.wrap_future, futures))
        faces = self._judgements(seen, outputs)
        for face in faces:
            self.metrics.faces.labels(face.verdict).inc()
        return Judged(size, faces)

    async def explain(self, file: bytes, face: int, detect: bool) -> tuple[Judgement, bytes | None]:
        """The judgement of one face and its heatmap.

        Returns:
            A PNG of the face's box (`heatmap_png`), of a crop of at most `LARGEST` pixels a side; None where no place
            speaks for fake.

        Raises:
            Problem: the file is no image, or has no such face, or too much is waiting.
        """
        _, seen = await self._seen(file, detect)
        if face >= len(seen):
            raise Problem("no_such_face", f"the image has {len(seen)} faces, counted from 0")
        one = seen[face]
        (output,) = map(asyncio.wrap_future, self._batcher.submit([one.pixels]))
        drawn = self._submit(self._explaining, self._draw, one)
        try:
            (judgement,) = self._judgements([one], [await output])
            return judgement, await drawn
        finally:
            drawn.cancel()  # who gave up waiting leaves no work behind

    def close(self) -> None:
        """Finish what was taken and end the threads."""
        self.draining = True
        self._images.shutdown()
        self._batcher.close()
        self._explaining.shutdown(cancel_futures=True)

    async def _seen(self, file: bytes, detect: bool) -> tuple[tuple[int, int], list[Seen]]:
        try:
            found = await self._submit(self._images, self._look, file, detect)
        except Problem as problem:
            self.metrics.images.labels(problem.code).inc()
            raise
        self.metrics.images.labels("faces" if found[1] else "no_face").inc()
        return found

    @staticmethod
    def _submit(pool: ThreadPoolExecutor, function: Callable, *arguments) -> "asyncio.Future":
        try:
            future: Future = pool.submit(function, *arguments)
        except RuntimeError:  # the pool is shut down
            raise Problem("draining") from None
        return asyncio.wrap_future(future)

    def _look(self, file: bytes, detect: bool) -> tuple[tuple[int, int], list[Seen]]:
        check(file)
        try:
            image = decode(file)
        except BrokenImage as reason:
            raise Problem("not_an_image" if str(reason).startswith("not an image") else "broken_image") from None
        seen = [Seen.of(region, self.card.image_size) for region in self._find_faces(image, detect)]
        return (image.shape[1], image.shape[0]), seen

    def _outputs(self, batch: np.ndarray) -> np.ndarray:
        return network_outputs(model=self._engine, batches=[batch], flip=self.calibration.flip)

    def _judgements(self, seen: list[Seen], outputs: list) -> list[Judgement]:
        if not seen:
            return []
        found = interpret(np.stack(outputs), self.calibration, self.card)
        return [
            Judgement(one.box, float(score), label, verdict)
            for one, score, label, verdict in zip(seen, found.p_fake, found.labels, found.verdicts, strict=True)
        ]

    def _draw(self, one: Seen) -> bytes | None:
        from detector.models.faces import LARGEST

        height, width = one.shape
        fit = min(1, LARGEST / max(height, width))
        height, width = max(1, round(height * fit)), max(1, round(width * fit))
        heat = at_size(self._heatmap(one.pixels), height, width)
        x, y, side = one.square
        scale = width / side  # a large face comes smaller
        inside = (edge - start for edge, start in zip(one.box, (x, y, x, y), strict=True))
        left, top, right, bottom = (max(0, round(edge * scale)) for edge in inside)
        heat = heat[top:bottom, left:right]
        return heatmap_png(heat) if heat.any() else None


class GradCam:
    """Heatmaps of a model file's network; Keras is loaded in the background, for it takes seconds."""

    def __init__(self, model: Path):
        self._model = model
        self._detector = None
        self._lock = threading.Lock()

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) -> float32 (h, w), 0..1."""
        return self.load().explain([crop])[0]

    def load(self):
        """The Detector, loaded once."""
        with self._lock:
            if self._detector is None:
                from detector.inference.detector import Detector

                self._detector = Detector(self._model)
            return self._detector


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


def heatmap_png(heat: np.ndarray) -> bytes:
    """float32 (h, w), 0..1 -> a PNG of the same size: cyan to magenta, which no skin is, more opaque with the heat."""
    level = np.rint(heat * 255).astype(np.uint8)
    colour = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_COOL), cv2.COLOR_BGR2RGB)
    file = io.BytesIO()
    Image.fromarray(np.dstack([colour, np.rint(np.sqrt(heat) * 255).astype(np.uint8)])).save(file, "PNG")
    return file.getvalue()
