import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector import metrics
from detector.evaluation import bootstrap, calibration
from detector.evaluation.findings import with_findings
from detector.reporting.report import SECTIONS, render

VOID = {"meta", "link", "img", "input"}
HOSTILE = "<script>alert('x')</script>\" onload=\"&amp;\u202e{{ 7 * 7 }}\x00"


class Page(HTMLParser):
    """What a browser would read; fails on tags that do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.words, self.attributes = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += [value for _, value in attrs if value]
        if tag not in VOID:
            self.open.append(tag)
        if tag not in ("a", "strong"):
            self.words.append(" ")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def set_metrics(n_real: int, n_fake: int, accused: int, missed: int, n: int = 100, **more) -> dict:
    """What `metrics` and the bootstrap know of a set in which so many images are called wrong; groups of two."""
    labels, p = _scores(n_real, n_fake, accused, missed)
    called, classes = (p >= 0.5).astype(int), ["real", "fake"]
    return {
        **metrics.score(labels, p, 0.5),
        "uncalibrated": {"brier": 0.2, "loss": 0.5, "ece": 0.123},
        "selective": calibration.selective(labels, p, 0.5, (0.4, 0.6)),
        "n_groups": (len(p) + 1) // 2,
        "intervals": bootstrap.bootstrap(labels, p, (np.arange(len(p)) // 2).tolist(), 0.5, n=n),
        "per_class": metrics.per_class(labels, called, classes),
        "confusion": metrics.confusion(labels, called, classes),
        "scores": (labels, p),
        **more,
    }


def _scores(n_real: int, n_fake: int, accused: int, missed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], [n_real, n_fake])
    p = np.concatenate([np.linspace(0.05, 0.3, n_real), np.linspace(0.7, 0.95, n_fake)])
    p[:accused], p[n_real : n_real + missed] = 0.8, 0.1
    return labels, p


def found_in(evaluation: dict) -> dict:
    """What the evaluate stage writes of those sets."""
    scores = {name: m["scores"] for name, m in evaluation.items() if name != "pooled"}
    rows = [pd.DataFrame({"set": name, "label": labels, "p_fake": p}) for name, (labels, p) in scores.items()]
    found = with_findings(evaluation, pd.concat(rows))
    for m in found.values():
        del m["scores"]
    return found


def inputs(evaluation: dict | None = None, **more) -> dict:
    evaluation = evaluation or {"test": set_metrics(100, 100, 5, 14), "test_perturbed": set_metrics(100, 100, 40, 31)}
    home = {name: m for name, m in evaluation.items() if "seen_in_training" not in m}
    counts = {"train": {"real": 300, "fake": 300}, "validation": {"real": 60, "fake": 60}}
    counts |= {name: {"real": m["n_real"], "fake": m["n_fake"]} for name, m in home.items()}
    data = {
        "source": "the drawn sample",
        "classes": ["real", "fake"],
        "images": 1240,
        "counts": counts,
        "groups": {name: sum(of.values()) // 2 for name, of in counts.items()},
        "sizes": {side: {"min": 64.0, "median": 128.0, "max": 256.0} for side in ("width", "height", "bytes")},
        "scaled_down": 0,
        "excluded": {"images": 2, "reasons": {"truncated": {"images": 2, "examples": ["a.jpg", "b.jpg"]}}},
        "digest": "c8cce1c5" * 8,
        "duplicates": {
            "images": 1240,
            "search_complete": True,
            "leaks": {"train / test": {"exact": 2, "near": 3, "across_classes": 0}},
            "between_test_sets": {},
            "within_splits": {},
            "excluded": {},
            "dropped": {"train": 5},
        },
        "shortcuts": {
            "from_train": {"file_size": {"validation": 0.5, "test": None}},
            "within": {"file_size": {"train": 0.71, "validation": 0.5, "test": 0.5}},
            "warnings": ["The size of the file alone tells fake from real within train."],
        },
    }
    best = {"epoch": 4, "val_loss": 0.167, "val_accuracy": 0.95, "val_auc": 0.989}
    return {
        "data": data,
        "train": {"weights": "random", "epochs": 4, "best": best},
        "calibration": {"model": "9f" * 32, "temperature": 1.42, "threshold": 0.5, "unsure": [0.4, 0.6]},
        "evaluation": found_in(evaluation),
        "stress": None,
        "by_attribute": None,
        "pictures": {},
        "run": {"commit": "9eb9192", "mlflow_run": "b6d1", "evaluate.max_false_positive_rate": 0.1, "seed": 42},
        **more,
    }


def in_format(low: float | None, high: float | None, auc: tuple[float, float] = (0.8, 0.9), **more) -> dict:
    """What evaluate.json holds of a set in one format; low and high are of the change of AUC."""
    difference = None if low is None else (low + high) / 2
    return {
        "accuracy": 0.615,
        "auc": sum(auc) / 2,
        "false_positive_rate": 0.1,
        "false_negative_rate": 0.3,
        "intervals": {
            "auc": {"low": auc[0], "high": auc[1]},
            **{
                name: {"low": 0.05, "high": 0.71} for name in ("accuracy", "false_positive_rate", "false_negative_rate")
            },
        },
        "auc_difference": {"difference": difference, "low": low, "high": high} | more,
    }


def together(low: float | None, high: float | None, **more) -> dict:
    """What evaluate.json holds of all sets together; low and high are of the AUC's difference from that within sets."""
    within = {"auc": 0.912, "difference": None if low is None else (low + high) / 2, "low": low, "high": high}
    return set_metrics(200, 200, 45, 45) | {"within_sets": within | more}


def ladder() -> pd.DataFrame:
    rows = [("undamaged", "", "", 0, 40, 0.97, 0.9)]
    rows += [("jpeg", "jpeg", "generic", k, 40, 0.95 - 0.01 * k, 0.8) for k in range(1, 6)]
    rows += [("motion_blur", "blur", "matched", k, 40, 0.9 - 0.1 * k, 0.7) for k in range(1, 6)]
    return pd.DataFrame(rows, columns=["name", "family", "corruption_set", "severity", "n", "auc", "accuracy"])


STRESS = {"images": 40} | {
    corruption_set: {"auc": 0.9, "accuracy": 0.8} for corruption_set in ("undamaged", "generic", "matched")
}


def attribute_row(value: str, n: int, **more) -> dict:
    row = {"set": "test", "attribute": "method", "value": value, "n": n, "n_real": 0, "n_fake": n, "accuracy": 0.8}
    row |= {"accuracy_low": 0.6, "accuracy_high": 0.9} | dict.fromkeys(
        ("auc", "auc_vs_other_class", "false_positive_rate", "false_negative_rate")
    )
    return row | more


@pytest.fixture
def picture(tmp_path):
    def write(name: str, size=(60, 40)):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        Image.new("RGB", size, "white").save(path)
        return {name: path}

    return write


def all_pictures(picture, sets=("test", "test_perturbed")) -> dict:
    names = ["accuracy", "loss", "training_log", "sample", "duplicates", "mystery"]
    names += ["roc", "precision_recall", "robustness_ladder"]
    names += [
        f"{kind}_{name}"
        for kind in (
            "reliability", "scores", "risk_coverage", "confusion_matrix", "classification_report", "predictions",
            "mistakes", "heat",
        )
        for name in sets
    ]  # fmt: skip
    return {key: path for name in names for key, path in picture(name).items()}


# ------------------------------------------------------------------------------------------------ structure


def test_the_page_is_well_formed_accessible_and_needs_nothing_beside_itself(picture):
    evaluation = {"test": set_metrics(100, 100, 5, 14, stress=STRESS), "test_perturbed": set_metrics(100, 100, 40, 31)}
    pictures = all_pictures(picture)
    html = render(**inputs(evaluation, stress=ladder(), pictures=pictures))
    page = Page(html)

    assert html.startswith("<!DOCTYPE html>\n") and html.encode("utf-8")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("a")[0]["class"] == "skip"

    images = page.all("img")
    assert len(images) == len(pictures)
    assert all(image["alt"] and image["src"].startswith("data:image/webp;base64,") for image in images)
    assert all((image["width"], image["height"]) == ("60", "40") for image in images)
    assert "http:" not in html and "https:" not in html and "url(" not in html and not page.all("script")
    assert [attrs["rel"] for attrs in page.all("link")] == ["icon"]
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attrs["scope"] in ("row", "col") for attrs in page.all("th"))


def test_headings_never_skip_a_level():
    levels = [int(tag[1]) for tag, _ in Page(render(**inputs())).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


def test_colours_have_the_contrast_that_text_needs():
    html = render(**inputs())

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", html)]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        for text in ("ink", "muted", "accent"):
            for ground in ("paper", "faint"):
                low, high = sorted((luminance(scheme[text]), luminance(scheme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)  # WCAG 2.2, AA


def test_further_sets_unfold(picture):
    evaluation = {f"set {i}": set_metrics(20, 20, 1, 1, n=10) for i in range(5)}
    page = Page(render(**inputs(evaluation, pictures=all_pictures(picture, evaluation))))
    assert "The surest mistakes: 3 further test sets" in page.text
    assert len(page.all("img")) == 9 + 8 * 5


def test_a_picture_keeps_its_pixels_and_an_unknown_one_is_shown_last(picture):
    pixels = np.random.default_rng(0).integers(0, 2, (40, 60, 3), np.uint8) * 255
    pictures = picture("roc") | picture("mystery")
    Image.fromarray(pixels).save(pictures["roc"])
    page = Page(render(**inputs(pictures=pictures)))
    roc, mystery = page.all("img")
    assert mystery["alt"] == "Picture mystery" and "Appendix" in page.text
    with Image.open(io.BytesIO(base64.b64decode(roc["src"].split(",")[1]))) as shown:
        assert (np.asarray(shown.convert("RGB")) == pixels).all()


def test_alternative_texts_carry_the_numbers(picture):
    alts = {image["alt"] for image in Page(render(**inputs(pictures=all_pictures(picture)))).all("img")}
    auc = metrics.score(*_scores(100, 100, 5, 14))["auc"]
    assert any(alt.startswith("ROC") and f"{auc:.3f} on “test”" in alt for alt in alts)
    assert any(alt.startswith("Does P(fake)") and "0.123" in alt for alt in alts)
    assert any("40.0\u00a0%" in alt and "“test_perturbed”" in alt for alt in alts)


def test_the_same_input_gives_the_same_bytes(picture):
    pictures = all_pictures(picture)
    assert render(**inputs(pictures=pictures)) == render(**inputs(pictures=dict(reversed(pictures.items()))))


# ------------------------------------------------------------------------------------------------ strangers


def test_names_from_outside_are_shown_and_never_read_as_html(picture):
    extra = set_metrics(40, 20, 4, 3, seen_in_training=2)
    given_ = inputs({"test": set_metrics(60, 60, 3, 3, stress=STRESS), HOSTILE: extra}, stress=ladder())
    given_["data"]["source"] = given_["train"]["weights_note"] = given_["run"]["data.path"] = HOSTILE
    given_["data"]["excluded"]["reasons"] = {HOSTILE: {"images": 2, "examples": [HOSTILE]}}
    given_["data"]["shortcuts"]["warnings"] = [HOSTILE]
    given_["data"]["classes"] = [HOSTILE, "fake"]
    given_["by_attribute"] = pd.DataFrame([attribute_row(HOSTILE, 20) | {"set": HOSTILE, "attribute": HOSTILE}])
    given_["pictures"] = all_pictures(picture, ("test", HOSTILE)) | picture(HOSTILE)
    html = render(**given_)
    page = Page(html)
    assert "<script" not in html and not any("onload" in attrs for _, attrs in page.tags)
    assert "{{ 7 * 7 }}" in page.text and "<script>alert('x')</script>\" onload=\"&amp;" in page.text
    assert not set("\u202e\x00") & set(html)


@settings(max_examples=15, deadline=None)
@given(name=st.text(st.characters(codec=None, categories=None), min_size=1, max_size=40))
def test_any_name_gives_a_whole_page(name):
    page = Page(render(**inputs({name: set_metrics(8, 8, 1, 0, n=10)})))
    assert render(**inputs({name: set_metrics(8, 8, 1, 0, n=10)})).encode("utf-8")
    assert not page.all("script") and "What is not known" in page.text


# ------------------------------------------------------------------------------------------------ the facts


def sections(**given_) -> dict[str, str]:
    """The text of each section of the page."""
    html = render(**given_)
    parts = re.findall(r'<section id="(\w+)".*?>(.*?)</section>', html, re.DOTALL)
    return {name: Page(f"<div>{body}</div>").text for name, body in parts}


def numbers_of(text: str) -> set[str]:
    return set(re.findall(r"[+-]?[\d,]*\.?\d+", text))


def test_every_section_stands_on_the_page_and_in_the_contents():
    given_ = inputs()
    page = Page(render(**given_))
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert ids == list(SECTIONS) and [link["href"] for link in page.all("a")[1:15]] == [f"#{name}" for name in ids]
    assert all(len(text) > 50 for text in sections(**given_).values())


def test_every_figure_of_every_test_set_lands_on_the_page():
    found = in_format(-0.4, -0.2)
    home = set_metrics(100, 100, 5, 14, stress=STRESS, reencoded=found, localisation=aim(1.8, 2.2, 2.6))
    evaluation = {"test": home, "web": set_metrics(80, 40, 9, 7, seen_in_training=3)}
    given_ = inputs(evaluation | {"pooled": together(-0.3, -0.1)}, stress=ladder())
    text = " ".join(sections(**given_).values())
    shares = {*("accuracy", "balanced_accuracy", "false_positive_rate", "false_negative_rate", "eer")}
    shares |= {"tpr_at_fpr_1pct", "tpr_at_fpr_01pct"}
    for name, m in given_["evaluation"].items():
        kept = ("accuracy", "balanced_accuracy", "false_positive_rate", "false_negative_rate", "auc", "ece")
        for key in metrics.METRICS if name != "pooled" else kept:
            values = [m[key], *((m["intervals"][key] or {}).get(end) for end in ("low", "high"))]
            for value in values:
                if value is not None and 0.001 < value < 0.999:
                    assert (f"{value * 100:.1f}" if key in shares else f"{value:.3f}") in text, (name, key, value)
        assert f"{m['n']:,}" in text
        if name != "pooled":
            assert f"{m['counts']['right']} of {m['n']}" in text
            assert f"{m['counts']['real_called_fake']} of {m['n_real']}" in text
            for key in ("coverage", "error_outside", "error_called_fake", "error_called_real"):
                assert f"{m['selective'][key] * 100:.1f} %" in text, key
    assert {"-0.300", "-0.400", "-0.200"} <= numbers_of(text)  # of the AUC in one format
    assert {"2.20", "1.80", "2.60", "0.912"} <= numbers_of(text)


def test_the_verdict_says_the_numbers_with_their_intervals():
    given_ = inputs()
    test, perturbed = given_["evaluation"].values()
    text = sections(**given_)["verdict"]

    def interval(m: dict, key: str) -> str:
        return f"{m['intervals'][key]['low'] * 100:.1f} to {m['intervals'][key]['high'] * 100:.1f} %"

    assert f"181 of 200 images right (90.5 %, 95 % interval {interval(test, 'accuracy')})" in text
    assert f"(5 of 100; 5.0 %, 95 % interval {interval(test, 'false_positive_rate')})" in text and "1 in 20" in text
    assert f"129 of 200 images right (64.5 %, 95 % interval {interval(perturbed, 'accuracy')})" in text
    assert "2 in 5" in text and "(40 of 100; 40.0 %" in text and "about 1 in 7" in text


def test_none_of_twenty_shows_the_exact_interval():
    text = sections(**inputs({"test": set_metrics(20, 20, 0, 20)}))
    # Clopper and Pearson, 0 of 20 and 20 of 20
    assert "0 of 20; 0.0 %, 95 % interval 0.0 to 16.8 %" in text["verdict"]
    assert "20 of 20; 100.0 %, 95 % interval 83.2 to 100.0 %" in text["verdict"]
    assert "0.0 to 0.0" not in " ".join(text.values()) and "100.0 to 100.0" not in " ".join(text.values())
    assert "Clopper" in text["results"] and "Clopper" not in sections(**inputs())["results"]


def test_what_a_call_of_fake_is_worth_where_fakes_are_rare():
    assert f"{0.0086 / 0.0581 * 100:.1f} %" in sections(**inputs())["verdict"]


def test_a_share_that_is_not_all_or_nothing_is_not_rounded_to_it():
    text = Page(render(**inputs({"test": set_metrics(5000, 5000, 1, 0, n=10)}))).text
    assert ">99.9 %" in text and "<0.1 %" in text and "1 in 5,000" in text


def test_a_set_of_one_class_says_so():
    page = Page(render(**inputs({"test": set_metrics(30, 0, 2, 0), "test_fakes": set_metrics(0, 12, 0, 0)})))
    assert "One class only." in page.text and "not defined on “test” and “test_fakes”" in page.text
    assert "None" not in page.text and "nan" not in page.text.lower().split()


def test_one_group_has_no_intervals():
    text = Page(render(**inputs({"test": set_metrics(10, 10, 1, 1, intervals=dict.fromkeys(metrics.METRICS))}))).text
    assert "18 of 20 images right (90.0 %, no interval)" in text and "No intervals." in text


@pytest.mark.parametrize(
    ("auc", "low", "high", "words"),
    [(0.52, 0.41, 0.63, "cannot be told from guessing"), (0.36, 0.22, 0.44, "worse than guessing"),
     (0.6, 0.501, 0.63, None)],
)  # fmt: skip
def test_scores_that_may_be_guesses_are_called_so(auc, low, high, words):
    m = set_metrics(20, 20, 10, 10) | {"auc": auc}
    m["intervals"]["auc"] = {"low": low, "high": high}
    text = sections(**inputs({"test": m}))["verdict"]
    assert ("guessing" in text) == bool(words)
    if words:
        assert words in text and f"AUC {auc:.3f}, 95 % interval {low:.3f} to {high:.3f}" in text


@pytest.mark.parametrize(
    ("band", "words"),
    [
        ([0.4, 0.6], ["0.400", "0.600"]),
        ([0.5, 0.5], ["no scores are left", "No unsure band"]),
        ([0.0, 0.6], ["none is low enough"]),
        ([0.4, calibration.NEVER], ["0.400 to 1.000", "none is high enough"]),
    ],
)
def test_the_band_in_words(band, words):
    given_ = inputs()
    given_["calibration"]["unsure"] = band
    text = Page(render(**given_)).text
    assert all(word in text for word in words)


def test_extra_sets_stand_beside_the_home_set():
    evaluation = {"test": set_metrics(100, 100, 5, 14), "web": set_metrics(40, 40, 30, 10, seen_in_training=3)}
    text = Page(render(**inputs(evaluation))).text
    assert "On “web”, never trained on, it called 40 of 80 images right (50.0 %" in text
    assert "40.5 percentage points below “test”" in text and "the two intervals do not overlap" in text
    assert "left out" in text and "Transfer unknown" not in text
    assert "counted all the same" in Page(render(**inputs(evaluation, run={"data.duplicates": "report"}))).text


def test_a_further_set_that_was_trained_on_is_called_so_nowhere_else():
    evaluation = {"test": set_metrics(100, 100, 5, 14), "web": set_metrics(40, 40, 3, 1, seen_in_training=70)}
    text = sections(**inputs(evaluation, run={"data.duplicates": "report"}))
    assert "On “web”, 70 images of it" in text["results"] and "never trained on" not in text["results"]
    assert "“web” 70 images" in text["limits"]
    text = sections(**inputs(evaluation, run={"data.duplicates": "drop"}))
    assert "never trained on" in text["results"] and "70" not in text["limits"]


def test_the_worst_corruptions_are_listed():
    given_ = inputs({"test": set_metrics(50, 50, 2, 2, stress=STRESS)})
    text = sections(**given_ | {"stress": ladder()})["robustness"]
    assert "5 worst of 10" in text and "motion blur matched 5 0.400 70.0 %" in text
    as_text = ladder().assign(auc="", severity=lambda rows: rows["severity"].astype(str))  # a file without AUCs
    assert "motion blur matched 1 not defined 70.0 %" in sections(**given_ | {"stress": as_text})["robustness"]


def test_attributes_are_cut_to_the_worst_and_undefined_ones_shown_as_such():
    rows = [attribute_row(f"v{i:02d}", 20, accuracy=0.5 + i / 100) for i in range(30)] + [attribute_row("rare", 2)]
    text = sections(**inputs(by_attribute=pd.DataFrame(rows)))["attributes"]
    assert "method, on “test”: 15 of 31 values" in text and "v14" in text and "v15" not in text and "rare" not in text
    assert "from 50.0 % (“v00”) to 79.0 % (“v29”)" in text
    few = pd.DataFrame([attribute_row("swap", 20), attribute_row("other", 2)])
    text = sections(**inputs(by_attribute=few))["attributes"]
    assert "swap 20 80.0 % 60.0 to 90.0 % – – – –" in text and "other 2" in text


def test_kinds_of_fake_are_told_apart():
    one = {"auc": 0.91, "average_precision": 0.9, "brier": 0.1, "ece": 0.031}
    classes = {"accuracy": 0.71, "balanced_accuracy": 0.72, "macro_f1": 0.7, "macro_auc": 0.93, "loss": 1, "ece": 0.1}
    classes["one_vs_rest"] = {"real": one, "fake": one}
    text = sections(**inputs({"test": set_metrics(20, 20, 1, 1, classes=classes)}))["results"]
    assert {"71.0", "72.0", "0.930", "0.910", "0.031"} <= numbers_of(text)


# ----------------------------------------------------------------------- one format, and all sets together


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (in_format(-0.4, -0.2), "loses 0.300 of AUC (95 % interval 0.200 to 0.400)."),
        (in_format(-0.4, -0.2, (0.45, 0.6)), "cannot be told from guessing."),
        (in_format(-0.01, 0.02), "no change can be seen"),
        (in_format(0.01, 0.03), "gains 0.020 of AUC (95 % interval 0.010 to 0.030)."),
        (in_format(None, None), "is not defined"),
        (in_format(None, None, difference=-0.1), "too few groups"),
    ],
)
def test_what_one_format_costs(found, words):
    text = sections(**inputs({"test": set_metrics(100, 100, 5, 14, reencoded=found)}))
    assert words in text["format"]
    assert "61.5 % 5.0 to 71.0 %" in text["format"] and f"{found['auc']:.3f}" in text["format"]
    high = found["auc_difference"]["high"]
    falls = high is not None and high < 0
    assert ("saved alike" in text["verdict"]) == falls == ("The format of the files." in text["limits"])
    assert "Format unknown" not in text["limits"] and "Format unknown." in sections(**inputs())["limits"]
    change = found["auc_difference"]["difference"]
    assert (f"{change:+.3f}" if change is not None else "not defined") in text["format"]


@pytest.mark.parametrize(
    ("pooled", "words"),
    [
        (together(-0.3, -0.1), "(95 % interval of the difference -0.300 to -0.100)"),
        (together(-0.02, 0.01), "No difference can be seen"),
        (together(0.01, 0.03), "+0.010 to +0.030"),
        (together(None, None), "is not defined"),
        (together(None, None, difference=0.1), "too few groups"),
    ],
)
def test_all_sets_together_are_one_row(pooled, words):
    m = inputs()["evaluation"]
    scores = {name: set_metrics(100, 100, *wrong) for name, wrong in zip(m, ((5, 14), (40, 31)), strict=True)}
    given_ = inputs(scores | {"pooled": pooled})
    text = sections(**given_)
    assert words in text["results"] and "All 2 test sets together, 400 images" in text["results"]
    for figure in ("Images called right 77.5 %", "Real images called fake 22.5 %", "Fake images called real 22.5 %"):
        assert figure in text["results"]
    assert ("One threshold does not suit" in text["limits"]) == (pooled["within_sets"]["high"] == -0.1)
    assert "“pooled”" not in " ".join(text.values())
    assert "test sets together" not in sections(**inputs({"test": set_metrics(100, 100, 5, 14)}))["results"]


# --------------------------------------------------------------------------------------------------- limits


def limits(**more) -> str:
    return sections(**inputs(**more))["limits"]


def test_limits_follow_from_the_numbers():
    text = limits()
    for head in (
        "Few images", "Rare accusations", "Wide intervals", "The bound on false positives", "Shortcuts",
        "Drawn faces",
        "Transfer unknown", "Robustness unknown", "Groups of people", "Random initial weights", "One training",
    ):  # fmt: skip
        assert f"{head}" in text, head
    assert "“test_perturbed” 40.0 %" in text and "“test” 5.0 %" not in text
    for head in ("Few groups", "No groups", "Leaks left in", "Duplicates", "One class only", "Repeated", "set by hand"):
        assert head not in text, head


def test_limits_go_when_their_reason_goes():
    given_ = inputs(
        {
            "test": set_metrics(1500, 1500, 30, 30, stress=STRESS | {"images": 400}, reencoded=in_format(-0.01, 0.01)),
            "web": set_metrics(1500, 1500, 9, 9, seen_in_training=0),
        }
    )
    given_["data"]["source"] = "/data/faces"
    given_["data"]["shortcuts"]["warnings"] = []
    given_["train"]["weights"] = "imagenet"
    given_["by_attribute"] = pd.DataFrame([attribute_row("swap", 20)])
    text = sections(**given_)["limits"]
    heads = ("Few", "Rare", "Wide", "bound", "Shortcuts", "Drawn", "unknown", "Random")
    assert [head for head in heads if head in text] == []
    assert "Transfer. 1 test set" in text


@pytest.mark.parametrize(
    ("change", "head"),
    [
        (lambda data: data.pop("duplicates"), "Duplicates unknown"),
        (lambda data: data.pop("shortcuts"), "Shortcuts unknown"),
        (lambda data: data["duplicates"].update(dropped={}), "Leaks left in"),
        (lambda data: data["duplicates"].update(search_complete=False), "Duplicates may remain"),
        (
            lambda data: data["duplicates"].update(
                within_splits={"test": {"exact": 1, "near": 1, "across_classes": 0}}
            ),
            "“test” 2 pairs",
        ),
    ],
)
def test_a_limit_of_the_data(change, head):
    given_ = inputs()
    assert head not in sections(**given_)["limits"]
    change(given_["data"])
    assert head in sections(**given_)["limits"]


@pytest.mark.parametrize(("groups", "head"), [(200, "No groups."), (12, "Few groups.")])
def test_a_limit_of_the_groups(groups, head):
    given_ = inputs()
    assert head not in sections(**given_)["limits"]
    given_["evaluation"]["test"]["n_groups"] = groups
    assert head in sections(**given_)["limits"]


def test_a_threshold_set_by_hand_is_not_called_chosen():
    run = {"evaluate.threshold": 0.5, "evaluate.max_false_positive_rate": 0.1}
    text = sections(**inputs(run=run))
    assert "Threshold 0.500: set by hand" in text["choices"] and "A threshold set by hand" in text["limits"]
    assert "The bound on false positives" not in text["limits"]


def test_private_data_show_no_image():
    assert Page(render(**inputs(run={"plot.private": True}))).text.count("The data are private") == 2
    assert "private" not in Page(render(**inputs())).text


def test_how_to_do_it_again_names_commit_run_and_parameters():
    text = sections(**inputs())["again"]
    assert "git checkout 9eb9192 dvc repro" in text and "seed 42" in text and "b6d1" in text
    assert "git checkout" not in sections(**inputs(run={}))["again"]
    text = sections(**inputs(run={"experiment": "quick", "commit": "9eb9192", "uncommitted": True}))["again"]
    assert "dvc exp apply quick dvc repro" in text and "with uncommitted changes" in text


def test_a_converted_model_is_called_so():
    run = {"converted": "a.h5", "converted_by": "convert a.h5", "commit": "9eb9192"}
    text = sections(**inputs(run=run, train={"weights": "converted"}))
    assert "a.h5" in text["choices"] and "python -m detector convert a.h5" in text["again"]
    assert "Trained elsewhere." in text["limits"] and "One training." not in text["limits"]


def test_what_the_choice_was_made_on_is_shown():
    given_ = inputs()
    given_["calibration"]["chosen_on"] = {"images": 120, "scored": "mixed", **set_metrics(120, 120, 12, 12)}
    text = sections(**given_)["choices"]
    assert "120 validation images" in text and "Real images called fake 10.0 %" in text
    assert text.lower().count("the temperature, the threshold and the unsure band") == 2
    given_["run"]["evaluate.threshold"] = 0.4
    text = sections(**given_)["choices"]
    assert text.lower().count("the temperature and the unsure band") == 2 and "set by hand" in text


def test_either_verdict_is_held_against_the_error_it_was_chosen_for():
    one_sided = set_metrics(300, 20, 0, 20)  # of all calls 6 % are wrong, of those of real as well; no call of fake
    run = {"evaluate.target_error": 0.1}
    assert "“test” (" not in sections(**inputs({"test": one_sided}, run=run))["unsure"]
    accused = set_metrics(300, 5, 12, 0)  # 4 % of all are wrong, but 12 of the 17 calls of fake
    text = sections(**inputs({"test": accused}, run=run))["unsure"]
    assert "“test” (70.6 % of the calls of fake)" in text


# ------------------------------------------------------------------------------------------------ where it looked


def aim(low: float, ratio: float, high: float, elsewhere: float = 0.1) -> dict:
    intervals = {
        "heat_share": {"low": low / 8, "high": high / 8},
        "ratio": {"low": low, "high": high},
        "pointing_game": {"low": 0.3, "high": 0.6},
    }
    found = {"images": 100, "without_heat": 12, "heat_share": ratio / 8, "region_share": 0.125, "ratio": ratio}
    return {**found, "pointing_game": 0.46, "elsewhere_share": elsewhere, "intervals": intervals}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (aim(1.8, 2.2, 2.6), "2.20 times the heat"),
        (aim(1.8, 2.2, 2.6, elsewhere=0.27), "would have caught about as much"),
        (aim(0.9, 1.2, 1.5), "no more than by chance"),
        (aim(0.5, 0.7, 0.9), "avoids the forged region"),
        ({**aim(1, 1, 1), "intervals": dict.fromkeys(("heat_share", "ratio", "pointing_game"))}, "cannot be told"),
    ],
)
def test_what_is_said_of_the_heats_aim_follows_from_the_interval(found, words):
    text = sections(**inputs({"test": set_metrics(100, 100, 5, 14, localisation=found)}))["looked"]
    assert words in text and "12.5 %" in text
    assert ("caught about as much" in text) == ("caught about as much" in words)


def test_without_masks_the_heats_aim_is_not_spoken_of(picture):
    text = sections(**inputs(pictures=picture("heat_test")))["looked"]
    assert "on its surest calls, “test”." in text
    assert "the forgery is?" not in text and "Adebayo" in text


def test_heat_that_is_nowhere():
    nothing = dict.fromkeys(("heat_share", "ratio", "elsewhere_share"))
    found = {**aim(1, 1, 1), "without_heat": 100, "pointing_game": 0.0, **nothing}
    found["intervals"] = dict.fromkeys(("heat_share", "ratio", "pointing_game"))
    assert "not defined" in sections(**inputs({"test": set_metrics(100, 100, 5, 14, localisation=found)}))["looked"]


def test_a_converted_model_is_not_said_to_have_been_trained_here():
    sets = {"test": set_metrics(100, 100, 5, 14), "elsewhere": set_metrics(50, 50, 5, 5, seen_in_training=0)}
    given = inputs(sets)
    given["train"] = {"weights": "converted", "file": "mine.h5", "sha256": "ab" * 32, "command": "convert mine.h5"}
    command = "convert mine.h5 --classes Fake Real --pixels 0..1"
    given["run"] |= {"converted": "mine.h5", "converted_by": command}
    ours, text = Page(render(**inputs(sets))).text, Page(render(**given)).text
    assert "a detector converted from mine.h5, on the drawn sample" in text
    assert "trained elsewhere, converted from mine.h5" in text
    assert "If test images were among it, the figures flatter" in text
    assert f"python -m detector {command} dvc repro -s evaluate plot" in text
    for untrue in ("never trained on", "Nothing was trained", "learns from train", "its own data", "trained once from"):
        assert untrue in ours and untrue not in text
    assert "converted" not in ours and "converted_by" not in text


# ----------------------------------------------------------------------------------------------- the templates


def test_no_stray_space_stands_before_a_full_stop(picture):
    evaluation = {
        "test": set_metrics(100, 100, 5, 14, stress=STRESS),
        "web": set_metrics(9, 9, 0, 0, seen_in_training=1),
    }
    run = {"evaluate.target_error": 0.01, "data.duplicates": "report"}
    text = Page(render(**inputs(evaluation, stress=ladder(), pictures=all_pictures(picture), run=run))).text
    assert re.findall(r".{20} [.,;:)](?=\s).{10}|\w[.;](?=[A-Z]).{10}", text.replace(" ... at", "")) == []
