"""The images that are scored: part of a set, as they are or corrupted."""

from collections.abc import Callable

import numpy as np
import pandas as pd

Corrupt = Callable[[np.ndarray, int], np.ndarray]  # (uint8 (h, w, 3) as stored, index of its row) -> uint8 (h, w, 3)
Output = Callable[[pd.DataFrame, Corrupt | None], np.ndarray]  # rows of the manifest -> outputs as of `network_outputs`


def part_of(rows: pd.DataFrame, at_most: int, seed: int) -> pd.DataFrame:
    """A random part of the rows, in their order, with the classes in proportion and none of them lost."""
    rows = rows.reset_index(drop=True)
    if len(rows) <= at_most:
        return rows
    rng, kept = np.random.default_rng(seed), []
    for _, members in rows.groupby("class"):
        count = max(1, round(at_most * len(members) / len(rows)))
        kept.extend(rng.choice(members.index, count, replace=False))
    return rows.loc[sorted(kept)].reset_index(drop=True)
