"""From a source of image files to prepared data: everything examined, then what may stay written to shards.

Images that are dropped or excluded leave no byte in the shards and no row in the manifest: whatever reads the
prepared data, by whatever means, cannot see them.
"""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from detector.data.loader import map_ahead
from detector.data.shards import COLUMNS, ShardWriter, dataset_digest, read_manifest, write_manifest
from detector.errors import UserError
from detector.images import decode, shrink_to
from detector.prepare.audit import FILE, Images, audit, audit_test_set, examine
from detector.prepare.duplicates import FINGERPRINT
from detector.prepare.sources import Source
from detector.prepare.splits import Entry

EXAMPLES = 20  # files named in the summary for each reason; all of them are in excluded.csv
FINGERPRINTS = "fingerprints.npy"
EVIDENCE = "duplicates"
CONFLICT = "same picture under another label"
STORED = np.dtype([*((name, FILE[name]) for name in FILE.names), ("bytes", "u8"), ("shard", "u4"), ("offset", "u8")])
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

    The source is read twice: to examine every image, and to write what stays. An image within `max_side` pixels
    keeps its original bytes (compression traces are evidence); a larger one is scaled down and stored as PNG.

    Writes the shards, manifest.csv, excluded.csv, fingerprints.npy ((n,) of dtype `duplicates.FINGERPRINT`, in the
    manifest's order) and the folder duplicates with the original files of the pairs that the summary names. Memory
    grows by 2 kB an image while they are examined, and by 7 kB at its peak, in the audit.

    Returns:
        The summary for metrics/data.json: counts, sizes, what was excluded and why, duplicates, shortcuts, the
        data's digest.

    Raises:
        UserError: a split lacks a class once broken images and duplicates are gone; a file changed between the
            two readings.
    """
    images, broken = examine(source)
    outcasts = [ExcludedImage(entry, reason) for entry, reason in broken]
    _check_complete(source, images.entries, outcasts)
    resolution, sources, account = audit(images, source.classes[0], policy, rng)
    images = _regrouped(images, sources)
    for i in np.flatnonzero(~resolution.keep):
        partner = images.entries[resolution.partner[i]]
        kind = CONFLICT if resolution.reason[i] == "conflict" else f"same picture in {partner.split}"
        outcasts.append(ExcludedImage(images.entries[i], kind, partner.path))
    _check_complete(source, list(compress(images.entries, resolution.keep)), outcasts)

    evidence = _name_files(account["duplicates"]["examples"])
    summary = _write(source, images, resolution.keep, outcasts, folder, max_side, evidence)
    np.save(folder / FINGERPRINTS, images.fingerprints[resolution.keep])
    return {**summary, **account}


def ingest_test_set(source: Source, folder: Path, name: str, max_side: int, prepared: Path, policy: Policy) -> dict:
    """Write a further test set to `folder` as `ingest` would, with `name`, good in a file's name, for its split.

    With the policy "drop", an image that also stands in `prepared`, the data that the model was made and tested with,
    is left out. Images of one picture under two labels are left out under either policy.

    Returns:
        {"source", "classes", "images", "counts": {class: n}, "groups": n, "sizes", "scaled_down", "excluded",
        "ignored_files", "seen_in_training": images found in train or validation, "seen_in_test": in a test split only,
        "search_complete": whether none can have been missed, "ungrouped", "digest"}.

    Raises:
        UserError: no image is left, or a file changed between the two readings.
    """
    images, broken = examine(source)
    images = replace(images, entries=[replace(entry, split=name) for entry in images.entries])
    outcasts = [ExcludedImage(entry, reason) for entry, reason in broken]
    keep, trained, tested, complete = np.ones(len(images.entries), bool), 0, 0, True
    if images.entries:
        manifest = read_manifest(prepared)
        fingerprints = read_fingerprints(prepared, len(manifest))
        # What was trained on comes first, so that it is named where both hold the picture.
        order = np.argsort(~manifest["split"].isin(("train", "validation")).to_numpy(), kind="stable")
        paths, splits = (manifest[column].to_numpy()[order] for column in ("path", "split"))
        resolution, sources, complete = audit_test_set(images, fingerprints[order])
        images = _regrouped(images, sources)
        leak = resolution.reason == "leak"
        trained = int(np.isin(splits[resolution.partner[leak]], ("train", "validation")).sum())
        tested = int(leak.sum()) - trained
        keep = resolution.keep | (leak if policy == "report" else False)
        for i in np.flatnonzero(~keep):
            partner = resolution.partner[i]
            if leak[i]:
                outcasts.append(ExcludedImage(images.entries[i], f"same picture in {splits[partner]}", paths[partner]))
            else:
                outcasts.append(ExcludedImage(images.entries[i], CONFLICT, images.entries[partner].path))
    if not keep.any():
        why = ", ".join(f"{count:,} {kind}" for kind, count in _tally(outcasts).items())
        raise UserError(f"evaluate.extra_sets: {source.name} has no image left to score ({why}); name another set")
    summary = _write(source, images, keep, outcasts, folder, max_side)
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
        found = np.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro -f prepare`") from None
    except (OSError, ValueError, EOFError):
        found = np.empty(0)
    if found.dtype != FINGERPRINT or found.shape != (count,):
        raise UserError(f"{path}: damaged; run `dvc repro -f prepare`")
    return found


def _write(
    source: Source,
    images: Images,
    keep: np.ndarray,
    outcasts: list[ExcludedImage],
    folder: Path,
    max_side: int,
    evidence: Mapping[str, list[str]] | None = None,
) -> dict:
    """Read once more what stays, write all files but the fingerprints, and return the summary.

    Args:
        keep: (n,) bool, for the n `images`.
        outcasts: all other images of the source.
        evidence: names below `EVIDENCE` under which the original bytes of the image at a path are wanted.
    """
    stored, shards = _store(source, images, keep, folder, max_side, evidence or {})
    entries = list(compress(images.entries, keep))
    attributes = sorted({name for entry in source.entries for name in entry.attributes} - set(COLUMNS))
    write_manifest(_rows(entries, stored, shards, source.classes[0]), attributes, folder / "manifest.csv")
    outcasts = sorted(outcasts, key=lambda outcast: outcast.entry.path)
    with (folder / "excluded.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        lines = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        lines.writerow(("path", "reason"))
        lines.writerows((outcast.entry.path, outcast.reason) for outcast in outcasts)
    splits = sorted({entry.split for entry in entries}, key=split_order)
    counts = Counter((entry.split, entry.kind) for entry in entries)
    groups = Counter(split for split, _ in {(entry.split, entry.group) for entry in entries})
    return {
        "source": source.name,
        "classes": source.classes,
        "images": len(entries),
        "counts": {split: {kind: counts[split, kind] for kind in source.classes} for split in splits},
        "groups": {split: groups[split] for split in splits},
        "sizes": {name: _spread(stored[name]) for name in ("width", "height", "bytes")},
        "scaled_down": int((images.files["sha256"][keep] != stored["sha256"]).any(axis=1).sum()),
        "excluded": {"images": len(outcasts), "reasons": _reasons(outcasts)},
        "ungrouped": source.ungrouped,
        "ignored_files": source.ignored,
        "digest": dataset_digest(read_manifest(folder)),
    }


def _store(
    source: Source, images: Images, keep: np.ndarray, folder: Path, max_side: int, evidence: Mapping[str, list[str]]
) -> tuple[np.ndarray, list[str]]:
    """Write shards and evidence; return what is stored of each kept image, of dtype `STORED`, and the shards' names."""
    wanted = {entry.path: i for i, entry in enumerate(images.entries) if keep[i] or entry.path in evidence}
    stored = np.zeros(len(images.entries), STORED)
    names: dict[str, int] = {}

    def load(item: tuple[Entry, bytes | OSError]) -> tuple[int, bytes, bytes]:
        entry, data = item
        i = wanted[entry.path]
        file = images.files[i]
        if isinstance(data, OSError) or hashlib.sha256(data).digest() != file["sha256"].tobytes():
            raise UserError(
                f"{source.name}: {entry.path} changed or vanished while the images were read; leave them be, run again"
            )
        if max(file["width"], file["height"]) <= max_side or not keep[i]:
            stored[i] = (file["sha256"], file["width"], file["height"], len(data), 0, 0)
            return i, data, data
        pixels = shrink_to(decode(data), max_side)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=3)
        small = png.getvalue()
        digest = np.frombuffer(hashlib.sha256(small).digest(), np.uint8)
        stored[i] = (digest, pixels.shape[1], pixels.shape[0], len(small), 0, 0)
        return i, data, small

    with ShardWriter(folder) as shards:
        files = map_ahead(load, source.read(wanted))
        for i, original, data in tqdm(files, "write", len(wanted), unit=" images", disable=None, leave=False):
            entry = images.entries[i]
            for name in evidence.get(entry.path, ()):
                (folder / EVIDENCE).mkdir(exist_ok=True)
                (folder / EVIDENCE / name).write_bytes(original)
            if keep[i]:
                label = int(entry.kind != source.classes[0])
                shard, stored["offset"][i] = shards.write(entry.split, entry.path, label, data)
                stored["shard"][i] = names.setdefault(shard, len(names))
    return stored[keep], list(names)


def _rows(entries: list[Entry], stored: np.ndarray, shards: list[str], real: str) -> Iterator[dict]:
    for entry, place in zip(entries, stored, strict=True):
        yield {
            **entry.attributes,
            "path": entry.path,
            "split": entry.split,
            "class": entry.kind,
            "label": int(entry.kind != real),
            "group": entry.group,
            "width": int(place["width"]),
            "height": int(place["height"]),
            "bytes": int(place["bytes"]),
            "sha256": place["sha256"].tobytes().hex(),
            "shard": shards[place["shard"]],
            "offset": int(place["offset"]),
        }


def _name_files(examples: list[dict]) -> dict[str, list[str]]:
    """Give each example its "files" below `EVIDENCE`; return these names by the path of the image they are of."""
    names = defaultdict(list)
    for number, example in enumerate(examples, 1):
        suffixes = [os.path.splitext(path)[1].lower() for path in example["paths"]]
        example["files"] = [f"{number:02d}{side}{suffix}" for side, suffix in zip("ab", suffixes, strict=True)]
        for path, name in zip(example["paths"], example["files"], strict=True):
            names[path].append(name)
    return dict(names)


def _reasons(outcasts: list[ExcludedImage]) -> dict[str, dict]:
    """By reason, the most frequent first: how many images, the first few and, of duplicates, what they duplicate."""
    reasons = {}
    for kind, count in _tally(outcasts).items():
        some = list(islice((outcast for outcast in outcasts if outcast.kind == kind), EXAMPLES))
        reasons[kind] = {"images": count, "examples": [outcast.entry.path for outcast in some]}
        if some[0].partner:
            reasons[kind]["partners"] = [outcast.partner for outcast in some]
    return reasons


def _tally(outcasts: Iterable[ExcludedImage]) -> dict[str, int]:
    return dict(sorted(Counter(outcast.kind for outcast in outcasts).items(), key=lambda item: (-item[1], item[0])))


def split_order(split: str) -> tuple[int, str]:
    """Sort key: train, validation, test, then further test sets by name."""
    known = ("train", "validation", "test")
    return (known.index(split) if split in known else len(known), split)


def _spread(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"min": float(low), "median": float(median), "max": float(high)}


def _check_complete(source: Source, entries: list[Entry], outcasts: list[ExcludedImage]) -> None:
    present = {(entry.split, entry.kind) for entry in entries}
    for split in ("train", "validation", "test"):
        for kind in source.classes:
            if (split, kind) in present:
                continue
            gone = [outcast for outcast in outcasts if (outcast.entry.split, outcast.entry.kind) == (split, kind)]
            broken = sum(not outcast.partner for outcast in gone)
            if broken == len(gone):
                raise UserError(
                    f"{source.key}: {source.name} has no readable {kind} image in its {split} split "
                    f"({broken} broken ones were excluded); add images there"
                )
            why = ", ".join(f"{count:,} {reason}" for reason, count in _tally(gone).items())
            leaks = any(outcast.partner and outcast.kind != CONFLICT for outcast in gone)
            remedy = " or set data.duplicates to report" if leaks else ""
            raise UserError(
                f"{source.key}: of {source.name} no {kind} image is left in the {split} split ({why}); "
                f"add other images there{remedy}"
            )
