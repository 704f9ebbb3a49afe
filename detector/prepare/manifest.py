"""The manifest of a data set: a CSV file that gives images their group, split, class and attributes."""

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from detector.data.split_names import split_name
from detector.errors import UserError
from detector.prepare.names import clean_path, first_few, printable

NOT_ATTRIBUTES = {"path", "group", "split", "class", "width", "height", "sha256"}


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
                    f"{key}: {name} has no column {needed} (it has: {first_few(columns)}); add it, or name another file"
                )
        extras = [column for column in columns if column and column not in NOT_ATTRIBUTES]
        for line in lines:
            cells = dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, line), strict=False))
            path, wanted = clean_path(cells["path"]), cells.get("split", "")
            if not path:
                continue
            split = split_name(wanted) or ""
            if wanted and not split:
                raise UserError(
                    f"{key}: {name}: {path} has the split {printable(wanted)}; "
                    "it must be train, validation, test or test_<name>"
                )
            attributes = {column: printable(cells[column]) for column in extras}
            row = Row(printable(cells["group"]), split, printable(cells.get("class", "").lower()), attributes)
            if rows.setdefault(path, row) != row:
                raise UserError(f"{key}: {name}: {path} stands twice with different values; keep one row")
    except csv.Error as error:
        raise UserError(f"{key}: {name} is not a CSV file: {error}; mend it or name another file") from None
    return Manifest(name, rows)


def match_rows(manifest: Manifest, paths: Collection[str], root: str, key: str = "data.manifest") -> dict[str, Row]:
    """The manifest's row of every path it names; messages name the parameter `key`.

    A manifest may have been written for a folder further up (its paths then begin with a prefix, and it may have rows
    for other data sets in that folder) or further down. Of several prefixes, the one that `root` ends with is taken;
    where `root` ends with none of them, only one may fit.

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


def _prefixes(long: Collection[str], short: Collection[str]) -> set[str]:
    """What must be cut off paths in `long` ("", "a/", "a/b/") to find them in `short`."""
    cuts = ((path, cut) for path in long for cut in (0, *(slash.end() for slash in re.finditer("/", path))))
    return {path[:cut] for path, cut in cuts if path[cut:] in short}


def _only(prefixes: Collection[str], name: str, key: str) -> str:
    if len(prefixes) > 1:
        raise UserError(
            f"{key}: rows of {name} fit the images in more than one way ({first_few(sorted(prefixes))}); "
            "write a manifest with paths relative to the data folder"
        )
    return next(iter(prefixes))
