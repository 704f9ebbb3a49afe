"""From a source of image files to prepared data: every image is examined, and those that stay are written to shards.

Images that are dropped or excluded are in no shard and in no row of the manifest, so nothing that reads the prepared
data can see them.
"""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from detector.data.loader import map_ahead
from detector.data.shards import COLUMNS, ShardWriter, dataset_digest, read_manifest, write_manifest
from detector.errors import UserError
from detector.images import decode, shrink_to
from detector.prepare.archives import Content
from detector.prepare.audit import Images, audit, audit_test_set, examine
from detector.prepare.duplicates import FINGERPRINT
from detector.prepare.sources import Source
from detector.prepare.splits import Entry

EXAMPLES = 20  # files named in the summary for each reason; all of them are in excluded.csv
FINGERPRINTS = "fingerprints.npy"
EVIDENCE = "duplicates"
CONFLICT = "same picture under another label"
Policy = Literal["drop", "report"]


class ExcludedImage(NamedTuple):
    """An image that is excluded or dropped."""

    entry: Entry
    kind: str  # the reason, worded alike for all such images
    partner: str = ""  # path of the image that it is a duplicate of

    @property
    def reason(self) -> str:
        return self.kind.replace("same picture", f"same picture as {self.partner}", 1) if self.partner else self.kind


def ingest(source: Source, folder: Path, max_side: int, policy: Policy, rng: np.random.Generator) -> dict:
    """Prepare the images of `source` in `folder`, without the broken ones and those that `policy` drops.

    The source is read twice: to examine every image, and to write those that stay. An image within `max_side` pixels
    keeps its original bytes (compression traces are evidence); a larger one is scaled down and stored as PNG.

    Writes the shards, manifest.csv, excluded.csv, fingerprints.npy ((n,) of dtype `duplicates.FINGERPRINT`, in the
    manifest's order) and the folder duplicates with the original files of the pairs that the summary names. Memory
    grows by 2 kB an image while they are examined, and by 7 kB at its peak, in the audit.

    Returns:
        The summary for metrics/data.json: counts, sizes, what was excluded and why, duplicates, shortcuts, the
        data's digest.

    Raises:
        UserError: a split lacks a class without the broken images and duplicates; a file changed between the two
            readings.
    """
    images, broken = examine(source)
    excluded = [ExcludedImage(entry, reason) for entry, reason in broken]
    _check_complete(source, images.entries, excluded)
    resolution, groups, account = audit(images, source.classes[0], policy, rng)
    images = _regrouped(images, groups)
    for i in np.flatnonzero(~resolution.keep):
        partner = images.entries[resolution.partner[i]]
        kind = CONFLICT if resolution.reason[i] == "conflict" else f"same picture in {partner.split}"
        excluded.append(ExcludedImage(images.entries[i], kind, partner.path))
    _check_complete(source, list(compress(images.entries, resolution.keep)), excluded)

    evidence = _name_files(account["duplicates"]["examples"])
    summary = _write(source, images, resolution.keep, excluded, folder, max_side, evidence)
    np.save(folder / FINGERPRINTS, images.fingerprints[resolution.keep])
    return {**summary, **account}


def ingest_test_set(source: Source, folder: Path, name: str, max_side: int, prepared: Path, policy: Policy) -> dict:
    """Write a further test set to `folder` as `ingest` would, with `name`, good in a file's name, for its split.

    With the policy "drop", an image that is also in `prepared`, the data that the model was made and tested with, is
    left out. Images of one picture under two labels are left out under either policy.

    Returns:
        {"source", "classes", "images", "counts": {class: n}, "groups": n, "sizes", "scaled_down", "excluded",
        "ignored_files", "seen_in_training": images found in train or validation, "seen_in_test": in a test split only,
        "search_complete": whether none can have been missed, "ungrouped", "digest"}.

    Raises:
        UserError: no image is left, or a file changed between the two readings.
    """
    images, broken = examine(source)
    images = replace(images, entries=[replace(entry, split=name) for entry in images.entries])
    excluded = [ExcludedImage(entry, reason) for entry, reason in broken]
    keep, trained, tested, complete = np.ones(len(images.entries), bool), 0, 0, True
    if images.entries:
        manifest = read_manifest(prepared)
        fingerprints = read_fingerprints(prepared, len(manifest))
        # Train and validation come first, so that they are named where a test split holds the picture, too.
        order = np.argsort(~manifest["split"].isin(("train", "validation")).to_numpy(), kind="stable")
        paths, splits = (manifest[column].to_numpy()[order] for column in ("path", "split"))
        resolution, groups, complete = audit_test_set(images, fingerprints[order])
        images = _regrouped(images, groups)
        leak = resolution.reason == "leak"
        trained = int(np.isin(splits[resolution.partner[leak]], ("train", "validation")).sum())
        tested = int(leak.sum()) - trained
        keep = resolution.keep | (leak if policy == "report" else False)
        for i in np.flatnonzero(~keep):
            j = resolution.partner[i]
            kind, partner = (
                (f"same picture in {splits[j]}", paths[j]) if leak[i] else (CONFLICT, images.entries[j].path)
            )
            excluded.append(ExcludedImage(images.entries[i], kind, partner))
    if not keep.any():
        why = ", ".join(f"{count:,} {kind}" for kind, count in _counts(excluded).items())
        raise UserError(f"evaluate.extra_sets: {source.name} has no image left to score ({why}); name another set")
    summary = _write(source, images, keep, excluded, folder, max_side, {})
    (counts,), (groups,) = summary["counts"].values(), summary["groups"].values()
    seen = {"seen_in_training": trained, "seen_in_test": tested, "search_complete": complete}
    return {**summary, "counts": counts, "groups": groups, **seen}


def _regrouped(images: Images, groups: list[str]) -> Images:
    entries = [replace(entry, group=group) for entry, group in zip(images.entries, groups, strict=True)]
    return replace(images, entries=entries)


def read_fingerprints(folder: Path, count: int) -> np.ndarray:
    """The fingerprints of the `count` images in `folder`, of dtype `duplicates.FINGERPRINT`, in the manifest's order.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder / FINGERPRINTS
    try:
        fingerprints = np.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro -f prepare`") from None
    except (OSError, ValueError, EOFError):
        fingerprints = np.empty(0)
    if fingerprints.dtype != FINGERPRINT or fingerprints.shape != (count,):
        raise UserError(f"{path}: damaged; run `dvc repro -f prepare`")
    return fingerprints


def _write(
    source: Source,
    images: Images,
    keep: np.ndarray,
    excluded: list[ExcludedImage],
    folder: Path,
    max_side: int,
    evidence: Mapping[str, list[str]],
) -> dict:
    """Write all files but the fingerprints, and return the summary.

    Args:
        keep: (n,) bool, for the n `images`.
        excluded: all other images of the source.
        evidence: names below `EVIDENCE` for copies of the original file of the image at a path.
    """
    excluded = sorted(excluded, key=lambda image: image.entry.path)
    rows, scaled_down = _store(source, images, keep, folder, max_side, evidence)
    attributes = sorted({name for entry in source.entries for name in entry.attributes} - set(COLUMNS))
    write_manifest(rows, attributes, folder / "manifest.csv")
    with (folder / "excluded.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        lines = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        lines.writerow(("path", "reason"))
        lines.writerows((image.entry.path, image.reason) for image in excluded)
    splits = sorted({row["split"] for row in rows}, key=split_order)
    counts = Counter((row["split"], row["class"]) for row in rows)
    groups = Counter(split for split, _ in {(row["split"], row["group"]) for row in rows})
    return {
        "source": source.name,
        "classes": source.classes,
        "images": len(rows),
        "counts": {split: {kind: counts[split, kind] for kind in source.classes} for split in splits},
        "groups": {split: groups[split] for split in splits},
        "sizes": {name: _spread([row[name] for row in rows]) for name in ("width", "height", "bytes")},
        "scaled_down": scaled_down,
        "excluded": {"images": len(excluded), "reasons": _reasons(excluded)},
        "ungrouped": source.ungrouped,
        "ignored_files": source.ignored,
        "digest": dataset_digest(read_manifest(folder)),
    }


def _store(
    source: Source, images: Images, keep: np.ndarray, folder: Path, max_side: int, evidence: Mapping[str, list[str]]
) -> tuple[list[dict], int]:
    """Write shards and evidence; return the manifest's rows, and how many images were scaled down."""
    wanted = {entry.path: i for i, entry in enumerate(images.entries) if keep[i] or entry.path in evidence}
    rows: dict[int, dict] = {}
    scaled_down = 0

    def load(item: tuple[Entry, Content]) -> tuple[int, bytes, bytes, dict]:
        """The image's index, its file, what is stored of it, and that in numbers."""
        entry, data = item
        i = wanted[entry.path]
        file = images.files[i]
        if isinstance(data, OSError) or hashlib.sha256(data).digest() != file["sha256"].tobytes():
            raise UserError(
                f"{source.name}: {entry.path} changed or vanished while the images were read; leave them be, run again"
            )
        stored, width, height = data, int(file["width"]), int(file["height"])
        if keep[i] and max(width, height) > max_side:
            pixels = shrink_to(decode(data), max_side)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG", compress_level=3)
            stored, (height, width) = png.getvalue(), pixels.shape[:2]
        digest = hashlib.sha256(stored).hexdigest()
        return i, data, stored, {"width": width, "height": height, "bytes": len(stored), "sha256": digest}

    with ShardWriter(folder) as shards:
        files = map_ahead(load, source.read(wanted))
        for i, data, stored, numbers in tqdm(files, "write", len(wanted), unit=" images", disable=None, leave=False):
            entry = images.entries[i]
            for name in evidence.get(entry.path, ()):
                (folder / EVIDENCE).mkdir(exist_ok=True)
                (folder / EVIDENCE / name).write_bytes(data)
            if keep[i]:
                scaled_down += stored is not data
                label = int(entry.kind != source.classes[0])
                shard, offset = shards.write(entry.split, entry.path, label, stored)
                place = {"path": entry.path, "split": entry.split, "class": entry.kind, "label": label}
                rows[i] = {**entry.attributes, **place, "group": entry.group, **numbers}
                rows[i] |= {"shard": shard, "offset": offset}
    return [rows[i] for i in sorted(rows)], scaled_down


def _name_files(examples: list[dict]) -> dict[str, list[str]]:
    """Give each example its "files" below `EVIDENCE`; return these names by the path of the image they are of."""
    names = defaultdict(list)
    for number, example in enumerate(examples, 1):
        suffixes = [os.path.splitext(path)[1].lower() for path in example["paths"]]
        example["files"] = [f"{number:02d}{side}{suffix}" for side, suffix in zip("ab", suffixes, strict=True)]
        for path, name in zip(example["paths"], example["files"], strict=True):
            names[path].append(name)
    return dict(names)


def _reasons(excluded: list[ExcludedImage]) -> dict[str, dict]:
    """By reason, the most frequent first: how many images, the first few and, of duplicates, what they duplicate."""
    reasons = {}
    for kind, count in _counts(excluded).items():
        some = [image for image in excluded if image.kind == kind][:EXAMPLES]
        reasons[kind] = {"images": count, "examples": [image.entry.path for image in some]}
        if some[0].partner:
            reasons[kind]["partners"] = [image.partner for image in some]
    return reasons


def _counts(excluded: Iterable[ExcludedImage]) -> dict[str, int]:
    return dict(sorted(Counter(image.kind for image in excluded).items(), key=lambda item: (-item[1], item[0])))


def split_order(split: str) -> tuple[int, str]:
    """Sort key: train, validation, test, then further test sets by name."""
    known = ("train", "validation", "test")
    return (known.index(split) if split in known else len(known), split)


def _spread(values: list[int]) -> dict[str, float]:
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"min": float(low), "median": float(median), "max": float(high)}


def _check_complete(source: Source, entries: list[Entry], excluded: list[ExcludedImage]) -> None:
    present = {(entry.split, entry.kind) for entry in entries}
    cells = [(split, kind) for split in ("train", "validation", "test") for kind in source.classes]
    for split, kind in (cell for cell in cells if cell not in present):
        gone = [image for image in excluded if (image.entry.split, image.entry.kind) == (split, kind)]
        if not any(image.partner for image in gone):
            raise UserError(
                f"{source.key}: {source.name} has no readable {kind} image in its {split} split "
                f"({len(gone)} broken ones were excluded); add images there"
            )
        why = ", ".join(f"{count:,} {reason}" for reason, count in _counts(gone).items())
        leaks = any(image.partner and image.kind != CONFLICT for image in gone)
        remedy = " or set data.duplicates to report" if leaks else ""
        raise UserError(
            f"{source.key}: of {source.name} no {kind} image is left in the {split} split ({why}); "
            f"add other images there{remedy}"
        )
