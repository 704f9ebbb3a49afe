"""What the evaluation does with a model's outputs: choose the calibration, score a set, put it under stress.

The network itself stays outside: `Output` is whatever turns stored images, damaged or not, into its outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd

from detector import calibration as calibrations
from detector import scoring
from detector.augment.corruption import CORRUPTIONS, SEVERITIES, corrupt, perturb, through_jpeg
from detector.calibration import Calibration
from detector.data.decode import EXTENSIONS
from detector.data.sample import forged_paths, read_mask
from detector.data.shards import COLUMNS, class_indices
from detector.data.splits import split_name
from detector.errors import UserError
from detector.params import EvaluateParams

Damage = Callable[[np.ndarray, int], np.ndarray]  # (uint8 (h, w, 3) as stored, index of its row) -> uint8 (h, w, 3)
Output = Callable[[pd.DataFrame, Damage | None], np.ndarray]  # rows of the manifest -> `network_outputs`

ATTRIBUTE_COLUMNS = (
    *("set", "attribute", "value", "n", "n_real", "n_fake", "auc", "auc_vs_other_class"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *(name for name in scoring.METRICS if name not in ("auc", "accuracy")),
)
RUNG_COLUMNS = (
    *("name", "family", "arm", "severity", "n", "auc", "accuracy", "false_accusation_rate", "missed_fake_rate"),
)
REENCODED = ("accuracy", "auc", "false_accusation_rate", "missed_fake_rate")  # of a set in one format
# Of that format, a JPEG with halved colour. A classifier of DCT statistics that tells PNG from JPEG by an AUC of 0.99
# falls to 0.50 after 75 as after 90; one that has learnt a JPEG of 60 falls from 1.00 to 0.54 after 75, 0.86 after 90.
QUALITY = 75
SHOWN = 3  # images of each kind of call whose heat is drawn
LOCALISED = 200  # fakes of a set that are asked whether the heat falls where they are forged
VALUES = (2, 50)  # an attribute with fewer values tells nothing apart; one with more is a name, not a group


def choose_calibration(
    validation: pd.DataFrame, output: Output, classes: Sequence[str], params: EvaluateParams, seed: int
) -> tuple[Calibration, dict]:
    """Temperature, threshold and unsure band from the validation split, damaged as `evaluate.calibration` says.

    Args:
        validation: rows of the manifest. classes: the model's, the real one first.

    Returns:
        The calibration, and what it was chosen on: the images and how well it does on them, which flatters.

    Raises:
        UserError: a model of more than two classes does not know one of the data's.
    """
    how = params.calibration
    rows = _part(validation, how.max_images, seed)
    kinds = len(classes) > 2
    if kinds and (unknown := sorted(set(rows["class"]) - set(classes))):
        raise UserError(
            f"data: the model knows the classes {', '.join(classes)}, but not {', '.join(unknown)} of the validation "
            "images; name the folders of the data as the model names its classes"
        )

    def damage(image: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng([seed, index])
        return perturb(image, rng, how.arms, (1, how.corruptions), tuple(how.strength))

    ways = {"clean": [None], "perturbed": [damage], "mixed": [None, damage]}[how.images]
    outputs = np.concatenate([output(rows, way) for way in ways])
    truth = np.tile(class_indices(rows, classes) if kinds else rows["label"].to_numpy(), len(ways))
    calibration = calibrations.fit(
        truth, outputs, params.threshold, params.max_false_accusation_rate, params.target_error
    )
    calibration = replace(calibration, flip=params.flip_average)
    return calibration, {
        "images": len(rows),
        "scored": how.images,
        **_scores((truth > 0).astype(int), outputs, calibration),
    }


@dataclass(frozen=True)
class Evaluation:
    """What is known of one test set.

    Attributes:
        metrics: for metrics/evaluate.json: `scoring.score` at the calibration's threshold; uncalibrated (brier, loss,
            ece of the network's own outputs); selective (`calibration.selective`); n_groups; intervals (metric -> 95 %
            low and high, or None); per_class; confusion; of more than two classes also classes
            (`scoring.class_scores`). A set with a class that the model does not know has per_class and confusion of
            real and fake alone. reencoded (`in_one_format`), where it was scored so.
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
    """Everything about one test set.

    Args:
        rows: of the manifest, one split. outputs: the network's, float (n,) or (n, classes). classes: the model's.
        resamples: of the groups, behind the intervals. reencoded: the network's outputs for the same images after
            `reencode`.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].tolist()
    probabilities = calibration.apply(outputs)
    p_fake, called = calibrations.p_fake(probabilities), calibration.labels(probabilities, classes)
    curve = scoring.roc_points(labels, p_fake) or {"fpr": [], "tpr": [], "threshold": []}
    metrics = {
        **_scores(labels, outputs, calibration),
        "n_groups": rows["group"].nunique(),
        "intervals": scoring.bootstrap(labels, p_fake, groups, calibration.threshold, n=resamples, seed=seed),
        **_of_classes(rows, probabilities, called, classes),
    }
    predictions = (
        rows[["path", "split", "class", "group", "label"]]
        .rename(columns={"split": "set"})
        .assign(
            p_fake=p_fake,
            p_fake_uncalibrated=calibrations.p_fake(outputs),
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
        again = calibrations.p_fake(calibration.apply(reencoded))
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
    found = {"per_class": scoring.per_class(truth, calls, names), "confusion": scoring.confusion(truth, calls, names)}
    if known:
        found["classes"] = scoring.class_scores(truth, probabilities, calls, classes)
    return found


def _scores(labels: np.ndarray, outputs: np.ndarray, calibration: Calibration) -> dict[str, object]:
    p_fake = calibrations.p_fake(calibration.apply(outputs))
    before = scoring.score(labels, calibrations.p_fake(outputs))
    return {
        **scoring.score(labels, p_fake, calibration.threshold),
        "uncalibrated": {name: before[name] for name in ("brier", "loss", "ece")},
        "selective": calibrations.selective(labels, p_fake, calibration.threshold, calibration.unsure),
    }


def reencode(image: np.ndarray, index: int = 0) -> np.ndarray:
    """The image, uint8 (h, w, 3), as every other after a round through the same JPEG, at the size that it is stored in.

    A data set whose fakes are PNG files, or JPEGs of another quality than its real images, can be told apart by that
    alone (Grommelt et al., Fake or JPEG?, ECCV Workshops 2024). What a file's format leaves in the pixels is largely
    gone afterwards, traces of a much stronger compression are not, and fine traces of a forgery may go, too.
    """
    return through_jpeg(image, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


def in_one_format(
    rows: pd.DataFrame, p_fake: np.ndarray, reencoded: np.ndarray, threshold: float, resamples: int, seed: int
) -> dict[str, object]:
    """What a test set scores with all its images in one format.

    Args:
        rows: of the manifest. p_fake, reencoded: float (n,), calibrated: of the images as they are, after `reencode`.

    Returns:
        The metrics `REENCODED`; intervals, as `scoring.bootstrap`; auc_difference: the AUC minus that of the images as
        they are, with the low and high of its paired interval, over the same resamples.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].tolist()
    found = scoring.score(labels, reencoded, threshold)
    paired = scoring.paired_bootstrap(labels, p_fake, reencoded, groups, metrics=["auc"], n=resamples, seed=seed)
    return {
        **{name: found[name] for name in REENCODED},
        "intervals": scoring.bootstrap(labels, reencoded, groups, threshold, REENCODED, n=resamples, seed=seed),
        "auc_difference": {name: paired["auc"][name] for name in ("difference", "low", "high")},
    }


def pooled(predictions: pd.DataFrame, threshold: float, resamples: int, seed: int) -> dict[str, object]:
    """All test sets together under the one threshold, as the detector meets images whose set nobody tells it.

    Every image counts alike, so a set counts by its number of images. Images of groups that bear the same name in two
    sets, but for the set's own, are resampled together: they may be one image in two versions. Where they are not,
    that costs nothing, for what is not related is as related as chance has it.

    Args:
        predictions: as `Evaluation.predictions`, of all sets.

    Returns:
        `scoring.score` of all images; n_groups; intervals, as `scoring.bootstrap`; within_sets, as
        `scoring.auc_within_sets`.
    """
    labels, p_fake, sets = (predictions[name].to_numpy() for name in ("label", "p_fake", "set"))
    groups = [_shared_name(group, name) for group, name in zip(predictions["group"], sets, strict=True)]
    return {
        **scoring.score(labels, p_fake, threshold),
        "n_groups": len(set(groups)),
        "intervals": scoring.bootstrap(labels, p_fake, groups, threshold, n=resamples, seed=seed, sets=sets),
        "within_sets": scoring.auc_within_sets(labels, p_fake, sets, groups, n=resamples, seed=seed),
    }


def _shared_name(group: str, split: str) -> str:
    """The name of a group of the test set `split` without what says the set or the format: Test_Fog/a.jpg -> a."""
    parts = group.split("/")
    own = next((i for i, part in enumerate(parts) if split_name(part) == split), None)
    name = "/".join(part for i, part in enumerate(parts) if i != own)
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix) if suffix.lower() in EXTENSIONS else name) or group


def by_attribute(rows: pd.DataFrame, p_fake: np.ndarray, threshold: float, resamples: int, seed: int) -> pd.DataFrame:
    """Every metric for each value of the attributes that the data set's manifest brought along.

    An attribute of one or more than 50 values is left out, and one that only says the class once more.

    A value that only fakes have, such as a method of forging, has no AUC of its own: `auc_vs_other_class` sets its
    images against all images of the other class. Accuracy comes with its 95 % interval, clustered by group.

    Args:
        rows: of the manifest. p_fake: float (n,), calibrated.

    Returns:
        One row a value, with the columns `ATTRIBUTE_COLUMNS`.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    table = []
    for attribute in (name for name in rows.columns if name not in COLUMNS):
        values = rows[attribute].to_numpy()
        pairs = len(set(zip(values, rows["class"], strict=True)))
        if not VALUES[0] <= len(set(values)) <= VALUES[1] or pairs == len(set(values)) == rows["class"].nunique():
            continue
        for value in sorted(set(values)):
            own = values == value
            found = scoring.score(labels[own], p_fake[own], threshold)
            interval = scoring.bootstrap(
                labels[own], p_fake[own], groups[own].tolist(), threshold, ["accuracy"], n=resamples, seed=seed
            )["accuracy"] or {"low": None, "high": None}
            against = None
            if not (found["n_real"] and found["n_fake"]):
                pool = own | (labels != labels[own][0])
                against = scoring.score(labels[pool], p_fake[pool])["auc"]
            table.append(
                {
                    **found,
                    "set": rows["split"].iloc[0],
                    "attribute": attribute,
                    "value": value or "unknown",
                    "auc_vs_other_class": against,
                    "accuracy_low": interval["low"],
                    "accuracy_high": interval["high"],
                }
            )
    return pd.DataFrame(table, columns=ATTRIBUTE_COLUMNS)


def stress_ladder(test: pd.DataFrame, output: Output, calibration: Calibration, images: int, seed: int) -> pd.DataFrame:
    """AUC and accuracy of the same images under every corruption at every severity.

    An image meets the same draw at every severity of a corruption, so that a rung differs from the one below in
    strength alone (Hendrycks and Dietterich, ICLR 2019, have five severities, too).

    Args:
        test: rows of the manifest. images: how many of them are used, chosen at random, classes in proportion.

    Returns:
        One row a rung, with the columns `RUNG_COLUMNS`; the first is of the undamaged images, severity 0, arm "".
    """
    rows = _part(test, images, seed)
    rungs = [("undamaged", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]

    def damage(image: np.ndarray, index: int) -> np.ndarray:
        name, severity = rungs[index // len(rows)]
        if not severity:
            return image
        return corrupt(image, name, severity / SEVERITIES[-1], np.random.default_rng([seed, index % len(rows)]))

    # One long set of images: batches stay full whatever the number of images.
    outputs = output(pd.concat([rows] * len(rungs), ignore_index=True), damage)
    p_fake = calibrations.p_fake(calibration.apply(outputs)).reshape(len(rungs), len(rows))
    labels = rows["label"].to_numpy()
    table = [
        {
            **scoring.score(labels, scores, calibration.threshold),
            "name": name,
            "family": CORRUPTIONS[name].family if severity else "",
            "arm": CORRUPTIONS[name].arm if severity else "",
            "severity": severity,
        }
        for (name, severity), scores in zip(rungs, p_fake, strict=True)
    ]
    return pd.DataFrame(table, columns=RUNG_COLUMNS)


def stress_summary(ladder: pd.DataFrame) -> dict[str, object]:
    """The ladder in a few numbers: images, and the mean AUC and accuracy undamaged and over each arm's rungs."""
    arms = {"undamaged": "", "generic": "generic", "matched": "matched"}
    means = {name: ladder.loc[ladder["arm"] == arm, ["auc", "accuracy"]].mean() for name, arm in arms.items()}
    known = {name: mean.astype(object).where(mean.notna(), None).to_dict() for name, mean in means.items()}
    return {"images": int(ladder["n"].iloc[0]), **known}


def showcase(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The images of one test set whose heat is shown: the surest calls of each kind, of no group two.

    Args:
        predictions: as `Evaluation.predictions`.

    Returns:
        Those rows: fakes and real images called right, then real ones called fake and fakes called real, the surest of
        each first.
    """
    fake, called = predictions["label"] == 1, predictions["p_fake"] >= threshold
    kinds = [fake & called, ~fake & ~called, ~fake & called, fake & ~called]
    chosen = [
        predictions[kind]
        .sort_values("p_fake", ascending=not said_fake, kind="stable")
        .drop_duplicates("group")
        .head(SHOWN)
        for kind, said_fake in zip(kinds, (True, False, True, False), strict=True)
    ]
    return pd.concat(chosen)


def with_known_forgery(rows: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The fakes among `rows` of which `forged_regions` knows where they are forged, at most `LOCALISED`."""
    known = rows["path"].isin(forged_paths(folder / "sample")) & (rows["label"] == 1)
    return _part(rows[known], LOCALISED, seed)


def forged_regions(rows: pd.DataFrame, folder: Path, size: int) -> np.ndarray:
    """float32 (n, size, size), 0..1: the share of each pixel of the model's input that is forged.

    Args:
        rows: fakes of the drawn sample. folder: the prepared data.
    """
    masks = (read_mask(folder / "sample", path) for path in rows["path"])
    return np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) for mask in masks])


def localisation(
    heat: np.ndarray, forged: np.ndarray, groups: Sequence[str], resamples: int, seed: int
) -> dict[str, object]:
    """Whether the heat of fakes falls where they are forged.

    Args:
        heat, forged: float (n, size, size), 0..1, n > 0. resamples: of the groups, behind the intervals.

    Returns:
        images: n; without_heat: those with none anywhere, which count as pointing beside the region and have no share.
        heat_share: the mean share of an image's heat that lies in its forged region. region_share: the mean share of
        the image that is forged, which is what heat without aim would have. ratio: of the two. elsewhere_share: what
        lies in the forged regions of the other images; as much as heat_share where the model looks to one place, say
        the face, whatever is forged (None of one image). pointing_game: the share of images whose hottest pixel is
        in the region (Zhang et al., IJCV 2018, without their margin); aimless, it would be region_share. intervals: the
        95 % low and high of heat_share, ratio and pointing_game, clustered by group; None of one group.
    """
    n = len(heat)
    heat, forged = heat.reshape(n, -1).astype(np.float64), forged.reshape(n, -1).astype(np.float64)
    total, region = heat.sum(1), forged.mean(1)
    aimed = total > 0
    falls = (heat / np.where(aimed, total, 1)[:, None]) @ forged.T  # of heat i in region j
    own = np.diag(falls)
    hit = aimed & (forged[np.arange(n), heat.argmax(1)] >= 0.5)

    def figures(weight: np.ndarray) -> dict[str, float]:
        """Of every image counted so often: weight float (n,) or (resamples, n)."""
        images, with_heat = weight.sum(-1), (weight * aimed).sum(-1)
        share = np.divide(weight @ own, with_heat, out=np.full(np.shape(with_heat), np.nan), where=with_heat > 0)
        area = weight @ region / images
        ratio = np.divide(share, area, out=np.full(np.shape(area), np.nan), where=area > 0)
        return {"heat_share": share, "region_share": area, "ratio": ratio, "pointing_game": weight @ hit / images}

    codes, names = pd.factorize(np.asarray(groups))
    found = {name: _number(value) for name, value in figures(np.ones(n)).items()}
    others = [(falls[i].sum() - own[i]) / (n - 1) for i in np.flatnonzero(aimed)] if n > 1 else []
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)[:, codes]
    spread = figures(draws.astype(np.float64)) if len(names) > 1 else {}
    return {
        "images": n,
        "without_heat": int(n - aimed.sum()),
        **found,
        "elsewhere_share": _number(np.mean(others)) if others else None,
        "intervals": {name: _spread(spread.get(name)) for name in ("heat_share", "ratio", "pointing_game")},
    }


def _spread(samples: np.ndarray | None) -> dict[str, float] | None:
    samples = np.empty(0) if samples is None else samples[~np.isnan(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _part(rows: pd.DataFrame, at_most: int, seed: int) -> pd.DataFrame:
    """A random part of the rows, in their order, with the classes in proportion and none of them lost."""
    rows = rows.reset_index(drop=True)
    if len(rows) <= at_most:
        return rows
    rng, kept = np.random.default_rng(seed), []
    for _, members in rows.groupby("class"):
        count = max(1, round(at_most * len(members) / len(rows)))
        kept.extend(rng.choice(members.index, count, replace=False))
    return rows.loc[sorted(kept)].reset_index(drop=True)
