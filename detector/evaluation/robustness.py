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

RUNG_COLUMNS = (
    *(
        "name",
        "family",
        "corruption_set",
        "severity",
        "n",
        "auc",
        "accuracy",
        "false_positive_rate",
        "false_negative_rate",
    ),
)
REENCODED = ("accuracy", "auc", "false_positive_rate", "false_negative_rate")  # of a set in one format
# Of that format, a JPEG with halved colour. A classifier of DCT statistics that tells PNG from JPEG by an AUC of 0.99
# falls to 0.50 after 75 as after 90; one that has learnt a JPEG of 60 falls from 1.00 to 0.54 after 75, 0.86 after 90.
QUALITY = 75


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
        The metrics `REENCODED`; intervals, as `bootstrap.bootstrap`; auc_difference: the AUC minus that of the images
        as they are, with the low and high of its paired interval, over the same resamples.
    """
    labels, groups = rows["label"].to_numpy(), rows["group"].tolist()
    found = metrics.score(labels, reencoded, threshold)
    paired = bootstrap.paired_bootstrap(labels, p_fake, reencoded, groups, metrics=["auc"], n=resamples, seed=seed)
    return {
        **{name: found[name] for name in REENCODED},
        "intervals": bootstrap.bootstrap(labels, reencoded, groups, threshold, REENCODED, n=resamples, seed=seed),
        "auc_difference": {name: paired["auc"][name] for name in ("difference", "low", "high")},
    }


def stress_ladder(test: pd.DataFrame, output: Output, calibration: Calibration, images: int, seed: int) -> pd.DataFrame:
    """AUC and accuracy of the same images under every corruption at every severity.

    An image meets the same draw at every severity of a corruption, so that a rung differs from the one below in
    strength alone (Hendrycks and Dietterich, ICLR 2019, have five severities, too).

    Args:
        test: rows of the manifest. images: how many of them are used, chosen at random, classes in proportion.

    Returns:
        One row a rung, with the columns `RUNG_COLUMNS`; the first is of the undamaged images, of
            severity 0 and corruption_set "".
    """
    rows = part_of(test, images, seed)
    rungs = [("undamaged", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]

    def damage(image: np.ndarray, index: int) -> np.ndarray:
        name, severity = rungs[index // len(rows)]
        if not severity:
            return image
        return corrupt(image, name, severity / SEVERITIES[-1], np.random.default_rng([seed, index % len(rows)]))

    # One long set of images: batches stay full whatever the number of images.
    outputs = output(pd.concat([rows] * len(rungs), ignore_index=True), damage)
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
    corruption_sets = {"undamaged": "", **{name: name for name in CORRUPTION_SETS if name in known_sets}}
    means = {
        name: ladder.loc[ladder["corruption_set"] == corruption_set, ["auc", "accuracy"]].mean()
        for name, corruption_set in corruption_sets.items()
    }
    known = {name: mean.astype(object).where(mean.notna(), None).to_dict() for name, mean in means.items()}
    return {"images": int(ladder["n"].iloc[0]), **known}
