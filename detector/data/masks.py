"""The masks of the drawn sample: which region of a fake is forged."""

import zipfile
from pathlib import Path

import cv2
import numpy as np

MASKS = "masks.zip"


def read_mask(folder: Path, path: str) -> np.ndarray | None:
    """The mask of the image at `path` in the sample in `folder`: float32 (size, size), 0..1; None for a real image."""
    with zipfile.ZipFile(folder / MASKS) as masks:
        name = f"{path}.png"
        if name not in masks.namelist():
            return None
        png = np.frombuffer(masks.read(name), np.uint8)
    return cv2.imdecode(png, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


def forged_paths(folder: Path) -> set[str]:
    """The paths that `read_mask` has a mask for; an empty set where `folder` holds no sample."""
    if not (folder / MASKS).is_file():
        return set()
    with zipfile.ZipFile(folder / MASKS) as masks:
        return {name.removesuffix(".png") for name in masks.namelist()}
