import copy
import math
from functools import reduce
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from detector.errors import UserError
from detector.params import RENAMED, Params, flatten, load_params

TEXT = (Path(__file__).resolve().parents[2] / "params.yaml").read_text(encoding="utf-8")
SHIPPED = yaml.safe_load(TEXT)


def leaves(section: dict, above: str = "") -> dict:
    found = {}
    for key, value in section.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def sections(section: dict, above: str = "") -> list[str]:
    inner = [(f"{above}{key}", value) for key, value in section.items() if isinstance(value, dict)]
    return [path for name, value in inner for path in (name, *sections(value, f"{name}."))]


LEAVES = leaves(SHIPPED)
SECTIONS = sections(SHIPPED)
NUMBERS = {key for key, value in LEAVES.items() if type(value) in (int, float)}
FRACTIONAL = {key for key in NUMBERS if key.startswith("augment.") or type(LEAVES[key]) is float} | {
    "train.ema_decay",
    "train.label_smoothing",
    "train.min_learning_rate",
    "train.mixup",
    "train.warmup",
    "train.weight_decay",
}


def changed(key: str, value=None, *, remove: bool = False) -> dict:
    content = copy.deepcopy(SHIPPED)
    *above, last = key.split(".")
    section = reduce(dict.__getitem__, above, content)
    section[last] = value
    if remove:
        del section[last]
    return content


def line_of(key: str) -> int:
    """The number, from 0, of the first line that gives `key`, in any section."""
    return next(i for i, line in enumerate(TEXT.splitlines()) if line.split(":")[0].strip() == key)


def rewritten(key: str, value: str) -> str:
    """The shipped text with `value` for the first `key`."""
    lines = TEXT.splitlines()
    lines[line_of(key)] = lines[line_of(key)].split(":")[0] + f": {value}"
    return "\n".join(lines)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(content): what `load_params` makes of a file with that content."""
    path = tmp_path_factory.mktemp("params") / "params.yaml"

    def from_content(content: dict | str | bytes) -> Params:
        if isinstance(content, dict):
            content = yaml.safe_dump(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return load_params(path)

    return from_content


@pytest.fixture(scope="module")
def refused(load):
    """refused(content): the message, without the file's name."""

    def message(content: dict | str | bytes) -> str:
        with pytest.raises(UserError) as caught:
            load(content)
        file, _, rest = str(caught.value).partition("params.yaml: ")
        assert file and rest and len(str(caught.value).splitlines()) == 1
        return rest

    return message


def test_the_shipped_file_loads_as_it_is_written(load):
    assert flatten(load(TEXT)) == LEAVES


def test_a_path_is_taken_as_text_or_path(tmp_path):
    (tmp_path / "other.yaml").write_text(TEXT)
    assert load_params(str(tmp_path / "other.yaml")) == load_params(tmp_path / "other.yaml")


def test_parameters_cannot_be_changed(load):
    params = load(TEXT)
    with pytest.raises(ValueError):
        params.train.epochs = 3


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.binary(max_size=8),
)
anything = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(max_size=5), scalars, max_size=2))


NULLABLE = {
    "data.path": (str, list),
    "data.manifest": (str,),
    "train.clip_norm": (int, float),
    "train.progressive.image_size": (int,),
    "train.source_weights": (dict,),
}


def is_of_its_type(key: str, value) -> bool:
    allowed = type(LEAVES[key])
    if key in FRACTIONAL:
        return type(value) in (int, float)
    return type(value) is allowed or (LEAVES[key] is None and type(value) in NULLABLE[key])


@settings(max_examples=120, deadline=None)
@given(key=st.sampled_from(sorted(LEAVES)), value=anything)
def test_a_value_of_a_wrong_type_is_refused_by_name(refused, key, value):
    assume(not is_of_its_type(key, value))
    message = refused(changed(key, value))
    assert message.startswith(f"{key}: must be ")
    assert ", got " in message
    assert len(message) < 400


@pytest.mark.parametrize("key", sorted(NUMBERS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, True], ids=repr)
def test_every_number_has_a_lower_bound_and_is_a_number(refused, key, value):
    assert refused(changed(key, value)).startswith(f"{key}: must be a")


# The bounds, written down a second time: (lowest, highest) that are taken, (below, above) that are not.
@pytest.mark.parametrize(
    ("key", "taken", "not_taken"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32]),
        ("data.validation_fraction", [0.001, 0.999], [0, 1, 0.0, 1.0]),
        ("data.test_fraction", [0.001, 0.999], [0, 1]),
        ("data.max_side", [71, 16384], [70, 16385]),
        ("data.sample.train", [4, 1_000_000], [3, 1_000_001]),
        ("data.sample.validation", [4, 1_000_000], [3, 1_000_001]),
        ("data.sample.test", [4, 1_000_000], [3, 1_000_001]),
        ("data.sample.size", [64, 1024], [63, 1025]),
        ("data.kaggle", ["a/b", "A-b.c_9/x.y"], ["a", "a/b/c", "/b", "a/", "a b/c", "https://a/b", "a/b\n", ""]),
        ("data.real_class", ["0"], [""]),
        ("data.source", ["sample", "kaggle"], ["Sample", "url", ""]),
        ("model.backbone", ["xception"], ["Xception", "vgg16"]),
        ("model.weights", ["auto", "none", "a/b.weights.h5"], [""]),
        ("model.image_size", [71, 1024], [31, 70, 1025]),
        ("model.dense_units", [1, 8192], [0, 8193]),
        ("model.dropout", [0, 0.0, 0.999], [1, 1.0, -0.1]),
        ("model.batch_norm_momentum", [0.001, 0.999], [0, 1]),
        ("augment.rotation", [0, 180], [-1, 180.5]),
        ("augment.width_shift", [0, 0.99], [1, -0.1]),
        ("augment.height_shift", [0, 0.99], [1, -0.1]),
        ("augment.shear", [0, 60], [61, -1]),
        ("augment.zoom", [0, 0.99], [1, -0.1]),
        ("augment.horizontal_flip", [True, False], [0, 1, "yes"]),
        ("augment.brightness", [[1, 1], [0.1, 4]], [[], [1], [1, 1, 1], [0, 1], [1, 4.1], [1.2, 0.8], [True, 2]]),
        ("augment.cutout", [0, 0.5, 1], [-0.1, 1.1]),
        ("augment.corruption.generic", [0, 0.5, 1], [-0.1, 1.1]),
        ("augment.corruption.matched", [0, 1.0], [2]),
        ("augment.corruption.other", [0, 1.0], [2]),
        ("augment.corruption.strength", [[0, 0], [0.2, 1]], [[], [1], [0.5, 0.4], [0, 1.1]]),
        ("train.epochs", [1, 10_000], [0, 10_001, 1.0, 1.5]),
        ("train.batch_size", [2, 4096], [1, 4097]),
        ("train.learning_rate", [1e-12, 1, 1.0], [0, 1.01]),
        ("augment.self_blend.rate", [0, 0.1, 1], [-0.1, 1.1]),
        ("augment.self_blend.donor", [0, 1.0], [2]),
        ("augment.self_blend.start_epoch", [1, 100], [0, 1.5]),
        ("model.pixels", ["backbone", "0..1"], ["0..255", ""]),
        ("train.paired_batches", [True, False], [1, "yes"]),
        ("train.mixup", [0], [-0.1, 101]),
        ("train.progressive.image_size", [None, 71, 79], [70, 80, 0]),
        ("train.progressive.final_epochs", [1, 10**6], [0, 1.5]),
        ("train.progressive.augment", [0, 0.5, 1], [-0.1, 1.1]),
        ("train.monitor", ["loss", "accuracy", "auc", "worst_source_auc"], ["val_loss", ""]),
        ("train.min_learning_rate", [0, 1e-7, 0.001], [-1, 0.0011, 1.1]),
        ("train.ema_norm_images", [0], [-1, 1.5, 10]),
        ("train.schedule", ["plateau", "cosine"], ["step", ""]),
        ("train.warmup", [0, 0.0], [-0.1, 0.1, 1]),
        ("train.head_epochs", [0, 3], [-1, 4, 0.5]),
        ("train.head_learning_rate", [1e-12, 1], [0, 1.01]),
        ("train.batch_norm", ["train", "frozen"], ["on"]),
        ("train.ema_decay", [0, 0.9999], [-0.1, 1]),
        ("train.weight_decay", [0, 1], [-0.1, 1.1]),
        ("train.clip_norm", [None, 0.1, 100], [0, -1, "1"]),
        ("train.label_smoothing", [0, 0.5], [-0.1, 1]),
        ("evaluate.flip_average", [True, False], [0, "no"]),
        ("train.early_stopping_patience", [1, 10**6], [0]),
        ("train.reduce_lr_factor", [0.001, 0.999], [0, 1]),
        ("train.reduce_lr_patience", [1, 10**6], [0]),
        ("train.class_weights", ["auto", "balanced", "none"], ["", "inverse"]),
        ("train.precision", ["auto", "float32", "bfloat16"], ["float16", "mixed", ""]),
        ("evaluate.threshold", [0.001, 0.999, "auto"], [0, 1, "Auto"]),
        ("evaluate.calibration.images", ["clean", "perturbed", "mixed"], ["dirty"]),
        (
            "evaluate.calibration.corruption_sets",
            [["generic"], ["generic", "matched"], ["other"]],
            [[], ["fog"], "generic"],
        ),
        ("evaluate.calibration.corruptions", [1, 4], [0, 5]),
        ("evaluate.calibration.strength", [[0, 0], [0.2, 1]], [[], [1], [0.5, 0.4], [0, 1.1], [-1, 0]]),
        ("evaluate.calibration.max_images", [10], [9]),
        ("evaluate.max_false_positive_rate", [0, 1], [-0.1, 1.1]),
        ("evaluate.target_error", [0, 1], [-0.1, 1.1]),
        ("evaluate.bootstrap", [100], [99, 100_001]),
        ("evaluate.reencoded", [True, False], [1, "yes"]),
        ("evaluate.stress_images", [0], [-1, 1.5]),
        ("evaluate.extra_sets", [[], ["a", "b.zip"]], ["a", [""], [1]]),
        ("data.duplicates", ["drop", "report"], ["keep"]),
        ("data.face_crop", ["none"], ["as_they_are", "crop"]),
        ("plot.private", [True, False], [0, "no"]),
        ("plot.grid_images", [1, 100], [0, 101]),
    ],
)
def test_ranges(load, refused, key, taken, not_taken):
    for value in taken:
        assert flatten(load(changed(key, value)))[key] == value
    for value in not_taken:
        assert refused(changed(key, value)).startswith(key)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", 0.5, "train.epochs: must be a whole number at least 1 and at most 10000, got 0.5"),
        ("train.epochs", True, "train.epochs: must be a whole number at least 1 and at most 10000, got true"),
        ("train.learning_rate", "abc", "train.learning_rate: must be a number above 0 and at most 1, got 'abc'"),
        ("train.precision", "fp16", "train.precision: must be one of auto, float32, bfloat16, got 'fp16'"),
        ("evaluate.threshold", None, "evaluate.threshold: must be auto or a number above 0 and below 1, got null"),
        ("evaluate.extra_sets", "a", "evaluate.extra_sets: must be a list of texts, got 'a'"),
        (
            "evaluate.calibration.corruption_sets",
            [],
            "evaluate.calibration.corruption_sets: must be a list of 1 to 3 out of generic, matched, other, got []",
        ),
        ("model.backbone", "vgg", "model.backbone: must be one of xception, "),
        ("model.weights", "", "model.weights: must be a text that is not empty, got ''"),
        ("augment.horizontal_flip", 1, "augment.horizontal_flip: must be true or false, got 1"),
        ("augment.brightness", [1], "augment.brightness: must be a list of 2 numbers, got [1]"),
        ("augment.brightness", [0, 2], "augment.brightness.0: must be a number above 0 and at most 4, got 0"),
        ("augment.brightness", [2, 1], "augment.brightness: must be [from, to] with from no larger than to"),
        ("train.mixup", 0.5, "train.mixup: needs pairs to mix; set it to 0, or train.paired_batches to true"),
        (
            "train.progressive.image_size",
            80,
            "train.progressive.image_size: must be at least 71, the least for xception, and below model.image_size, "
            "80, got 80; null trains at one size",
        ),
        ("data.kaggle", "faces", "data.kaggle: must be a text like owner/name, got 'faces'"),
        ("data.path", 3, "data.path: must be a text or a list of texts or null, got 3"),
        ("data.sample", 7, "data.sample: must be a section of keys, got 7"),
        ("data.sample", None, "data.sample: must be a section of keys, got null"),
        ("data.source", "folder", "data.path: must name a folder or an archive when data.source is folder"),
        ("plot.grid_images", [7] * 99, "plot.grid_images: must be a whole number at least 1 and at most 100, got ["),
    ],
)
def test_messages_say_what_is_allowed_and_what_was_given(refused, key, value, message):
    assert refused(changed(key, value)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"paired_batches": True, "batch_size": 15},
            "train.batch_size: must be even with",
        ),
        (
            {"progressive": {"image_size": 71, "final_epochs": 4, "augment": 1.0}, "head_epochs": 1},
            "train.progressive.final_epochs: must be at most 3, the epochs that train the whole network, got 4",
        ),
        (
            {"ema_norm_images": 64},
            "train.ema_norm_images: needs averaged weights; set it",
        ),
        ({"min_learning_rate": 0.1}, "train.min_learning_rate: must be at most train.learning_rate, 0.001, got 0.1"),
    ],
)
def test_settings_of_training_that_do_not_fit_together_are_refused(refused, changes, message):
    content = copy.deepcopy(SHIPPED)
    content["train"] |= changes
    assert refused(content).startswith(message)


@pytest.mark.parametrize(("former", "new"), RENAMED.items())
def test_a_former_key_says_what_it_is_called_now(refused, former, new):
    content = changed(new, reduce(dict.__getitem__, new.split("."), SHIPPED))
    *above, last = former.split(".")
    reduce(dict.__getitem__, above, content)[last] = 0
    assert refused(content) == f"{former}: is now called {new}; rename it"


@pytest.mark.parametrize("key", sorted([*LEAVES, *SECTIONS]))
def test_a_missing_key_is_named(refused, key):
    assert refused(changed(key, remove=True)) == f"{key}: missing; add it"


@pytest.mark.parametrize("section", ["", *(f"{name}." for name in SECTIONS)])
def test_an_unknown_key_is_named(refused, section):
    assert refused(changed(f"{section}epoch", 3)) == f"{section}epoch: unknown key; remove it or correct its spelling"


def test_all_faults_are_told_at_once(refused):
    content = changed("train.epochs", 0)
    content["model"]["dropout"], content["extra"] = 2, 1
    message = refused(content)
    assert [message.count(f"{key}: ") for key in ("train.epochs", "model.dropout", "extra")] == [1, 1, 1]


def test_a_path_without_a_folder_is_refused(load, refused):
    content = changed("data.path", "faces")
    assert refused(content).startswith("data.path: is not used when data.source is sample; set it to null, or ")
    content["data"]["source"] = "folder"
    assert load(content).data.path == "faces"


def test_a_folder_needs_a_path(load, refused):
    content = changed("data.source", "folder")
    assert refused(content).startswith("data.path: ")
    content["data"]["path"] = ""
    assert refused(content).startswith("data.path: ")
    content["data"]["path"] = "faces"
    assert load(content).data.path == "faces"


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "1.0e-4", ".1e-3", "+1e-4", "0.0001", "1.0e-04"])
def test_a_number_in_scientific_notation_is_a_number(load, number):
    assert load(rewritten("learning_rate", number)).train.learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize("number", ["2e1", "2E+1", "0.2e2", "200.e-1"])
def test_the_exponent_needs_no_sign(load, number):
    assert load(rewritten("rotation", number)).augment.rotation == 20


def test_what_only_looks_like_scientific_notation_stays_a_text(load):
    assert load(rewritten("weights", "1e4.h5")).model.weights == "1e4.h5"


@pytest.mark.parametrize("key", ["seed", "epochs", "size"])
@pytest.mark.parametrize("value", [None, "64"], ids=["the same value", "another value"])
def test_a_key_given_twice_is_refused_with_its_line(refused, key, value):
    lines = TEXT.splitlines()
    again = lines[line_of(key)] if value is None else lines[line_of(key)].split(":")[0] + f": {value}"
    text = "\n".join([*lines[: line_of(key) + 1], again, *lines[line_of(key) + 1 :]])
    assert refused(text) == f"not valid YAML in line {line_of(key) + 2}: {key} occurs twice in one section; correct it"


def test_the_same_key_in_two_sections_is_fine(load):
    assert load(TEXT).data.path is None  # "train" is a section and a key of data.sample


def test_anchors_and_merges_work(load):
    lines = rewritten("size", "").splitlines()
    lines[line_of("seed")] = "seed: &seed 64"
    lines[line_of("size")] = "    <<: {size: *seed}"
    assert load("\n".join(lines)).data.sample.size == 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the whole file: must be a section of keys, got null"),
        ("[]", "the whole file: must be a section of keys, got []"),
        ("5", "the whole file: must be a section of keys, got 5"),
        (TEXT + "\n1: 2\n", "1: unknown key"),
        (TEXT + "\n? [a]\n: b\n", "not valid YAML in line "),
        (rewritten("seed", "2024-13-45"), "not valid YAML: month must be in 1..12"),
        (rewritten("seed", "!!int abc"), "not valid YAML"),
        (rewritten("seed", "!!bool x"), "not valid YAML"),
        (rewritten("seed", "!!timestamp x"), "not valid YAML"),
        (rewritten("seed", "!!python/object/apply:os.getcwd []"), "not valid YAML in line"),
        ("seed: [", "not valid YAML in line 1"),
        ("seed: x: y", "not valid YAML in line 1: mapping values are not allowed here"),
        ("a: &a [*a]", "seed: missing"),
        ("? &a [*a]\n: 1", "not valid YAML"),
        ("[" * 400, "not valid YAML"),
        (b"\xff\xfe\0", "not valid YAML"),
        ("a: \0", "not valid YAML"),
    ],
    ids=lambda value: repr(value[-30:]),
)
def test_broken_files_end_in_one_line(refused, text, says):
    assert says in refused(text)


@settings(max_examples=120, deadline=None)
@given(st.one_of(st.text(alphabet="ab1 :-[]{}&*!?|>'\"#%@\n\t.<=,e~", max_size=40), st.binary(max_size=40)))
@example("!!map 5")
@example("=")
@example("'\\ud800': 1")
def test_no_text_at_all_gets_past_the_one_line(load, text):
    with pytest.raises(UserError):
        load(text)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="not found; run from the project's root"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_params(tmp_path)


def test_flatten_of_one_section(load):
    assert flatten(load(TEXT).plot) == {"grid_images": 24, "private": False}


def test_weights_of_sources_are_a_section_of_numbers_above_0(load, refused):
    weights = {"faces": 1, "videos.zip": 0.5}
    assert load(changed("train.source_weights", weights)).train.source_weights == weights
    assert load(changed("train.source_weights", {2019: 1})).train.source_weights == {"2019": 1}
    for wrong in (0, "much", None, {"a": 1}):
        message = refused(changed("train.source_weights", {"faces": wrong, "videos": 1}))
        assert message.startswith("train.source_weights.faces: must be a number above 0 and at most 1000000, got ")
    assert refused(changed("train.source_weights", ["faces"])).startswith("train.source_weights: must be a section")


def test_the_head_alone_cannot_be_all_of_a_training(refused):
    message = refused(changed("train.head_epochs", LEAVES["train.epochs"]))
    assert message.startswith("train.head_epochs: must be below train.epochs")


def test_faces_are_cropped_from_photographs_alone(load, refused):
    content = changed("data.face_crop", "largest")
    assert refused(content).startswith("data.face_crop: the images of the drawn sample are face crops already")
    content["data"] |= {"source": "folder", "path": "photos"}
    assert load(content).data.face_crop == "largest"


def test_a_warmup_needs_a_cosine(load, refused):
    content = changed("train.warmup", 0.1)
    assert refused(content) == "train.warmup: needs the cosine schedule; set it to 0, or train.schedule to cosine"
    content["train"]["schedule"] = "cosine"
    assert load(content).train.warmup == 0.1
