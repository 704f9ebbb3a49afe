"""The images of one split, as training sees them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from detector.data.shards import ShardReader, class_indices, class_names

MOST_SOURCES = 20  # with more, the history gets no AUC of each source


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        labels: int (n,), the class of each, 0 = real, from 1 on the kinds of fake.
        sources: text (n,), where each comes from, all "" where the data does not say.
        groups: text (n,), the group of each: a person, a photo, a video.
    """

    reader: ShardReader
    labels: np.ndarray
    sources: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, manifest: pd.DataFrame, name: str, folder: Path) -> "Split":
        """The split `name` of the prepared data in `folder`."""
        rows = manifest[manifest["split"] == name]
        sources = rows["source"] if "source" in rows else pd.Series("", rows.index)
        return cls(
            ShardReader(folder, rows),
            class_indices(rows, class_names(manifest)),
            sources.to_numpy(object),
            rows["group"].to_numpy(object),
        )

    @property
    def pairs(self) -> int:
        """How many groups hold a real and a fake image."""
        fake = self.labels > 0
        return len(set(self.groups[fake]) & set(self.groups[~fake]))

    @property
    def validated_sources(self) -> list[str]:
        """The sources that hold real and fake images; none unless there are 2 to `MOST_SOURCES` sources."""
        names = sorted(set(self.sources) - {""})
        if not 2 <= len(names) <= MOST_SOURCES:
            return []
        return [name for name in names if len(set(self.labels[self.sources == name] > 0)) == 2]
