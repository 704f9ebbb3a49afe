"""params.yaml, typed and strict: a parameter that is not allowed is refused before any work starts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from detector.errors import UserError
from detector.models.backbones import BACKBONES

RENAMED = {  # keys of former versions: what they are called now
    "data.faces": "data.face_crop",
    "train.average": "train.ema_decay",
    "evaluate.calibration.arms": "evaluate.calibration.corruption_sets",
    "evaluate.max_false_accusation_rate": "evaluate.max_false_positive_rate",
}

CorruptionSet = Literal["generic", "matched", "other"]  # see detector.augment.corruption
CORRUPTION_SETS: tuple[CorruptionSet, ...] = get_args(CorruptionSet)

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _in_order(ends: list[float]) -> list[float]:
    if ends[0] > ends[1]:
        raise PydanticCustomError("not_in_order", "must be [from, to] with from no larger than to")
    return ends


TwoEnds = (Field(min_length=2, max_length=2), AfterValidator(_in_order))  # of a range, [from, to]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and wrong types are errors, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SampleParams(Section):
    """The drawn sample: images per split, their side in pixels and the kinds of fakes."""

    train: Annotated[int, Field(ge=4, le=1_000_000)]
    validation: Annotated[int, Field(ge=4, le=1_000_000)]
    test: Annotated[int, Field(ge=4, le=1_000_000)]
    size: Annotated[int, Field(ge=64, le=1024)]
    kinds: Annotated[list[Literal["swap", "drawn", "retouch"]], Field(min_length=1, max_length=3)]

    @model_validator(mode="after")
    def _every_kind_in_every_split(self) -> "SampleParams":
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("data.sample.kinds: must name each kind once")
        least = 2 * len(self.kinds)
        for split in ("train", "validation", "test"):
            if (count := getattr(self, split)) < least:
                raise ValueError(
                    f"data.sample.{split}: must be at least {least}, two images for each of the kinds, got {count}"
                )
        return self


class DataParams(Section):
    """Where the images come from and how they are split."""

    source: Literal["sample", "folder", "kaggle"]
    path: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None
    manifest: str | None
    kaggle: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    real_class: Annotated[str, Field(min_length=1)]
    validation_fraction: Fraction
    test_fraction: Fraction
    face_crop: Literal["none", "largest"]
    max_side: Annotated[int, Field(ge=71, le=16384)]
    duplicates: Literal["drop", "report"]
    sample: SampleParams

    @model_validator(mode="after")
    def _folder_needs_path(self) -> "DataParams":
        if self.source == "folder" and not self.path:
            raise ValueError("data.path: must name a folder or an archive when data.source is folder")
        if self.source == "sample" and self.face_crop == "largest":
            raise ValueError("data.face_crop: the images of the drawn sample are face crops already; set it to none")
        if self.path and self.source != "folder":
            raise ValueError(
                f"data.path: is not used when data.source is {self.source}; set it to null, or data.source to folder"
            )
        return self


class ModelParams(Section):
    """The network."""

    backbone: Literal[tuple(BACKBONES)]
    weights: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    dense_units: Annotated[int, Field(ge=1, le=8192)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    batch_norm_momentum: Fraction
    pixels: Literal["backbone", "0..1"]

    @model_validator(mode="after")
    def _image_large_enough(self) -> "ModelParams":
        smallest = BACKBONES[self.backbone].smallest
        if self.image_size < smallest:
            raise ValueError(f"model.image_size: {self.backbone} takes at least {smallest}, got {self.image_size}")
        return self


class CorruptionParams(Section):
    """Corruptions of training images: the probability of each corruption set, and the range of the strength."""

    generic: Probability
    matched: Probability
    other: Probability
    strength: Annotated[list[Probability], *TwoEnds]

    @property
    def probabilities(self) -> dict[CorruptionSet, float]:
        """The probability of each corruption set that is used."""
        return {name: p for name in CORRUPTION_SETS if (p := getattr(self, name))}


class SelfBlendParams(Section):
    """Self-blended images: fakes made of real training images."""

    rate: Probability
    donor: Probability
    start_epoch: Annotated[int, Field(ge=1)]


class AugmentParams(Section):
    """The augmentation of training images; see `detector.augment.pipeline`."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    width_shift: Annotated[float, Field(ge=0, lt=1)]
    height_shift: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, le=60)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    horizontal_flip: bool
    brightness: Annotated[list[Annotated[float, Field(gt=0, le=4)]], *TwoEnds]
    cutout: Probability
    corruption: CorruptionParams
    self_blend: SelfBlendParams


class ProgressiveParams(Section):
    """Progressive resizing: a smaller image, and weaker augmentation, in all epochs but the last ones."""

    image_size: Annotated[int, Field(ge=32, le=1024)] | None
    final_epochs: Annotated[int, Field(ge=1)]
    augment: Annotated[float, Field(ge=0, le=1)]


class TrainParams(Section):
    """Optimisation."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=4096)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    schedule: Literal["plateau", "cosine"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    head_epochs: Annotated[int, Field(ge=0)]
    head_learning_rate: Annotated[float, Field(gt=0, le=1)]
    batch_norm: Literal["train", "frozen"]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    ema_norm_images: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)] | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    source_weights: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] | None
    paired_batches: bool
    mixup: Annotated[float, Field(ge=0, le=100)]
    progressive: ProgressiveParams
    monitor: Literal["loss", "accuracy", "auc", "worst_source_auc"]
    early_stopping_patience: Annotated[int, Field(ge=1)]
    reduce_lr_factor: Fraction
    reduce_lr_patience: Annotated[int, Field(ge=1)]
    min_learning_rate: Annotated[float, Field(ge=0, le=1)]
    class_weights: Literal["auto", "balanced", "none"]
    precision: Literal["auto", "float32", "bfloat16"]

    @field_validator("source_weights", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A source may be called 2019, which YAML reads as a number."""
        return {str(name): weight for name, weight in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainParams":
        if self.warmup and self.schedule != "cosine":
            raise ValueError("train.warmup: needs the cosine schedule; set it to 0, or train.schedule to cosine")
        if self.head_epochs >= self.epochs:
            raise ValueError(f"train.head_epochs: must be below train.epochs, {self.epochs}, got {self.head_epochs}")
        if self.ema_norm_images and not self.ema_decay:
            raise ValueError("train.ema_norm_images: needs averaged weights; set it to 0, or train.ema_decay above 0")
        if self.mixup and not self.paired_batches:
            raise ValueError("train.mixup: needs pairs to mix; set it to 0, or train.paired_batches to true")
        if self.paired_batches and self.batch_size % 2:
            raise ValueError(f"train.batch_size: must be even with train.paired_batches, got {self.batch_size}")
        most = self.epochs - self.head_epochs
        if self.progressive.image_size and self.progressive.final_epochs > most:
            raise ValueError(
                f"train.progressive.final_epochs: must be at most {most}, the epochs that train the whole network, "
                f"got {self.progressive.final_epochs}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"train.min_learning_rate: must be at most train.learning_rate, {self.learning_rate}, "
                f"got {self.min_learning_rate}"
            )
        return self


class CalibrationParams(Section):
    """The validation images that temperature, threshold and unsure band are chosen on."""

    images: Literal["clean", "perturbed", "mixed"]
    corruption_sets: Annotated[list[CorruptionSet], Field(min_length=1, max_length=len(CORRUPTION_SETS))]
    corruptions: Annotated[int, Field(ge=1, le=4)]
    strength: Annotated[list[Probability], *TwoEnds]
    max_images: Annotated[int, Field(ge=10)]


class EvaluateParams(Section):
    """Calibration, and scoring of the test sets."""

    calibration: CalibrationParams
    flip_average: bool
    threshold: Literal["auto"] | Fraction
    max_false_positive_rate: Probability
    target_error: Probability
    bootstrap: Annotated[int, Field(ge=100, le=100_000)]
    reencoded: bool
    stress_images: Annotated[int, Field(ge=0)]
    extra_sets: list[Annotated[str, Field(min_length=1)]]


class PlotParams(Section):
    """Pictures."""

    grid_images: Annotated[int, Field(ge=1, le=100)]
    private: bool


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: DataParams
    model: ModelParams
    augment: AugmentParams
    train: TrainParams
    evaluate: EvaluateParams
    plot: PlotParams

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Params":
        small = self.train.progressive.image_size
        smallest = BACKBONES[self.model.backbone].smallest
        if small and not smallest <= small < self.model.image_size:
            raise ValueError(
                f"train.progressive.image_size: must be at least {smallest}, the least for {self.model.backbone}, and "
                f"below model.image_size, {self.model.image_size}, got {small}; null trains at one size"
            )
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (1e-4 is a number) and an error where a section contains a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} occurs twice in one section"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check `path`.

    Raises:
        UserError: the file is missing or not YAML, or a key is missing, unknown, of a wrong type or out of range.
    """
    return check_params(read_yaml(path), str(path))


def read_yaml(path: Path | str) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it is missing, cannot be read, is not YAML, or contains a key twice.
    """
    path = Path(path)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the project's root, where dvc.yaml is") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
    except Exception as error:  # PyYAML raises almost any error for a value that does not fit its tag
        raise UserError(f"{path}: {_yaml_problem(error)}; correct it") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in which 1e-4 is a number."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def check_params(raw: Any, origin: str) -> Params:
    """The typed parameters from their nested values.

    Args:
        origin: where they come from; an error message begins with it.

    Raises:
        UserError: a key is missing, unknown, of a wrong type or out of range.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(e) for e in error.errors())  # pydantic gives one for each option of a union
        raise UserError(f"{origin}: " + "; ".join(problems)) from None


def dotted(raw: Mapping[str, Any], section: type[Section] = Params) -> dict[str, Any]:
    """Nested parameters, all or some, by dotted key; a mapping that is one value (source weights) stays whole."""
    values = {}
    for name, value in raw.items():
        field = section.model_fields.get(name)
        inner = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Section):
            values |= {f"{name}.{key}": part for key, part in dotted(value, inner).items()}
        else:
            values[str(name)] = value
    return values


def flatten(params: BaseModel) -> dict[str, Any]:
    """All parameters by dotted key, as MLflow takes them: {"train.epochs": 8, ...}."""

    def walk(prefix: str, value: Any):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, value

    return dict(walk("", params.model_dump()))


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark else ""
    return f"not valid YAML{where}: " + " ".join(str(getattr(error, "problem", None) or error).split())


def _explain(error: dict) -> str:
    key, node = _place(error["loc"])
    if key in RENAMED:
        return f"{key}: is now called {RENAMED[key]}; rename it"
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"{key}: unknown key; remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{key}: missing; add it"
    if error["type"] == "not_in_order":
        return f"{key}: {error['msg']}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{key}: must be {_in_words(node)}, got {_shown(error['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text if len(text) <= 80 else text[:80] + "...")


def _place(location: tuple[str | int, ...]) -> tuple[str, dict]:
    """The key at `location` and its JSON schema, from which a message is made so that it agrees with the check."""
    schema = Params.model_json_schema()
    node: dict = schema
    key = []
    for part in location:
        if "anyOf" in node:
            mappings = [option for option in node["anyOf"] if "additionalProperties" in option]
            if not mappings:
                break  # the rest of the location names the option that did not fit
            node = mappings[0]["additionalProperties"]
            key.append(str(part))
            continue
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        key.append(str(part))
    return ".".join(key) or "the whole file", node


def _in_words(node: dict) -> str:
    if "anyOf" in node:
        return " or ".join(_in_words(option) for option in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    bounds = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    kind = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text that is not empty" if "minLength" in node else "a text",
        "null": "null",
        "array": _list_in_words(node),
        "object": "a section of keys",
    }[node["type"]]
    limits = [f"{words} {node[bound]}" for bound, words in bounds.items() if bound in node]
    return " ".join([kind, " and ".join(limits)]).strip() + (" like owner/name" if "pattern" in node else "")


def _list_in_words(node: dict) -> str:
    few, many, items = node.get("minItems"), node.get("maxItems"), node.get("items", {})
    count = "" if many is None else f"{many} " if few == many else f"{few} to {many} "
    if "enum" in items:
        return f"a list of {count}out of {', '.join(items['enum'])}"
    return f"a list of {count}{items.get('type', 'text').replace('string', 'text')}s"
