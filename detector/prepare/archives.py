"""Where image files lie: a folder, a .zip or a .tar, read in place.

An archive type is a class, as `Store` describes it, and its suffixes in the table `ARCHIVES`. Archives may be hostile,
so the memory that a file or a header takes is limited.
"""

import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from detector.errors import UserError
from detector.images import EXTENSIONS
from detector.prepare.names import clean_path

MAX_BYTES = 1 << 29  # a larger file is no photograph, and may be built to fill the memory
MAX_HEADER = 1 << 20  # bytes of a long name or of another extended header in a tar
EXTENDED_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
LINKS = "links and special files"
ONE_NAME = "files whose names differ in \\ and / alone"
OLDER_COPIES = "older copies in the archive"
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(struct.error, EOFError, ValueError),
)

Content = bytes | OSError  # of a file: its bytes, or the error that kept them from being read


class Store(Protocol):
    """Named files, listed once when the store is made."""

    files: dict[str, object]  # by path, as `clean_path` makes it; the values are the store's own
    ignored: Counter[str]  # number of files left out of `files`, by reason

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        """Each of `paths` once, in the order that is fastest to read, with its content."""


class Folder:
    """Files in and below a folder; links are followed, but not back into a folder that they lie in."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, str] = {}
        self.ignored: Counter[str] = Counter()
        ahead: list[tuple[str, frozenset]] = [("", frozenset())]  # folders, each with those that it lies in
        while ahead:
            folder, above = ahead.pop()
            place = os.path.join(root, folder)
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in above:
                self.ignored[LINKS] += 1
                continue
            above |= {(status.st_dev, status.st_ino)}
            with os.scandir(place) as items:
                for item in sorted(items, key=lambda item: item.name):
                    if _is(item.is_dir):
                        ahead.append((f"{folder}{item.name}/", above))
                    elif _is(item.is_file):
                        path = clean_path(folder + item.name)
                        self.ignored[ONE_NAME] += path in self.files
                        self.files[path] = folder + item.name
                    else:
                        self.ignored[LINKS] += 1

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        for path in sorted(paths):
            yield path, attempt(self._read, self.files[path])

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self.root, name), "rb") as file:
            return whole(file)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or into a folder that may not be read
        return False


class Zip:
    """Members of a .zip archive."""

    def __init__(self, path: Path):
        self.zip = zipfile.ZipFile(path)
        self.files: dict[str, zipfile.ZipInfo] = {}
        self.ignored: Counter[str] = Counter()
        for member in self.zip.infolist():
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):  # its content is the name of its target
                self.ignored[LINKS] += 1
                continue
            name = clean_path(member.filename)
            if member.flag_bits & 1:
                raise RuntimeError(f"{name} in it is encrypted; unpack it and name the folder")
            self.ignored[OLDER_COPIES] += name in self.files
            self.files[name] = member

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        for path in sorted(paths, key=lambda path: self.files[path].header_offset):
            yield path, attempt(self._read, self.files[path])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        # With any other method, zipfile may unpack more than `MAX_BYTES` at a time.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError("packed by a rare method; unpack the archive and name the folder")
        with self.zip.open(member) as file:
            return whole(file)


class Tar:
    """Members of a .tar archive, compressed by gzip or not; one pass lists them, a second one reads them."""

    def __init__(self, path: Path):
        self.path = path
        self.files: dict[str, tuple[int, int]] = {}  # offset and size of the bytes
        self.ignored: Counter[str] = Counter()
        with (
            self._open() as stream,
            tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo, encoding="utf-8") as archive,
        ):
            before = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps them all, over 1 KB each
                if member.size < 0 or member.offset <= before:  # it would come back to a member for ever
                    raise tarfile.ReadError(f"{member.name} of {member.size:,} bytes")
                before = member.offset
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    self.ignored[LINKS] += 1
                    continue
                name = clean_path(member.name)
                self.ignored[OLDER_COPIES] += name in self.files
                self.files[name] = (member.offset_data, member.size)
            while stream.read(1 << 20):  # up to the checksum at the end of a gzip file
                pass

    def _open(self) -> BinaryIO:
        with open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path) if packed else open(self.path, "rb")

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        try:
            stream = self._open()
        except OSError as error:  # it was there when it was listed
            raise UserError(f"{self.path}: cannot be read any more: {error.strerror}; run again") from None
        with stream:
            for path in sorted(paths, key=lambda path: self.files[path]):
                yield path, attempt(self._read, stream, *self.files[path])

    @staticmethod
    def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
        stream.seek(offset)
        return whole(stream, size)


class _StrictTarInfo(tarfile.TarInfo):
    """Raises for a huge header, and for a damaged or missing one, which tarfile takes for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None
        if header.size > MAX_HEADER and header.type in EXTENDED_HEADERS:
            raise tarfile.ReadError(f"a member of {header.size:,} bytes")
        return header


class Several:
    """Several stores as one, the files of each under its name."""

    def __init__(self, stores: Mapping[str, Store]):
        self.stores = stores
        self.files = {f"{name}/{path}": place for name, store in stores.items() for path, place in store.files.items()}
        self.ignored = sum((store.ignored for store in stores.values()), Counter())

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        inner = defaultdict(set)
        for path in paths:
            name, rest = path.split("/", 1)
            inner[name].add(rest)
        for name, own in inner.items():
            for path, content in self.stores[name].read(own):
                yield f"{name}/{path}", content


ARCHIVES: dict[str, Callable[[Path], Store]] = {".zip": Zip, ".tar": Tar, ".tar.gz": Tar, ".tgz": Tar}  # by suffix


def open_store(path: Path, key: str) -> Store:
    """The files of a folder or an archive; `UserError`, which starts with `key`, where it is neither, or damaged."""
    try:
        if path.is_dir():
            return Folder(path)
        if suffix := archive_suffix(path):
            return ARCHIVES[suffix](path)
    except DAMAGED as error:
        raise UserError(
            f"{key}: the archive {path} is damaged or cut short ({error or 'unexpected end'}); get it again"
        ) from None
    except RuntimeError as error:  # zipfile raises it for what it cannot open, and so does this module
        raise UserError(f"{key}: cannot read the archive {path}: {error}") from None
    except OSError as error:
        place, reason = error.filename or path, error.strerror or error
        raise UserError(f"{key}: cannot read {place}: {reason}; mend its permissions or name another") from None
    *most, last = ARCHIVES
    raise UserError(f"{key}: {path} is no folder and no {', '.join(most)} or {last} archive; name one of these")


def archive_suffix(path: Path | str) -> str | None:
    """The suffix in `ARCHIVES` that the file at `path` has, in any letter case; None if it is no archive."""
    if not os.path.isfile(path):
        return None
    return next((suffix for suffix in ARCHIVES if os.fspath(path).lower().endswith(suffix)), None)


def without_suffix(path: Path) -> str:
    """`path` as posix, an archive's without its suffix."""
    name = path.as_posix()
    return name[: len(name) - len(archive_suffix(path) or "")]


def reason_to_ignore(path: str) -> str | None:
    """Why a file at `path`, in a folder or an archive, is not taken for an image; None if it is."""
    if "__MACOSX/" in path:
        return "__MACOSX files"
    if path.startswith(".") or "/." in path:
        return "hidden files"
    if os.path.splitext(path)[1].lower() not in EXTENSIONS:
        return "files without an image extension"
    return None


def attempt(read: Callable[..., bytes], *args) -> Content:
    """What `read` returns, or the error that it ends in."""
    try:
        return read(*args)
    except OSError as error:
        return error
    except (*DAMAGED, RuntimeError) as error:  # the last: an unknown compression
        return OSError(f"{error or 'cut short'}")


def whole(file: BinaryIO, size: int | None = None) -> bytes:
    """All of `file`, or the next `size` bytes; OSError if these are more than `MAX_BYTES`."""
    data = file.read(MAX_BYTES + 1 if size is None else min(size, MAX_BYTES + 1))
    if data is None:  # of a pipe
        raise OSError("nothing to read in it yet")
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
    if size is not None and len(data) < size:
        raise EOFError("cut short")
    return data
