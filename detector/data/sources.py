"""Where the bytes come from: a folder, an archive read in place, or a Kaggle data set."""

import contextlib
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from detector.data.decode import EXTENSIONS
from detector.data.splits import Catalog, Entry, Manifest, catalog, catalog_test_set, clean_path, parse_manifest
from detector.errors import UserError
from detector.params import DataParams
from detector.paths import existing_path

MAX_BYTES = 1 << 29  # a file beyond it is no photograph, and may be built to fill the memory
MAX_HEADER = 1 << 20  # of a name or of what else a tar says of a member
HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MANIFEST = "manifest.csv"
LINKS = "links and special files"
ONE_NAME = "files whose names differ in \\ and / alone"
OLDER_COPIES = "older copies in the archive"
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
)


class Store(Protocol):
    """Named files, listed once when it is made."""

    files: dict[str, object]  # by path, as `clean_path` makes it; the values are the store's own
    ignored: Counter[str]  # what was left out of `files`, by reason

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Each of `paths` once, in the cheapest order, with its bytes or what kept them from being read."""


@dataclass(frozen=True)
class Source:
    """Images with their splits, classes and groups; nothing of them is read before `read`."""

    name: str  # a short description, for people
    entries: list[Entry]  # sorted by path
    classes: list[str]  # the real class, then the other
    ignored: dict[str, int]  # what was left out, by reason
    ungrouped: int  # entries that no manifest puts in a group
    store: Store = field(repr=False)
    key: str = "data.path"  # the parameter that names it, for messages

    def read(self, paths: Collection[str] | None = None) -> Iterator[tuple[Entry, bytes | OSError]]:
        """Every entry, or those at `paths`, once, in the cheapest order, with its bytes or what kept them from us."""
        entries = {entry.path: entry for entry in self.entries if paths is None or entry.path in paths}
        for path, data in self.store.read(entries):
            yield entries[path], data


def open_source(params: DataParams, seed: int) -> Source:
    """List the images that `data.source`, "folder" or "kaggle", names.

    Args:
        params: the section `data`.
        seed: of the splits that have to be drawn.

    Raises:
        UserError: they cannot be had, or are no two classes in three splits.
    """
    if params.source == "kaggle":
        return open_folder(_download(params.kaggle), params, seed, name=f"Kaggle data set {params.kaggle}")
    if params.source == "folder":
        if isinstance(params.path, str):
            return open_folder(existing_path("data.path", params.path), params, seed)
        places = [existing_path("data.path", path) for path in params.path]
        names = [clean_path(Path(_without_suffix(place)).name).replace("/", "_") for place in places]
        # As MLflow has them, which takes few signs in a name.
        told = Counter(re.sub(r"[^\w\-./ :]", "_", name) for name in names)
        if twice := [name for name, count in told.items() if count > 1]:
            raise UserError(
                f"data.path: two of its places are called {twice[0]}; rename one, images are told apart by it"
            )
        sources = [_one_of_several(place, params, seed, name) for name, place in zip(names, places, strict=True)]
        return _together(dict(zip(names, sources, strict=True)), params.real_class.strip().lower())
    raise ValueError(f"data.source {params.source} has no place of its own: draw it, then open_folder")


def _one_of_several(place: Path, params: DataParams, seed: int, name: str) -> Source:
    try:
        return open_folder(place, params, seed, within=f"{name}/")
    except UserError as error:
        raise UserError(f"{error} (in {place})") from None


def open_folder(path: Path, params: DataParams, seed: int, name: str | None = None, within: str = "") -> Source:
    """List the images of a folder or of a .zip, .tar, .tar.gz or .tgz archive; see `detector.data.splits`.

    Args:
        path: the folder or archive.
        params: the section `data`; `manifest` counts unless the source is "sample".
        seed: of the splits that have to be drawn.
        name: how to call it; the file's own name otherwise.
        within: how the paths of its rows begin in a manifest that is named, and has rows of other places, too.

    Raises:
        UserError: it cannot be read, or its images are no two classes in three splits.
    """
    key = {"folder": "data.path", "kaggle": "data.kaggle", "sample": "data.sample"}[params.source]
    store = open_store(path, key)
    if params.manifest and params.source != "sample":
        manifest, own = _named_manifest(params.manifest, within), None
    else:
        manifest, own = _own_manifest(store, "data.manifest")
    images, ignored = _images(store, own, path, key)
    found = catalog(images, params, seed, root=_without_suffix(path), manifest=manifest, key=key)
    return replace(_source(name or _name(store, path), store, found, ignored), key=key)


def _together(sources: Mapping[str, Source], real: str) -> Source:
    """Several data sets as one, each with its own splits; paths begin with its name, the attribute `source` has it.

    A `source` that a set's own manifest names is its attribute `own_source`.
    """
    entries, ignored = [], Counter()
    for name, source in sources.items():
        ignored += Counter(source.ignored)
        for entry in source.entries:
            named = {"path": f"{name}/{entry.path}", "group": f"{name}/{entry.group}"}
            own = {"own_source" if key == "source" else key: value for key, value in entry.attributes.items()}
            entries.append(replace(entry, **named, attributes={**own, "source": name}))
    kinds = {kind for source in sources.values() for kind in source.classes}
    return Source(
        f"{len(sources)} sources: {', '.join(sources)}",
        sorted(entries, key=lambda entry: entry.path),
        [real, *sorted(kinds - {real})],
        dict(sorted(ignored.items())),
        sum(source.ungrouped for source in sources.values()),
        Several({name: source.store for name, source in sources.items()}),
    )


def open_test_set(path: Path, real_class: str, key: str) -> Source:
    """List the images of a further test set, all of them in the split "test"; see `splits.catalog_test_set`.

    Args:
        path: a folder or archive; a manifest.csv of its own gives groups and attributes.
        real_class: the folder of the real images, in any letter case; every folder beside it holds fakes.
        key: the parameter that names the set, for messages.

    Raises:
        UserError: it cannot be read, or holds no real class.
    """
    store = open_store(path, key)
    manifest, own = _own_manifest(store, key)
    images, ignored = _images(store, own, path, key)
    found = catalog_test_set(images, real_class, root=_without_suffix(path), manifest=manifest, key=key)
    return _source(_name(store, path), store, found, ignored)


def _source(name: str, store: Store, found: Catalog, ignored: Counter[str]) -> Source:
    left_out = dict(sorted((+(ignored + found.ignored)).items()))
    return Source(name, found.entries, found.classes, left_out, found.ungrouped, store)


def _name(store: Store, path: Path) -> str:
    return f"{'folder' if isinstance(store, Folder) else 'archive'} {clean_path(path.name)}"


def _images(store: Store, manifest: str | None, path: Path, key: str) -> tuple[list[str], Counter[str]]:
    """The images' paths, and how many other files there are, by the reason to ignore them."""
    images, ignored = [], Counter(store.ignored)
    for file in store.files:
        if reason := reason_to_ignore(file):
            ignored[reason] += file != manifest
        else:
            images.append(file)
    if not images:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted((+ignored).items()))
        raise UserError(f"{key}: there are no images in {path} ({left_out or 'it is empty'}); name another place")
    return images, ignored


# ---- stores ------------------------------------------------------------------------------------------------


class Folder:
    """Files in and below a folder; links are followed, but not back into a folder they lie in."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, str] = {}
        self.ignored: Counter[str] = Counter()
        ahead: list[tuple[str, frozenset]] = [("", frozenset())]  # folders, each with those it lies in
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
                    kind = _kind(item)
                    if kind == "folder":
                        ahead.append((f"{folder}{item.name}/", above))
                    elif kind == "file":
                        path = clean_path(folder + item.name)
                        self.ignored[ONE_NAME] += path in self.files
                        self.files[path] = folder + item.name
                    else:
                        self.ignored[LINKS] += 1

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for path in sorted(paths):
            yield path, attempt(self._read, self.files[path])

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self.root, name), "rb") as file:
            return whole(file)


def _kind(item: os.DirEntry) -> str | None:
    try:
        return "folder" if item.is_dir() else "file" if item.is_file() else None
    except OSError:  # a link to itself, or into a place that may not be looked at
        return None


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

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for path in sorted(paths, key=lambda path: self.files[path].header_offset):
            yield path, attempt(self._read, self.files[path])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # no others stop at `MAX_BYTES`
            raise OSError("packed by a rare method; unpack the archive and name the folder")
        with self.zip.open(member) as file:
            return whole(file)


class Several:
    """Several stores as one, the files of each under its name."""

    def __init__(self, stores: Mapping[str, Store]):
        self.stores = stores
        self.files = {f"{name}/{path}": place for name, store in stores.items() for path, place in store.files.items()}
        self.ignored = sum((store.ignored for store in stores.values()), Counter())

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes | OSError]]:
        wanted = defaultdict(set)
        for path in paths:
            name, inner = path.split("/", 1)
            wanted[name].add(inner)
        for name, own in wanted.items():
            for path, data in self.stores[name].read(own):
                yield f"{name}/{path}", data


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive; here it is an error.

    So are further headers that fill the memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            found = super().frombuf(buf, encoding, errors)
            if found.size > MAX_HEADER and found.type in HEADERS:
                raise tarfile.ReadError(f"a member of {found.size:,} bytes")
            return found
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None


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
            while stream.read(1 << 20):  # up to the checksum with which a gzip file ends
                pass

    def _open(self) -> BinaryIO:
        with open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path) if packed else open(self.path, "rb")

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes | OSError]]:
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


def whole(file: BinaryIO, size: int | None = None) -> bytes:
    """All of `file`, or the `size` bytes from here on; OSError if these are more than `MAX_BYTES`."""
    data = file.read(MAX_BYTES + 1 if size is None else min(size, MAX_BYTES + 1))
    if data is None:  # of a pipe
        raise OSError("nothing to read in it yet")
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
    if size is not None and len(data) < size:
        raise EOFError("cut short")
    return data


def attempt(read: Callable[..., bytes], *args) -> bytes | OSError:
    """What `read` returns, or what kept it from that."""
    try:
        return read(*args)
    except OSError as error:
        return error
    except (*DAMAGED, RuntimeError) as error:  # the last: an unknown compression
        return OSError(f"{error or 'cut short'}")


def open_store(path: Path, key: str) -> Store:
    """The files of a folder or an archive; `UserError`, which starts with `key`, where it is neither, or damaged."""
    low = path.name.lower()
    try:
        if path.is_dir():
            return Folder(path)
        if low.endswith(".zip") and path.is_file():
            return Zip(path)
        if low.endswith(TAR_SUFFIXES) and path.is_file():
            return Tar(path)
    except DAMAGED as error:
        raise UserError(
            f"{key}: the archive {path} is damaged or cut short ({error or 'unexpected end'}); get it again"
        ) from None
    except RuntimeError as error:  # zipfile's choice for what it cannot open, so ours as well
        raise UserError(f"{key}: cannot read the archive {path}: {error}") from None
    except OSError as error:
        place, reason = error.filename or path, error.strerror or error
        raise UserError(f"{key}: cannot read {place}: {reason}; mend its permissions or name another") from None
    raise UserError(f"{key}: {path} is no folder and no .zip, .tar, .tar.gz or .tgz archive; name one of these")


def reason_to_ignore(path: str) -> str | None:
    """Why a file at `path`, in a folder or an archive, is not taken for an image; None if it is."""
    if "__MACOSX/" in path:
        return "__MACOSX files"
    if path.startswith(".") or "/." in path:
        return "hidden files"
    if os.path.splitext(path)[1].lower() not in EXTENSIONS:
        return "files without an image extension"
    return None


def _named_manifest(named: str, within: str) -> Manifest:
    path = existing_path("data.manifest", named)
    try:
        manifest = parse_manifest(path.read_bytes(), named)
    except OSError as error:
        raise UserError(f"data.manifest: cannot read {named}: {error.strerror}; name a CSV file") from None
    rows = {path: row for path, row in manifest.rows.items() if path.startswith(within)}
    if within and not rows:
        raise UserError(f"data.manifest: {named} has no path that begins with {within}; name each place's rows so")
    return Manifest(manifest.name, rows)


def _own_manifest(store: Store, key: str) -> tuple[Manifest | None, str | None]:
    """The store's manifest, if it has one, and which of its files that is.

    It is manifest.csv at the root, or in the one folder that an archive wraps everything in.
    """
    tops = {path.split("/", 1)[0] for path in store.files}
    for path in (MANIFEST, f"{min(tops)}/{MANIFEST}" if len(tops) == 1 else MANIFEST):
        if path in store.files:
            [(_, data)] = store.read([path])
            if isinstance(data, OSError):
                raise UserError(f"{key}: cannot read {path} in the data: {data}; mend or remove it")
            return parse_manifest(data, f"{path} in the data", key), path
    return None, None


def _without_suffix(path: Path) -> str:
    name = path.as_posix()
    for suffix in (".zip", *TAR_SUFFIXES):
        if not path.is_dir() and name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


# ---- Kaggle ------------------------------------------------------------------------------------------------


def _download(dataset: str) -> Path:
    """The local folder of the Kaggle data set `dataset` (owner/name), downloaded unless it is there already.

    Raises:
        UserError: whatever keeps it from being had.
    """
    try:
        # Its log goes to standard output and is dropped; the progress bar goes to standard error and stays.
        with contextlib.redirect_stdout(io.StringIO()):
            import kagglehub

            return Path(kagglehub.dataset_download(dataset))
    except Exception as error:  # of requests, of kagglehub and its SDK, of zipfile, of a full disk
        raise UserError(
            f"data.kaggle: could not download {dataset}: {_why(error)}; or download the archive by hand from "
            f"https://www.kaggle.com/datasets/{dataset} and set data.source=folder data.path=archive.zip"
        ) from None


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    bases = {base.__name__ for base in type(error).__mro__}
    if status == 404:
        return "there is no such data set; check the spelling"
    if status in (401, 403):
        return "it is private or asks for consent; accept its terms on its page and set KAGGLE_API_TOKEN"
    if bases & {"ConnectionError", "Timeout"}:
        return "Kaggle cannot be reached; check the network"
    if isinstance(error, ImportError):
        return "kagglehub is not installed; run pip install -r requirements.txt"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; try again"
