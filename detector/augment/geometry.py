"""Geometric augmentation of the published recipe: one affine map, a flip and a brightness factor for every image.

The ranges have the meaning that they have in Keras's ImageDataGenerator: rotation and shear in degrees in either
direction, shifts as shares of the side, zoom z as two factors between 1 - z and 1 + z; the border is repeated outside.
"""

import cv2
import numpy as np

from detector.params import AugmentParams


def affine_matrix(
    size: int, rotation: float, shift: tuple[float, float], shear: float, zoom: tuple[float, float]
) -> np.ndarray:
    """The map from output to input pixels, about the image's centre: float64 (2, 3), acting on (x, y, 1).

    Args:
        size: side of the square image in pixels.
        rotation, shear: degrees.
        shift: (x, y) in pixels.
        zoom: (x, y) factors; above 1 shows more of the surroundings, as in Keras.
    """
    angle, slant = np.deg2rad([rotation, shear])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slope = np.array([[1.0, -np.sin(slant)], [0.0, np.cos(slant)]])
    linear = turn @ slope @ np.diag(zoom)
    centre = np.full(2, (size - 1) / 2)
    return np.column_stack([linear, centre - linear @ centre + turn @ np.asarray(shift, dtype=np.float64)])


def augment(image: np.ndarray, params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """One random variant of a square image: uint8 (size, size, 3) -> uint8 (size, size, 3)."""
    size = image.shape[0]
    matrix = affine_matrix(
        size,
        rotation=rng.uniform(-params.rotation, params.rotation),
        shift=(
            rng.uniform(-params.width_shift, params.width_shift) * size,
            rng.uniform(-params.height_shift, params.height_shift) * size,
        ),
        shear=rng.uniform(-params.shear, params.shear),
        zoom=tuple(rng.uniform(1 - params.zoom, 1 + params.zoom, size=2)),
    )
    if params.horizontal_flip and rng.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += size - 1
    if not np.allclose(matrix, [[1, 0, 0], [0, 1, 0]]):
        image = cv2.warpAffine(
            image,
            matrix,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    factor = rng.uniform(*params.brightness)
    if factor != 1:
        image = cv2.convertScaleAbs(image, alpha=factor)
    return image
