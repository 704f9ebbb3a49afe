"""Which split, class and group every image belongs to, by its folders, a manifest or a draw."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from detector.data.split_names import split_name
from detector.errors import UserError
from detector.params import DataParams

NOT_ATTRIBUTES = {"path", "group", "split", "class", "width", "height", "sha256"}
NO_CLASS = "images in no class folder"
NO_SPLIT = "images in no split folder"

Folders = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a data set."""

    path: str  # posix, relative to the folder or archive
    split: str  # "train", "validation", "test" or "test_<something>"
    kind: str  # the class: its folder's name in lower case
    group: str  # images of one group share a source video, photo or person
    attributes: dict[str, str]  # every other manifest column


class Row(NamedTuple):
    """What a manifest says of one image; an empty string where it says nothing."""

    group: str
    split: str
    kind: str
    attributes: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest by path; `name` is the file, for messages."""

    name: str
    rows: dict[str, Row]


@dataclass(frozen=True)
class Catalog:
    """What is known of a data set's images before a single one is read."""

    entries: list[Entry]  # sorted by path
    classes: list[str]  # the real class, then the other
    ignored: Counter[str] = field(default_factory=Counter)  # images left out, by reason
    ungrouped: int = 0  # entries that no manifest row names: each is a group of its own


def clean_path(name: str) -> str:
    r"""`name` as a relative posix path that can be printed: a byte that is not UTF-8 becomes "\xff"."""
    return _printable("/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".")))


def _printable(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def catalog(
    paths: Collection[str], params: DataParams, seed: int, *, root: str, manifest: Manifest | None, key: str
) -> Catalog:
    """Give every image its split, class and group, and check that they make a data set.

    Folders say the split and the class; a manifest's `split` and `class` columns say them where folders do
    not. A split that nobody names is drawn by `split_groups`: validation from train, or, where nothing is
    split at all, validation and test from everything.

    Args:
        paths: the images, relative to the data folder, as `clean_path` makes them.
        params: `real_class`, `validation_fraction` and `test_fraction` are used.
        seed: of the drawn splits.
        root: the data folder's own path (an archive's without its extension), to tell which of a larger
            manifest's rows are meant.
        manifest: or None.
        key: the parameter that names the data, for messages.

    Raises:
        UserError: the images do not make two classes in a train, a validation and a test split.
    """
    real = params.real_class.strip().lower()
    rows = match_rows(manifest, paths, root) if manifest else {}
    entries, ignored = _place(paths, rows, real, key)
    classes = _classes(entries, ignored, real, key)
    given = any(entry.split for entry in entries)
    if given:
        ignored[NO_SPLIT] += sum(not entry.split for entry in entries)
        entries = [entry for entry in entries if entry.split]
    entries = _draw_missing_splits(entries, given, params, seed, key)
    _check_splits(entries, classes, key)
    return Catalog(
        sorted(entries, key=lambda entry: entry.path),
        classes,
        +ignored,
        _ungrouped(entries, rows),
    )


def catalog_test_set(
    paths: Collection[str], real_class: str, *, root: str, manifest: Manifest | None, key: str
) -> Catalog:
    """Give every image of a further test set its class and group; all of them are in the split "test".

    Split folders do not count, wherever they stand: Train/Real, Real/Test and Real are one class. The folder
    called `real_class` holds the real images, the folders beside it fakes, of as many classes as there are.

    Args:
        paths, root, manifest, key: as for `catalog`.
        real_class: in any letter case.

    Raises:
        UserError: no image lies in a class folder, or none in one called `real_class`.
    """
    real = real_class.strip().lower()
    rows = match_rows(manifest, paths, root, key) if manifest else {}
    entries, ignored = _place(paths, rows, real, key, within_splits=False)
    kinds = {entry.kind for entry in entries}
    if not kinds:
        raise _no_class(ignored, key)
    if real not in kinds:
        raise UserError(
            f"{key}: no folder with images in {root} is called {real} (found {_some(sorted(kinds))}); "
            "rename the folder of the real images"
        )
    return Catalog(
        sorted((replace(entry, split="test") for entry in entries), key=lambda entry: entry.path),
        [real, *sorted(kinds - {real})],
        +ignored,
        _ungrouped(entries, rows),
    )


def _ungrouped(entries: list[Entry], rows: Mapping[str, Row]) -> int:
    return sum(not (entry.path in rows and rows[entry.path].group) for entry in entries)


# ---- folders -----------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """One way to read a folder path: below `base`, some folders are the split and the class."""

    form: str  # "split/class", "class/split" or "class"
    base: Folders
    split: str | None
    kind: str


def _readings(folders: Folders) -> Iterator[Reading]:
    names = [split_name(folder) for folder in folders]
    for i, folder in enumerate(folders):
        below = i + 1 < len(folders)
        if names[i] and below:
            yield Reading("split/class", folders[:i], names[i], folders[i + 1].lower())
        if below and names[i + 1]:
            yield Reading("class/split", folders[:i], names[i + 1], folder.lower())
        yield Reading("class", folders[:i], None, folder.lower())


def read_layout(images_in: Mapping[Folders, int], real: str, key: str) -> dict[Folders, Reading]:
    """Tell split and class folders from the folders around them.

    A folder above the data may be called "test" or "train" as well, and so may one below the classes. What
    gives the right reading away is the folder it starts from: it has the real class below it, and the most
    images; of equals the deepest.

    Args:
        images_in: images directly in each folder, the folder as its names from the root down.
        real: the real class, in lower case.
        key: the parameter that names the data, for messages.

    Returns:
        The reading of every folder that can be read so; a best guess where no folder is called `real`.

    Raises:
        UserError: some images lie in split folders, but most do not.
    """
    readings = {folders: list(_readings(folders)) for folders in images_in}
    kinds: dict[tuple[str, Folders], set[str]] = defaultdict(set)
    images: Counter[tuple[str, Folders]] = Counter()
    for folders, options in readings.items():
        for option in options:
            kinds[option.form, option.base].add(option.kind)
            images[option.form, option.base] += images_in[folders]

    def fit(option: Reading) -> tuple[bool, int]:
        return real in kinds[option.form, option.base], images[option.form, option.base]

    best: dict[str, dict[Folders, Reading]] = {"split/class": {}, "class/split": {}, "class": {}}
    for folders, options in readings.items():
        for option in sorted(options, key=fit):  # a stable sort, and the deepest come last
            best[option.form][folders] = option
    fits = {
        form: {folders for folders, option in found.items() if real in kinds[form, option.base]}
        for form, found in best.items()
    }
    covered = {form: sum(images_in[folders] for folders in found) for form, found in fits.items()}
    if not any(covered.values()):
        return best["split/class"] or best["class"]
    for form in ("split/class", "class/split"):
        if 2 * covered[form] >= max(covered.values()):
            return best[form]
        if covered[form]:
            stray = "/".join(min(fits[form]))
            raise UserError(
                f"{key}: {covered[form]:,} images lie in split folders (such as {stray}) and "
                f"{covered['class'] - covered[form]:,} do not; name the folder of the one or of the other"
            )
    return {folders: best["class"][folders] for folders in fits["class"]}


def _place(
    paths: Collection[str], rows: Mapping[str, Row], real: str, key: str, within_splits: bool = True
) -> tuple[list[Entry], Counter[str]]:
    """Entries as folders and rows have them; the split is "" where neither gives one.

    With `within_splits` a class is a class of one split; else the classes stand where they would without the
    split folders.
    """

    def class_folders(folders: Folders) -> Folders:
        return folders if within_splits else tuple(folder for folder in folders if not split_name(folder))

    images_in = Counter(tuple(path.split("/")[:-1]) for path in paths)
    classes_in: Counter[Folders] = Counter()
    for folders, images in images_in.items():
        classes_in[class_folders(folders)] += images
    found = read_layout(classes_in, real, key)
    layout = {folders: found[class_folders(folders)] for folders in images_in if class_folders(folders) in found}
    if any(row.kind for row in rows.values()) and real not in {reading.kind for reading in layout.values()}:
        # Folders that are not named after classes; the last one that is named after a split still counts.
        layout = {folders: Reading("manifest", (), _innermost_split(folders), "") for folders in images_in}
    elif not within_splits:
        layout = {folders: read._replace(split=_innermost_split(folders)) for folders, read in layout.items()}
    nothing = Row("", "", "", {})
    entries, ignored = [], Counter()
    for path in paths:
        row = rows.get(path, nothing)
        reading = layout.get(tuple(path.split("/")[:-1]))
        kind = (reading and reading.kind) or row.kind
        split = (reading and reading.split) or row.split
        if kind:
            # A group's name is only good within its split: official splits number their sources anew.
            group = f"{split}/{row.group}" if split and row.group else row.group or path
            entries.append(Entry(path, split, kind, group, row.attributes))
        else:
            ignored[NO_CLASS] += 1
    return entries, ignored


def _innermost_split(folders: Folders) -> str | None:
    return next(filter(None, map(split_name, reversed(folders))), None)


# ---- manifest ----------------------------------------------------------------------------------------------


def parse_manifest(data: bytes, name: str, key: str = "data.manifest") -> Manifest:
    """Read a CSV file with a header, `path` and `group` among its columns; messages name the parameter `key`.

    Raises:
        UserError: a column is missing, a path stands twice, or a split has a name that none can have.
    """
    text = data.decode("utf-8-sig", "surrogateescape")
    rows: dict[str, Row] = {}
    try:
        lines = csv.reader(io.StringIO(text, newline=""))
        columns = [column.strip().lower() for column in next(lines, [])]
        for needed in ("path", "group"):
            if needed not in columns:
                raise UserError(
                    f"{key}: {name} has no column {needed} (it has: {_some(columns)}); add it, or name another file"
                )
        extras = [column for column in columns if column and column not in NOT_ATTRIBUTES]
        for line in lines:
            cells = dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, line), strict=False))
            path, said = clean_path(cells["path"]), cells.get("split", "")
            if not path:
                continue
            split = split_name(said) or ""
            if said and not split:
                raise UserError(
                    f"{key}: {name}: {path} has the split {_printable(said)}; "
                    "it must be train, validation, test or test_<name>"
                )
            attributes = {column: _printable(cells[column]) for column in extras}
            row = Row(_printable(cells["group"]), split, _printable(cells.get("class", "").lower()), attributes)
            if rows.setdefault(path, row) != row:
                raise UserError(f"{key}: {name}: {path} stands twice with different values; keep one row")
    except csv.Error as error:
        raise UserError(f"{key}: {name} is not a CSV file: {error}; mend it or name another file") from None
    return Manifest(name, rows)


def match_rows(manifest: Manifest, paths: Collection[str], root: str, key: str = "data.manifest") -> dict[str, Row]:
    """The manifest's row of every path it names; messages name the parameter `key`.

    A manifest may have been written for a folder further up (its paths then carry a prefix, and rows for
    that folder's other data sets stand beside) or further down. The prefix that `root` ends with is the one
    meant; with no such prefix there must be only one that fits at all.

    Raises:
        UserError: no row fits, or rows under several prefixes do.
    """
    paths = set(paths)
    above = _prefixes(manifest.rows, paths)
    agreeing = [prefix for prefix in above if f"{root.rstrip('/')}/".endswith(f"/{prefix}") or not prefix]
    if agreeing or above:
        prefix = max(agreeing, key=len) if agreeing else _only(above, manifest.name, key)
        return {path: manifest.rows[prefix + path] for path in paths if prefix + path in manifest.rows}
    if below := _prefixes(paths, manifest.rows):
        prefix = _only(below, manifest.name, key)
        return {prefix + path: row for path, row in manifest.rows.items() if prefix + path in paths}
    if paths:
        raise UserError(
            f"{key}: none of the {len(manifest.rows):,} paths in {manifest.name} names an image of "
            f"the data (its first is {next(iter(manifest.rows), 'missing')}, an image is {min(paths)}); "
            "write paths relative to the data folder"
        )
    return {}


def _prefixes(long: Collection[str], short: Collection[str]) -> Counter[str]:
    """What must be cut off paths in `long` ("", "a/", "a/b/") to find them in `short`, and how often."""
    found: Counter[str] = Counter()
    for path in long:
        cut = 0
        while True:
            if path[cut:] in short:
                found[path[:cut]] += 1
            cut = path.find("/", cut) + 1
            if not cut:
                break
    return found


def _only(prefixes: Counter[str], name: str, key: str) -> str:
    if len(prefixes) > 1:
        raise UserError(
            f"{key}: rows of {name} fit the images in more than one way ({_some(sorted(prefixes))}); "
            "write a manifest with paths relative to the data folder"
        )
    return next(iter(prefixes))


# ---- drawing splits ----------------------------------------------------------------------------------------


def split_groups(
    groups: Mapping[str, Collection[str]], shares: Mapping[str, float], rest: str, seed: int
) -> dict[str, str]:
    """Deal whole groups out to splits, stratified by the classes that a group holds.

    Groups go in the order of a hash of their name, so that adding or removing some leaves nearly all others
    where they were. Within a stratum a split is at most half its largest group away from its share, unless
    groups run out, or are so few that each split must first be given one of every class.

    Args:
        groups: the class of each image of a group.
        shares: the wanted share of the images of each split, 0..1, their sum below 1.
        rest: the split that takes all else.
        seed: another seed, another order.

    Returns:
        The split of each group. A split lacks a class only where there are too few groups for every split.
    """
    strata: dict[frozenset[str], list[str]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: _rank(group, seed)):
        strata[frozenset(groups[group])].append(group)
    split_of: dict[str, str] = {}
    for members in strata.values():
        images = sum(len(groups[group]) for group in members)
        room = {split: share * images for split, share in shares.items()}
        for group in members:
            size = len(groups[group])
            split = next((name for name, left in room.items() if size / 2 <= left), rest)
            split_of[group] = split
            if split != rest:
                room[split] -= size

    kinds = frozenset().union(*strata)
    splits = [*shares, rest]
    present = {(split_of[group], kind) for group in groups for kind in groups[group]}
    if len(present) < len(splits) * len(kinds):
        complete = list(zip(*(strata.get(frozenset({kind}), []) for kind in sorted(kinds)), strict=False))
        complete += [(group,) for group in strata.get(kinds, [])]
        for split, unit in zip(splits, complete, strict=False):
            split_of.update(dict.fromkeys(unit, split))
    return split_of


def _rank(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _draw_missing_splits(entries: list[Entry], given: bool, params: DataParams, seed: int, key: str) -> list[Entry]:
    splits = {entry.split for entry in entries}
    if not given:
        test = params.test_fraction
        shares = {"test": test, "validation": (1 - test) * params.validation_fraction}
        drawn = entries
    else:
        for needed in ("train", "test"):
            if needed not in splits:
                raise UserError(
                    f"{key}: there is no {needed} split (found {_some(sorted(splits))}); add a folder "
                    f"{needed.title()} beside them, or name a folder of classes, which is then split by ratio"
                )
        if "validation" in splits:
            return entries
        shares = {"validation": params.validation_fraction}
        drawn = [entry for entry in entries if entry.split == "train"]
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in drawn:
        groups[entry.group].append(entry.kind)
    split_of = split_groups(groups, shares, "train", seed)
    return [
        entry if given and entry.split != "train" else replace(entry, split=split_of[entry.group]) for entry in entries
    ]


# ---- checks ------------------------------------------------------------------------------------------------


def _classes(entries: list[Entry], ignored: Counter[str], real: str, key: str) -> list[str]:
    found = Counter(entry.kind for entry in entries)
    others = sorted(found.keys() - {real})
    if not found:
        raise _no_class(ignored, key)
    if real not in found:
        raise UserError(
            f"data.real_class: no folder with images is called {real} (found {_some(others)}); "
            "set it to the folder of the real images"
        )
    if not others:
        left_out = f", and {ignored[NO_CLASS]:,} images in no class folder" if ignored else ""
        raise UserError(
            f"{key}: at least two classes are needed, {real} and one of fakes, but there is one "
            f"({real} {found[real]:,}{left_out}); add a folder of fakes beside it"
        )
    return [real, *others]


def _no_class(ignored: Counter[str], key: str) -> UserError:
    return UserError(
        f"{key}: the {ignored[NO_CLASS]:,} images lie in no class folder; "
        "they must lie in {Train,Validation,Test}/{Real,Fake} or in {Real,Fake}"
    )


def _check_splits(entries: list[Entry], classes: list[str], key: str) -> None:
    amounts = Counter((entry.split, entry.kind) for entry in entries)
    for split in ("train", "validation", "test"):
        for kind in classes:
            if not amounts[split, kind]:
                groups = [entry.group for entry in entries if entry.kind == kind]
                raise UserError(
                    f"{key}: no {kind} image in the {split} split (in all there are {len(groups):,}, "
                    f"in {len(set(groups)):,} groups that stay whole); add more"
                )


def _some(names: Collection[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
