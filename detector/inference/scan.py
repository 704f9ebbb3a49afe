"""From paths to verdicts, as a stream: files are listed, read, decoded and searched for faces ahead of the network.

A file that cannot be read or is no image becomes a row with the reason; nothing ends the run. Memory is bounded by a
few images and one batch, however many files there are.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detector.data.loader import map_ahead
from detector.errors import UserError
from detector.images import BrokenImage, decode, resize, shrink_to
from detector.models.faces import MARGIN, FaceFinder, crop
from detector.prepare.archives import archive_suffix, attempt, open_store, reason_to_ignore, whole

if TYPE_CHECKING:
    from detector.inference.detector import Detector

BATCH = 32
NO_FACE = "no face"
SHOWN = 512  # pixels of the longer side of a face that is explained
File = tuple[str, Callable[[], bytes | OSError]]  # the name to show, and what reads it


@dataclass(frozen=True)
class Row:
    """What is said of one face, or of an image as it is, or of a file without either.

    Attributes:
        path: the file; of a member of an archive, the archive's path, a slash and the member's.
        face: 1 for the largest face of the image; None if none was found or looked for.
        box: the face, (left, top, right, bottom) in pixels.
        p_fake: calibrated P(fake) in 0..1.
        label: the class that it is called, whether that is sure or not.
        verdict: the same class, "unsure", or "no face"; None of a file that could not be read.
        error: why it could not.
    """

    path: str
    face: int | None = None
    box: tuple[int, int, int, int] | None = None
    p_fake: float | None = None
    label: str | None = None
    verdict: str | None = None
    error: str | None = None


Explain = Callable[[Row, np.ndarray, np.ndarray], None]  # row, face uint8 (h, w, 3), heat float32 (h, w)


def list_files(paths: Iterable[str]) -> Iterator[File]:
    """The files that `paths` name: files, folders (recursive; links to folders are not followed) and archives.

    Of folders and archives only what has an image's extension and is not hidden; a folder's files come sorted, an
    archive's in the order in which they are read fastest.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _folder(path)
        elif archive_suffix(path):
            yield from _archive(path)
        else:
            yield path, partial(attempt, _read, path)


def scan(
    files: Iterable[File],
    detector: "Detector",
    finder: FaceFinder | None,
    margin: float = MARGIN,
    explain: Explain | None = None,
) -> Iterator[Row]:
    """A row for every face in `files`, in their order, each as soon as its batch is scored.

    Args:
        finder: None takes every image as it is, for one face.
        margin: around a face, as `faces.crop`.
        explain: called with every scored row, the face (scaled down to `SHOWN` pixels) and its heatmap.
    """
    size = detector.card.image_size

    def look(file: File) -> list[tuple[Row, np.ndarray | None, np.ndarray | None]]:
        """The rows of a file, still without scores; of each face the network's input, and the picture to explain."""
        path, read = file
        data = read()
        if isinstance(data, OSError):
            return [(Row(path, error=data.strerror or str(data)), None, None)]
        try:
            image = decode(data)
        except BrokenImage as error:
            return [(Row(path, error=str(error)), None, None)]
        if finder is None:
            faces = [(Row(path), image)]
        else:
            found = enumerate(finder.find(image), 1)
            faces = [(Row(path, number, face.box), crop(image, face, margin)) for number, face in found]
        if not faces:
            return [(Row(path, verdict=NO_FACE), None, None)]
        # A copy: a view into a large photograph would keep all of it in memory.
        return [
            (row, resize(pixels, size).copy(), shrink_to(pixels, SHOWN).copy() if explain else None)
            for row, pixels in faces
        ]

    def score(waiting: list[tuple[Row, np.ndarray | None, np.ndarray | None]]) -> Iterator[Row]:
        found = [(pixels, shown) for _, pixels, shown in waiting if pixels is not None]
        said = detector.predict([pixels for pixels, _ in found], BATCH) if found else None
        heat = iter(detector.explain([shown for _, shown in found]) if explain and found else ())
        number = count()
        for row, pixels, shown in waiting:
            if pixels is not None:
                i = next(number)
                row = replace(row, p_fake=float(said.p_fake[i]), label=said.labels[i], verdict=said.verdicts[i])
                if explain:
                    explain(row, shown, next(heat))
            yield row

    waiting, faces = deque(), 0
    for looked_at in map_ahead(look, files):
        for item in looked_at:
            waiting.append(item)
            faces += item[1] is not None
            if not faces:
                yield waiting.popleft()[0]
            elif faces == BATCH or len(waiting) == 8 * BATCH:  # the latter where faces are rare
                yield from score(list(waiting))
                waiting.clear()
                faces = 0
    yield from score(list(waiting))


def _folder(path: str) -> Iterator[File]:
    refused: list[OSError] = []
    for folder, folders, names in os.walk(path, onerror=refused.append):
        while refused:
            error = refused.pop()
            yield error.filename, partial(_given, error)
        folders[:] = sorted(name for name in folders if not reason_to_ignore(f"{name}/image.png"))
        for name in sorted(names):
            if not reason_to_ignore(name):
                yield os.path.join(folder, name), partial(attempt, _read, os.path.join(folder, name))
    for error in refused:
        yield error.filename, partial(_given, error)


def _archive(path: str) -> Iterator[File]:
    try:
        store = open_store(Path(path), "PATH")
        for member, data in store.read([member for member in store.files if not reason_to_ignore(member)]):
            yield f"{path}/{member}", partial(_given, data)
    except UserError as error:
        yield path, partial(_given, OSError(str(error).removeprefix("PATH: ")))


def _given(data: bytes | OSError) -> bytes | OSError:
    return data


def _read(path: str) -> bytes:
    with open(path, "rb", opener=_without_waiting) as file:
        return whole(file)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would hold up the run
