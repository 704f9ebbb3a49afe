"""Where the images come from: a folder, an archive read in place, or a Kaggle data set."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from detector.errors import UserError
from detector.params import DataParams
from detector.paths import existing_path
from detector.prepare.archives import Content, Folder, Several, Store, open_store, reason_to_ignore, without_suffix
from detector.prepare.kaggle import download
from detector.prepare.manifest import Manifest, parse_manifest
from detector.prepare.names import clean_path
from detector.prepare.splits import Catalog, Entry, catalog, catalog_test_set

MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Source:
    """Images with their splits, classes and groups; none is read before `read`."""

    name: str  # a short description
    entries: list[Entry]  # sorted by path
    classes: list[str]  # the real class, then the others
    ignored: dict[str, int]  # number of files left out, by reason
    ungrouped: int  # entries that no manifest puts in a group
    store: Store = field(repr=False)
    key: str = "data.path"  # the parameter that names it, for messages

    def read(self, paths: Collection[str] | None = None) -> Iterator[tuple[Entry, Content]]:
        """Every entry, or those at `paths`, once, in the order that is fastest to read, with its content."""
        entries = {entry.path: entry for entry in self.entries if paths is None or entry.path in paths}
        for path, data in self.store.read(entries):
            yield entries[path], data


def open_source(params: DataParams, seed: int) -> Source:
    """List the images that `data.source`, "folder" or "kaggle", names.

    Args:
        params: the section `data`.
        seed: of the splits that have to be drawn.

    Raises:
        UserError: they cannot be read, or do not make two classes in three splits.
    """
    if params.source == "kaggle":
        return open_folder(download(params.kaggle), params, seed, name=f"Kaggle data set {params.kaggle}")
    if params.source != "folder":
        raise ValueError(f"data.source {params.source} has no place of its own: draw it, then open_folder")
    if isinstance(params.path, str):
        return open_folder(existing_path("data.path", params.path), params, seed)
    places = [existing_path("data.path", path) for path in params.path]
    names = [clean_path(Path(without_suffix(place)).name).replace("/", "_") for place in places]
    # Compared as MLflow stores them, which allows few characters in a name.
    logged = Counter(re.sub(r"[^\w\-./ :]", "_", name) for name in names)
    if twice := [name for name, count in logged.items() if count > 1]:
        raise UserError(f"data.path: two of its places are called {twice[0]}; rename one, images are told apart by it")
    sources = {}
    for name, place in zip(names, places, strict=True):
        try:
            sources[name] = open_folder(place, params, seed, within=f"{name}/")
        except UserError as error:
            raise UserError(f"{error} (in {place})") from None
    return _together(sources, params.real_class.strip().lower())


def open_folder(path: Path, params: DataParams, seed: int, name: str | None = None, within: str = "") -> Source:
    """List the images of a folder or an archive; see `detector.prepare.splits`.

    Args:
        path: the folder or archive.
        params: the section `data`; `manifest` is used unless the source is "sample".
        seed: of the splits that have to be drawn.
        name: how to call the source; by default after the folder or archive.
        within: the prefix of this folder's rows in `data.manifest`, where that has rows of other folders, too.

    Raises:
        UserError: it cannot be read, or its images do not make two classes in three splits.
    """
    key = {"folder": "data.path", "kaggle": "data.kaggle", "sample": "data.sample"}[params.source]
    store = open_store(path, key)
    if params.manifest and params.source != "sample":
        manifest, own = _named_manifest(params.manifest, within), None
    else:
        manifest, own = _own_manifest(store, "data.manifest")
    images, ignored = _images(store, own, path, key)
    listed = catalog(images, params, seed, root=without_suffix(path), manifest=manifest, key=key)
    return _source(name or _name(store, path), store, listed, ignored, key)


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
    listed = catalog_test_set(images, real_class, root=without_suffix(path), manifest=manifest, key=key)
    return _source(_name(store, path), store, listed, ignored, key)


def _together(sources: Mapping[str, Source], real: str) -> Source:
    """Several data sets as one, each with its own splits.

    Paths and groups begin with the name of their set, which is also the attribute `source`. If a set's own manifest has
    a column `source`, that becomes the attribute `own_source`.
    """
    entries = []
    for name, source in sources.items():
        for entry in source.entries:
            own = {"own_source" if key == "source" else key: value for key, value in entry.attributes.items()}
            path, group = f"{name}/{entry.path}", f"{name}/{entry.group}"
            entries.append(replace(entry, path=path, group=group, attributes={**own, "source": name}))
    kinds = {kind for source in sources.values() for kind in source.classes}
    ignored = sum((Counter(source.ignored) for source in sources.values()), Counter())
    return Source(
        name=f"{len(sources)} sources: {', '.join(sources)}",
        entries=sorted(entries, key=lambda entry: entry.path),
        classes=[real, *sorted(kinds - {real})],
        ignored=dict(sorted(ignored.items())),
        ungrouped=sum(source.ungrouped for source in sources.values()),
        store=Several({name: source.store for name, source in sources.items()}),
    )


def _source(name: str, store: Store, listed: Catalog, ignored: Counter[str], key: str) -> Source:
    left_out = dict(sorted((+(ignored + listed.ignored)).items()))
    return Source(name, listed.entries, listed.classes, left_out, listed.ungrouped, store, key)


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
