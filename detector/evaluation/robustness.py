"""How the model holds under corruptions, and when all images come in one format."""

import cv2
import numpy as np
import pandas as pd

from detector import metrics
from detector.augment.corruption import CORRUPTIONS, SEVERITIES, corrupt, through_jpeg
from detector.evaluation import bootstrap
from detector.evaluation.calibration import Calibration
from detector.evaluation.images import Output, part_of
from detector.models.outputs import p_fake as p_fake_of
from detector.params import CORRUPTION_SETS

RUNG_COLUMNS = ("name", "family", "corruption_set", "severity", "n", *metrics.METRICS)
# Of the JPEG, with halved colour, that every image is saved as. A classifier of DCT statistics that tells PNG from JPEG
# with an AUC of 0.99 falls to 0.50 at quality 75 as at 90; one that has learnt a JPEG of quality 60 falls from 1.00 to
# 0.54 at 75 and to 0.86 at 90.
QUALITY = 75


def reencode(image: np.ndarray, index: int = 0) -> np.ndarray:
    """The image, uint8 (h, w, 3), saved as the same kind of JPEG as every other image, at its own size, and read again.

    Where the fakes of a data set are PNG files, or JPEGs of another quality than the real images, a detector can tell
    them apart by that alone (Grommelt et al., Fake or JPEG?, ECCV Workshops 2024). Re-encoding removes most of what a
    file format leaves in the pixels. It does not remove the traces of a much stronger compression, and it may remove
    fine traces of a forgery.
    """
    return through_jpeg(image, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


def in_one_format(
    rows: pd.DataFrame, p_fake: np.ndarray, reencoded: np.ndarray, threshold: float, resamples: int, seed: int
) -> dict[str, object]:
    """The metrics of a test set with all its images in one format.

    Args:
        rows: of the manifest. p_fake, reencoded: float (n,), calibrated: of the images as they are, after `reencode`.

    Returns:
        Every metric; intervals, as `bootstrap.bootstrap`; auc_difference: the AUC minus that of the images
        as they are, with the low and high of its paired interval, over the same resamples.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].tolist()
    scored = metrics.score(labels, reencoded, threshold)
    paired = bootstrap.paired_bootstrap(labels, p_fake, reencoded, groups, metrics=["auc"], n=resamples, seed=seed)
    return {
        **{name: scored[name] for name in metrics.METRICS},
        "intervals": bootstrap.bootstrap(labels, reencoded, groups, threshold, n=resamples, seed=seed),
        "auc_difference": {name: paired["auc"][name] for name in ("difference", "low", "high")},
    }


def stress_ladder(test: pd.DataFrame, output: Output, calibration: Calibration, images: int, seed: int) -> pd.DataFrame:
    """Every metric of the same images under every corruption at every severity.

    Of a corruption, an image gets the same random draw at every severity, so that neighbouring rungs differ in
    strength alone. Hendrycks and Dietterich, ICLR 2019, use five severities, too.

    Args:
        test: rows of the manifest. images: how many of them are used, chosen at random, classes in proportion.

    Returns:
        One row a rung, with the columns `RUNG_COLUMNS`; the first is of the undamaged images, with severity 0 and
        corruption_set "".
    """
    rows = part_of(test, images, seed)
    rungs = [("undamaged", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]

    def corrupted(image: np.ndarray, index: int) -> np.ndarray:
        name, severity = rungs[index // len(rows)]
        if not severity:
            return image
        return corrupt(image, name, severity / SEVERITIES[-1], np.random.default_rng([seed, index % len(rows)]))

    # One long set of images: batches stay full whatever the number of images.
    outputs = output(pd.concat([rows] * len(rungs), ignore_index=True), corrupted)
    p_fake = p_fake_of(calibration.apply(outputs)).reshape(len(rungs), len(rows))
    labels = rows["label"].to_numpy()
    table = [
        {
            **metrics.score(labels, scores, calibration.threshold),
            "name": name,
            "family": CORRUPTIONS[name].family if severity else "",
            "corruption_set": CORRUPTIONS[name].corruption_set if severity else "",
            "severity": severity,
        }
        for (name, severity), scores in zip(rungs, p_fake, strict=True)
    ]
    return pd.DataFrame(table, columns=RUNG_COLUMNS)


def stress_summary(ladder: pd.DataFrame) -> dict[str, object]:
    """The ladder in a few numbers: images, and mean AUC and accuracy, undamaged and over each corruption set."""
    known_sets = {corruption.corruption_set for corruption in CORRUPTIONS.values()}
    corruption_sets: dict[str, str] = {name: name for name in CORRUPTION_SETS if name in known_sets}
    means = {
        name: ladder.loc[ladder["corruption_set"] == corruption_set, ["auc", "accuracy"]].mean()
        for name, corruption_set in {"undamaged": "", **corruption_sets}.items()
    }
    known = {name: mean.astype(object).where(mean.notna(), None).to_dict() for name, mean in means.items()}
    return {"images": int(ladder["n"].iloc[0]), **known}
