"""Self-blended images: forgeries made of real faces alone, so that a detector learns blending and not one generator.

After Shiohara and Yamasaki, "Detecting deepfakes with self-blended images" (CVPR 2022): a face is changed a little,
moved a little and blended onto itself. The result has the traces of every splice: a seam, and colours, sharpness or
compression that do not match. The paper finds the face by landmarks; here its region is drawn at random
about the middle of a face crop, whole or in part (an eye, the mouth), so that no landmarks are needed. With a donor,
another face cropped alike, it is a splice of two people, as in Li et al., "Face X-ray" (CVPR 2020).

Images are uint8, (H, W, 3), RGB; px in the docstrings are those of an image whose shorter side is 256 px.
"""

import cv2
import numpy as np

from detector.augment.corruption import corrupt

# The differences between the two sides of a seam: corruptions and the maximum strength of each, in 0..1.
COLOUR = {"colour_shift": 0.5, "temperature": 0.4, "brightness": 0.2, "contrast": 0.15}
DETAIL = {"resize": 0.5, "gaussian_blur": 0.25, "sharpen": 0.35, "jpeg": 0.8, "gaussian_noise": 0.12}
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # share of the face that is replaced: section 3.2 of the paper


def self_blend(
    image: np.ndarray, rng: np.random.Generator, donor: np.ndarray | None = None, parts: float = 0.4
) -> np.ndarray:
    """A forgery made of the real face `image`: uint8, same shape.

    Args:
        image: a crop with the face about its middle.
        rng: the generator of all draws.
        donor: the face to put there, of the same shape, cropped alike; None: the image itself.
        parts: probability in 0..1 that a part of the face is replaced rather than the whole.
    """
    mask = face_region(image.shape[:2], rng, part=rng.random() < parts)
    source = image if donor is None else _with_colours_of(donor, image, mask)
    target = image
    if rng.random() < 0.5:
        source = mismatch(source, rng)
    else:
        target = mismatch(target, rng)
    source = _moved(source, rng)
    if rng.random() < 0.3:
        source = _with_light_of(source, target, rng)
    alpha = cv2.merge([mask * np.float32(RATIOS[rng.integers(len(RATIOS))])] * 3)
    blended = target + alpha * (source.astype(np.float32) - target)
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def face_region(shape: tuple[int, int], rng: np.random.Generator, part: bool = False) -> np.ndarray:
    """A soft random region about the middle of (height, width): float32 (H, W), 0 outside to 1 inside.

    The convex hull of jittered points on an ellipse, warped and blurred. It is as large as a face in a crop with a
    wide or a narrow margin; or, if `part`, as large as an eye, a nose, a mouth or both eyes, anywhere in that face.
    """
    height, width = shape
    centre = rng.normal((0.5, 0.52), 0.03)
    axes = rng.uniform((0.17, 0.22), (0.36, 0.42))
    if part:
        away, angle = rng.uniform(0, 0.7), rng.uniform(0, 2 * np.pi)
        centre = centre + away * axes * (np.cos(angle), np.sin(angle))
        axes = axes * rng.uniform(0.2, (0.75, 0.45))
    angles = np.linspace(0, 2 * np.pi, rng.integers(7, 16), endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.75, 1.15, (len(angles), 1))
    hull = cv2.convexHull(np.rint((centre + axes * around) * (width, height)).astype(np.int32))
    region = cv2.fillConvexPoly(np.zeros((height, width, 3), np.uint8), hull, (255, 255, 255))
    region = corrupt(region, "elastic_warp", rng.uniform(0, 1), rng)[..., 0]
    softness = rng.uniform(0.8, 4 if part else 10) * min(height, width) / 256
    soft = cv2.GaussianBlur(region.astype(np.float32), (0, 0), softness)
    return soft / max(float(soft.max()), 1.0)


def mismatch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with other colours, another sharpness or compression, or both: uint8, same shape."""
    drawn = [list(COLOUR.items())[i] for i in rng.permutation(len(COLOUR))[: rng.integers(0, 3)]]
    if not drawn or rng.random() < 0.6:
        drawn.append(list(DETAIL.items())[rng.integers(len(DETAIL))])
    for name, most in drawn:
        image = corrupt(image, name, rng.uniform(0.2, 1) * most, rng)
    return image


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted by up to 3 % of the width and 1.5 % of the height, scaled by 5 %, turned by 3 degrees, warped."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-3, 3), rng.uniform(0.95, 1.05))
    matrix[:, 2] += rng.uniform(-1, 1, 2) * (0.03 * width, 0.015 * height)
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return corrupt(moved, "elastic_warp", rng.uniform(0, 0.3), rng) if rng.random() < 0.5 else moved


def _with_colours_of(donor: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The donor with the mean and deviation of the image's colours in the region (Reinhard et al., 2001)."""
    inside = (mask > 0.5).astype(np.uint8)
    if not inside.any():
        return donor
    (mean, spread), (wanted, width) = (cv2.meanStdDev(i, mask=inside) for i in (donor, image))
    gain = np.clip(width / np.maximum(spread, 1), 0.5, 2)
    return cv2.transform(donor, np.hstack([np.diag(gain.ravel()), wanted - gain * mean]))


def _with_light_of(source: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The source's detail on the target's slow changes of light and colour, as after gradient-domain blending."""
    height, width = source.shape[:2]
    small = (max(1, width // 8), max(1, height // 8))
    slow = [cv2.resize(i, small, interpolation=cv2.INTER_AREA).astype(np.float32) for i in (source, target)]
    change = cv2.GaussianBlur(slow[1] - slow[0], (0, 0), rng.uniform(0.8, 3) * min(height, width) / 256)
    return cv2.add(source, cv2.resize(change, (width, height), interpolation=cv2.INTER_LINEAR), dtype=cv2.CV_8U)
