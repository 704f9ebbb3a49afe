"""From a model's outputs to an evaluation: the calibration, the metrics of a test set, those of all sets together.

The network itself stays outside: `Output` is whatever turns stored images, corrupted or not, into its outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from detector import metrics
from detector.augment.corruption import perturb
from detector.data.shards import COLUMNS, class_indices
from detector.data.split_names import split_name
from detector.errors import UserError
from detector.evaluation import bootstrap, curves
from detector.evaluation.calibration import Calibration, fit, selective
from detector.evaluation.images import Output, part_of
from detector.evaluation.robustness import in_one_format
from detector.images import EXTENSIONS
from detector.models.outputs import p_fake as p_fake_of
from detector.params import EvaluateParams

ATTRIBUTE_COLUMNS = (
    *("set", "attribute", "value", "n", "n_real", "n_fake", *metrics.METRICS),
    *("auc_vs_other_class", "accuracy_low", "accuracy_high"),
)
SHOWN = 3  # images of each outcome whose heat map is drawn
VALUES = (2, 50)  # an attribute with fewer values divides nothing; one with more names images and not groups


def choose_calibration(
    validation: pd.DataFrame, output: Output, classes: Sequence[str], params: EvaluateParams, seed: int
) -> tuple[Calibration, dict]:
    """Temperature, threshold and unsure band from the validation split, corrupted as `evaluate.calibration` says.

    Args:
        validation: rows of the manifest. classes: the model's, the real one first.

    Returns:
        The calibration, and what it was chosen on: the number of images and the metrics on them, which flatter.

    Raises:
        UserError: a model of more than two classes does not know one of the data's.
    """
    how = params.calibration
    rows = part_of(validation, how.max_images, seed)
    kinds = len(classes) > 2
    if kinds and (unknown := sorted(set(rows["class"]) - set(classes))):
        raise UserError(
            f"data: the model knows the classes {', '.join(classes)}, but not {', '.join(unknown)} of the validation "
            "images; name the folders of the data as the model names its classes"
        )

    def corrupted(image: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng([seed, index])
        return perturb(image, rng, how.corruption_sets, (1, how.corruptions), tuple(how.strength))

    ways = {"clean": [None], "perturbed": [corrupted], "mixed": [None, corrupted]}[how.images]
    outputs = np.concatenate([output(rows, way) for way in ways])
    truth = np.tile(class_indices(rows, classes) if kinds else rows["label"].to_numpy(), len(ways))
    calibration = fit(truth, outputs, params.threshold, params.max_false_positive_rate, params.target_error)
    calibration = replace(calibration, flip=params.flip_average)
    return calibration, {
        "images": len(rows),
        "scored": how.images,
        **_scores((truth > 0).astype(int), outputs, calibration),
    }


@dataclass(frozen=True)
class Evaluation:
    """The results on one test set.

    Attributes:
        metrics: for metrics/evaluate.json: `metrics.score` at the calibration's threshold; uncalibrated (the metrics
            of kind "probability", of the network's own outputs); selective (`calibration.selective`); n_groups;
            intervals (metric -> 95 % low and high, or None); per_class; confusion; for more than two classes also
            classes (`metrics.class_scores`). A set with a class that the model does not know has per_class and
            confusion of real and fake alone. reencoded (`in_one_format`), where the set was scored in one format.
        predictions: one row an image.
        attributes: as `by_attribute`.
        roc: set, fpr, tpr, threshold of the ROC curve; empty where one class is missing.
    """

    metrics: dict[str, object]
    predictions: pd.DataFrame
    attributes: pd.DataFrame
    roc: pd.DataFrame


def evaluate(
    rows: pd.DataFrame,
    outputs: np.ndarray,
    calibration: Calibration,
    classes: Sequence[str],
    resamples: int,
    seed: int,
    reencoded: np.ndarray | None = None,
) -> Evaluation:
    """The results on one test set.

    Args:
        rows: of the manifest, one split. outputs: the network's, float (n,) or (n, classes). classes: the model's.
        resamples: of the groups, behind the intervals. reencoded: the network's outputs for the same images after
            `reencode`.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].tolist()
    probabilities = calibration.apply(outputs)
    p_fake, called = p_fake_of(probabilities), calibration.labels(probabilities, classes)
    curve = curves.roc_points(labels, p_fake) or {"fpr": [], "tpr": [], "threshold": []}
    metrics = {
        **_scores(labels, outputs, calibration),
        "n_groups": rows["group"].nunique(),
        "intervals": bootstrap.bootstrap(labels, p_fake, groups, calibration.threshold, n=resamples, seed=seed),
        **_of_classes(rows, probabilities, called, classes),
    }
    predictions = (
        rows[["path", "split", "class", "group", "label"]]
        .rename(columns={"split": "set"})
        .assign(
            p_fake=p_fake,
            p_fake_uncalibrated=p_fake_of(outputs),
            called=called,
            verdict=calibration.verdicts(probabilities, classes),
            sha256=rows["sha256"],
            # Not p_<class>: a kind of fake may well be called fake.
            **(
                {}
                if probabilities.ndim == 1
                else {f"probability_{k}": p for k, p in zip(classes, probabilities.T, strict=True)}
            ),
        )
    )
    if reencoded is not None:
        again = p_fake_of(calibration.apply(reencoded))
        metrics["reencoded"] = in_one_format(rows, p_fake, again, calibration.threshold, resamples, seed)
        predictions["p_fake_reencoded"] = again
    return Evaluation(
        metrics,
        predictions,
        attributes=by_attribute(rows, p_fake, calibration.threshold, resamples, seed),
        roc=pd.DataFrame({"set": rows["split"].iloc[0], **curve}),
    )


def _of_classes(
    rows: pd.DataFrame, probabilities: np.ndarray, called: list[str], classes: Sequence[str]
) -> dict[str, object]:
    known = len(classes) > 2 and set(rows["class"]) <= set(classes)
    if known:
        names, truth = classes, class_indices(rows, classes)
        calls = np.array([classes.index(name) for name in called])
    else:
        names = classes if len(classes) == 2 else [classes[0], "fake"]
        truth, calls = rows["label"].to_numpy(), np.array([int(name != classes[0]) for name in called])
    tables = {"per_class": metrics.per_class(truth, calls, names), "confusion": metrics.confusion(truth, calls, names)}
    return tables | ({"classes": metrics.class_scores(truth, probabilities, calls, classes)} if known else {})


def _scores(labels: np.ndarray, outputs: np.ndarray, calibration: Calibration) -> dict[str, object]:
    p_fake = p_fake_of(calibration.apply(outputs))
    before = metrics.score(labels, p_fake_of(outputs))
    return {
        **metrics.score(labels, p_fake, calibration.threshold),
        "uncalibrated": {one.name: before[one.name] for one in metrics.of_kind("probability")},
        "selective": selective(labels, p_fake, calibration.threshold, calibration.unsure),
    }


def pooled(predictions: pd.DataFrame, threshold: float, resamples: int, seed: int) -> dict[str, object]:
    """All test sets together under the one threshold, since in use nobody says which set an image resembles.

    Every image counts alike, so a set counts by its number of images. Groups of two sets whose names differ in the
    name of the set alone are resampled together, since they may be two versions of one image. Where they are not,
    the intervals stay right: unrelated groups that come and go together are no more alike than chance makes them.

    Args:
        predictions: as `Evaluation.predictions`, of all sets.

    Returns:
        `metrics.score` of all images; n_groups; intervals, as `bootstrap.bootstrap`; within_sets, as
        `bootstrap.auc_within_sets`.
    """
    labels, p_fake, sets = (predictions[name].to_numpy() for name in ("label", "p_fake", "set"))
    groups = [_shared_name(group, name) for group, name in zip(predictions["group"], sets, strict=True)]
    return {
        **metrics.score(labels, p_fake, threshold),
        "n_groups": len(set(groups)),
        "intervals": bootstrap.bootstrap(labels, p_fake, groups, threshold, n=resamples, seed=seed, sets=sets),
        "within_sets": bootstrap.auc_within_sets(labels, p_fake, sets, groups, n=resamples, seed=seed),
    }


def _shared_name(group: str, split: str) -> str:
    """The name of a group of the test set `split` without the set and the file format: Test_Fog/a.jpg -> a."""
    parts = group.split("/")
    own = next((i for i, part in enumerate(parts) if split_name(part) == split), None)
    name = "/".join(part for i, part in enumerate(parts) if i != own)
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix) if suffix.lower() in EXTENSIONS else name) or group


def by_attribute(rows: pd.DataFrame, p_fake: np.ndarray, threshold: float, resamples: int, seed: int) -> pd.DataFrame:
    """Every metric for each value of the attributes in the data set's own manifest.

    An attribute with one value or more than 50 is left out, and so is one that only repeats the class.

    A value that only fakes have, such as a method of forgery, has no AUC of its own: `auc_vs_other_class` compares its
    images with all images of the other class. Accuracy comes with its 95 % interval, clustered by group.

    Args:
        rows: of the manifest. p_fake: float (n,), calibrated.

    Returns:
        One row a value, with the columns `ATTRIBUTE_COLUMNS`.
    """
    labels = rows["label"].to_numpy()

    def row(own: np.ndarray) -> dict[str, object]:
        scored = metrics.score(labels[own], p_fake[own], threshold)
        groups = rows["group"].to_numpy()[own].tolist()
        interval = bootstrap.bootstrap(
            labels[own], p_fake[own], groups, threshold, ["accuracy"], n=resamples, seed=seed
        )["accuracy"] or {"low": None, "high": None}
        against = None
        if not (scored["n_real"] and scored["n_fake"]):
            pool = own | (labels != labels[own][0])
            against = metrics.score(labels[pool], p_fake[pool])["auc"]
        low, high = interval["low"], interval["high"]
        return {**scored, "auc_vs_other_class": against, "accuracy_low": low, "accuracy_high": high}

    table = []
    for attribute in (name for name in rows.columns if name not in COLUMNS):
        values = rows[attribute].to_numpy()
        pairs = len(set(zip(values, rows["class"], strict=True)))
        if not VALUES[0] <= len(set(values)) <= VALUES[1] or pairs == len(set(values)) == rows["class"].nunique():
            continue
        about = {"set": rows["split"].iloc[0], "attribute": attribute}
        table += [{**about, "value": value or "unknown", **row(values == value)} for value in sorted(set(values))]
    return pd.DataFrame(table, columns=ATTRIBUTE_COLUMNS)


def showcase(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The images of one test set whose heat maps are shown: the surest of each outcome, no two of one group.

    Args:
        predictions: as `Evaluation.predictions`.

    Returns:
        Those rows: true positives (fakes called fake), true negatives, false positives and false negatives, the surest
        of each first.
    """
    fake, called = predictions["label"] == 1, predictions["p_fake"] >= threshold
    outcomes = [(fake & called, True), (~fake & ~called, False), (~fake & called, True), (fake & ~called, False)]
    chosen = [
        predictions[outcome]
        .sort_values("p_fake", ascending=not called_fake, kind="stable")
        .drop_duplicates("group")
        .head(SHOWN)
        for outcome, called_fake in outcomes
    ]
    return pd.concat(chosen)
