"""From paths to verdicts, as a stream: files are listed, read, decoded and searched for faces ahead of the network.

A file that cannot be read or is no image becomes a row with the reason; nothing ends the run. Memory is bounded by a
few images and one batch, however many files there are.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detector.data.loader import map_ahead
from detector.errors import UserError
from detector.images import BrokenImage, decode
from detector.inference.detector import BATCH, Crop, ScoredFace, crop_faces
from detector.models.faces import MARGIN, FaceFinder
from detector.prepare.archives import archive_suffix, attempt, open_store, reason_to_ignore, whole

if TYPE_CHECKING:
    from detector.inference.detector import Detector

File = tuple[str, Callable[[], bytes | OSError]]  # the name to show, and what reads it


@dataclass(frozen=True)
class Row:
    """One face of a file; or a file in which no face is found, or that could not be read.

    Attributes:
        path: the file; of a member of an archive, the archive's path, a slash and the member's.
        number: 1 for the largest face of the image; None if none was found or looked for.
        face: what the detector says of it; None if there is none.
        error: why the file could not be read.
    """

    path: str
    number: int | None = None
    face: ScoredFace | None = None
    error: str | None = None


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
    files: Iterable[File], detector: "Detector", finder: FaceFinder | None, margin: float = MARGIN, picture: int = 0
) -> Iterator[Row]:
    """A row for every face in `files`, in their order, each as soon as its batch is scored.

    Args:
        finder, margin, picture: as `crop_faces`.
    """
    size = detector.card.image_size

    def rows_of(file: File) -> list[tuple[Row, Crop | None]]:
        """The rows of a file without their scores, each with the face that is to be scored."""
        path, read = file
        data = read()
        if isinstance(data, OSError):
            return [(Row(path, error=data.strerror or str(data)), None)]
        try:
            faces = list(crop_faces(decode(data), size, finder, margin, picture))
        except BrokenImage as error:
            return [(Row(path, error=str(error)), None)]
        return [(Row(path, finder and number), face) for number, face in enumerate(faces, 1)] or [(Row(path), None)]

    def scored(waiting: list[tuple[Row, Crop | None]]) -> Iterator[Row]:
        faces = detector.score(face for _, face in waiting if face)
        for row, face in waiting:
            yield replace(row, face=next(faces)) if face else row

    waiting, faces = [], 0
    for rows in map_ahead(rows_of, files):
        for row in rows:
            waiting.append(row)
            faces += row[1] is not None
            if faces in (0, BATCH) or len(waiting) == 8 * BATCH:  # the latter where faces are rare
                yield from scored(waiting)
                waiting, faces = [], 0
    yield from scored(waiting)


def _folder(path: str) -> Iterator[File]:
    refused: list[OSError] = []
    for folder, folders, names in os.walk(path, onerror=refused.append):
        while refused:
            yield _unreadable(refused.pop())
        folders[:] = sorted(name for name in folders if not reason_to_ignore(f"{name}/image.png"))
        for name in sorted(names):
            if not reason_to_ignore(name):
                yield os.path.join(folder, name), partial(attempt, _read, os.path.join(folder, name))
    yield from map(_unreadable, refused)


def _unreadable(error: OSError) -> File:
    return error.filename, partial(_given, error)


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
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block the run
