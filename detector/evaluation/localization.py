"""Whether the model looks where a fake is forged: heat maps against the known regions of the drawn sample."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from detector.data.masks import forged_paths, read_mask
from detector.evaluation.images import part_of
from detector.metrics import number_or_none

LOCALISED = 200  # fakes of a set whose heat maps are compared with their forged regions


def with_known_forgery(rows: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The fakes among `rows` whose forged region is known to `forged_regions`, at most `LOCALISED`."""
    known = rows["path"].isin(forged_paths(folder / "sample")) & (rows["label"] == 1)
    return part_of(rows[known], LOCALISED, seed)


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
    """Whether the heat of fakes lies where they are forged.

    Args:
        heat, forged: float (n, size, size), 0..1, n > 0. resamples: of the groups, behind the intervals.

    Returns:
        images: n; without_heat: those with no heat anywhere, which have no share and count as misses of the pointing
        game. heat_share: the mean share of an image's heat that lies in its forged region. region_share: the mean share
        of the image that is forged, which evenly spread heat would have as its heat_share. ratio: heat_share by
        region_share. elsewhere_share: the mean share of an image's heat in the forged regions of the other images,
        which equals heat_share where the model looks at one place, such as the face, whatever is forged (None for one
        image). pointing_game: the share of images whose hottest pixel is in the region (Zhang et al., IJCV 2018,
        without their margin); for evenly spread heat it would be region_share. intervals: the 95 % low and high of
        heat_share, ratio and pointing_game, clustered by group; None for one group.
    """
    n = len(heat)
    heat, forged = heat.reshape(n, -1).astype(np.float64), forged.reshape(n, -1).astype(np.float64)
    total, region = heat.sum(1), forged.mean(1)
    warm = total > 0
    shares = (heat / np.where(warm, total, 1)[:, None]) @ forged.T  # of heat i in region j
    own = np.diag(shares)
    hit = warm & (forged[np.arange(n), heat.argmax(1)] >= 0.5)

    def figures(weight: np.ndarray) -> dict[str, float]:
        """The shares with every image counted `weight` times: float (n,) or (resamples, n)."""
        images, with_heat = weight.sum(-1), (weight * warm).sum(-1)
        share = np.divide(weight @ own, with_heat, out=np.full(np.shape(with_heat), np.nan), where=with_heat > 0)
        area = weight @ region / images
        ratio = np.divide(share, area, out=np.full(np.shape(area), np.nan), where=area > 0)
        return {"heat_share": share, "region_share": area, "ratio": ratio, "pointing_game": weight @ hit / images}

    codes, names = pd.factorize(np.asarray(groups))
    estimates = {name: number_or_none(value) for name, value in figures(np.ones(n)).items()}
    others = [(shares[i].sum() - own[i]) / (n - 1) for i in np.flatnonzero(warm)] if n > 1 else []
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)[:, codes]
    resampled = figures(draws.astype(np.float64)) if len(names) > 1 else {}
    return {
        "images": n,
        "without_heat": int(n - warm.sum()),
        **estimates,
        "elsewhere_share": number_or_none(np.mean(others)) if others else None,
        "intervals": {name: _interval(resampled.get(name)) for name in ("heat_share", "ratio", "pointing_game")},
    }


def _interval(samples: np.ndarray | None) -> dict[str, float] | None:
    samples = np.empty(0) if samples is None else samples[~np.isnan(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}
