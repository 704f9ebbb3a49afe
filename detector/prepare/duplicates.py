"""Exact and near duplicates: the same picture twice, in two splits or under two labels.

Each image is reduced to a small grey thumbnail. Its low DCT coefficients, at unit contrast, are a point in nine
dimensions. They are an orthogonal projection, so two points are never farther apart than the two thumbnails, and a
k-d tree returns every pair within a radius without comparing all with all. Mirroring only changes the sign of the odd
coefficients, so with their absolute values the same search finds mirror images. The pairs that the tree returns are
compared thumbnail by thumbnail.

Thresholded to bits the same coefficients are the usual perceptual hash (Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010). Faces are too similar for it: 64 bits confuse different
people, and of 256 bits a crop of 3 % changes 40 to 90, too many for a search by buckets.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from tqdm import tqdm

from detector.data.loader import map_ahead

FINGERPRINT = np.dtype([("sha256", "u1", 32), ("thumbnail", "u1", (32, 32))])
PAIR = np.dtype([("a", "i4"), ("b", "i4"), ("difference", "f4"), ("mirrored", "?")])

# Largest `difference` of two thumbnails of one picture. Of 1,200 faces, 99.8 % stay below it after halving
# and JPEG quality 30, 99.8 % after 15 % more contrast, 96 % after 10 % more brightness or a 3 % crop, 90 %
# after a 4 % crop. Among 16,600 faces of four sets no two different scenes are below it.
NEAR = 0.15
# Below this, only compression and scale differ. Edits are above it: of 300 faces with one eye replaced 98 %, with
# the mouth replaced all. So a fake counts as equal to its original only if the edit cannot be seen.
SAME = 0.05
FLAT = 2.0  # standard deviation in grey levels that compression alone may cause; a flatter image shows nothing
RADIUS = 0.15  # of the search: re-encoding moves a face by .01, a 4 % crop 95 % of faces by less than this
MAX_CANDIDATES = 10_000_000  # 160 MB
MIN_CORRELATION = 0.88  # of 16x16 thumbnails before they are aligned: 95 % of 4 % crops stay above .9
MAX_MOVE = 3.0  # thumbnail pixels a corner may travel in alignment, of 32

# Filters as matrices, for many thumbnails at once: K @ x @ K filters columns and rows. The padding is zero, so the
# borders, where a crop leaves its traces and no fake is made, count for less.
_OFFSET = np.subtract.outer(np.arange(32), np.arange(32)).astype(np.float32)
SMOOTHING = np.exp(-(_OFFSET**2) / 2) / np.float32(np.sqrt(2 * np.pi))  # Gaussian of one pixel
WINDOW = (np.abs(_OFFSET) <= 2).astype(np.float32) / 5  # mean over five pixels


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found among n images.

    Attributes:
        first: (n,) int64, index of the first image with exactly the same pixels, or the image's own index.
        near: (m,) of dtype `PAIR`, one row for each pair a < b of near duplicates, both of them first of their pixels.
            `difference` is in 0..`NEAR`, the largest local difference in units of the picture's contrast.
        flat: number of images without structure, compared exactly only.
        complete: False where so many images are alike that only the nearest few of each were compared.
    """

    first: np.ndarray
    near: np.ndarray
    flat: int
    complete: bool


@dataclass(frozen=True)
class Resolution:
    """What is to happen to each of n images.

    Attributes:
        reason: (n,) str, "" for an image that stays, "conflict" for one excluded because the same picture has
            another label, "leak" for one dropped because it is also in a later split.
        partner: (n,) int64, index of the image that it is a duplicate of; -1 for an image that stays.
    """

    reason: np.ndarray
    partner: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """(n,) bool, True for an image that stays."""
        return self.reason == ""


def fingerprint(image: np.ndarray) -> np.ndarray:
    """Return the fingerprint of an image: 1,056 bytes, whatever its size.

    Args:
        image: (H, W, 3) uint8 RGB, 0..255.

    Returns:
        () of dtype `FINGERPRINT`: SHA-256 of shape and pixels, and a (32, 32) uint8 grey thumbnail averaged
        by area. `np.stack` makes the (n,) array that `find_duplicates` takes.
    """
    image = np.ascontiguousarray(image)
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    row = np.empty((), FINGERPRINT)
    row["sha256"] = np.frombuffer(digest.digest(), np.uint8)
    row["thumbnail"] = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    return row


def find_duplicates(fingerprints: np.ndarray) -> Duplicates:
    """Find every pair of images with the same pixels, or with the same picture.

    The same picture is one re-encoded, resized, changed a little in brightness or contrast, mirrored, or
    cropped by a few per cent. Memory is bounded: about 2 kB an image and 160 MB for candidates.

    Args:
        fingerprints: (n,) of dtype `FINGERPRINT`.
    """
    digests = np.ascontiguousarray(fingerprints["sha256"]).view("S32").ravel()
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    first = first[inverse]
    thumbnails = fingerprints["thumbnail"]
    small, points, contrast = _describe(thumbnails)
    flat = contrast < FLAT
    index = np.flatnonzero(~flat & (first == np.arange(len(first))))
    candidates, complete = _candidates(points[index])
    blocks = np.array_split(index[candidates], len(candidates) // 5000 + 1)
    pairs = map_ahead(lambda block: _compare(thumbnails, small, block), blocks)
    near = np.concatenate([*tqdm(pairs, "compare", len(blocks), disable=None, leave=False)])
    return Duplicates(first, near[np.lexsort((near["b"], near["a"]))], int(flat.sum()), complete)


def clusters(duplicates: Duplicates) -> np.ndarray:
    """Return (n,) int32 cluster ids: images joined by any chain of duplicates share one.

    The ends of a chain need not look alike, so `resolve`, which drops images, goes by pairs instead.
    """
    n, near = len(duplicates.first), duplicates.near
    rows = np.concatenate([np.arange(n), near["a"]])
    columns = np.concatenate([duplicates.first, near["b"]])
    return connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (n, n)), directed=False)[1]


def shared_sources(duplicates: Duplicates, splits: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return the n groups after joining those that hold duplicates of one another within a split.

    Joined groups take the first of their names.
    """
    if not len(groups):
        return []
    splits = np.asarray(splits)
    names = sorted(set(groups))  # no array of texts: each would take as much room as the longest
    number = {name: i for i, name in enumerate(names)}
    group = np.array([number[name] for name in groups])
    _, split = np.unique(splits, return_inverse=True)
    of_pixels = duplicates.first * (split.max() + 1) + split  # the same pixels in the same split
    known, picture = np.unique(of_pixels, return_inverse=True)
    a, b = (np.add.outer(duplicates.near[end] * (split.max() + 1), np.arange(split.max() + 1)).ravel() for end in "ab")
    both = np.isin(a, known) & np.isin(b, known)
    near = [np.searchsorted(known, ends[both]) for ends in (a, b)]
    # Nodes: the groups, then the pictures; an image joins its group and its picture.
    rows = np.concatenate([group, len(names) + near[0]])
    columns = np.concatenate([len(names) + picture, len(names) + near[1]])
    nodes = len(names) + len(known)
    _, source = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), (nodes, nodes)), False)
    first = np.full(nodes, len(names))
    np.minimum.at(first, source[: len(names)], np.arange(len(names)))
    return [names[i] for i in first[source[group]]]


def resolve(
    duplicates: Duplicates,
    splits: Sequence[str],
    labels: Sequence[Hashable],
    policy: Literal["report", "drop"],
    groups: Sequence[Hashable],
) -> Resolution:
    """Decide which images are removed so that no image is in two of the splits train, validation and test.

    Images that are one picture (a difference of `SAME` or less) and have different labels are all excluded, under
    either policy, because the right label is not known. Within a group only equal pixels are a conflict: a fake and
    the image that it was made from share a group, and the least visible fakes must stay.

    With "drop", a validation image with a duplicate in a test split is dropped, then a train image with a duplicate in
    a test split or in the rest of validation. Pairs within a split, or between two test splits (one may be the other,
    perturbed on purpose), stay. An image is dropped only for a pair that it is itself part of, never for a chain.

    Args:
        duplicates: of n images.
        splits: (n,) "train", "validation", "test" or "test_*".
        labels: (n,) class of each image.
        policy: "drop", or "report" to let leaks stay.
        groups: (n,) images of one group share a source.

    Raises:
        ValueError: an unknown split or policy.
    """
    if policy not in ("report", "drop"):
        raise ValueError(f"unknown policy {policy!r}: report or drop")
    labels, rank = np.asarray(labels), _ranks(splits)
    reason = np.full(len(labels), "", dtype="U8")
    partner = np.full(len(labels), -1)

    everywhere = np.ones(len(labels), bool)
    match = _match(duplicates, _one_picture(duplicates.near, groups), everywhere, everywhere, labels)
    reason[match >= 0], partner[match >= 0] = "conflict", match[match >= 0]
    for level in (1, 0) if policy == "drop" else ():
        kept = reason == ""
        match = _match(duplicates, duplicates.near, kept & (rank == level), kept & (rank > level))
        reason[match >= 0], partner[match >= 0] = "leak", match[match >= 0]
    return Resolution(reason, partner)


def resolve_test_set(
    duplicates: Duplicates, known: int, labels: Sequence[Hashable], groups: Sequence[Hashable]
) -> Resolution:
    """Decide which images of a further test set cannot be used: their label is in doubt, or a model has seen them.

    Args:
        duplicates: of m images that a model was made with, then of the n images of the set.
        known: m.
        labels, groups: (n,) class and group of each image of the set.

    Returns:
        For the n images, as in `resolve`: "conflict" with an image of the set as partner, counted from the set's first
        one, or "leak" with one of the m as partner.
    """
    of_set = np.arange(len(duplicates.first)) >= known
    label = np.concatenate([np.full(known, labels[0]), labels])
    near = _one_picture(duplicates.near, [*[None] * known, *groups])
    conflict = _match(duplicates, near, of_set, of_set, label)[known:]
    seen = _match(duplicates, duplicates.near, of_set, ~of_set)[known:]
    reason = np.where(conflict >= 0, "conflict", np.where(seen >= 0, "leak", ""))
    return Resolution(reason, np.where(conflict >= 0, conflict - known, seen))


def summary(
    duplicates: Duplicates,
    resolution: Resolution,
    splits: Sequence[str],
    labels: Sequence[Hashable],
    paths: Sequence[str],
    worst: int = 20,
) -> dict:
    """Return a JSON-ready account of the duplicates and of what became of them.

    Pairs are counted over all images: three images with the same pixels are three pairs. "examples" holds at most
    `worst` pairs: first those with conflicting labels, then those across splits, each time the most alike first. Pairs
    of two test sets are left out of it, because one set may be the other, perturbed on purpose.
    """
    splits, labels = np.asarray(splits), np.asarray(labels)
    by_splits = _count_by_splits(duplicates, splits, labels)
    within = [pair for pair in sorted(by_splits) if len(set(pair.split(" / "))) == 1]
    between_tests = [pair for pair in sorted(by_splits) if pair not in within and pair.startswith("test")]
    sizes = np.bincount(clusters(duplicates))
    return {
        "images": len(splits),
        "flat_images": duplicates.flat,
        "search_complete": duplicates.complete,
        "clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "mirrored_pairs": int(duplicates.near["mirrored"].sum()),
        "leaks": {pair: row for pair, row in by_splits.items() if pair not in [*within, *between_tests]},
        "between_test_sets": {pair: by_splits[pair] for pair in between_tests},
        "within_splits": {pair.split(" / ")[0]: by_splits[pair] for pair in within},
        "excluded": dict(sorted(Counter(splits[resolution.reason == "conflict"].tolist()).items())),
        "dropped": dict(sorted(Counter(splits[resolution.reason == "leak"].tolist()).items())),
        "examples": [
            {
                "kind": "exact" if duplicates.first[a] == duplicates.first[b] else "near",
                "difference": round(difference, 4),
                "mirrored": mirrored,
                "paths": [str(paths[a]), str(paths[b])],
                "splits": [str(splits[a]), str(splits[b])],
                "classes": [str(labels[a]), str(labels[b])],
            }
            for a, b, difference, mirrored in _worst_pairs(duplicates, resolution, splits, labels)[:worst].tolist()
        ],
    }


def _count_by_splits(duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, int]]:
    """Numbers of pairs by their two splits, "train / test", train before validation before test."""
    cells, cell = np.unique(np.stack([splits.astype(str), labels.astype(str)], 1), axis=0, return_inverse=True)
    exact, near = _count_pairs(duplicates, cell.ravel(), len(cells))
    counts: dict[str, dict[str, int]] = {}
    for i, j in zip(*np.nonzero(np.triu(exact + near)), strict=True):
        names = sorted((str(cells[i, 0]), str(cells[j, 0])), key=lambda name: (_ranks([name])[0], name))
        row = counts.setdefault(" / ".join(names), {"exact": 0, "near": 0, "across_classes": 0})
        row["exact"] += int(exact[i, j])
        row["near"] += int(near[i, j])
        row["across_classes"] += int(exact[i, j] + near[i, j]) if cells[i, 1] != cells[j, 1] else 0
    return counts


def _worst_pairs(duplicates: Duplicates, resolution: Resolution, splits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pairs of dtype `PAIR` in the order of `summary`'s examples; of equal pixels, each with the first of them."""
    copies = np.flatnonzero(duplicates.first != np.arange(len(splits)))
    pairs = np.zeros(len(copies), PAIR)
    pairs["a"], pairs["b"] = duplicates.first[copies], copies
    pairs, rank = np.concatenate([pairs, duplicates.near]), _ranks(splits)
    a, b = pairs["a"], pairs["b"]
    pairs = pairs[(rank[a] < 2) | (rank[b] < 2) | (splits[a] == splits[b])]
    a, b = pairs["a"], pairs["b"]
    excluded = resolution.reason == "conflict"
    conflict = (pairs["difference"] <= SAME) & (labels[a] != labels[b]) & excluded[a] & excluded[b]
    leak = rank[a] != rank[b]
    return pairs[np.lexsort((b, a, pairs["difference"], ~leak, ~conflict))]


def _describe(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the search needs of (n, 32, 32) uint8 thumbnails.

    Returns:
        (n, 16, 16) float32 thumbnails of mean 0 and norm 1, their (n, 9) low DCT coefficients without the
        signs that mirroring changes, and the (n,) contrast they had, in grey levels.
    """
    n = len(thumbnails)
    vertical, horizontal = np.mgrid[:4, :4]
    low = (vertical + horizontal > 0) & (vertical + horizontal <= 3)
    small, points, contrast = np.empty((n, 16, 16), np.float32), np.empty((n, low.sum())), np.empty(n)
    for start in range(0, n, 10_000):  # in blocks, for the intermediate copies
        rows = slice(start, start + 10_000)
        block = thumbnails[rows].reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4), dtype=np.float32)
        block -= block.mean(axis=(1, 2), keepdims=True)
        norm = np.linalg.norm(block, axis=(1, 2))
        contrast[rows] = norm / 16
        small[rows] = block / np.maximum(norm, 1e-6)[:, None, None]
        points[rows] = dctn(small[rows], axes=(1, 2), norm="ortho")[:, :4, :4][:, low]
    odd = horizontal[low] % 2 == 1
    points[:, odd] = np.abs(points[:, odd])
    return small, points, contrast


def _candidates(points: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return (m, 2) indices of pairs of (n, d) points within `RADIUS`, and whether these are all such pairs.

    Where there would be more than `MAX_CANDIDATES`, as judged from 2,000 points, each point brings only its nearest.
    """
    n = len(points)
    if n < 2:
        return np.empty((0, 2), np.intp), True
    tree = KDTree(points)
    neighbours = tree.query_ball_point(points[:: n // 2000 + 1], RADIUS, return_length=True)
    if (neighbours - 1).mean() * n / 2 <= MAX_CANDIDATES:
        return tree.query_pairs(RADIUS, output_type="ndarray"), True
    _, nearest = tree.query(points, k=min(n, max(8, MAX_CANDIDATES // n)), distance_upper_bound=RADIUS)
    a, b = np.repeat(np.arange(n), nearest.shape[1]), nearest.ravel()
    pair = (b < n) & (a != b)
    a, b = a[pair], b[pair]
    return np.stack(np.divmod(np.unique(np.minimum(a, b) * n + np.maximum(a, b)), n), axis=1), False


def _compare(thumbnails: np.ndarray, small: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return, of dtype `PAIR`, those of the (m, 2) candidate pairs that are one picture."""
    left, right = small[pairs[:, 0]], small[pairs[:, 1]]
    upright = np.einsum("nij,nij->n", left, right)
    mirrored = np.einsum("nij,nij->n", left, right[:, :, ::-1])
    alike = np.maximum(upright, mirrored) >= MIN_CORRELATION
    pairs, flip = pairs[alike], (mirrored > upright)[alike]
    a, b = thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]]
    b[flip] = b[flip][:, :, ::-1]
    values = difference(a, b)
    compared = np.empty(len(pairs), PAIR)
    compared["a"], compared["b"], compared["difference"], compared["mirrored"] = *pairs.T, values, flip
    return compared[values <= NEAR]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how much pairs of thumbnails differ: 0 for equal, about 1 for unrelated.

    Brightness and contrast are fitted first. The residual is smoothed, and its root mean square is taken in the worst
    5x5 window, in units of the contrast of `a`: the measure is local because the edit that makes a fake is local,
    while compression is everywhere. Thumbnails that differ are compared once more after `b` is aligned to `a` by an
    affine map (ECC: Evangelidis and Psarakis, IEEE TPAMI 30(10), 2008), which undoes a small crop.

    Args:
        a, b: (m, 32, 32) uint8.

    Returns:
        (m,) float32.
    """
    values = _residual(a, b, np.ones(a.shape, np.float32))
    for k in np.flatnonzero(values > NEAR):
        if (aligned := _align(a[k], b[k])) is not None:
            values[k] = min(values[k], _residual(a[k], *aligned))
    return values


def _align(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return `b` moved onto `a`, and 1 where it then covers `a`; None if no small move makes them alike."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 1e-3)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, warp = cv2.findTransformECC(a, b, start, cv2.MOTION_AFFINE, criteria, None, 1)
    except cv2.error:  # did not converge
        return None
    corners = np.array([[0, 0, 1], [31, 0, 1], [0, 31, 1], [31, 31, 1]])
    if not np.abs(corners @ warp.T - corners[:, :2]).max() <= MAX_MOVE:
        return None
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(b, warp, (32, 32), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    covered = cv2.warpAffine(np.ones((32, 32), np.float32), warp, (32, 32), flags=flags) > 0.99
    return moved, covered.astype(np.float32)


def _residual(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the worst local RMS of a - (gain b + offset) where `inside` is 1, in units of the contrast."""

    def total(x: np.ndarray) -> np.ndarray:
        return x.sum(axis=(-2, -1), keepdims=True)

    count = total(inside)
    a = (a - total(a * inside) / count) * inside
    b = (b - total(b * inside) / count) * inside
    gain = total(a * b) / np.maximum(total(b * b), 1e-6)
    contrast = np.sqrt(np.maximum(total(a * a) / count, 1e-6))
    smooth = SMOOTHING @ (a - gain * b) @ SMOOTHING
    return np.sqrt((WINDOW @ (smooth * smooth) @ WINDOW).max(axis=(-2, -1))) / contrast[..., 0, 0]


def _ranks(splits: Sequence[str]) -> np.ndarray:
    """Return 0 for train, 1 for validation, 2 for test splits."""
    names, inverse = np.unique(np.asarray(splits, dtype=str), return_inverse=True)
    ranks = {"train": 0, "validation": 1} | {name: 2 for name in names if name == "test" or name[:5] == "test_"}
    if unknown := [str(name) for name in names if name not in ranks]:
        raise ValueError(f"unknown split {unknown[0]!r}: train, validation, test or test_*")
    return np.array([ranks[name] for name in names], int)[inverse]


def _one_picture(near: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return the `near` pairs that must not have two labels."""
    near = near[near["difference"] <= SAME]
    return near[np.array([groups[a] != groups[b] for a, b in zip(near["a"], near["b"], strict=True)], bool)]


def _match(
    duplicates: Duplicates, near: np.ndarray, asking: np.ndarray, against: np.ndarray, labels: np.ndarray | None = None
) -> np.ndarray:
    """Return, for each `asking` image, the index of a duplicate of it among `against`, or -1.

    With `labels`, only a duplicate with another label counts. Images with the same pixels are one node, represented by
    one image per label, so that the time grows with the number of images and near pairs, not with that of all pairs.
    """
    n = len(duplicates.first)
    classes, code = np.unique(labels if labels is not None else np.zeros(n, int), return_inverse=True)
    # witness[node, class]: the first image of `against` with these pixels and that class.
    witness = np.full((n, len(classes)), n)
    chosen = np.flatnonzero(against)
    np.minimum.at(witness, (duplicates.first[chosen], code[chosen]), chosen)
    best = witness.copy()
    for here, there in ((near["a"], near["b"]), (near["b"], near["a"])):
        np.minimum.at(best, here, witness[there])
    best = best[duplicates.first]
    if labels is not None:
        best[np.arange(n), code] = n
    match = best.min(axis=1)
    return np.where(asking & (match < n), match, -1)


def _count_pairs(duplicates: Duplicates, cell: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Count exact and near pairs between cells (split and class): two symmetric (cells, cells) int arrays."""
    n, near = len(cell), duplicates.near
    members = csr_array((np.ones(n, np.int64), (duplicates.first, cell)), (n, cells))
    exact = (members.T @ members).toarray()
    exact -= np.diag(np.bincount(cell, minlength=cells))
    exact[np.diag_indices(cells)] //= 2
    crossed = (members[near["a"]].T @ members[near["b"]]).toarray()
    return exact, crossed + crossed.T - np.diag(np.diag(crossed))
