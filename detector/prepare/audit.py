"""Every image is examined once: whether it decodes, its fingerprint and its trivial features."""

import hashlib
from dataclasses import dataclass
from itertools import compress

import numpy as np
from tqdm import tqdm

from detector.data.loader import map_ahead
from detector.images import BrokenImage, decode
from detector.prepare.archives import Content
from detector.prepare.duplicates import (
    FINGERPRINT,
    Resolution,
    find_duplicates,
    fingerprint,
    resolve,
    resolve_test_set,
    shared_sources,
    summary,
)
from detector.prepare.face_crops import NoFace
from detector.prepare.shortcuts import FEATURES, shortcut_audit, trivial_features
from detector.prepare.sources import Source
from detector.prepare.splits import Entry

FILE = np.dtype([("sha256", "u1", 32), ("width", "u4"), ("height", "u4")])


@dataclass(frozen=True)
class Images:
    """What is known of the n images that decode, 2.2 kB each; the pixels are not kept.

    Attributes:
        entries: n, sorted by path.
        fingerprints: (n,) of dtype `duplicates.FINGERPRINT`.
        features: (n,) of dtype `shortcuts.FEATURES`.
        files: (n,) of dtype `FILE`: SHA-256 of the file's bytes, width and height in pixels, upright.
    """

    entries: list[Entry]
    fingerprints: np.ndarray
    features: np.ndarray
    files: np.ndarray


def examine(source: Source) -> tuple[Images, list[tuple[Entry, str]]]:
    """Decode every image of `source` once; return what is known of them, and the broken ones with the reason."""
    index = {entry.path: i for i, entry in enumerate(source.entries)}
    columns = {name: np.zeros(len(index), dtype) for name, dtype in _COLUMNS.items()}
    broken: dict[int, str] = {}
    results = map_ahead(_examine, source.read())
    for entry, result in tqdm(results, "examine", len(index), unit=" images", disable=None, leave=False):
        if isinstance(result, str):
            broken[index[entry.path]] = result
            continue
        for column, value in zip(columns.values(), result, strict=True):
            column[index[entry.path]] = value
    if broken:
        whole = np.delete(np.arange(len(index)), list(broken))
        for name in columns:  # one after the other: each copy is freed before the next is made
            columns[name] = columns[name][whole]
    entries = [entry for i, entry in enumerate(source.entries) if i not in broken]
    return Images(entries, **columns), [(source.entries[i], broken[i]) for i in sorted(broken)]


def audit(images: Images, real: str, policy: str, rng: np.random.Generator) -> tuple[Resolution, list[str], dict]:
    """Find duplicates and shortcuts among `images`.

    Args:
        images: of the splits train, validation, test or test_*.
        real: the real class.
        policy: "drop" or "report", see `duplicates.resolve`.
        rng: for `shortcut_audit`, which gets the images that stay.

    Returns:
        Which images stay, their groups (see `duplicates.shared_sources`), and {"duplicates", "shortcuts"} for
        metrics/data.json.
    """
    splits = np.array([entry.split for entry in images.entries])
    kinds = np.array([entry.kind for entry in images.entries])
    groups = [entry.group for entry in images.entries]
    duplicates = find_duplicates(images.fingerprints)
    resolution = resolve(duplicates, splits, kinds, policy, groups)
    keep, sources = resolution.keep, shared_sources(duplicates, splits, groups)
    shortcuts = shortcut_audit(
        images.features if keep.all() else images.features[keep],
        (kinds != real).astype(int)[keep],
        splits[keep],
        rng,
        list(compress(sources, keep)),
    )
    paths = [entry.path for entry in images.entries]
    account = {"policy": policy, **summary(duplicates, resolution, splits, kinds, paths)}
    return resolution, sources, {"duplicates": account, "shortcuts": shortcuts}


def audit_test_set(images: Images, known: np.ndarray) -> tuple[Resolution, list[str], bool]:
    """Find the images that must not stay in a further test set; see `duplicates.resolve_test_set`.

    Args:
        images: of the set.
        known: (m,) of dtype `duplicates.FINGERPRINT`, the images that a model was made and tested with.

    Returns:
        Which images stay, their groups (see `duplicates.shared_sources`), and whether the search was complete.
    """
    duplicates = find_duplicates(np.concatenate([known, images.fingerprints]))
    kinds, groups = zip(*((entry.kind, entry.group) for entry in images.entries), strict=True)
    splits = ["known"] * len(known) + ["set"] * len(groups)
    sources = shared_sources(duplicates, splits, [f"known {i}" for i in range(len(known))] + list(groups))
    return resolve_test_set(duplicates, len(known), kinds, groups), sources[len(known) :], duplicates.complete


_COLUMNS = {"fingerprints": FINGERPRINT, "features": FEATURES, "files": FILE}  # as `_examine` returns them


def _examine(item: tuple[Entry, Content]) -> tuple[Entry, str | tuple[np.ndarray, ...]]:
    """The image's fingerprint, features and file in numbers, or the reason why it is excluded."""
    entry, data = item
    if isinstance(data, NoFace):
        return entry, str(data)
    if isinstance(data, OSError):
        return entry, f"cannot be read: {data.strerror or data}"
    try:
        image = decode(data)
    except BrokenImage as error:
        return entry, str(error)
    file = np.zeros((), FILE)
    file["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    file["width"], file["height"] = image.shape[1::-1]
    return entry, (fingerprint(image), trivial_features(data, image), file)
