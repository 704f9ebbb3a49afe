import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.prepare import duplicates
from detector.prepare.duplicates import (
    NEAR,
    PAIR,
    SAME,
    Duplicates,
    clusters,
    difference,
    find_duplicates,
    fingerprint,
    resolve_test_set,
    shared_sources,
    summary,
)


def picture(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """Colour blobs with some finer texture, (size, size, 3) uint8."""
    coarse = cv2.resize(rng.uniform(20, 235, (7, 7, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 12, (24, 24, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [picture(rng) for _ in range(n)]


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def find(images: list[np.ndarray]) -> Duplicates:
    return find_duplicates(np.stack([fingerprint(image) for image in images]))


def made(n: int, exact=(), near=()) -> Duplicates:
    """A result with groups of equal images `exact` and pairs `near` of (a, b, difference)."""
    first = np.arange(n)
    for group in exact:
        first[list(group)] = min(group)
    return Duplicates(first, np.array([(a, b, value, False) for a, b, value in near], PAIR), 0, True)


# ---- fingerprints


def test_a_fingerprint_is_small_and_tells_equal_bytes_of_another_shape_apart():
    image = picture(np.random.default_rng(0), 64)
    row = fingerprint(image)
    assert row.shape == () and row.nbytes == 1056
    assert np.array_equal(row["sha256"], fingerprint(image.copy())["sha256"])
    assert not np.array_equal(row["sha256"], fingerprint(image.reshape(32, 128, 3))["sha256"])


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (700, 20, 3)])
def test_any_shape_has_a_fingerprint(shape):
    assert fingerprint(np.full(shape, 9, np.uint8))["thumbnail"].tolist() == [[9] * 32] * 32


def test_a_view_that_is_not_contiguous_is_the_same_image():
    image = picture(np.random.default_rng(0))
    assert fingerprint(image[:, ::-1]) == fingerprint(np.ascontiguousarray(image[:, ::-1]))


# ---- search


def test_exact_copies_point_to_the_first():
    a, b, c = pictures(3)
    found = find([a, b, a, c, b, a])
    assert found.first.tolist() == [0, 1, 0, 3, 1, 0]
    assert len(found.near) == 0


ALTERED = {
    "jpeg 30": lambda x: jpeg(x, 30),
    "half": lambda x: scaled(x, 0.5),
    "twice, jpeg 50": lambda x: jpeg(scaled(x, 2), 50),
    "other aspect": lambda x: cv2.resize(x, (96, 64), interpolation=cv2.INTER_AREA),
    "brighter": lambda x: np.clip(x * 1.1, 0, 255).astype(np.uint8),
    "flatter": lambda x: (x * 0.8 + 25).astype(np.uint8),
    "grey": lambda x: cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    "cropped": lambda x: x[1:-2, 2:-1],
    "mirrored": lambda x: x[:, ::-1],
    "mirrored, half, jpeg 50": lambda x: jpeg(scaled(x[:, ::-1].copy(), 0.5), 50),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_altered_copies_are_found_and_nothing_else(alter):
    images = pictures(60)
    found = find(images + [alter(image) for image in images[:20]])
    assert {(a, b) for a, b in found.near[["a", "b"]].tolist()} == {(i, 60 + i) for i in range(20)}
    assert (found.near["difference"] <= NEAR).all()


def test_a_mirrored_copy_says_so():
    image, other = pictures(2)
    assert find([image, other, image[:, ::-1]]).near["mirrored"].tolist() == [True]
    assert find([image, other, jpeg(image, 60)]).near["mirrored"].tolist() == [False]


def test_an_edit_in_one_place_is_not_the_same_picture_but_compression_everywhere_is():
    images = pictures(20)
    thumbnails = np.stack([fingerprint(image)["thumbnail"] for image in images])
    compressed = np.stack([fingerprint(jpeg(image, 60))["thumbnail"] for image in images])
    for image, other in zip(images, pictures(20, seed=1), strict=True):
        image[36:60, 30:66] = other[36:60, 30:66]
    edited = np.stack([fingerprint(image)["thumbnail"] for image in images])
    assert difference(thumbnails, compressed).max() < SAME < difference(thumbnails, edited).min()


def test_another_face_in_the_same_frame_is_another_picture():
    images = pictures(20)
    others = [image.copy() for image in images]
    for image, other in zip(others, pictures(20, seed=1), strict=True):
        image[36:60, 36:60] = image[36:60, 36:60] // 2 + other[36:60, 36:60] // 2
    assert len(find(images + others).near) == 0


def test_images_without_structure_are_compared_exactly_only():
    found = find([np.full((40, 40, 3), level, np.uint8) for level in (0, 0, 1, 90)])
    assert found.first.tolist() == [0, 0, 2, 3]
    assert len(found.near) == 0 and found.flat == 4


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_compare(n):
    found = find_duplicates(np.zeros(n, duplicates.FINGERPRINT))
    assert found.first.tolist() == list(range(n)) and len(found.near) == 0


def test_a_crowd_is_searched_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 100)
    images = pictures(30)
    crowd = [jpeg(images[0], quality) for quality in range(40, 90)]
    found = find(images + crowd + [jpeg(images[7], 50)])
    assert not found.complete
    assert (7, 80) in found.near[["a", "b"]].tolist()
    assert len(found.near) < 50 * 49 / 2
    assert (np.bincount(clusters(found)) > 1).sum() == 2


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 60), st.booleans())
def test_the_search_space_never_moves_two_images_apart(seed, noise, mirror):
    """So a search within a radius misses no pair whose thumbnails lie within that radius."""
    rng = np.random.default_rng(seed)
    a = fingerprint(picture(rng))["thumbnail"].astype(float)
    b = np.clip((a[:, ::-1] if mirror else a) + rng.normal(0, noise, a.shape), 0, 255)
    small, points, _ = duplicates._describe(np.stack([a, b]).astype(np.uint8))
    apart = min(np.linalg.norm(small[0] - small[1]), np.linalg.norm(small[0] - small[1][:, ::-1]))
    assert np.linalg.norm(points[0] - points[1]) <= apart + 1e-5


# ---- resolution


def resolve(found, splits, labels, policy="drop", groups=None):
    """`duplicates.resolve`, by default with a group of its own for every image."""
    return duplicates.resolve(found, splits, labels, policy, range(len(labels)) if groups is None else groups)


def test_the_split_that_judges_keeps_its_image():
    splits = ["train", "test", "train", "validation", "validation", "test", "train"]
    found = made(7, exact=[(0, 1)], near=[(2, 3, 0.1), (4, 5, 0.02)])
    resolution = resolve(found, splits, [0] * 7)
    assert resolution.reason.tolist() == ["leak", "", "leak", "", "leak", "", ""]
    assert resolution.partner.tolist() == [1, -1, 3, -1, 5, -1, -1]
    assert resolution.keep.tolist() == [False, True, False, True, False, True, True]
    assert resolve(found, splits, [0] * 7, "report").keep.all()


def test_conflicting_labels_are_excluded_wherever_they_are_and_under_either_policy():
    splits = ["train", "train", "test", "test_fog", "test", "train"]
    found = made(6, exact=[(0, 1), (2, 3)], near=[(4, 5, SAME / 2)])
    for policy in ("drop", "report"):
        resolution = resolve(found, splits, ["real", "fake", "real", "fake", "fake", "real"], policy)
        assert resolution.reason.tolist() == ["conflict"] * 6
        assert resolution.partner.tolist() == [1, 0, 3, 2, 5, 4]


def test_every_copy_of_a_conflicting_image_is_excluded():
    found = made(4, exact=[(0, 1, 2)], near=[(0, 3, 0.01)])
    assert resolve(found, ["train"] * 4, [0, 0, 0, 1]).reason.tolist() == ["conflict"] * 4


def test_a_fake_and_the_real_image_it_was_made_from_are_no_conflict():
    found = made(2, near=[(0, 1, 2 * SAME)])
    assert resolve(found, ["train", "train"], [0, 1]).keep.all()
    assert resolve(found, ["train", "test"], [0, 1]).reason.tolist() == ["leak", ""]


def test_pairs_within_a_split_and_between_test_sets_stay():
    found = made(4, exact=[(0, 1)], near=[(2, 3, 0.0)])
    assert resolve(found, ["train", "train", "test", "test_perturbed"], [0, 0, 1, 1]).keep.all()


def test_an_image_never_goes_for_a_chain():
    # 0 is like 1 and 1 like 2, but 0 is not like 2: once 1 has gone, 0 judges and teaches nothing twice.
    found = made(3, near=[(0, 1, 0.1), (1, 2, 0.1)])
    assert resolve(found, ["train", "validation", "test"], [0, 0, 0]).reason.tolist() == ["", "leak", ""]
    assert resolve(found, ["train", "train", "test"], [0, 0, 0]).reason.tolist() == ["", "leak", ""]
    assert len(set(clusters(found).tolist())) == 1


def test_a_misspelt_split_or_policy_is_refused():
    with pytest.raises(ValueError, match="'tset'"):
        resolve(made(1), ["tset"], [0])
    with pytest.raises(ValueError, match="'delete'"):
        resolve(made(1), ["test"], [0], "delete")


RANK = {"train": 0, "validation": 1, "test": 2, "test_fog": 2}


@st.composite
def cases(draw):
    n = draw(st.integers(1, 12))
    node = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    first = np.array([node.index(k) for k in node])
    firsts = sorted(set(first.tolist()))
    possible = [(a, b) for a in firsts for b in firsts if a < b]
    chosen = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    values = [draw(st.sampled_from([0.0, 0.04, 0.1])) for _ in chosen]
    near = np.array([(*pair, v, False) for pair, v in zip(chosen, values, strict=True)], PAIR)
    splits = draw(st.lists(st.sampled_from(list(RANK)), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    return Duplicates(first, near, 0, True), splits, labels


def image_pairs(found: Duplicates, limit: float = NEAR) -> set[tuple[int, int]]:
    """Every pair of images that are duplicates, by comparing all with all."""
    alike = {(a, b) for a, b, value, _ in found.near.tolist() if value <= limit}
    alike |= {(b, a) for a, b in alike} | {(k, k) for k in found.first.tolist()}
    n = len(found.first)
    return {(i, j) for i in range(n) for j in range(n) if i != j and (found.first[i], found.first[j]) in alike}


@settings(deadline=None)
@given(cases())
def test_resolve_agrees_with_comparing_all_with_all(case):
    found, splits, labels = case
    reason = [""] * len(splits)
    for i, j in image_pairs(found, SAME):
        if labels[i] != labels[j]:
            reason[i] = "conflict"
    for level in (1, 0):
        before = list(reason)
        for i, j in image_pairs(found):
            if before[i] == before[j] == "" and RANK[splits[i]] == level < RANK[splits[j]]:
                reason[i] = "leak"
    resolution = resolve(found, splits, labels)
    assert resolution.reason.tolist() == reason
    for i in np.flatnonzero(~resolution.keep):
        assert (i, resolution.partner[i]) in image_pairs(found)


@settings(deadline=None)
@given(cases())
def test_summary_counts_every_pair_of_images_once(case):
    found, splits, labels = case
    account = summary(found, resolve(found, splits, labels), splits, labels, [f"{i}.jpg" for i in range(99)])
    json.dumps(account)
    tables = [*account["leaks"].values(), *account["between_test_sets"].values()]
    rows = tables + list(account["within_splits"].values())
    pairs = {(i, j) for i, j in image_pairs(found) if i < j}
    exact = {(i, j) for i, j in pairs if found.first[i] == found.first[j]}
    across_splits = {(i, j) for i, j in pairs if splits[i] != splits[j]}
    assert sum(row["exact"] for row in rows) == len(exact)
    assert sum(row["near"] for row in rows) == len(pairs - exact)
    assert sum(row["exact"] + row["near"] for row in tables) == len(across_splits)
    assert sum(row["across_classes"] for row in rows) == sum(labels[i] != labels[j] for i, j in pairs)


def test_summary_reads_in_order_of_weight():
    splits = ["train", "test", "test_fog", "test", "train", "train", "validation"]
    found = made(7, exact=[(0, 3)], near=[(1, 2, 0.03), (4, 5, 0.0), (5, 6, 0.12)])
    labels = ["real", "real", "real", "fake", "fake", "fake", "fake"]
    account = summary(found, resolve(found, splits, labels), splits, labels, list("abcdefg"), worst=3)
    assert account["excluded"] == {"test": 1, "train": 1}
    assert account["dropped"] == {"train": 1}
    assert account["leaks"] == {
        "train / test": {"exact": 1, "near": 0, "across_classes": 1},
        "train / validation": {"exact": 0, "near": 1, "across_classes": 0},
    }
    assert account["between_test_sets"] == {"test / test_fog": {"exact": 0, "near": 1, "across_classes": 0}}
    assert account["within_splits"] == {"train": {"exact": 0, "near": 1, "across_classes": 0}}
    assert [example["paths"] for example in account["examples"]] == [["a", "d"], ["f", "g"], ["e", "f"]]
    assert account["examples"][0]["kind"] == "exact"
    assert account["clusters"] == 3 and account["largest_cluster"] == 3


def test_a_fake_may_look_like_the_image_of_its_own_group_unless_it_is_that_very_image():
    found = made(4, exact=[(0, 1)], near=[(2, 3, 0.01)])
    places, labels = ["train"] * 4, ["real", "fake"] * 2
    assert resolve(found, places, labels, groups=["a", "a", "b", "b"]).reason.tolist() == ["conflict"] * 2 + [""] * 2
    assert resolve(found, places, labels, groups=["a", "a", "b", "c"]).reason.tolist() == ["conflict"] * 4


@settings(deadline=None)
@given(cases(), st.data())
def test_a_further_test_set_agrees_with_comparing_all_with_all(case, data):
    found, _, labels = case
    trained = data.draw(st.integers(0, len(labels) - 1))
    size = len(labels) - trained
    groups = [None] * trained + data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    reason = [""] * len(labels)
    for i, j in image_pairs(found):
        if i >= trained > j:
            reason[i] = "leak"
    group_of = [groups[k] for k in found.first]  # of those with equal pixels, the first stands for all
    for i, j in image_pairs(found, SAME):
        one_picture = found.first[i] == found.first[j] or group_of[i] != group_of[j]
        if min(i, j) >= trained and labels[i] != labels[j] and one_picture:
            reason[i] = "conflict"
    resolution = resolve_test_set(found, trained, labels[trained:], groups[trained:])
    assert resolution.reason.tolist() == reason[trained:]
    for i in np.flatnonzero(~resolution.keep):
        partner = resolution.partner[i] + (trained if resolution.reason[i] == "conflict" else 0)
        assert (i + trained, partner) in image_pairs(found)


# ---- shared_sources


def test_copies_within_a_split_share_a_source_and_so_do_their_groups():
    splits = ["test", "test", "test", "test", "train", "train", "test"]
    groups = ["b", "b", "a", "c", "d", "e", "f"]
    first = np.array([0, 1, 2, 3, 3, 5, 6])  # 4, in train, has the pixels of 3, in test
    near = np.array([(1, 2, 0.1, False), (3, 5, 0.1, False)], PAIR)  # 5, in train, resembles both
    found = shared_sources(Duplicates(first, near, 0, True), splits, groups)
    assert found == ["a", "a", "a", "c", "d", "d", "f"]


def test_without_copies_every_group_stays():
    groups = ["x", "y", "x", ""]
    nothing = Duplicates(np.arange(4), np.empty(0, PAIR), 0, True)
    assert shared_sources(nothing, ["train", "test", "test", "train"], groups) == groups
    assert shared_sources(Duplicates(np.arange(0), np.empty(0, PAIR), 0, True), [], []) == []
