"""Where things are: the files that the stages hand on, and the one place that turns a name into a path."""

import os
from pathlib import Path

from detector.errors import UserError

# Relative to the working folder: DVC runs a stage in the project's root, or in an experiment's copy of it.
PREPARED = Path("data/prepared")  # shards, manifest.csv, excluded.csv
EXTRA = Path("data/extra")  # a folder of the same kind for each further test set
MODEL = Path("models/model.keras")
CALIBRATION = Path("models/calibration.json")
TRAINING_RUN = Path("models/run_id")  # the MLflow run that trained the model
EVALUATION_RUN = Path("metrics/run_id")  # the MLflow run that the evaluation belongs to
DATA_SUMMARY = Path("metrics/data.json")
TRAIN_SUMMARY = Path("metrics/train.json")
HISTORY = Path("metrics/history.csv")
EVALUATION = Path("metrics/evaluate.json")
PREDICTIONS = Path("metrics/predictions.csv")
ROC = Path("metrics/roc.csv")
CURVES = Path("metrics/curves.csv")  # further lines of the pictures, and the bands around them
BINS = Path("metrics/bins.csv")  # their histograms
STRESS = Path("metrics/stress.csv")
BY_ATTRIBUTE = Path("metrics/by_attribute.csv")
HEATMAPS = Path("metrics/heatmaps.npz")  # of the few test images that are shown with theirs
PLOTS = Path("metrics/plots")
REPORT = Path("metrics/report.html")


def project_root() -> Path:
    """The clone's root, also from inside the temporary folder in which DVC runs a queued experiment.

    There `__file__` and the working folder point into the copy, and `DVC_ROOT` at the clone that queued it.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    return Path(__file__).resolve().parent.parent


def existing_path(key: str, value: str) -> Path:
    """The file or folder that the parameter `key` names; a relative one is taken from the project's root.

    Raises:
        UserError: it is not there, or may not be looked at.
    """
    path = project_root() / value
    try:
        path = project_root() / Path(value).expanduser()
        return path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key}: {value} is not there (looked for {path}); name a path that exists") from None
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no such user, a loop of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}: cannot look at {value!r}: {reason}; name a path that exists") from None
