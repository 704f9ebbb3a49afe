"""From scores to verdicts: the temperature, the threshold and the band of scores whose verdict is "unsure".

`Calibration` holds the three and lies beside the model file, for everything that scores; `fit` chooses them, on
validation images only. `labels` is an int array (n,), 0 = real and 1 = fake; `p_fake` a
float array (n,), P(fake) in 0..1; an image is called fake when its score is at least the threshold.
Mismatched lengths, no images, and values outside their range raise `UserError`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import expit, logsumexp, softmax

from detector.errors import UserError
from detector.files import read_json, write_json
from detector.metrics import checked
from detector.models.outputs import _log, _logit, p_fake

TEMPERATURES = (0.05, 20.0)
NEVER = float(np.nextafter(1, 2))  # a threshold that no score reaches


@dataclass(frozen=True)
class Calibration:
    """How the network's output becomes a calibrated P(fake), and that a verdict.

    Attributes:
        temperature: divides the logit of the network's output.
        threshold: an image is called fake from this calibrated P(fake) on.
        unsure: (low, high) around the threshold; at low <= P(fake) < high the verdict is "unsure".
        flip: whether these were chosen for outputs averaged over an image and its mirror image.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    unsure: tuple[float, float] = (0.5, 0.5)
    flip: bool = False

    def apply(self, outputs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of the network's outputs: float64 of the same shape, (n,) or (n, classes)."""
        return apply_temperature(outputs, self.temperature)

    def calls(self, p_fake: np.ndarray) -> np.ndarray:
        """The class that the threshold gives calibrated P(fake): int, 0 = real and 1 = fake."""
        return (np.asarray(p_fake) >= self.threshold).astype(int)

    def labels(self, probabilities: np.ndarray, classes: Sequence[str]) -> list[str]:
        """The class that each image is called: the real one below the threshold, else the likeliest kind of fake.

        Args:
            probabilities: calibrated, float (n,) P(fake) or (n, classes).
            classes: the real one, then the kinds of fake.
        """
        kinds = np.zeros(len(probabilities), int) if probabilities.ndim == 1 else probabilities[:, 1:].argmax(axis=1)
        calls = self.calls(p_fake(probabilities))
        return [classes[1 + kind] if call else classes[0] for call, kind in zip(calls, kinds, strict=True)]

    def verdicts(self, probabilities: np.ndarray, classes: Sequence[str]) -> list[str]:
        """As `labels`, but "unsure" where P(fake) lies in the unsure band."""
        low, high = self.unsure
        scores = p_fake(probabilities)
        unsure = (low <= scores) & (scores < high)
        names = self.labels(probabilities, classes)
        return ["unsure" if doubt else name for doubt, name in zip(unsure, names, strict=True)]


UNCALIBRATED = Calibration()


def fit(
    classes: np.ndarray,
    outputs: np.ndarray,
    threshold: float | Literal["auto"],
    max_false_positive_rate: float,
    target_error: float,
) -> Calibration:
    """Choose the temperature, then on calibrated P(fake) the threshold (unless it is given) and the unsure band.

    Args:
        classes: int (n,), 0 = real, from 1 on the kinds of fake.
        outputs: float (n,) or (n, classes), the network's own, uncalibrated.
        max_false_positive_rate, target_error: as in `choose_threshold` and `choose_unsure_band`.
    """
    temperature = fit_temperature(classes, outputs)
    labels, scores = (classes > 0).astype(int), p_fake(apply_temperature(outputs, temperature))
    if threshold == "auto":
        threshold = choose_threshold(labels, scores, max_false_positive_rate)
    return Calibration(temperature, threshold, choose_unsure_band(labels, scores, threshold, target_error))


def save_calibration(calibration: Calibration, model: Path, chosen_on: Mapping) -> Path:
    """Write `calibration` beside the file `model` as calibration.json, with its hash, and what it was chosen on."""
    path = _beside(model)
    write_json(path, {"model": _digest(model), **asdict(calibration), "chosen_on": chosen_on})
    return path


def read_calibration(model: Path) -> Calibration:
    """The calibration beside the file `model`.

    Raises:
        UserError: there is none, it is damaged, or it was chosen for another model.
    """
    path = _beside(model)
    content = read_json(path)
    try:
        calibration = Calibration(
            float(content["temperature"]),
            float(content["threshold"]),
            tuple(content["unsure"]),
            content.get("flip", False) is True,
        )
        belongs_to, (low, high) = content["model"], calibration.unsure
        if not (calibration.temperature > 0 and 0 <= low <= calibration.threshold <= high <= NEVER):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; run `dvc repro -s -f evaluate`") from None
    if belongs_to != _digest(model):
        raise UserError(f"{path}: chosen for another model than {model}; run `dvc repro` to calibrate this one")
    return calibration


def _beside(model: Path) -> Path:
    return Path(model).with_name("calibration.json")


def _digest(model: Path) -> str:
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fit_temperature(classes: np.ndarray, outputs: np.ndarray) -> float:
    """The T in 0.05..20 for which softmax(log P / T) fits best (Guo et al., ICML 2017, section 4.2).

    Minimises the summed negative log-likelihood over b = 1 / T, plus (b - 1)^2 / 2: a prior worth a few
    images, lost among hundreds of them, that keeps T near 1 where the scores cannot tell (few images, or
    separable ones, for which the likelihood alone would have T fall to its bound). The sum is convex in b, so
    its minimum is the only one. Images of one class say nothing of the others: T = 1.

    Args:
        classes: int (n,), 0 = real. outputs: float (n,), P(fake), or (n, classes), rows that add up to 1.
    """
    from scipy.optimize import minimize_scalar

    classes, outputs = np.asarray(classes), np.asarray(outputs)
    if outputs.ndim == 1:
        classes, outputs = checked(classes, outputs)
        outputs = np.column_stack([1 - outputs, outputs])
    if classes.min() == classes.max():
        return 1.0
    logits = _log(outputs)
    behind = logits - logits[np.arange(len(classes)), classes][:, None]  # of every class, how far it leads the true one

    def cost(b: float) -> float:
        return logsumexp(b * behind, axis=1).sum() + (b - 1) ** 2 / 2

    low, high = TEMPERATURES
    best = minimize_scalar(cost, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-9})
    return float(np.clip(1 / best.x, low, high))


def apply_temperature(outputs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log P / T) of (n, classes), or of P(fake) alone sigmoid(logit P / T): float64 in the shape given.

    P is clipped at 1e-7 first; P = 0.5 of two classes stays.
    """
    if not temperature > 0:
        raise UserError(f"the temperature must be above 0, not {temperature}; calibrate the model again")
    outputs = np.asarray(outputs, dtype=np.float64)
    if outputs.ndim < 2:
        return expit(_logit(outputs) / temperature)
    return softmax(_log(outputs) / temperature, axis=1)


def choose_threshold(labels: np.ndarray, p_fake: np.ndarray, max_false_positive_rate: float | None = None) -> float:
    """The threshold with the best balanced accuracy, among those within the allowed false positive rate.

    `max_false_positive_rate` in 0..1 bounds the share of real images called fake. The smallest threshold within it
    would call that many real images fake even where no more fakes are found; this one does so only where it pays.
    Candidates are 0.5 and the middles between neighbouring scores, below the lowest and above the highest; of
    equal ones the nearest to 0.5 wins, then the higher, so that 0.5 is kept unless something beats it.
    """
    labels, p_fake = checked(labels, p_fake)
    limit = 1.0 if max_false_positive_rate is None else max_false_positive_rate
    if not 0 <= limit <= 1:
        raise UserError(f"max_false_positive_rate must be in 0..1, not {limit}")
    cuts = np.append(_cuts(p_fake), 0.5)
    real, fake = p_fake[labels == 0], p_fake[labels == 1]
    false_positives, true_positives = _at_least(real, cuts), _at_least(fake, cuts)
    gain = true_positives * len(real) - false_positives * len(fake)  # whole numbers, so that equal means equal
    allowed = false_positives <= limit * len(real) + 1e-9
    cuts, gain = cuts[allowed], gain[allowed]
    return float(cuts[np.lexsort((-cuts, np.abs(cuts - 0.5), -gain))[0]])


def choose_unsure_band(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, target_error: float
) -> tuple[float, float]:
    """(low, high), low <= threshold <= high: the narrowest band outside which calls can be relied on.

    An image is unsure when low <= P < high; below it is called real, from high on fake. Each side is held to
    `target_error` (0..1) by itself: at most that share of the images called fake are real, and of those
    called real fake. So the error over both is within it too, and an easy side cannot make up for a hard one. Where
    no end of a side reaches the target, no image gets its verdict: low = 0, or high just above 1. The target is met
    on these images; with only hundreds of them, the error on new ones comes out somewhat above it.
    """
    labels, p_fake = checked(labels, p_fake)
    if not 0 <= target_error <= 1:
        raise UserError(f"target_error must be in 0..1, not {target_error}")
    cuts = np.append(_cuts(p_fake), threshold)
    real, fake = p_fake[labels == 0], p_fake[labels == 1]
    false_positives, true_positives = _at_least(real, cuts), _at_least(fake, cuts)
    true_negatives, false_negatives = len(real) - false_positives, len(fake) - true_positives

    def reached(wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (wrong + right > 0) & (wrong <= target_error * (wrong + right) + 1e-9)

    lows = cuts[reached(false_negatives, true_negatives) & (cuts <= threshold)]
    highs = cuts[reached(false_positives, true_positives) & (cuts >= threshold)]
    return float(lows.max(initial=0)), float(highs.min(initial=NEVER))


def selective(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, band: tuple[float, float]
) -> dict[str, float | int | None]:
    """How many images the unsure band leaves out, and the errors outside and inside it; shares in 0..1, or None.

    coverage            share of the images that are called (outside the band)
    n_called, n_unsure  the numbers of images outside and inside the band
    error_outside       share of the called images called wrongly
    error_called_fake   share of those called fake that are real
    error_called_real   share of those called real that are fake
    error_inside        share of the unsure images that the threshold alone would have called wrongly
    """
    labels, p_fake = checked(labels, p_fake)
    low, high = band
    if not low <= threshold <= high:
        raise UserError(f"the unsure band {low}..{high} must hold the threshold {threshold}")
    unsure = (low <= p_fake) & (p_fake < high)
    called_fake = p_fake >= threshold
    wrong = called_fake != labels

    def error(images: np.ndarray) -> float | None:
        return float(wrong[images].mean()) if images.any() else None

    return {
        "coverage": float((~unsure).mean()),
        "n_called": int((~unsure).sum()),
        "n_unsure": int(unsure.sum()),
        "error_outside": error(~unsure),
        "error_called_fake": error(~unsure & called_fake),
        "error_called_real": error(~unsure & ~called_fake),
        "error_inside": error(unsure),
    }


def _cuts(p_fake: np.ndarray) -> np.ndarray:
    """(m + 1,) rising: the middles of the gaps below, between and above the m distinct scores."""
    scores = np.unique(p_fake)
    below, above = np.append(0, scores), np.append(scores, 1)
    cuts = (below + above) / 2
    # The middle of two neighbouring floats is one of them, and above a score of 1 there is no middle.
    cuts[1:] = np.maximum(cuts[1:], np.nextafter(scores, 2))
    return cuts


def _at_least(scores: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """How many of the scores are at least each cut."""
    return len(scores) - np.searchsorted(np.sort(scores), cuts)
