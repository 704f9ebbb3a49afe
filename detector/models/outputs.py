"""The outputs of a network for images, uncalibrated."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

from scipy.special import expit, logit, softmax

EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm, as Keras does


def network_outputs(model: "keras.Model", batches: Iterable[np.ndarray], flip: bool = False) -> np.ndarray:
    """The outputs of the network for batches of images, uncalibrated.

    Args:
        model: a network of `detector.models.network`.
        batches: uint8 (b, size, size, 3) RGB; only the last may be smaller than the first.
        flip: average the log-odds of each image and its mirror image.

    Returns:
        In order, float64 in 0..1: (n,), P(fake), or, from a network with more than two classes, (n, classes), the
        probability of each.
    """
    scores, full = [], 0
    for batch in batches:
        full = full or len(batch)
        # All batches have one shape: a compiled backend would spend a minute on another one.
        padded = np.concatenate([batch, np.zeros((full - len(batch), *batch.shape[1:]), batch.dtype)])
        views = [padded, padded[:, :, ::-1]] if flip else [padded]
        outputs = [np.asarray(model.predict_on_batch(view), np.float64)[: len(batch)] for view in views]
        scores.append(mean_probabilities(outputs) if flip else outputs[0])
    outputs = np.concatenate(scores) if scores else np.empty((0, 1))
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def p_fake(probabilities: np.ndarray) -> np.ndarray:
    """P(fake), float (n,), from outputs or probabilities: (n,), P(fake), or (n, classes), the first being P(real)."""
    return probabilities if probabilities.ndim == 1 else 1 - probabilities[:, 0]


def mean_probabilities(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several outputs in log-odds: each float (n, 1), P(fake), or (n, classes); so is the result."""
    if outputs[0].shape[1] == 1:
        return expit(np.mean([_logit(output) for output in outputs], axis=0))
    return softmax(np.mean([_log(output) for output in outputs], axis=0), axis=1)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities, EPSILON, 1 - EPSILON))


def _logit(p_fake: np.ndarray) -> np.ndarray:
    return logit(np.clip(p_fake, EPSILON, 1 - EPSILON))
