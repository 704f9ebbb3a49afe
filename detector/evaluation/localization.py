"""Whether the model looks where a fake is forged: heat maps against the known regions of the drawn sample."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from detector.data.masks import forged_paths, read_mask
from detector.evaluation.images import part_of
from detector.evaluation.summary import _number

LOCALISED = 200  # fakes of a set that are asked whether the heat falls where they are forged


def with_known_forgery(rows: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The fakes among `rows` of which `forged_regions` knows where they are forged, at most `LOCALISED`."""
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
