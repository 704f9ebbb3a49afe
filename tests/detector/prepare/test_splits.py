"""Layout, classes, manifest and the drawing of splits, on lists of paths: no file is touched."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import detector
from detector.data.split_names import split_name
from detector.errors import UserError
from detector.params import DataParams, load_params
from detector.prepare.manifest import Manifest, parse_manifest
from detector.prepare.names import clean_path
from detector.prepare.splits import catalog, split_groups

DEFAULTS = load_params(Path(detector.__file__).parent.parent / "params.yaml").data
SHARES = {"test": 0.15, "validation": 0.12}
OFFICIAL = [f"{s}/{k}/{i}.jpg" for s in ("Train", "Validation", "Test") for k in ("Real", "Fake") for i in range(4)]


def params(**changes) -> DataParams:
    return DataParams.model_validate(DEFAULTS.model_dump() | {"source": "folder", "path": "x"} | changes)


def read(paths, *, manifest: str | None = None, root="/data/faces", seed=0, **changes):
    rows = parse_manifest(manifest.encode(), "m.csv") if manifest else None
    return catalog(paths, params(**changes), seed, root=root, manifest=rows, key="data.path")


def placed(found) -> dict[str, tuple[str, str]]:
    return {entry.path: (entry.split, entry.kind) for entry in found.entries}


def under(prefix, paths=OFFICIAL):
    return [prefix + path for path in paths]


def without(prefix):
    return [path for path in OFFICIAL if not path.startswith(prefix)]


def refusal(paths, **options) -> str:
    with pytest.raises(UserError) as refused:
        read(paths, **options)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Train", "train"), ("TRAINING", "train"), ("training", "train"),
        ("Validation", "validation"), ("val", "validation"), ("VALID", "validation"),
        ("test", "test"), ("Testing", "test"),
        ("Test_Perturbed", "test_perturbed"), ("test-fog and rain", "test_fog_and_rain"),
        ("TEST-a-b", "test_a_b"),
        ("real", None), ("tests", None), ("test_", None), ("test-!", None), ("train_2", None), ("", None),
    ],
)  # fmt: skip
def test_split_names(folder, split):
    assert split_name(folder) == split


undecodable = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])


@given(st.text(st.characters(exclude_categories=["Cs"]) | undecodable | st.sampled_from("/\\."), max_size=20))
def test_any_name_becomes_a_path_that_can_be_printed(name):
    path = clean_path(name)
    path.encode("utf-8")
    assert not path.startswith("/") and "//" not in path
    assert clean_path("./" + name) == path


# ---- layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "Dataset/",
        "a/b/c/",
        "test/Dataset/",
        "train/",
        "Test/train/x/",
        "real/",
        "test/real/x/",
        "Train/Fake/",
    ],
)
def test_official_layout_at_any_depth_under_any_name(prefix):
    found = read(under(prefix))
    assert placed(found) == {
        prefix + path: (path.split("/")[0].lower(), path.split("/")[1].lower()) for path in OFFICIAL
    }
    assert found.classes == ["real", "fake"] and not found.ignored
    assert [entry.path for entry in found.entries] == sorted(under(prefix))


def test_a_long_name_of_a_test_set_is_cut_and_still_its_own():
    long = [split_name(f"Test_{'x' * 70}{end}") for end in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) == len("test_") + 60


def test_letter_case_and_other_split_names_are_one():
    paths = [
        "TRAINING/REAL/a.jpg",
        "train/real/b.jpg",
        "Train/FAKE/c.jpg",
        "valid/Real/d.jpg",
        "val/fake/e.jpg",
    ]
    found = read([*paths, "Testing/Real/f.jpg", "test/fAkE/g.jpg"])
    assert Counter(placed(found).values()) == Counter(
        [("train", "real")] * 2 + [("train", "fake")]
        + [(split, kind) for split in ("validation", "test") for kind in ("real", "fake")]
    )  # fmt: skip


@pytest.mark.parametrize("below", ["a/b/", "test/video 1/", "test/real/"])
def test_folders_below_the_class_do_not_matter_even_when_named_like_splits(below):
    deep = [path.replace("/Real/", f"/Real/{below}") for path in OFFICIAL]
    assert Counter(placed(read(deep)).values()) == Counter(placed(read(OFFICIAL)).values())


def test_further_test_sets_may_hold_one_class():
    found = read([*OFFICIAL, "Test_Perturbed/Fake/1.jpg", "elsewhere/test-GAN 2/Fake/1.jpg"])
    assert placed(found)["Test_Perturbed/Fake/1.jpg"] == ("test_perturbed", "fake")
    assert placed(found)["elsewhere/test-GAN 2/Fake/1.jpg"] == ("test_gan_2", "fake")


def test_several_data_sets_beside_each_other():
    found = read([*under("a/"), *under("b/deeper/"), "c/Test/Real/1.jpg", "c/Test/Fake/1.jpg"])
    assert len(found.entries) == 2 * len(OFFICIAL) + 2
    assert placed(found)["b/deeper/Validation/Fake/1.jpg"] == ("validation", "fake")


def test_several_data_sets_in_a_folder_called_test():
    found = read([*under("test/a/"), *under("test/b/")])
    assert placed(found)["test/b/Train/Real/1.jpg"] == ("train", "real") and len(found.entries) == 2 * len(OFFICIAL)


def test_data_sets_of_one_class_each():
    paths = [f"{name}/{split}/{kind}/1.jpg" for name, kind in (("ffhq", "real"), ("gan", "fake"))
             for split in ("train", "val", "test")]  # fmt: skip
    assert len(read(paths).entries) == 6


def test_splits_below_the_classes():
    turned = ["/".join([p.split("/")[1], p.split("/")[0], p.split("/")[2]]) for p in OFFICIAL]
    assert Counter(placed(read(turned)).values()) == Counter(placed(read(OFFICIAL)).values())


def test_images_beside_the_layout_are_counted():
    found = read([*OFFICIAL, "cover.jpg", "docs/figures/1.png"])
    assert len(found.entries) == len(OFFICIAL) and sum(found.ignored.values()) == 2


def test_any_name_can_be_the_real_class():
    paths = [path.replace("Real", "Authentic Photos") for path in OFFICIAL]
    assert read(paths, real_class=" AUTHENTIC photos").classes == ["authentic photos", "fake"]


@pytest.mark.parametrize("prefix", ["", "photos/", "test/photos/", "Train/x/", "real or fake/v2/"])
def test_a_folder_of_classes_is_split_by_ratio(prefix):
    paths = [f"{prefix}{kind}/sub {i % 3}/{i}.jpg" for kind in ("Real", "FAKE") for i in range(200)]
    found = read(paths, test_fraction=0.2, validation_fraction=0.25)
    assert Counter(placed(found).values()) == {
        (split, kind): n for split, n in (("test", 40), ("validation", 40), ("train", 120)) for kind in found.classes
    }


def test_a_missing_validation_split_is_carved_from_train_alone():
    paths = [f"{split}/{kind}/{i}.jpg" for split in ("Train", "Test") for kind in ("Real", "Fake") for i in range(100)]
    found = read(paths, validation_fraction=0.1)
    assert Counter(placed(found).values()) == {
        (split, kind): n for split, n in (("train", 90), ("validation", 10), ("test", 100)) for kind in found.classes
    }
    assert all(path.startswith("Train/") for path, (split, _) in placed(found).items() if split == "validation")


def test_every_further_folder_is_a_class_of_fakes():
    paths = [*OFFICIAL, *(path.replace("Fake", "GAN") for path in OFFICIAL if "Fake" in path)]
    found = read(paths)
    assert found.classes == ["real", "fake", "gan"]
    assert Counter(entry.kind for entry in found.entries) == {"real": 12, "fake": 12, "gan": 12}


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (without("Test"), ["data.path", "no test split", "train, validation"]),
        (without("Train"), ["data.path", "no train split"]),
        (without("Train/Fake"), ["data.path", "no fake image in the train split"]),
        (without("Validation/Fake"), ["data.path", "no fake image in the validation split"]),
        (without("Test/Real"), ["data.path", "no real image in the test split"]),
        ([p for p in OFFICIAL if "Real" in p], ["data.path", "two classes", "real 12"]),
        ([p for p in OFFICIAL if "Fake" in p], ["data.real_class", "found fake"]),
        ([p.replace("Real", "True") for p in OFFICIAL], ["data.real_class", "fake, true"]),
        ([*OFFICIAL, "Train/GAN/1.jpg"], ["data.path", "no gan image in the validation split"]),
        (["1.jpg", "2.jpg"], ["data.path", "2 images lie in no class folder"]),
        (["Real/1.jpg", "Real/2.jpg", "Fake/1.jpg"], ["data.path", "groups that stay whole"]),
        ([*under("old/"), *(f"{k}/{i}.jpg" for k in ("Real", "Fake") for i in range(90))],
         ["data.path", "24 images", "old/Test/Fake", "180 do not"]),
        ([f"Train/class {i}/1.jpg" for i in range(900)], ["data.real_class", "and 892 more"]),
    ],
)  # fmt: skip
def test_what_makes_no_data_set_is_refused_in_one_line(paths, words):
    assert all(word in refusal(paths) for word in words)


# ---- manifest ----------------------------------------------------------------------------------------------


def rows(
    paths,
    *,
    prefix="",
    group=lambda path: Path(path).stem,
    header="path,group,source,method,width",
    tail="s,m,1",
):
    return "\n".join([header, *(f"{prefix}{path},{group(path)},{tail}" for path in paths)])


def test_groups_hold_within_their_split_and_other_columns_become_attributes():
    found = read(OFFICIAL, manifest=rows(OFFICIAL))
    assert {entry.path: entry.group for entry in found.entries}["Train/Real/3.jpg"] == "train/3"
    assert len({entry.group for entry in found.entries}) == 12 and found.ungrouped == 0
    assert found.entries[0].attributes == {"source": "s", "method": "m"}


def test_images_without_a_row_are_groups_of_their_own_and_counted():
    manifest = rows(OFFICIAL[:-3]) + f"\n{OFFICIAL[-3]},,s,m,1\n\n"
    found = read(OFFICIAL, manifest=manifest)
    alone = [entry for entry in found.entries if entry.group == entry.path]
    assert {entry.path for entry in alone} == set(OFFICIAL[-3:]) and found.ungrouped == 3
    assert read(OFFICIAL).ungrouped == len(OFFICIAL)


def test_windows_excel_and_sloppy_manifests_are_read():
    text = "\ufeffGroup , PATH\r\n" + "\r\n".join(f'"{i}", .\\' + p.replace("/", "\\") for i, p in enumerate(OFFICIAL))
    found = read(OFFICIAL, manifest=text)
    assert found.ungrouped == 0 and found.entries[0].attributes == {}


@pytest.mark.parametrize(
    ("root", "prefix"),
    [
        ("/data/faces", ""),
        ("/data/faces", "faces/"),
        ("/data/faces/", "data/faces/"),
        ("/elsewhere/copy", "faces/"),
    ],
)
def test_a_manifest_of_a_parent_folder(root, prefix):
    found = read(OFFICIAL, manifest=rows(OFFICIAL, prefix=prefix), root=root)
    assert found.ungrouped == 0


def test_a_manifest_of_a_folder_inside():
    assert read(under("wrapper/"), manifest=rows(OFFICIAL)).ungrouped == 0


def test_the_rows_meant_are_those_of_the_folder_the_data_lie_in():
    both = rows(OFFICIAL, prefix="other/", group=lambda p: "wrong") + "\n" + rows(OFFICIAL, prefix="faces/")
    found = read(OFFICIAL, manifest=both, root="/data/faces")
    assert found.ungrouped == 0 and not any("wrong" in entry.group for entry in found.entries)
    both = both.replace("other/", "")
    assert not any("wrong" in entry.group for entry in read(OFFICIAL, manifest=both, root="/data/faces").entries)
    both = rows(OFFICIAL, prefix="other/") + "\n" + rows(OFFICIAL, prefix="faces/")
    assert "more than one way (faces/, other/)" in refusal(OFFICIAL, manifest=both, root="/data/copy")


def test_a_manifest_of_something_else():
    message = refusal(OFFICIAL, manifest=rows(["a.jpg", "b.jpg"]))
    assert "data.manifest" in message and "a.jpg" in message and "Test/Fake/0.jpg" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no column path"]),
        ("path,label\na.jpg,1", ["no column group", "it has: path, label"]),
        ("path;group\na.jpg;1", ["no column path", "path;group"]),
        ("path,group\na.jpg,1\na.jpg,2", ["a.jpg", "twice"]),
        ("path,group,split\na.jpg,1,holdout", ["a.jpg", "holdout"]),
        ('path,group\n"' + "x" * 200_000, ["not a CSV"]),
    ],
)
def test_a_bad_manifest_is_refused_in_one_line(text, words):
    with pytest.raises(UserError) as refused:
        parse_manifest(text.encode(), "m.csv")
    assert all(word in str(refused.value) for word in ["data.manifest", "m.csv", *words])


@given(st.binary(max_size=200))
@example(b"path,group\n\xff.jpg,\xfe\n")
def test_any_bytes_are_a_manifest_or_refused(data):
    try:
        manifest = parse_manifest(b"path,group,x\n" + data, "m.csv")
    except UserError:
        return
    for path, row in manifest.rows.items():
        (path + row.group + row.kind + "".join(row.attributes.values())).encode("utf-8")


def test_a_manifest_says_split_and_class_where_folders_do_not():
    paths = [f"images/{i}.jpg" for i in range(12)]
    kinds, splits = ["Real", "Fake"], ["train", "Val", "TEST"]
    lines = [f"{p},{i},{splits[i % 3]},{kinds[i // 3 % 2]}" for i, p in enumerate(paths)]
    found = read(paths, manifest="\n".join(["path,group,split,class", *lines[:-1]]))
    assert placed(found)["images/7.jpg"] == ("validation", "real") and found.entries[0].attributes == {}
    assert len(found.entries) == 11 and found.ignored == {"images in no class folder": 1}


def test_a_manifest_says_the_class_below_split_folders_and_the_split_of_class_folders():
    below = [f"test/data/{split}/{i}.jpg" for split in ("train", "val", "test") for i in range(4)]
    lines = [f"{path},{path},{'real' if '0' in path or '1' in path else 'fake'}" for path in below]
    found = read(below, manifest="\n".join(["path,group,class", *lines]))
    assert placed(found)["test/data/val/3.jpg"] == ("validation", "fake")

    above = [f"{kind}/{i}.jpg" for kind in ("Real", "Fake") for i in range(6)]
    lines = [f"{path},{path},{('train', 'val', 'test')[int(path[5]) % 3]}" for path in above]
    found = read(above, manifest="\n".join(["path,group,split", *lines[:-1]]))
    assert placed(found)["Real/2.jpg"] == ("test", "real") and found.ignored == {"images in no split folder": 1}


def test_folders_overrule_a_manifest():
    found = read(OFFICIAL, manifest=rows(OFFICIAL, header="path,group,split,class", tail="test,fake"))
    assert placed(found) == placed(read(OFFICIAL))


def test_a_manifest_without_rows_for_the_data_is_an_error_but_no_manifest_is_not():
    with pytest.raises(UserError):
        catalog(OFFICIAL, params(), 0, root="/x", manifest=Manifest("m.csv", {}), key="data.path")


# ---- drawing -----------------------------------------------------------------------------------------------

groups_of_images = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.lists(st.sampled_from(["real", "fake"]), min_size=1, max_size=6),
    min_size=1,
    max_size=20,
)


def complete_units(groups) -> int:
    """How many splits at most can hold both classes."""
    held = Counter(frozenset(kinds) for kinds in groups.values())
    return held[frozenset({"real", "fake"})] + min(held[frozenset({"real"})], held[frozenset({"fake"})])


@given(groups_of_images, st.integers(0, 99))
@settings(max_examples=100)
def test_every_split_has_every_class_wherever_that_can_be(groups, seed):
    split_of = split_groups(groups, SHARES, "train", seed)
    assert split_of.keys() == groups.keys() and set(split_of.values()) <= {"train", "validation", "test"}
    if complete_units(groups) >= 3:
        for split in ("train", "validation", "test"):
            assert {kind for group in groups if split_of[group] == split for kind in groups[group]} == {
                "real",
                "fake",
            }


@given(groups_of_images, st.integers(0, 99), st.randoms())
@settings(max_examples=50)
def test_a_draw_is_the_same_whatever_order_the_groups_come_in(groups, seed, random):
    shuffled = list(groups)
    random.shuffle(shuffled)
    assert split_groups({g: groups[g] for g in shuffled}, SHARES, "train", seed) == split_groups(
        groups, SHARES, "train", seed
    )


@given(st.integers(100, 400), st.integers(1, 5), st.integers(0, 9), st.sampled_from(["apart", "paired", "mixed"]))
@settings(max_examples=50, deadline=None)
def test_fractions_hold_in_each_class(n, size, seed, how):
    kinds = {
        "apart": lambda i: ["real", "fake"][i % 2 : i % 2 + 1] * (1 + i % size),
        "paired": lambda i: ["real", "fake"],
        "mixed": lambda i: [["real"], ["fake"], ["real", "fake"]][i % 3] * (1 + i % size),
    }[how]
    groups = {f"g{i}": kinds(i) for i in range(n)}
    split_of = split_groups(groups, SHARES, "train", seed)
    images = Counter((split_of[g], kind) for g in groups for kind in groups[g])
    for kind in ("real", "fake"):
        total = sum(images[split, kind] for split in ("train", "validation", "test"))
        for split, share in SHARES.items():
            assert abs(images[split, kind] - share * total) <= size


def test_a_share_is_rounded_to_the_nearest_whole_group():
    for n, expected in ((6, 1), (9, 1), (11, 2), (16, 2), (17, 3)):
        split_of = split_groups({f"g{i}": ["real", "fake"] for i in range(n)}, {"test": 0.15}, "train", 0)
        assert Counter(split_of.values())["test"] == expected


def test_a_group_larger_than_its_share_does_not_keep_others_out():
    groups = {"crowd": ["real", "fake"] * 50} | {f"g{i}": ["real", "fake"] for i in range(50)}
    for seed in range(20):
        images = Counter()
        for group, split in split_groups(groups, SHARES, "train", seed).items():
            images[split] += len(groups[group])
        assert abs(images["test"] - 30) <= 2 and abs(images["validation"] - 24) <= 2


@given(st.integers(0, 99), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_adding_groups_moves_hardly_any_other(seed, added):
    groups = {f"g{i}": ["real", "fake"][i % 2 : i % 2 + 1] for i in range(400)}
    before = split_groups(groups, SHARES, "train", seed)
    after = split_groups(groups | {f"new {i}": ["real"] for i in range(added)}, SHARES, "train", seed)
    assert sum(before[group] != after[group] for group in groups) <= 2 * added


def test_another_seed_is_another_draw():
    groups = {f"g{i}": ["real", "fake"] for i in range(200)}
    draws = [split_groups(groups, SHARES, "train", seed) for seed in range(3)]
    for one, other in itertools.combinations(draws, 2):
        assert sum(one[group] != other[group] for group in groups) > 50


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_groups_of_a_manifest_stay_whole_in_drawn_splits(seed):
    paths = [f"{kind}/{i}.jpg" for kind in ("Real", "Fake") for i in range(60)]
    found = read(paths, manifest=rows(paths, group=lambda p: int(Path(p).stem) // 4), seed=seed)
    splits = {}
    for entry in found.entries:
        assert splits.setdefault(entry.group, entry.split) == entry.split
    assert len(splits) == 15 and set(splits.values()) == {"train", "validation", "test"}

    paths = [f"{split}/{path}" for split in ("Train", "Test") for path in paths]
    found = read(paths, manifest=rows(paths, group=lambda p: int(Path(p).stem) // 4), seed=seed)
    carved = {entry.group for entry in found.entries if entry.split == "validation"}
    assert carved and not carved & {entry.group for entry in found.entries if entry.split != "validation"}
    assert {entry.path for entry in found.entries if entry.split == "test"} == set(paths[120:])
