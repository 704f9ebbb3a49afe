"""Which epoch is the best, by the validation split, and when a training ends."""

import math

from detector.params import TrainParams
from detector.training.phases import small_epochs


def is_finished(history: list[dict], params: TrainParams) -> bool:
    """Whether early stopping ends the training after `history`.

    Only the epochs of the last phase count: a lower loss of the head alone or of small images says nothing about it.
    A cosine schedule is made for its length and runs to its end.
    """
    if params.schedule == "cosine":
        return False
    last_phase = history[max(params.head_epochs, small_epochs(params)) :]
    return epochs_since_best(last_phase, params.monitor) >= params.early_stopping_patience


def best_epoch(history: list[dict], monitor: str = "loss") -> int:
    """The best epoch by the validation split, counted from 1; the first of several.

    Args:
        history: rows of `train`; with progressive training only epochs at the largest image size so far are compared.
        monitor: `train.monitor`: loss, accuracy, auc or worst_source_auc, the lowest AUC of a source, which is the AUC
            of all images if the history has no AUC of sources.
    """
    largest = max(row.get("image_size", 0) for row in history)
    rows = [row for row in history if row.get("image_size", 0) == largest]
    return max(rows, key=lambda row: _quality(row, monitor))["epoch"]


def _quality(row: dict, monitor: str) -> float:
    if monitor == "loss":
        return -row["val_loss"]
    values = [row["val_auc" if monitor == "worst_source_auc" else f"val_{monitor}"]]
    if monitor == "worst_source_auc":
        values = [value for name, value in row.items() if name.startswith("val_auc_")] or values
    return min(-math.inf if value is None else value for value in values)


def epochs_since_best(history: list[dict], monitor: str = "loss") -> int:
    """Epochs without a better value of `monitor`, as Keras's EarlyStopping counts them; 0 before the first epoch."""
    return history[-1]["epoch"] - best_epoch(history, monitor) if history else 0
