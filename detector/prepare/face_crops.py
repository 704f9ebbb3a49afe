"""Photographs are cropped to their largest face when they are read: `data.face_crop` is largest."""

import io
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

from PIL import Image

from detector.data.loader import map_ahead
from detector.images import BrokenImage, decode
from detector.models.faces import FaceFinder, crop
from detector.prepare.archives import Content, Store
from detector.prepare.sources import Source


class NoFace(OSError):
    """An image in which no face is found."""


def face_crops(source: Source, finder: FaceFinder | None = None) -> Source:
    """`source` with the crop of the largest face, as PNG, in place of every image; `NoFace` where there is none."""
    return replace(source, store=_Crops(source.store, finder or FaceFinder()))


class _Crops:
    def __init__(self, store: Store, finder: FaceFinder):
        self.files, self.ignored = store.files, store.ignored
        self._store, self._finder = store, finder

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        return map_ahead(partial(_largest_face, self._finder), self._store.read(paths))


def _largest_face(finder: FaceFinder, file: tuple[str, Content]) -> tuple[str, Content]:
    path, data = file
    if isinstance(data, OSError):
        return file
    try:
        image = decode(data)
    except BrokenImage:
        return file  # the audit reports it
    if not (faces := finder.find(image)):
        return path, NoFace("no face found")
    png = io.BytesIO()
    Image.fromarray(crop(image, faces[0])).save(png, "PNG", compress_level=3)
    return path, png.getvalue()
