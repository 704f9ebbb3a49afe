"""From a source of image files to prepared data: every image decoded once, the broken set aside, the rest in shards."""

import csv
import hashlib
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from detector.data.decode import BrokenImage, decode, shrink_to
from detector.data.pipeline import map_ahead
from detector.data.shards import COLUMNS, ShardWriter, dataset_digest, read_manifest, write_manifest
from detector.data.sources import Entry, Source
from detector.errors import UserError

EXAMPLES = 20  # files named in the summary for each reason; all of them are in set_aside.csv


@dataclass(frozen=True)
class _Image:
    entry: Entry
    data: bytes = b""
    width: int = 0
    height: int = 0
    shrunk: bool = False
    broken: str = ""


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, put in the place of `folder` when the block ends well and deleted when it does not."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def ingest(source: Source, folder: Path, max_side: int) -> dict:
    """Write the shards, manifest.csv and set_aside.csv of `source` into `folder`; memory does not grow with the data.

    An image within `max_side` pixels keeps its original bytes (compression traces are evidence); a larger one is
    scaled down and stored as PNG.

    Returns:
        The summary for metrics/data.json: counts, sizes, what was set aside and why, the data's digest.

    Raises:
        UserError: after setting broken images aside, a split lacks a class.
    """
    attributes = sorted({name for entry in source.entries for name in entry.attributes} - set(COLUMNS))
    rows, set_aside = [], []
    shrunk = 0

    def examine(item: tuple[Entry, bytes | OSError]) -> _Image:
        return _examine(*item, max_side)

    with (
        ShardWriter(folder) as shards,
        tqdm(total=len(source.entries), desc="prepare", unit=" images", disable=None, leave=False) as bar,
    ):
        for image in map_ahead(examine, source.read()):
            bar.update()
            if image.broken:
                set_aside.append((image.entry.path, image.broken))
                continue
            label = int(image.entry.kind != source.classes[0])
            shard, offset = shards.write(image.entry.split, image.entry.path, label, image.data)
            shrunk += image.shrunk
            rows.append(
                {
                    **image.entry.attributes,
                    "path": image.entry.path,
                    "split": image.entry.split,
                    "class": image.entry.kind,
                    "label": label,
                    "group": image.entry.group,
                    "width": image.width,
                    "height": image.height,
                    "bytes": len(image.data),
                    "sha256": hashlib.sha256(image.data).hexdigest(),
                    "shard": shard,
                    "offset": offset,
                }
            )
    rows.sort(key=lambda row: row["path"])
    set_aside.sort()
    write_manifest(rows, attributes, folder / "manifest.csv")
    with (folder / "set_aside.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows([("path", "reason"), *set_aside])
    summary = _summary(source, rows, set_aside, shrunk)
    _check_complete(source, summary["counts"], len(set_aside))
    return {**summary, "digest": dataset_digest(read_manifest(folder))}


def _examine(entry: Entry, data: bytes | OSError, max_side: int) -> _Image:
    if isinstance(data, OSError):
        return _Image(entry, broken=f"cannot be read: {data.strerror or data}")
    try:
        pixels = decode(data)
    except BrokenImage as error:
        return _Image(entry, broken=str(error))
    height, width = pixels.shape[:2]
    if max(height, width) <= max_side:
        return _Image(entry, data, width, height)
    pixels = shrink_to(pixels, max_side)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return _Image(entry, file.getvalue(), pixels.shape[1], pixels.shape[0], shrunk=True)


def _summary(source: Source, rows: list[dict], set_aside: list[tuple[str, str]], shrunk: int) -> dict:
    splits = sorted({row["split"] for row in rows}, key=split_order)
    counts = Counter((row["split"], row["class"]) for row in rows)
    reasons = Counter(reason for _, reason in set_aside)
    return {
        "source": source.name,
        "classes": source.classes,
        "images": len(rows),
        "counts": {split: {kind: counts[split, kind] for kind in source.classes} for split in splits},
        "groups": {split: len({row["group"] for row in rows if row["split"] == split}) for split in splits},
        "sizes": {name: _spread([row[name] for row in rows]) for name in ("width", "height", "bytes")},
        "scaled_down": shrunk,
        "set_aside": {
            "images": len(set_aside),
            "reasons": {
                reason: {
                    "images": count,
                    "examples": [path for path, why in set_aside if why == reason][:EXAMPLES],
                }
                for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            },
        },
        "ignored_files": source.ignored,
    }


def split_order(split: str) -> tuple[int, str]:
    """Sort key: train, validation, test, then further test sets by name."""
    known = ("train", "validation", "test")
    return (known.index(split) if split in known else len(known), split)


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"min": float(low), "median": float(median), "max": float(high)}


def _check_complete(source: Source, counts: dict[str, dict[str, int]], broken: int) -> None:
    for split in ("train", "validation", "test"):
        for kind in source.classes:
            if not counts.get(split, {}).get(kind):
                raise UserError(
                    f"data.path: {source.name} has no readable {kind} image in its {split} split "
                    f"({broken} broken ones were set aside); add images there"
                )
