"""Which split, class and group every image belongs to: by its folders, by a manifest, or drawn at random."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from detector.data.split_names import split_name
from detector.errors import UserError
from detector.params import DataParams
from detector.prepare.layout import Folders, Reading, innermost_split, read_layout
from detector.prepare.manifest import Manifest, Row, match_rows
from detector.prepare.names import first_few

NO_CLASS = "images in no class folder"
NO_SPLIT = "images in no split folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a data set."""

    path: str  # posix, relative to the folder or archive
    split: str  # "train", "validation", "test" or "test_<something>"
    kind: str  # the class: its folder's name in lower case
    group: str  # images of one group share a source video, photo or person
    attributes: dict[str, str]  # every other manifest column


@dataclass(frozen=True)
class Catalog:
    """What is known of a data set's images before a single one is read."""

    entries: list[Entry]  # sorted by path
    classes: list[str]  # the real class, then the others
    ignored: Counter[str]  # images left out, by reason
    ungrouped: int  # entries that no manifest row puts in a group: each is a group of its own


def catalog(
    paths: Collection[str], params: DataParams, seed: int, *, root: str, manifest: Manifest | None, key: str
) -> Catalog:
    """Give every image its split, class and group, and check that they make a data set.

    The folders decide the split and the class; where they do not, the manifest's columns `split` and `class` do.
    A missing split is drawn by `split_groups`: validation from train, or, where the data has no splits at all,
    validation and test from all images.

    Args:
        paths: the images, relative to the data folder, as `clean_path` makes them.
        params: `real_class`, `validation_fraction` and `test_fraction` are used.
        seed: of the drawn splits.
        root: the data folder's own path (an archive's without its suffix); it tells which rows are meant in a
            manifest of a larger folder.
        manifest: None where there is none.
        key: the parameter that names the data, for messages.

    Raises:
        UserError: the images do not make two classes in a train, a validation and a test split.
    """
    real = params.real_class.strip().lower()
    rows = match_rows(manifest, paths, root) if manifest else {}
    entries, ignored = _entries(paths, rows, real, key)
    classes = _classes(entries, ignored, real, key)
    if any(entry.split for entry in entries):
        ignored[NO_SPLIT] += sum(not entry.split for entry in entries)
        entries = _with_validation([entry for entry in entries if entry.split], params.validation_fraction, seed, key)
    else:
        test, validation = params.test_fraction, params.validation_fraction
        entries = _draw_splits(entries, {"test": test, "validation": (1 - test) * validation}, seed)
    _check_splits(entries, classes, key)
    return _catalog(entries, classes, ignored, rows)


def catalog_test_set(
    paths: Collection[str], real_class: str, *, root: str, manifest: Manifest | None, key: str
) -> Catalog:
    """Give every image of a further test set its class and group; all of them are in the split "test".

    Split folders are ignored: Train/Real, Real/Test and Real are one class. The folder called `real_class` holds
    the real images; each folder beside it is a class of fakes.

    Args:
        paths, root, manifest, key: as for `catalog`.
        real_class: in any letter case.

    Raises:
        UserError: no image lies in a class folder, or none in one called `real_class`.
    """
    real = real_class.strip().lower()
    rows = match_rows(manifest, paths, root, key) if manifest else {}
    entries, ignored = _entries(paths, rows, real, key, within_splits=False)
    kinds = {entry.kind for entry in entries}
    if not kinds:
        raise _no_class(ignored, key)
    if real not in kinds:
        raise UserError(
            f"{key}: no folder with images in {root} is called {real} (found {first_few(sorted(kinds))}); "
            "rename the folder of the real images"
        )
    entries = [replace(entry, split="test") for entry in entries]
    return _catalog(entries, [real, *sorted(kinds - {real})], ignored, rows)


def _catalog(entries: list[Entry], classes: list[str], ignored: Counter[str], rows: Mapping[str, Row]) -> Catalog:
    ungrouped = sum(not (entry.path in rows and rows[entry.path].group) for entry in entries)
    return Catalog(sorted(entries, key=lambda entry: entry.path), classes, +ignored, ungrouped)


def _entries(
    paths: Collection[str], rows: Mapping[str, Row], real: str, key: str, within_splits: bool = True
) -> tuple[list[Entry], Counter[str]]:
    """The images with the split and class of their folders and rows, and the number without a class.

    The split is "" where neither gives one. With `within_splits`, class folders are looked for within each split;
    without it, as if there were no split folders.
    """
    layout = _layout(Counter(tuple(path.split("/")[:-1]) for path in paths), real, key, within_splits)
    if any(row.kind for row in rows.values()) and real not in {reading.kind for reading in layout.values()}:
        # The folders are not named after classes; the innermost one that is named after a split still counts.
        folders = {tuple(path.split("/")[:-1]) for path in paths}
        layout = {names: Reading("manifest", (), innermost_split(names), "") for names in folders}
    nothing = Row("", "", "", {})
    entries, ignored = [], Counter()
    for path in paths:
        row = rows.get(path, nothing)
        reading = layout.get(tuple(path.split("/")[:-1]))
        kind = (reading and reading.kind) or row.kind
        split = (reading and reading.split) or row.split
        if kind:
            # A group's name is unique only within its split: published splits number their sources anew.
            group = f"{split}/{row.group}" if split and row.group else row.group or path
            entries.append(Entry(path, split, kind, group, row.attributes))
        else:
            ignored[NO_CLASS] += 1
    return entries, ignored


def _layout(images_in: Mapping[Folders, int], real: str, key: str, within_splits: bool) -> dict[Folders, Reading]:
    if within_splits:
        return read_layout(images_in, real, key)
    without_split = {folders: tuple(name for name in folders if not split_name(name)) for folders in images_in}
    merged: Counter[Folders] = Counter()
    for folders, images in images_in.items():
        merged[without_split[folders]] += images
    layout = read_layout(merged, real, key)
    return {
        folders: layout[classes]._replace(split=innermost_split(folders))
        for folders, classes in without_split.items()
        if classes in layout
    }


def split_groups(
    groups: Mapping[str, Collection[str]], shares: Mapping[str, float], rest: str, seed: int
) -> dict[str, str]:
    """Deal whole groups out to splits, stratified by the classes that a group holds.

    Groups are dealt in the order of a hash of their names, so that adding or removing some of them moves few of the
    others. Within a stratum a split misses its share by at most half of its largest group, unless there are so few
    groups that each split must first get one of every class.

    Args:
        groups: the class of each image of a group.
        shares: the wanted share of the images of each split, 0..1, their sum below 1.
        rest: the split that gets all other groups.
        seed: of the order.

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


def _draw_splits(entries: list[Entry], shares: Mapping[str, float], seed: int) -> list[Entry]:
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        groups[entry.group].append(entry.kind)
    split_of = split_groups(groups, shares, "train", seed)
    return [replace(entry, split=split_of[entry.group]) for entry in entries]


def _with_validation(entries: list[Entry], fraction: float, seed: int, key: str) -> list[Entry]:
    """`entries`, all of which have a split, with a validation split drawn from train if they have none."""
    splits = {entry.split for entry in entries}
    for needed in ("train", "test"):
        if needed not in splits:
            raise UserError(
                f"{key}: there is no {needed} split (found {first_few(sorted(splits))}); add a folder "
                f"{needed.title()} beside them, or name a folder of classes, which is then split by ratio"
            )
    if "validation" in splits:
        return entries
    train = [entry for entry in entries if entry.split == "train"]
    others = [entry for entry in entries if entry.split != "train"]
    return [*_draw_splits(train, {"validation": fraction}, seed), *others]


def _classes(entries: list[Entry], ignored: Counter[str], real: str, key: str) -> list[str]:
    found = Counter(entry.kind for entry in entries)
    others = sorted(found.keys() - {real})
    if not found:
        raise _no_class(ignored, key)
    if real not in found:
        raise UserError(
            f"data.real_class: no folder with images is called {real} (found {first_few(others)}); "
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
