"""The report: numbers, pictures and what they mean, for a reader who has never seen the project.

`render` returns one HTML page that needs nothing beside itself. Its look is in `report.html`; this module
finds the words. Every sentence follows from the numbers it is given: what they leave undefined is called so,
what is weak is said under the limits, and the same input gives the same bytes.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from detector.data.split_names import POOLED
from detector.evaluation.bootstrap import FEW_GROUPS
from detector.models.file import DRAWN_SAMPLE

UNDEFINED = "not defined"
# Of `run`; its other keys are parameters. A converted model has its file's name and the command that converted it.
ABOUT_RUN = ("commit", "uncommitted", "experiment", "mlflow_run", "converted", "converted_by")
COUNTED = {  # the metrics that are a share of images
    "accuracy": "images called right",
    "false_positive_rate": "real images called fake",
    "false_negative_rate": "fake images called real",
}
SHARES = (*COUNTED, "balanced_accuracy", "eer", "tpr_at_fpr_1pct", "tpr_at_fpr_01pct")
PROPERTIES = {
    "file_size": "Size of the file",
    "dimensions": "Width and height",
    "encoding": "Encoding of the file",
    "thumbnail": "A thumbnail of 16x16 pixels",
}
FEW_IMAGES = 300  # of a class; below it, half of the 95 % interval of a rate of 10 % is 3.4 points or more
WIDE = 0.1  # of an interval
LOPSIDED = 0.65  # share of the larger class from which on accuracy alone misleads
RARE = 0.01  # share of fakes, for what a call of fake is worth where fakes are rare
MANY_VALUES = 15  # of an attribute; of more, the worst are shown
EXAMPLES = 3  # files named for each reason to set one aside
WORST = 5  # rungs of the stress test
ENOUGH = 10  # images of a value, to be among the worst
SAME_PLACE = 1.1  # heat in an image's own forged region by that in others', from which on it follows the region
PHOTOGRAPHIC = 5  # a PNG so many times the size of a good WebP is of images, a chart is 2 to 3 times that
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
    album = _Album(pictures)
    pooled = evaluation.get(POOLED)
    evaluation = {name: metrics for name, metrics in evaluation.items() if name != POOLED}
    stress = _numbers(stress, text=("name", "family", "corruption_set"))
    by_attribute = _numbers(by_attribute, text=("set", "attribute", "value"))
    sections = [
        Section("verdict", "The verdict", _verdict(data, calibration, evaluation, run)),
        Section("tested", "What was tested", _tested(data, evaluation, album, run)),
        Section("choices", "How the choices were made", _choices(train, calibration, album, run)),
        Section("results", "Results on each test set", _results(calibration, evaluation, pooled, album, run)),
        Section("format", "Does it go by the format of the files?", _format(evaluation)),
        Section("calibration", "What P(fake) means", _calibration(calibration, evaluation, album)),
        Section("unsure", "When it may say “unsure”", _unsure(calibration, evaluation, album, run)),
        Section("robustness", "What damage to the images costs", _robustness(evaluation, stress, album)),
        Section("attributes", "Is it as good for everybody?", _attributes(by_attribute)),
        Section("mistakes", "Images, and the surest mistakes", _mistakes(evaluation, album, run)),
        Section("looked", "Where it looked", _looked(evaluation, album, run)),
        Section("limits", "What is not known", _limits(data, train, evaluation, pooled, by_attribute, run)),
        Section("glossary", "The terms", [Glossary()]),
        Section("again", "How to do it again", _again(data, calibration, run)),
    ]
    if rest := album.rest():
        sections.append(Section("appendix", "Appendix: further pictures", rest))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title="Real or fake: how far can this detector be trusted?", byline=_byline(data, run), sections=sections
    )
    return PER_CENT.sub("\u00a0", UNPRINTABLE.sub("\ufffd", page.strip())) + "\n"


def _numbers(table: pd.DataFrame | None, text: Sequence[str]) -> pd.DataFrame | None:
    """`table` with numbers in all columns but those of `text`, NaN where there is none; None if it has no row."""
    if table is None or table.empty:
        return None
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in table if name not in text})


# ---------------------------------------------------------------------------------- what the page is made of


@dataclass(frozen=True)
class Text:
    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Lead(Text):
    kind: ClassVar[str] = "lead"


@dataclass(frozen=True)
class Heading(Text):
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Code(Text):
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Points:
    items: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Glossary:
    """The terms; they depend on no number, so they stand in the template."""

    kind: ClassVar[str] = "glossary"


@dataclass(frozen=True)
class Tile:
    what: str
    value: str
    interval: str


@dataclass(frozen=True)
class Tiles:
    items: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False  # not figures
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Bar:
    """A share with its interval; the last three are places on an axis from 0 to 100, or None."""

    name: str
    value: str
    at: float | None
    left: float | None
    width: float | None


@dataclass(frozen=True)
class Forest:
    caption: str
    rows: Sequence[Bar]
    kind: ClassVar[str] = "forest"


@dataclass(frozen=True)
class Picture:
    source: str
    width: int
    height: int
    alt: str
    caption: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class More:
    """What unfolds on demand."""

    title: str
    blocks: Sequence["Block"]
    kind: ClassVar[str] = "more"


Block = Text | Points | Glossary | Tiles | Table | Forest | Picture | More


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]


class _Album:
    """The pictures; what was not asked for by name is the rest."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = dict(files)

    def take(self, name: str, alt: str, caption: str) -> list[Picture]:
        """The picture of that name, or nothing."""
        return [_picture(self._files.pop(name), alt, caption)] if name in self._files else []

    def of_sets(
        self, kind: str, what: str, evaluation: Mapping[str, Mapping], says: Callable[[Mapping], str]
    ) -> list[Block]:
        """The pictures `kind`_<set>, the first few at once; `what` they show, and what one `says`."""
        found = [
            picture
            for name, metrics in evaluation.items()
            for picture in self.take(f"{kind}_{name}", f"{what}, “{name}”: {says(metrics)}.", f"{what}, “{name}”.")
        ]
        return _unfolding(found, what, "further test set")

    def rest(self) -> list[Picture]:
        return [picture for name in sorted(self._files) for picture in self.take(name, f"Picture {name}", name)]


def _unfolding(blocks: Sequence[Block], title: str, noun: str) -> list[Block]:
    """The first few blocks, and the rest to unfold."""
    more = blocks[SHOWN_SETS:]
    return [*blocks[:SHOWN_SETS], *([More(f"{title}: {_count(len(more), noun)}", more)] if more else [])]


def _picture(path: Path, alt: str, caption: str) -> Picture:
    """The file as WebP inside the page: charts without loss, images of the data with a little."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    encoded = _webp(image, quality=88)
    if path.stat().st_size < PHOTOGRAPHIC * len(encoded):
        encoded = _webp(image, lossless=True)
    return Picture(f"data:image/webp;base64,{base64.b64encode(encoded).decode()}", *image.size, alt, caption)


def _webp(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", method=4, **options)
    return file.getvalue()


# --------------------------------------------------------------------------------------------- the sections


def _byline(data: Mapping, run: Mapping) -> list[str]:
    known = {"commit": run.get("commit"), "MLflow run": run.get("mlflow_run"), "data": data["digest"][:12]}
    return [
        f"Evaluation of a detector converted from {run['converted']}, on {data['source']}."
        if run.get("converted")
        else f"Evaluation of a detector trained on {data['source']}.",
        " · ".join(f"{name} {value}" for name, value in known.items() if value),
    ]


def _verdict(data: Mapping, calibration: Mapping, evaluation: Mapping[str, Mapping], run: Mapping) -> list[Block]:
    home, *others = evaluation
    first, whose = evaluation[home], "" if run.get("converted") else " the test images of its own data,"
    leads = [f"On “{home}”,{whose} the detector {_in_short(first)}"]
    if data["source"] == DRAWN_SAMPLE:
        leads.insert(0, "All faces here are drawn by a program: the figures say nothing about photographs.")
    leads += _guessing({home: first})
    elsewhere = {name: evaluation[name] for name in others}
    if others:
        weakest = min(others, key=lambda name: evaluation[name]["accuracy"])
        which = "the other test set" if len(others) == 1 else f"the weakest of the {len(others)} others by that count"
        leads.append(f"On “{weakest}”, {which}, it {_in_short(evaluation[weakest])}")
    chosen = first["selective"]
    called = f"of the rest {_percent(chosen['error_outside'])} called wrong" if chosen["n_called"] else "none is called"
    return [
        *map(Lead, leads),
        Heading(f"In figures, on “{home}”"),
        Tiles(
            [
                *(Tile(_capital(what), _percent(first[key]), _range(first, key)) for key, what in COUNTED.items()),
                Tile("If it may, left as unsure", _percent(chosen["n_unsure"] / first["n"]), called),
            ]
        ),
        _forest("False positives: real images called fake", evaluation, "false_positive_rate"),
        Points(
            [
                *_meaning(home, first),
                *_guessing(elsewhere),
                *(
                    f"Once all images of “{name}” are saved alike, {_format_in_words(evaluation[name]['reencoded'])}"
                    for name in _loses_by_format(evaluation)
                ),
                _band_in_words(calibration),
            ]
        ),
        Text(
            Markup("What these figures rest on, and what they cannot say, is under {}.").format(
                Markup('<a href="#limits">What is not known</a>')
            )
        ),
    ]


def _in_short(metrics: Mapping) -> str:
    right = f"{round(metrics['accuracy'] * metrics['n']):,} of {_count(metrics['n'], 'image')}"
    return f"called {right} right ({_with_interval(metrics, 'accuracy')}). {_capital(accused_in_words(metrics))}."


def accused_in_words(metrics: Mapping) -> str:
    """How many real images were called fake.

    For example "1 in 20 real images was called fake (5 of 100; 5.0 %, 95 % interval 2.0 to 9.1 %)".
    """
    return _errors_in_words(metrics, "false_positive_rate", metrics["n_real"], "real", "fake")


def missed_in_words(metrics: Mapping) -> str:
    """How many fake images were called real, as `accused_in_words`."""
    return _errors_in_words(metrics, "false_negative_rate", metrics["n_fake"], "fake", "real")


def _errors_in_words(metrics: Mapping, key: str, n: int, true: str, called: str) -> str:
    rate = metrics[key]
    if rate is None:
        return f"there is no {true} image, so how often one is called {called} is {UNDEFINED}"
    wrong = round(rate * n)
    within = f"{wrong:,} of {n:,}; {_with_interval(metrics, key)}"
    if not wrong:
        return f"none of the {true} images was called {called} ({within})"
    if wrong == n:
        return f"all of the {true} images were called {called} ({within})"
    share, number = odds(rate)
    return f"{share} {true} images {'was' if number == 1 else 'were'} called {called} ({within})"


def odds(rate: float) -> tuple[str, int]:
    """A rate strictly between 0 and 1 as ("1 in 20", 1), or ("about 2 in 7", 2) where it is rounded."""
    if rate < 0.1:
        part, whole = 1, round(1 / rate)
    elif rate <= 0.9:
        part, whole = Fraction(rate).limit_denominator(10).as_integer_ratio()
    else:
        part, whole = min(round(rate * 100), 99), 100
    exact = abs(part / whole - rate) < 5e-4 * rate
    return f"{'' if exact else 'about '}{part} in {whole:,}", part


def worth_of_a_call(metrics: Mapping, fakes: float) -> float | None:
    """Share of the images called fake that are, where a share `fakes` (0..1) of all images is (Bayes' rule).

    None where the rates are undefined or no image would be called fake.
    """
    accused, missed = metrics["false_positive_rate"], metrics["false_negative_rate"]
    if accused is None or missed is None:
        return None
    right, wrong = (1 - missed) * fakes, accused * (1 - fakes)
    return right / (right + wrong) if right + wrong else None


def _meaning(home: str, metrics: Mapping) -> Iterator[str]:
    yield f"On “{home}”, {missed_in_words(metrics)}."
    accused, worth = metrics["false_positive_rate"], worth_of_a_call(metrics, RARE)
    if accused == 0:
        n = metrics["n_real"]
        yield (
            f"That no real image of “{home}” was called fake does not mean that none ever is: "
            f"{_count(n, 'image')} cannot show a rate below {_percent(_exact(0, n)[1])}."
        )
    elif worth is not None:
        yield (
            f"{_percent(metrics['n_fake'] / metrics['n'])} of the images of “{home}” are fake. Where only 1 in 100 is, "
            f"the same error rates make {_percent(worth)} of the calls of fake right; the others accuse a real image."
        )
    yield (
        f"On “{home}”, a stated P(fake) is off by {_points(metrics['ece'])} on average "
        "(the difference from how often such images are fake)."
    )
    chosen = metrics["selective"]
    if chosen["n_unsure"] and chosen["n_called"]:
        yield (
            f"Allowed to say “unsure”, it calls {chosen['n_called']:,} of the {metrics['n']:,} images of “{home}” "
            f"({_percent(chosen['coverage'])}); of those, {_percent(chosen['error_outside'])} wrong."
        )


def _guessing(evaluation: Mapping[str, Mapping]) -> Iterator[str]:
    """Test sets on which the scores may rank real and fake no better than a coin."""
    for name, metrics in evaluation.items():
        interval = _interval(metrics, "auc")
        if interval and interval[1] < 0.5:
            yield (
                f"On “{name}”, its scores are worse than guessing: AUC {_with_interval(metrics, 'auc')}; guessing has "
                "0.5. Fake images score lower there than real ones."
            )
        elif interval and interval[0] <= 0.5:
            yield (
                f"On “{name}”, its scores cannot be told from guessing: AUC {_with_interval(metrics, 'auc')}; "
                "guessing has 0.5."
            )


def _band_in_words(calibration: Mapping) -> str:
    low, high = calibration["unsure"]
    said = f"An image is called fake from a P(fake) of {_decimal(calibration['threshold'])} on"
    if low >= high:
        return f"{said}; no scores are left as unsure."
    said += f". Scores from {_decimal(low)} to {_decimal(min(high, 1))} are left to a person as unsure"
    said += "; none is low enough to be called real" if low <= 0 else ""
    return said + ("; none is high enough to be called fake." if high > 1 else ".")


def _tested(data: Mapping, evaluation: Mapping, album: _Album, run: Mapping) -> list[Block]:
    counts, classes, source = data["counts"], data["classes"], data["source"]
    judged = "The detector learns from train, is chosen by validation, and is judged by the test sets. "
    if run.get("converted"):
        judged = "The detector was trained elsewhere; it is calibrated by validation, and judged by the test sets. "
    said = (
        f"The data come from {source}: {_count(data['images'], 'image')} in {_count(len(counts), 'part')}. {judged}"
        "A group is the images that share a source (a person, a photo, a video)."
    )
    if source == DRAWN_SAMPLE and "test_perturbed" in counts:
        said += " “test_perturbed” holds the images of “test” again, damaged as pictures are on their way."
    rows = [
        [split, *(f"{of.get(name, 0):,}" for name in classes), f"{data['groups'][split]:,}"]
        for split, of in counts.items()
    ]
    blocks = [
        Text(said),
        Table("Images in each part of the data", ["Part", *(f"Class {name}" for name in classes), "Groups"], rows),
        *album.take("sample", f"Images from {source}, row by row of its parts and classes.", f"A look at {source}."),
    ]
    extra = _extra(evaluation)
    if extra:
        scored = any(_trained_on(metrics, run) for metrics in extra.values())
        counted = "counted all the same" if run.get("data.duplicates") == "report" else "left out"
        columns = {"Real": "n_real", "Fake": "n_fake", "Also in train or validation": "seen_in_training"}
        caption = f"Extra test sets; images that also stand in train or validation were {counted}"
        blocks += [
            Text(
                "Further test sets come from elsewhere. "
                + (
                    "Some of their images were trained or chosen on."
                    if scored
                    else "Nothing was chosen on them."
                    if run.get("converted")
                    else "Nothing was trained or chosen on them."
                )
            ),
            _table_of_sets(caption, extra, {head: lambda m, key=key: f"{m[key]:,}" for head, key in columns.items()}),
        ]
    return [
        *blocks,
        Text(_sizes(data)),
        Heading("Excluded"),
        *_excluded(data["excluded"]),
        Heading("The same picture twice"),
        *_duplicates(data.get("duplicates"), album),
        Heading("Shortcuts"),
        *_shortcuts(data.get("shortcuts")),
    ]


def _extra(evaluation: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The test sets from elsewhere."""
    return {name: metrics for name, metrics in evaluation.items() if "seen_in_training" in metrics}


def _how_new(metrics: Mapping, run: Mapping) -> str:
    seen = _trained_on(metrics, run)
    if seen:
        return f"{_count(seen, 'image')} of it trained or chosen on"
    known = metrics.get("search_complete", True) and not run.get("converted")
    return "never trained on" if known else "not knowingly trained on"


def _trained_on(metrics: Mapping, run: Mapping) -> int:
    """How many images of a test set from elsewhere are scored although they stand in train or validation."""
    return metrics["seen_in_training"] if run.get("data.duplicates") == "report" else 0


def _sizes(data: Mapping) -> str:
    sizes, scaled = data["sizes"], data["scaled_down"]
    sides = ", ".join(
        f"{side} {sizes[side]['median']:,.0f} ({sizes[side]['min']:,.0f} to {sizes[side]['max']:,.0f})"
        for side in ("width", "height")
    )
    kept = f"{_count(scaled, 'larger one')} scaled down, the others kept" if scaled else "All files kept"
    return f"Median size in pixels, smallest and largest in brackets: {sides}. {kept} the bytes that they came with."


def _excluded(excluded: Mapping) -> list[Block]:
    if not excluded["images"]:
        return [Text("No file was excluded.")]
    rows = [
        [kind, f"{of['images']:,}", ", ".join(of["examples"][:EXAMPLES])] for kind, of in excluded["reasons"].items()
    ]
    return [
        Text(f"{_count(excluded['images'], 'file')} took no part; all are in excluded.csv, each with its reason."),
        Table("Why files were excluded", ["Reason", "Files", "For example"], rows, words=True),
    ]


def _duplicates(found: Mapping | None, album: _Album) -> list[Block]:
    if found is None:
        return [Text("Duplicates were not looked for.")]
    pairs = _pairs(found["leaks"])
    said = f"{_count(found['images'], 'image')} were compared, by their pixels and by what they show: a picture that "
    said += "the detector has learnt from proves nothing when it is met again in a test. "
    if pairs:
        said += f"{_count(pairs, 'pair')} stood in two parts of the data that must be apart. {_fate(found)}"
    else:
        said += "No picture was found in two parts of the data that must be apart."
    said += (
        " The search sees through compression, scaling, mirroring, a little more light or contrast and a crop of a few "
        "per cent; it misses many copies that were altered more strongly."
    )
    places = {
        **{f"Leak: {where}": row for where, row in found["leaks"].items()},
        **{f"Between test sets: {where}": row for where, row in found["between_test_sets"].items()},
        **{f"Within: {where}": row for where, row in found["within_splits"].items()},
    }
    head = ["Where", "Same pixels", "Nearly the same", "Of both, with different labels"]
    rows = [[where, *(f"{row[key]:,}" for key in ("exact", "near", "across_classes"))] for where, row in places.items()]
    return [
        Text(said),
        *([Table("Pairs of images that are one picture, before any was dropped", head, rows)] if rows else []),
        *album.take(
            "duplicates",
            f"Pairs of images that are one picture; {pairs:,} such pairs were found across parts of the data.",
            "Examples, first those with conflicting labels, then those in two parts of the data.",
        ),
    ]


def _fate(found: Mapping) -> str:
    said = [
        f"{_count(sum(of.values()), 'image')} {verb} ({', '.join(f'{split} {n:,}' for split, n in of.items())})"
        for of, verb in ((found["dropped"], "dropped"), (found["excluded"], "excluded for conflicting labels"))
        if sum(of.values())
    ]
    return f"What followed: {', '.join(said)}." if said else "They were reported and not dropped."


def _pairs(of: Mapping[str, Mapping[str, int]]) -> int:
    return sum(row["exact"] + row["near"] for row in of.values())


def _shortcuts(found: Mapping | None) -> list[Block]:
    if found is None:
        return [Text("Shortcuts were not looked for.")]
    warnings = found["warnings"]
    said = "If something trivial about the files gives the class away, a detector can score well without looking at a "
    said += (
        "face. So small classifiers were given one trivial property each and nothing else; an AUC of 0.5 is guessing. "
    )
    said += f"{_count(len(warnings), 'warning')}:" if warnings else "None gave a reason for a warning."
    blocks: list[Block] = [Text(said), *([Points(warnings)] if warnings else [])]
    for key, caption in (
        ("within", "AUC of one trivial property alone, learnt and measured within the same part of the data"),
        ("from_train", "AUC of one trivial property alone, learnt on train and measured elsewhere"),
    ):
        splits = list(dict.fromkeys(split for of in found[key].values() for split in of))
        rows = [
            [PROPERTIES.get(name, name), *(_decimal(of.get(split), 2) for split in splits)]
            for name, of in found[key].items()
        ]
        blocks += [Table(caption, ["Property", *splits], rows)] if splits else []
    return blocks


def _choices(train: Mapping, calibration: Mapping, album: _Album, run: Mapping) -> list[Block]:
    best, epochs = train.get("best", {}), train.get("epochs", 0)
    on_best = f"accuracy {_percent(best.get('val_accuracy'))}, AUC {_decimal(best.get('val_auc'))}"
    kept = (
        f"of {_count(epochs, 'epoch')}, number {best['epoch']} was kept, the one with the lowest validation loss "
        f"({_decimal(best.get('val_loss'))}; {on_best}). Initial weights: {train['weights']}."
        if best
        else f"trained elsewhere, converted from {run.get('converted')}; how it was chosen is not known."
    )
    limit, target = _parameter(run, "evaluate.max_false_positive_rate"), _parameter(run, "evaluate.target_error")
    how = "set by hand in the parameters"
    if _chooses_threshold(run):
        how = "the best balanced accuracy on those images"
        how += f", with at most {_percent(limit)} of the real ones called fake" if limit is not None else ""
    held = (
        "either verdict can be relied on"
        if target is None
        else f"at most {_percent(target)} of either verdict is wrong"
    )
    low, high = calibration["unsure"]
    chosen = "the temperature, the threshold and the unsure band"
    if not _chooses_threshold(run):
        chosen = "the temperature and the unsure band"
    band = (
        f"Unsure band {_decimal(low)} to {_decimal(min(high, 1))}: the narrowest outside which {held}, on those images."
    )
    if low >= high:
        band = f"No unsure band: by the threshold alone, {held}, on those images."
    return [
        Text(
            f"What the pipeline chooses, it chooses by {'training and ' if best else ''}validation images, before it "
            f"scores a test image: {'the model, ' if best else ''}{chosen}."
        ),
        Points(
            [
                f"Model: {kept}",
                f"Temperature {_decimal(calibration['temperature'])}: the scores' logits are divided by it, so that "
                "P(fake) fits how often images are fake. 1 changes nothing, more makes the detector less sure.",
                f"Threshold {_decimal(calibration['threshold'])}: {how}.",
                band,
            ]
        ),
        *_chosen_on(calibration.get("chosen_on") or {}, chosen),
        *album.take(
            "accuracy",
            f"Accuracy over {_count(epochs, 'epoch')}; at the one kept, validation {on_best}.",
            "Accuracy on train and validation images, epoch by epoch.",
        ),
        *album.take(
            "loss",
            f"Loss over {_count(epochs, 'epoch')}; at the one kept, {_decimal(best.get('val_loss'))} on validation.",
            "Loss on train and validation images, epoch by epoch.",
        ),
        *album.take(
            "training_log",
            f"Table of {_count(epochs, 'epoch')}: loss and accuracy on train and validation images, learning rate.",
            "The log of the training; the epoch that was kept is marked.",
        ),
    ]


def _chooses_threshold(run: Mapping) -> bool:
    return str(run.get("evaluate.threshold", "auto")) == "auto"


def _chosen_on(found: Mapping, chosen: str) -> list[Block]:
    """The validation images behind what was `chosen`, and what that gives there."""
    if "scored" not in found:
        return []
    selective = found["selective"]
    rows = {
        "Called right": _percent(found["accuracy"]),
        "Real called fake": _percent(found["false_positive_rate"]),
        "Fake called real": _percent(found["false_negative_rate"]),
        "AUC": _decimal(found["auc"]),
        "Calibration error, before": _decimal(found["uncalibrated"]["ece"]),
        "Calibration error, after": _decimal(found["ece"]),
        "Called rather than unsure": _percent(selective["coverage"]),
        "Wrong among those": _percent(selective["error_outside"]),
    }
    scored = {"clean": "as they are", "perturbed": "damaged", "mixed": "as they are and damaged"}
    return [
        Text(
            f"{chosen.capitalize()} come from {_count(found['images'], 'validation image')}, scored "
            f"{scored.get(found['scored'], found['scored'])}. Figures on the images that a choice was made on flatter; "
            "they stand here to be held against those of the test sets."
        ),
        Table("On those validation images themselves", ["Figure", "Value"], [*map(list, rows.items())]),
    ]


def _results(
    calibration: Mapping, evaluation: Mapping[str, Mapping], pooled: Mapping | None, album: _Album, run: Mapping
) -> list[Block]:
    home = next(iter(evaluation))
    notes = [
        f"{_percent(max(m['n_real'], m['n_fake']) / m['n'])} of “{name}” is "
        f"{'fake' if m['n_fake'] > m['n_real'] else 'real'}: to call every image so would be right as often."
        for name, m in evaluation.items()
        if max(m["n_real"], m["n_fake"]) >= LOPSIDED * m["n"]
    ]
    if any(_seen_to_agree(m, key) for m in evaluation.values() for key in COUNTED):
        notes.append(
            "Where all images were called alike, resampling gives no interval. The exact one for independent images "
            "stands in its place (Clopper and Pearson, 1934)."
        )
    elsewhere = [
        f"On “{name}”, {_how_new(metrics, run)}, it {_in_short(metrics)} {_against(home, evaluation[home], metrics)}"
        for name, metrics in _extra(evaluation).items()
    ]
    aucs, areas = (
        ", ".join(f"{_decimal(metrics[key])} on “{name}”" for name, metrics in evaluation.items())
        for key in ("auc", "average_precision")
    )
    return [
        Text(
            f"At the threshold {_decimal(calibration['threshold'])} every image is called real or fake, without the "
            "unsure band. Beneath a figure stands its 95 % interval: how far the luck of having these test images "
            "and no others moves it."
        ),
        _forest("Images called right", evaluation, "accuracy"),
        _table_of_sets(
            "At the threshold",
            evaluation,
            {
                "Images": lambda m: f"{m['n']:,}",
                "Called right": lambda m: _figure(m, "accuracy"),
                "Real called fake": lambda m: _figure(m, "false_positive_rate"),
                "Fake called real": lambda m: _figure(m, "false_negative_rate"),
                "Balanced accuracy": lambda m: _figure(m, "balanced_accuracy"),
            },
        ),
        _table_of_sets(
            "Whatever the threshold: how well the scores rank fake above real",
            evaluation,
            {
                "AUC": lambda m: _figure(m, "auc"),
                "Average precision": lambda m: _figure(m, "average_precision"),
                "Equal error rate": lambda m: _figure(m, "eer"),
                "Fakes found at 1 % false positives": lambda m: _figure(m, "tpr_at_fpr_1pct"),
                "... at 0.1 %": lambda m: _figure(m, "tpr_at_fpr_01pct"),
            },
        ),
        *([Points(notes)] if notes else []),
        *(_together(evaluation, pooled) if pooled else []),
        *_kinds(evaluation),
        *([Heading("On images from elsewhere"), Points(elsewhere)] if elsewhere else []),
        *album.take(
            "roc",
            f"ROC curve of every test set; AUC {aucs}.",
            "How many fakes are found at the price of how many real images.",
        ),
        *album.take(
            "precision_recall",
            f"Precision-recall curve of every test set; average precision {areas}.",
            "How many calls of fake are right, at each share of the fakes found.",
        ),
        *album.of_sets("confusion_matrix", "What was called what", evaluation, _calls),
        *album.of_sets("classification_report", "How well each class is recognised", evaluation, _calls),
    ]


def _together(evaluation: Mapping[str, Mapping], pooled: Mapping) -> list[Block]:
    """All test sets as one."""
    rows = {
        "Called right": "accuracy",
        "Real called fake": "false_positive_rate",
        "Fake called real": "false_negative_rate",
        "Balanced accuracy": "balanced_accuracy",
        "AUC": "auc",
        "Calibration error": "ece",
    }
    said = f"All {len(evaluation)} test sets together, {_count(pooled['n'], 'image')}, at the one threshold"
    return [
        Heading("All test sets together"),
        Text(
            "Out in the world nobody says which test set an image resembles, so one threshold has to do for all. Here "
            "the images of all sets are one set. Every image counts alike, so a larger set counts for more. Images of "
            "one source that stand in two sets are drawn together for the intervals."
        ),
        Table(said, ["Figure", "Value"], [[what, _figure(pooled, key)] for what, key in rows.items()]),
        Points([_scales_in_words(pooled)]),
    ]


def _scales_in_words(pooled: Mapping) -> str:
    """Whether the scores of the test sets lie on one scale."""
    within = pooled["within_sets"]
    if within["difference"] is None:
        return f"Whether the sets' scores lie on one scale is {UNDEFINED}: no set has real and fake images."
    said = (
        f"Of a real and a fake image of one set, the fake scores higher in {_percent(within['auc'])} of the cases; of "
        f"any real and any fake image of all sets, in {_percent(pooled['auc'])}. "
    )
    if within["low"] is None:
        return f"{said}There are too few groups for an interval of the difference."
    between = f"(95 % interval of the difference {_signed_between(within)})"
    if within["high"] < 0:
        return f"{said}What is a high score on one set is a low one on another {between}: no threshold suits them all."
    if within["low"] > 0:
        return f"{said}The sets are told apart more easily than the images of one {between}."
    return f"{said}No difference can be seen {between}: the sets' scores lie on one scale, as far as this shows."


def _signed_between(found: Mapping) -> str:
    return f"{found['low']:+.3f} to {found['high']:+.3f}"


def _format(evaluation: Mapping[str, Mapping]) -> list[Block]:
    known = {name: metrics for name, metrics in evaluation.items() if "reencoded" in metrics}
    if not known:
        return [
            Text(
                "The test sets were not scored in one format: whether it goes by the format of the files is not known."
            )
        ]

    def change(metrics: Mapping) -> str:
        found = metrics["auc_difference"]
        said = UNDEFINED if found["difference"] is None else f"{found['difference']:+.3f}"
        return said if found["low"] is None else _two_lines(said, _signed_between(found))

    in_format = {name: {**metrics, **metrics["reencoded"]} for name, metrics in known.items()}
    return [
        Text(
            "If the fakes of a data set are files of another kind than its real images (PNG and JPEG, or JPEG of two "
            "qualities), a detector can tell them apart without looking at a face. So every test image, real or fake, "
            "was saved once more as the same kind of JPEG, at its size, and scored again."
        ),
        _table_of_sets(
            "All images in one format",
            in_format,
            {
                "AUC": lambda m: _figure(m, "auc"),
                "Change, from the images as they are": change,
                "Called right": lambda m: _figure(m, "accuracy"),
                "Real called fake": lambda m: _figure(m, "false_positive_rate"),
                "Fake called real": lambda m: _figure(m, "false_negative_rate"),
            },
        ),
        Points([f"On “{name}”, {_format_in_words(metrics['reencoded'])}" for name, metrics in known.items()]),
        Text(
            "A loss has one of two reasons that this cannot tell apart: the detector went by the format, or the traces "
            "of forgery that it went by are too fine to outlast a JPEG. No loss does not clear it of everything that "
            "files have: traces of much stronger compression, and the size of an image, are still there."
        ),
    ]


def _format_in_words(found: Mapping) -> str:
    change = found["auc_difference"]
    if change["difference"] is None:
        return f"the change is {UNDEFINED}: it needs real and fake images."
    if change["low"] is None:
        return "there are too few groups to say whether a change is more than luck."
    if change["high"] < 0:
        said = f"it loses {-change['difference']:.3f} of AUC "
        said += f"(95 % interval {-change['high']:.3f} to {-change['low']:.3f})"
        guesses = found["intervals"]["auc"]["low"] <= 0.5
        return f"{said}; what is left cannot be told from guessing." if guesses else f"{said}."
    if change["low"] > 0:
        return (
            f"it gains {change['difference']:.3f} of AUC (95 % interval {change['low']:.3f} to {change['high']:.3f})."
        )
    return "no change can be seen that is more than luck."


def _loses_by_format(evaluation: Mapping[str, Mapping]) -> list[str]:
    """The test sets whose AUC is lower in one format, by more than luck."""
    changes = {name: metrics.get("reencoded", {}).get("auc_difference") for name, metrics in evaluation.items()}
    return [name for name, change in changes.items() if change and change["high"] is not None and change["high"] < 0]


def _kinds(evaluation: Mapping[str, Mapping]) -> list[Block]:
    """Of more than two classes, how well each is told from all others."""
    known = {name: metrics for name, metrics in evaluation.items() if "classes" in metrics}
    if not known:
        return []
    said = [
        f"On “{name}”, {_percent(metrics['classes']['accuracy'])} of the images were called their own class; the mean "
        f"recall of the classes is {_percent(metrics['classes']['balanced_accuracy'])}, their mean AUC "
        f"{_decimal(metrics['classes']['macro_auc'])}."
        for name, metrics in known.items()
    ]
    tables = [
        Table(
            f"Each class against the rest, “{name}”",
            ["Class", "Images", "Found (recall)", "Right when called (precision)", "AUC", "Calibration error"],
            [
                [
                    kind,
                    f"{row['support']:,}",
                    _percent(row["recall"]),
                    _percent(row["precision"]),
                    _decimal(metrics["classes"]["one_vs_rest"][kind]["auc"]),
                    _decimal(metrics["classes"]["one_vs_rest"][kind]["ece"]),
                ]
                for kind, row in metrics["per_class"].items()
            ],
        )
        for name, metrics in known.items()
    ]
    return [
        Heading("Which kind of fake"),
        Text(
            "Where an image is called fake, the detector also says of which kind; all other figures ask only whether."
        ),
        Points(said),
        *_unfolding(tables, "Each class against the rest", "further test set"),
    ]


def _calls(metrics: Mapping) -> str:
    return ", ".join(f"{what} {_percent(metrics[key])}" for key, what in COUNTED.items())


def _against(home: str, first: Mapping, other: Mapping) -> str:
    """`other` beside the home set."""
    points = other["accuracy"] - first["accuracy"]
    said = f"That is {_points(abs(points))} {'below' if points < 0 else 'above'} “{home}” in images called right"
    a, b = _interval(first, "accuracy"), _interval(other, "accuracy")
    if not (a and b):
        return f"{said}."
    return f"{said}; the two intervals {'do not overlap' if a[1] < b[0] or b[1] < a[0] else 'overlap'}."


def _calibration(calibration: Mapping, evaluation: Mapping[str, Mapping], album: _Album) -> list[Block]:
    said, columns = [], {}
    for name, metrics in evaluation.items():
        before, after = metrics["uncalibrated"]["ece"], metrics["ece"]
        how = "less than" if after < before else "more than" if after > before else "as much as"
        said.append(f"On “{name}” it is off by {_points(after)} on average, {how} the {_points(before)} before.")
    for key, what in (("ece", "Calibration error"), ("brier", "Brier score"), ("loss", "Loss")):
        columns[f"{what}, before"] = lambda m, key=key: _decimal(m["uncalibrated"][key])
        columns[f"{what}, after"] = lambda m, key=key: _figure(m, key)
    return [
        Text(
            "A P(fake) of 0.8 should mean that 8 of 10 such images are fake. Calibration, by the temperature of "
            f"{_decimal(calibration['temperature'])} found on validation images, changes how sure the detector says it "
            "is, not the order of the images. It holds for images like those, with as many fakes among them."
        ),
        Points(said),
        _table_of_sets("Before and after calibration (lower is better)", evaluation, columns),
        *album.of_sets("reliability", "Does P(fake) mean what it says", evaluation, _calibration_errors),
        *album.of_sets("scores", "Scores of real and of fake images", evaluation, _calls),
    ]


def _calibration_errors(metrics: Mapping) -> str:
    before, after = _decimal(metrics["uncalibrated"]["ece"]), _decimal(metrics["ece"])
    return f"calibration error {before} before and {after} after calibration"


def _unsure(calibration: Mapping, evaluation: Mapping[str, Mapping], album: _Album, run: Mapping) -> list[Block]:
    said, target = _band_in_words(calibration), _parameter(run, "evaluate.target_error")
    if target is not None:
        worst = {
            name: max((m["selective"][f"error_called_{verdict}"] or 0, verdict) for verdict in ("fake", "real"))
            for name, m in evaluation.items()
        }
        above = [
            f"“{name}” ({_percent(error)} of the calls of {verdict})"
            for name, (error, verdict) in worst.items()
            if error > target
        ]
        said += f" On validation images at most {_percent(target)} of either verdict is wrong; on test images "
        said += f"more of one is on {', '.join(above)}." if above else "neither is wrong more often."
    columns = {
        "Called": "coverage",
        "Wrong among those": "error_outside",
        "Of the calls of fake": "error_called_fake",
        "Of the calls of real": "error_called_real",
        "Of the unsure, if they were called": "error_inside",
    }
    return [
        Text(said),
        _table_of_sets(
            "What the unsure band costs and buys: images called, and wrong calls",
            evaluation,
            {head: lambda m, key=key: _percent(m["selective"][key]) for head, key in columns.items()},
        ),
        *album.of_sets("risk_coverage", "Errors when the unsure are left to a person", evaluation, _coverage),
    ]


def _coverage(metrics: Mapping) -> str:
    chosen = metrics["selective"]
    return f"share called {_percent(chosen['coverage'])}, wrong among those {_percent(chosen['error_outside'])}"


def _robustness(evaluation: Mapping[str, Mapping], stress: pd.DataFrame | None, album: _Album) -> list[Block]:
    tested = [(name, metrics["stress"]) for name, metrics in evaluation.items() if metrics.get("stress")]
    if not tested:
        return [Text("No stress test was made: how it takes compression, blur, noise and the like was not measured.")]
    name, means = tested[0]
    corruption_sets = {"undamaged": "Undamaged", "generic": "Generic damage, mean", "matched": "Matched damage, mean"}
    rows = [
        [what, _decimal(means[corruption_set]["auc"]), _percent(means[corruption_set]["accuracy"])]
        for corruption_set, what in corruption_sets.items()
    ]
    blocks: list[Block] = [
        Text(
            f"{_count(means['images'], 'image')} of “{name}” were damaged in many ways, each at five severities. The "
            "generic ways are what any shared picture meets (compression, resizing, blur, noise, colour); the matched "
            "ones are those that a published test set is known to use, kept apart so that neither stands for the other."
        ),
        Table("Means over all kinds of damage and severities", ["Images", "AUC", "Called right"], rows),
    ]
    if stress is not None:
        damaged = stress[stress["severity"] > 0]
        order = ["auc" if damaged["auc"].notna().any() else "accuracy", "name", "severity"]
        worst = damaged.sort_values(order).head(WORST)
        rows = [
            [
                rung.name.replace("_", " "),
                rung.corruption_set,
                f"{rung.severity:.0f}",
                _decimal(rung.auc),
                _percent(rung.accuracy),
            ]
            for rung in worst.itertuples(index=False)
        ]
        head = ["Damage", "Set", "Severity, of 5", "AUC", "Called right"]
        blocks.append(Table(f"The {len(worst)} worst of {_count(len(damaged), 'rung')}", head, rows))
    said = ", ".join(
        f"{what.lower()} {_decimal(means[corruption_set]['auc'])}" for corruption_set, what in corruption_sets.items()
    )
    caption = "Every kind of damage, at every severity."
    return [*blocks, *album.take("robustness_ladder", f"Robustness ladder; AUC: {said}.", caption)]


def _attributes(table: pd.DataFrame | None) -> list[Block]:
    if table is None:
        return [
            Text(
                "The data name no attribute of 2 to 50 values (a source, a method, a skin tone, an age), so whether it "
                "is as good for all of them was not measured. Further columns of the data's manifest.csv appear here."
            )
        ]
    blocks: list[Block] = [
        Text(
            "One table for each attribute that the data name. Where a value has images of one class only, its AUC is "
            "not defined (–), and the last column sets its images against all of the other class. Mind the intervals: "
            "small numbers swing."
        )
    ]
    for i, (name, of_set) in enumerate(table.groupby("set", sort=False)):
        tables = [_attribute(name, attribute, rows) for attribute, rows in of_set.groupby("attribute", sort=False)]
        blocks += tables if i < SHOWN_SETS else [More(f"On “{name}”", tables)]
    return blocks


def _attribute(name: str, attribute: str, rows: pd.DataFrame) -> Block:
    enough = rows[rows["n"] >= ENOUGH].sort_values(["accuracy", "value"])
    caption, shown = f"{attribute}, on “{name}”", rows
    if len(rows) > MANY_VALUES:
        shown = enough.head(MANY_VALUES)
        caption += (
            f": {len(shown)} of {len(rows):,} values, those with the fewest called right of {ENOUGH} images or more"
        )
    if shown.empty:
        return Text(
            f"{attribute}, on “{name}”: none of {len(rows):,} values has {ENOUGH} images (metrics/by_attribute.csv)."
        )
    if enough["accuracy"].nunique() > 1:
        worst, best = enough.iloc[0], enough.iloc[-1]
        caption += f". Called right from {_percent(worst['accuracy'])} (“{worst['value']}”) "
        caption += f"to {_percent(best['accuracy'])} (“{best['value']}”), where there are {ENOUGH} images or more."
    head = ["Value", "Images", "Called right", "Real called fake", "Fake called real", "AUC", "AUC, other class whole"]
    return Table(caption, head, [_attribute_row(row) for row in shown.to_dict("records")])


def _attribute_row(row: Mapping) -> list[str]:
    low, high = row["accuracy_low"], row["accuracy_high"]
    accuracy = _percent(row["accuracy"])
    cells = [
        f"{row['n']:,.0f}",
        accuracy if _missing(low) or _missing(high) else _two_lines(accuracy, _between(low, high, _percent)),
        *(_percent(row[key]) for key in ("false_positive_rate", "false_negative_rate")),
        *(_decimal(row[key]) for key in ("auc", "auc_vs_other_class")),
    ]
    return [str(row["value"]), *("–" if cell == UNDEFINED else cell for cell in cells)]


def _mistakes(evaluation: Mapping[str, Mapping], album: _Album, run: Mapping) -> list[Block]:
    said = []
    for name, metrics in evaluation.items():
        accused = round((metrics["false_positive_rate"] or 0) * metrics["n_real"])
        missed = round((metrics["false_negative_rate"] or 0) * metrics["n_fake"])
        wrong = f"{accused + missed:,} of {_count(metrics['n'], 'image')} called wrong"
        said.append(f"“{name}”: {wrong} ({accused:,} real called fake, {missed:,} fake called real).")
    images = [
        *album.of_sets("predictions", "Random test images and what they were called", evaluation, _calls),
        *album.of_sets("mistakes", "The surest mistakes", evaluation, _calls),
    ]
    return [Points(said), *(images or [Text(_no_image(run))])]


def _no_image(run: Mapping) -> str:
    private = str(run.get("plot.private", False)).lower() == "true"
    return "The data are private: no image of them is shown." if private else "There is no picture of them."


def _looked(evaluation: Mapping[str, Mapping], album: _Album, run: Mapping) -> list[Block]:
    known = {name: found for name, metrics in evaluation.items() if (found := metrics.get("localisation"))}
    images = album.of_sets("heat", "Where the model looked, on its surest calls", evaluation, _calls)
    return [
        Text(
            "The heat on an image is what in it raised the model's score towards fake, by Grad-CAM (Selvaraju et al., "
            "2017) in the form of Draelos and Carin (2020). It is evidence for the score, not a proof of anything: "
            "neither that a hot spot was forged nor that a cold one is genuine. It is coarse, a few cells across, and "
            "spread over the image. Every image has a scale of its own: the yellow of one called real may stand for "
            "next to nothing; where no place raised the score there is no heat. And a map can "
            "look sensible and yet say little of the model (Adebayo et al., 2018): no verdict should rest on it alone."
        ),
        *(images or [Text(_no_image(run))]),
        *(_localised(known) if known else []),
    ]


def _localised(known: Mapping[str, Mapping]) -> list[Block]:
    columns = {
        "Fakes": lambda found: f"{found['images']:,}",
        "Heat in the region": lambda found: _figure_with(found, "heat_share", _percent),
        "Region's share": lambda found: _percent(found["region_share"]),
        "Times chance": lambda found: _figure_with(found, "ratio", _twofold),
        "Heat in others' regions": lambda found: _percent(found["elsewhere_share"]),
        "Hottest pixel in it": lambda found: _figure_with(found, "pointing_game", _percent),
        "No heat": lambda found: f"{found['without_heat']:,}",
    }
    return [
        Heading("Does the heat fall where the forgery is?"),
        Text(
            "Where it is known which pixels were forged, that can be counted. Of heat without aim the region would "
            "have its share of the image, and the hottest pixel as often (the pointing game, Zhang et al., 2018)."
        ),
        _table_of_sets("The heat of fakes, and the region that was forged", known, columns),
        Points([f"“{name}”: {_aim_in_words(found)}" for name, found in known.items()]),
    ]


def _aim_in_words(found: Mapping) -> str:
    interval, share, elsewhere = found["intervals"]["ratio"], found["heat_share"], found["elsewhere_share"]
    if interval is None:
        return "too few images or groups for an interval; whether the heat is aimed cannot be told."
    if interval["high"] < 1:
        return "the heat avoids the forged region: do not read the maps as pointing at what was forged."
    if interval["low"] <= 1:
        return (
            "the heat falls on the forged region no more than chance has it: the maps do not point at what was forged."
        )
    said = f"the forged region has {_twofold(found['ratio'])} times the heat that chance would give it."
    if elsewhere is not None and share < SAME_PLACE * elsewhere:
        said += (
            " Other images' forged regions would have caught about as much: the regions lie alike, and the heat on "
            "that part of every image, so this says where the model looks, not that it finds each forgery's own bounds."
        )
    return said


def _twofold(value: float | None) -> str:
    return _decimal(value, 2)


def _figure_with(found: Mapping, key: str, form: Callable[[float | None], str]) -> str:
    interval = found["intervals"][key]
    if not interval:
        return form(found[key])
    return _two_lines(form(found[key]), _between(interval["low"], interval["high"], form))


# ----------------------------------------------------------------------------------------------- the limits


def _limits(
    data: Mapping,
    train: Mapping,
    evaluation: Mapping[str, Mapping],
    pooled: Mapping | None,
    by_attribute: pd.DataFrame | None,
    run: Mapping,
) -> list[Block]:
    limits = [
        *_limits_of_sets(evaluation, pooled, run),
        *_limits_of_data(data, evaluation, run),
        *_limits_of_scope(data, train, evaluation, by_attribute, run),
    ]
    return [
        Text("What a fair reader should hold against the figures above. Each point follows from the data or the run."),
        Points([Markup("<strong>{}.</strong> {}").format(head, text) for head, text in limits]),
        Heading("Not meant for"),
        Points(
            [
                "A decision about a person without another person who looks at the image and where it comes from.",
                "Whole photographs or videos: it judges a face that fills the image as in the training data.",
                "Kinds of forgery that neither the training data nor a test set above contain.",
                "Proof that an image is real: to be called real means that no trace of a forgery it knows was found.",
            ]
        ),
    ]


def _limits_of_sets(
    evaluation: Mapping[str, Mapping], pooled: Mapping | None, run: Mapping
) -> Iterator[tuple[str, str]]:
    smaller = {name: min(n for n in (m["n_real"], m["n_fake"]) if n) for name, m in evaluation.items()}
    few = [f"“{name}” {n:,} ({_points(1 / n)})" for name, n in smaller.items() if n < FEW_IMAGES]
    if few:
        said = "Images of the smaller class, in brackets what one of them is of its error rate"
        yield "Few images", f"{said}: {', '.join(few)}."
    rare = [name for name, m in evaluation.items() if 0 < m["n_real"] < 1000]
    if rare:
        yield "Rare accusations", f"Fewer than 1,000 real images cannot show a rate of 1 in 1,000: {_listed(rare)}."
    wide = [
        f"{what} on “{name}” ({_between(*interval, _percent)})"
        for name, metrics in evaluation.items()
        for key, what in COUNTED.items()
        if (interval := _interval(metrics, key)) and interval[1] - interval[0] > WIDE
    ]
    if wide:
        yield "Wide intervals", f"More than {_points(WIDE)} wide: {'; '.join(wide)}."
    unsettled = [name for name, m in evaluation.items() if not _interval(m, "accuracy")]
    if unsettled:
        yield (
            "No intervals",
            f"All images come from one source, or are called alike in every one: {_listed(unsettled)}.",
        )
    alone = [name for name, m in evaluation.items() if not (m["n_real"] and m["n_fake"])]
    if alone:
        yield "One class only", f"What needs real and fake images, such as AUC, is {UNDEFINED} on {_listed(alone)}."
    limit = _parameter(run, "evaluate.max_false_positive_rate")
    if limit is not None and _chooses_threshold(run):
        rates = {name: m["false_positive_rate"] or 0 for name, m in evaluation.items()}
        above = [f"“{name}” {_percent(rate)}" for name, rate in rates.items() if rate > limit]
        if above:
            yield (
                "The bound on false positives does not hold everywhere",
                f"At most {_percent(limit)} of the real validation images are called fake. On test images: "
                f"{', '.join(above)}.",
            )
    if pooled and (pooled["within_sets"]["high"] or 0) < 0:
        yield (
            "One threshold does not suit all test sets",
            f"Their scores do not lie on one scale: AUC {_decimal(pooled['auc'])} over all sets together, "
            f"{_decimal(pooled['within_sets']['auc'])} within them.",
        )


def _limits_of_data(data: Mapping, evaluation: Mapping[str, Mapping], run: Mapping) -> Iterator[tuple[str, str]]:
    groups = {name: metrics["n_groups"] for name, metrics in evaluation.items()}
    single = [name for name, n in groups.items() if n == evaluation[name]["n"]]
    if single:
        yield (
            "No groups",
            f"Every image counts as a source of its own on {_listed(single)}. If several show one person or come "
            "from one video, the intervals are too narrow, and the parts of the data may share people.",
        )
    few = [f"“{name}” {n:,}" for name, n in groups.items() if n < FEW_GROUPS]
    if few:
        yield "Few groups", f"With fewer than about {FEW_GROUPS}, the intervals are too narrow: {', '.join(few)}."
    trained_on = {name: _trained_on(m, run) for name, m in _extra(evaluation).items()}
    if any(trained_on.values()):
        yield (
            "Test images trained or chosen on",
            ", ".join(f"“{name}” {_count(n, 'image')}" for name, n in trained_on.items() if n)
            + ": its figures flatter.",
        )
    found = data.get("duplicates")
    if found is None:
        yield "Duplicates unknown", "It was not checked whether test images also stand in the training data."
    else:
        pairs, gone = _pairs(found["leaks"]), sum(found["dropped"].values())
        if pairs and not gone and (run.get("data.duplicates") == "report" or not sum(found["excluded"].values())):
            yield (
                "Leaks left in",
                f"{_count(pairs, 'pair')} of images that are one picture stood in two parts of the data. They were "
                "reported and not dropped, so the figures may flatter.",
            )
        if not found["search_complete"]:
            yield "Duplicates may remain", "The images are so alike that only the nearest of each could be compared."
        within = {name: _pairs({name: row}) for name, row in found["within_splits"].items() if name in evaluation}
        repeated = [f"“{name}” {_count(n, 'pair')}" for name, n in within.items() if n]
        if repeated:
            yield "Repeated test images", f"Some are one picture, and so not independent: {', '.join(repeated)}."
    shortcuts = data.get("shortcuts")
    if shortcuts is None:
        yield "Shortcuts unknown", "It was not checked whether something trivial about the files gives the class away."
    elif shortcuts["warnings"]:
        yield "Shortcuts", " ".join(shortcuts["warnings"])
    if lost := _loses_by_format(evaluation):
        yield (
            "The format of the files",
            f"AUC falls when all images are saved alike, on {_listed(lost)}: it may go by the format.",
        )
    elif not any("reencoded" in metrics for metrics in evaluation.values()):
        yield "Format unknown", "The test sets were not scored in one format: whether it goes by that is not known."


def _limits_of_scope(
    data: Mapping,
    train: Mapping,
    evaluation: Mapping[str, Mapping],
    by_attribute: pd.DataFrame | None,
    run: Mapping,
) -> Iterator[tuple[str, str]]:
    if data["source"] == DRAWN_SAMPLE:
        yield "Drawn faces", "No image shows a real face: the figures say nothing about photographs."
    extra = _extra(evaluation)
    if extra:
        scored = f"{_count(len(extra), 'test set')} from elsewhere {'was' if len(extra) == 1 else 'were'} scored"
        yield "Transfer", f"{scored}. Images of yet another origin can come out worse than any of these."
    else:
        yield "Transfer unknown", "No test set from elsewhere was scored: how it does on such images is not known."
    stressed = [m["stress"]["images"] for m in evaluation.values() if m.get("stress")]
    if not stressed:
        yield "Robustness unknown", "No stress test was made."
    elif stressed[0] < FEW_IMAGES:
        one = f"{_count(stressed[0], 'image')}, so that one is {_points(1 / stressed[0])} of accuracy"
        yield "A small stress test", f"Each rung has {one}: single rungs swing, the means say more."
    if by_attribute is None:
        yield "Groups of people", "The data name no attribute: whether it is as good for all people was not measured."
    if train["weights"] == "random":
        reason = f" Why: {train['weights_note']}." if train.get("weights_note") else ""
        yield "Random initial weights", f"Training began from nothing, not from weights learnt elsewhere.{reason}"
    if run.get("converted"):
        yield (
            "Trained elsewhere",
            "What it was trained on is not known here. If test images were among it, the figures flatter.",
        )
    else:
        yield "One training", "One model, trained once from one seed: how much another seed changes was not measured."
    if not _chooses_threshold(run):
        yield "A threshold set by hand", "Whether figures of test images played a part in it is not recorded."
    yield (
        "Choices made by people",
        "The parameters were set by people. How often they had seen figures of test images before is not recorded, and "
        "each look wears a test set out a little.",
    )


def _again(data: Mapping, calibration: Mapping, run: Mapping) -> list[Block]:
    commands = [f"git checkout {run['commit']}"] if run.get("commit") else []
    if run.get("experiment"):
        commands = [f"dvc exp apply {run['experiment']}"]
    elif run.get("uncommitted"):
        commands.append("# there were uncommitted changes: set the parameters below in params.yaml")
    repeat = ["dvc repro"]
    if run.get("converted"):
        repeat = [f"python -m detector {run['converted_by']}", "dvc repro -s evaluate plot"]
    about = {
        "Converted from": run.get("converted"),
        "Commit": run.get("commit")
        and f"{run['commit']}{' with uncommitted changes' if run.get('uncommitted') else ''}",
        "DVC experiment": run.get("experiment"),
        "MLflow run": run.get("mlflow_run"),
        "Digest of the data": data["digest"],
        "SHA-256 of the model": calibration["model"],
    }
    rows = [[what, str(value)] for what, value in about.items() if value]
    params = [[key, _written(value)] for key, value in run.items() if key not in ABOUT_RUN]
    table = Table("Parameters of the run", ["Parameter", "Value"], params, words=True)
    return [
        Text(
            "From the project's root, in its environment and with the same data in place. The same commit, "
            "parameters, data and machine give the same figures. They are in the CSV and JSON files under metrics/."
        ),
        Code("\n".join([*commands, *repeat])),
        Table("What this page is about", ["Item", "Value"], rows, words=True),
        *([More("All parameters", [table])] if params else []),
    ]


# ------------------------------------------------------------------------------------------------- in words


def _missing(value: float | None) -> bool:
    return value is None or value != value  # only NaN differs from itself


def _percent(value: float | None) -> str:
    """One decimal, but what is not all or nothing is not rounded to that."""
    if _missing(value):
        return UNDEFINED
    text = f"{value * 100:.1f} %"
    return {"0.0 %": "<0.1 %", "100.0 %": ">99.9 %"}.get(text, text) if 0 < value < 1 else text


def _points(value: float | None) -> str:
    if _missing(value):
        return UNDEFINED
    return f"{'less than 0.1' if 0 < value < 5e-4 else f'{value * 100:.1f}'} percentage points"


def _decimal(value: float | None, places: int = 3) -> str:
    """As `_percent`: 0.9997 is not 1.000."""
    if _missing(value):
        return UNDEFINED
    text, least = f"{value:.{places}f}", 10**-places
    ends = {f"{0:.{places}f}": f"<{least:.{places}f}", f"{1:.{places}f}": f">{1 - least:.{places}f}"}
    return ends.get(text, text) if 0 < value < 1 else text


def _between(low: float, high: float, form: Callable[[float], str]) -> str:
    return f"{form(low).removesuffix(' %')} to {form(high)}"


def _form(key: str) -> Callable[[float | None], str]:
    return _percent if key in SHARES else _decimal


def _interval(metrics: Mapping, key: str) -> tuple[float, float] | None:
    """The bootstrap's, or where it has no width since all images were called alike, the exact one; None for none."""
    found = metrics["intervals"].get(key)
    if not found:
        return None
    if found["low"] < found["high"]:
        return found["low"], found["high"]
    if not _seen_to_agree(metrics, key):
        return None
    n = metrics[{"false_positive_rate": "n_real", "false_negative_rate": "n_fake"}.get(key, "n")]
    return _exact(round(metrics[key] * n), n)


def _seen_to_agree(metrics: Mapping, key: str) -> bool:
    """Whether a share is 0 or 1, so that no resample differs."""
    return key in COUNTED and metrics[key] in (0, 1) and bool(metrics["intervals"].get(key))


def _exact(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of k of n independent images (Clopper & Pearson, Biometrika 26, 1934)."""
    from scipy.stats import binomtest

    found = binomtest(k, n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def _with_interval(metrics: Mapping, key: str) -> str:
    """For example "5.0 %, 95 % interval 2.0 to 9.1 %"."""
    return f"{_form(key)(metrics[key])}, {_range(metrics, key)}"


def _range(metrics: Mapping, key: str) -> str:
    interval = _interval(metrics, key)
    return f"95 % interval {_between(*interval, _form(key))}" if interval else "no interval"


def _figure(metrics: Mapping, key: str) -> str:
    """A figure and beneath it, smaller, its interval."""
    interval, form = _interval(metrics, key), _form(key)
    return _two_lines(form(metrics[key]), _between(*interval, form)) if interval else form(metrics[key])


def _two_lines(first: str, second: str) -> Markup:
    return Markup("{} <small>{}</small>").format(first, second)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _parameter(run: Mapping, key: str) -> float | None:
    return float(run[key]) if key in run else None


def _table_of_sets(caption: str, evaluation: Mapping[str, Mapping], columns: Mapping[str, Callable]) -> Table:
    """A row for each test set; `columns` maps their heads to what they say of a set's metrics."""
    rows = [[name, *(say(metrics) for say in columns.values())] for name, metrics in evaluation.items()]
    return Table(caption, ["Test set", *columns], rows)


def _forest(caption: str, evaluation: Mapping[str, Mapping], key: str) -> Forest:
    return Forest(caption, [_bar(name, metrics, key) for name, metrics in evaluation.items()])


def _bar(name: str, metrics: Mapping, key: str) -> Bar:
    value = metrics[key]
    low, high = _interval(metrics, key) or (None, None)
    return Bar(
        name,
        _figure(metrics, key),
        at=None if value is None else round(value * 100, 2),
        left=None if low is None else round(low * 100, 2),
        width=None if low is None else round((high - low) * 100, 2),
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _listed(names: Sequence[str]) -> str:
    names = [f"“{name}”" for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value)) or "none"
    return json.dumps(value, default=str)
