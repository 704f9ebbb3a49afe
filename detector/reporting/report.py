"""The report: numbers, pictures and what they mean, for a reader who has never seen the project.

`render` returns one HTML page that needs nothing beside itself. Its words stand in templates/sections/, one file a
section, its look in templates/style.css and templates/page.html; this module only hands them what the stages wrote.
The same input gives the same bytes.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from detector.data.split_names import POOLED
from detector.evaluation.bootstrap import FEW_GROUPS
from detector.metrics import METRICS, of_kind
from detector.models.file import DRAWN_SAMPLE
from detector.reporting import numbers

SECTIONS = (  # files of templates/sections/, in the page's order
    *("verdict", "tested", "choices", "results", "format", "calibration", "unsure", "robustness", "attributes"),
    *("mistakes", "looked", "limits", "glossary", "again"),
)
# Of `run`; its other keys are parameters. A converted model has its file's name and the command that converted it.
ABOUT_RUN = ("commit", "uncommitted", "experiment", "mlflow_run", "converted", "converted_by")
MANY_VALUES = 15  # of an attribute; of more, the worst are shown
WORST = 5  # corruptions
ENOUGH = 10  # images of a value, to be among the worst
PHOTOGRAPHIC = 5  # a PNG so many times the size of a good WebP is of images, a chart is 2 to 3 times that
FILTERS = {  # what the templates may write after a |
    "percent": numbers.percent,
    "decimal": numbers.decimal,
    "signed": numbers.signed,
    "points": numbers.points,
    "whole": numbers.integer,
    "odds": numbers.odds,
    "count": numbers.count,
    "listed": numbers.listed,
    "interval": numbers.interval,
    "metric": lambda value, name: numbers.form_of(name)(value),
    "capital": lambda text: text[:1].upper() + text[1:],
    "splits_of": lambda table: list(dict.fromkeys(split for of in table.values() for split in of)),
}
SHOWN_SETS = 2  # whose pictures are shown at once; those of further ones unfold
PER_CENT = re.compile(r"(?<=\d) (?=%)")  # the space in it, at which no line may break
# Nothing that a browser must not see, or that turns the direction of what follows, comes out of a file name.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def render(
    data: Mapping,
    train: Mapping,
    calibration: Mapping,
    evaluation: Mapping[str, Mapping],
    stress: pd.DataFrame | None,
    by_attribute: pd.DataFrame | None,
    pictures: Mapping[str, Path],
    run: Mapping[str, object],
) -> str:
    """The whole page, as HTML to be written in UTF-8.

    Args:
        data, train, calibration, evaluation: what metrics/data.json, metrics/train.json, models/calibration.json and
            metrics/evaluate.json hold. The first test set is the home set, those with "seen_in_training" are
            the extra ones, and `POOLED` is all of them together.
        stress, by_attribute: metrics/stress.csv and metrics/by_attribute.csv; None or empty where there is none.
        pictures: name -> image file, the names as in metrics/plots/<name>.png. Each is shown where it
            belongs, one of an unknown name in an appendix; any may be absent.
        run: `ABOUT_RUN`, where known, and any parameters under their dotted keys, as
            `params.flatten` gives them; they are listed, and a few explain what was chosen.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    album = _Album(pictures)
    environment.globals |= {
        "album": album,
        "metrics": METRICS,
        "of_kind": of_kind,
        "undefined": numbers.UNDEFINED,
        "dash": numbers.DASH,
        "shown_sets": SHOWN_SETS,
        "few_groups": FEW_GROUPS,
        **_of_run(data, train, calibration, run),
        **_of_evaluation(evaluation, run),
        **_of_data(data),
        **_of_tables(stress, by_attribute),
    }

    def section(name: str) -> dict[str, str]:
        template = environment.get_template(f"sections/{name}.html").make_module()
        return {"id": name, "title": template.title, "body": Markup(str(template))}

    sections = [section(name) for name in SECTIONS]
    if album.rest():
        sections.append(section("appendix"))
    page = environment.get_template("page.html").render(sections=sections)
    return PER_CENT.sub("\u00a0", UNPRINTABLE.sub("\ufffd", page.strip())) + "\n"


def _of_run(data: Mapping, train: Mapping, calibration: Mapping, run: Mapping) -> dict[str, object]:
    def number(key: str) -> float | None:
        return float(run[key]) if key in run else None

    return {
        "data": data,
        "train": {"epochs": 0, "weights_note": None, **train},
        "best": {**dict.fromkeys(("epoch", "val_loss", "val_accuracy", "val_auc")), **train.get("best", {})},
        "calibration": {"chosen_on": None, **calibration},
        "run": {name: run.get(name) for name in ABOUT_RUN},
        "parameters": {key: _written(value) for key, value in run.items() if key not in ABOUT_RUN},
        "converted": bool(run.get("converted")),
        "drawn_sample": data["source"] == DRAWN_SAMPLE,
        "private": str(run.get("plot.private", False)).lower() == "true",
        "threshold_is_chosen": str(run.get("evaluate.threshold", "auto")) == "auto",
        "max_false_positive_rate": number("evaluate.max_false_positive_rate"),
        "target_error": number("evaluate.target_error"),
        "duplicates_are_kept": run.get("data.duplicates") == "report",
    }


def _of_evaluation(evaluation: Mapping[str, Mapping], run: Mapping) -> dict[str, object]:
    """The test sets, and some of them by what the words ask of them."""
    kept = run.get("data.duplicates") == "report"
    sets = [
        {
            **metrics,
            "name": name,
            "smaller_class": min(n for n in (metrics["n_real"], metrics["n_fake"]) if n),
            "one_class": not (metrics["n_real"] and metrics["n_fake"]),
            "ungrouped": metrics["n_groups"] == metrics["n"],
            "trained_on": metrics.get("seen_in_training", 0) if kept else 0,
        }
        for name, metrics in evaluation.items()
        if name != POOLED
    ]
    intervals = [interval for metrics in sets for interval in metrics["intervals"].values() if interval]
    changes = [(metrics, metrics["reencoded"]["auc_difference"]["high"]) for metrics in sets if "reencoded" in metrics]
    return {
        "sets": sets,
        "home": sets[0],
        "others": sets[1:],
        "extra": [metrics for metrics in sets if "seen_in_training" in metrics],
        "pooled": evaluation.get(POOLED),
        "exact_shown": any("exact" in interval for interval in intervals),
        "loses_by_format": [metrics for metrics, high in changes if high is not None and high < 0],
    }


def _of_data(data: Mapping) -> dict[str, object]:
    def pairs(of: Mapping[str, Mapping[str, int]]) -> int:
        return sum(row["exact"] + row["near"] for row in of.values())

    duplicates = data.get("duplicates")
    if duplicates:
        duplicates = {
            **duplicates,
            "leaked_pairs": pairs(duplicates["leaks"]),
            "pairs_within": {name: pairs({name: row}) for name, row in duplicates["within_splits"].items()},
            "images_dropped": sum(duplicates["dropped"].values()),
            "images_excluded": sum(duplicates["excluded"].values()),
        }
    heads = [f"Class {name}" for name in data["classes"]]
    return {"duplicates": duplicates, "shortcuts": data.get("shortcuts"), "class_heads": heads}


def _of_tables(stress: pd.DataFrame | None, by_attribute: pd.DataFrame | None) -> dict[str, object]:
    """The corruptions that cost most, and of each set its attributes: those of many values with the worst alone."""
    stress = _numbers(stress, text=("name", "family", "corruption_set"))
    by_attribute = _numbers(by_attribute, text=("set", "attribute", "value"))
    worst, attributes, corrupted = [], {}, 0
    if stress is not None:
        stress = stress[stress["severity"] > 0]
        order = ["auc" if stress["auc"].notna().any() else "accuracy", "name", "severity"]
        worst, corrupted = stress.sort_values(order).head(WORST).to_dict("records"), len(stress)
    if by_attribute is not None:
        for (name, attribute), rows in by_attribute.groupby(["set", "attribute"], sort=False):
            enough = rows[rows["n"] >= ENOUGH].sort_values(["accuracy", "value"])
            shown = enough.head(MANY_VALUES) if len(rows) > MANY_VALUES else rows
            attributes.setdefault(name, []).append(
                {
                    "name": attribute,
                    "number": len(rows),
                    "enough": ENOUGH,
                    "shown": _with_intervals(shown),
                    "worst": enough.iloc[0].to_dict() if len(enough) else None,
                    "best": enough.iloc[-1].to_dict() if len(enough) else None,
                }
            )
    return {"worst_corruptions": worst, "corruptions": corrupted, "attributes": attributes}


def _with_intervals(rows: pd.DataFrame) -> list[dict]:
    """Rows of metrics/by_attribute.csv, each with its intervals as metrics/evaluate.json has them."""
    return [
        {
            **row,
            "intervals": {
                "accuracy": {"low": row["accuracy_low"], "high": row["accuracy_high"]}
                if row["accuracy_low"] == row["accuracy_low"]  # not NaN
                else None
            },
        }
        for row in rows.to_dict("records")
    ]


def _numbers(table: pd.DataFrame | None, text: Sequence[str]) -> pd.DataFrame | None:
    """`table` with numbers in all columns but those of `text`, NaN where there is none; None if it has no row."""
    if table is None or table.empty:
        return None
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in table if name not in text})


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value)) or "none"
    return json.dumps(value, default=str)


@dataclass(frozen=True)
class Picture:
    source: str  # a data URL
    width: int
    height: int


class _Album:
    """The pictures; those that no section takes are the rest."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = dict(files)

    def take(self, name: str) -> Picture | None:
        """The picture of that name, which is no longer there afterwards."""
        return _picture(self._files.pop(name)) if name in self._files else None

    def sets(self, kind: str) -> list[str]:
        """The test sets of which there is a picture <kind>_<set>."""
        return [name.removeprefix(f"{kind}_") for name in self._files if name.startswith(f"{kind}_")]

    def rest(self) -> list[str]:
        return sorted(self._files)


def _picture(path: Path) -> Picture:
    """The file as WebP inside the page: charts without loss, images of the data with a little."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    encoded = _webp(image, quality=88)
    if path.stat().st_size < PHOTOGRAPHIC * len(encoded):
        encoded = _webp(image, lossless=True)
    return Picture(f"data:image/webp;base64,{base64.b64encode(encoded).decode()}", *image.size)


def _webp(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", method=4, **options)
    return file.getvalue()
