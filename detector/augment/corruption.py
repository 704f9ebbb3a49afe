"""Image corruptions: what compression, resizing, cameras, editors and weather do to an image.

One corruption is one pure function `(image, strength, rng) -> image`:

- `image` is uint8, (H, W, 3), RGB, of any size; the result has the same shape and dtype and is a new array;
- `strength` is in 0..1: 0 leaves the image as it is, or nearly; 1 is the most at which a person still recognises the
  face. From the same generator state, a higher strength gives a stronger version of the same draw;
- px in the docstrings are those of an image whose shorter side is 256 px; lengths grow with that side.

The five severities follow Hendrycks and Dietterich, "Benchmarking neural network robustness to common
corruptions and perturbations" (ICLR 2019). There are three corruption sets, kept apart so that results can be reported
for each:

- "generic" holds what any shared image meets;
- "matched" holds the perturbations named by Le et al., "OpenForensics: large-scale challenging dataset for multi-face
  forgery detection and segmentation in-the-wild" (ICCV 2021), that are not generic;
- "other" is the place for any further corruption. No default draws from it, so one more there changes no result.

To add a corruption: write its function below, under `@_register(family, corruption_set)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import cv2
import numpy as np

from detector.errors import UserError
from detector.params import CORRUPTION_SETS, AugmentParams, CorruptionSet

Image = np.ndarray
Apply = Callable[[Image, float, np.random.Generator], Image]

SEVERITIES = (1, 2, 3, 4, 5)
TRAINING_COUNT = (1, 2)  # corruptions of a corruption set on one training image, from and to


@dataclass(frozen=True)
class Corruption:
    """A named corruption; an image gets at most one of each `family`."""

    name: str
    family: str
    corruption_set: CorruptionSet
    apply: Apply


CORRUPTIONS: dict[str, Corruption] = {}


def _register(family: str, corruption_set: CorruptionSet) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        CORRUPTIONS[apply.__name__] = Corruption(apply.__name__, family, corruption_set, apply)
        return apply

    return register


def corrupt(image: Image, name: str, strength: float, rng: np.random.Generator) -> Image:
    """Apply the corruption `name` at `strength` in 0..1; severity k of the ladder is strength k / 5.

    Raises UserError when no corruption has that name or the strength is outside 0..1.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"no corruption is called {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if not 0 <= strength <= 1:
        raise UserError(f"the strength of a corruption is between 0 and 1, not {strength}")
    return CORRUPTIONS[name].apply(image, float(strength), rng)


def perturb(
    image: Image,
    rng: np.random.Generator,
    corruption_sets: Sequence[CorruptionSet] = ("generic", "matched"),
    count: tuple[int, int] = (1, 3),
    strength: tuple[float, float] = (0.2, 1.0),
) -> Image:
    """Apply a few random corruptions, each from a different family.

    Draws how many (`count`, both ends included), that many families of `corruption_sets`, one corruption of each, and
    its strength (uniform in `strength`). They are applied in the order drawn, but JPEG last, as files are saved.
    Raises UserError on an unknown or empty corruption set or a strength outside 0..1.
    """
    families = _families(corruption_sets)
    drawn = rng.permutation(len(families))[: rng.integers(count[0], count[1], endpoint=True)]
    names = [families[i][rng.integers(len(families[i]))] for i in drawn]
    out = image.copy()
    for name in sorted(names, key=lambda name: CORRUPTIONS[name].family == "compression"):
        out = corrupt(out, name, rng.uniform(*strength), rng)
    return out


def through_jpeg(image: Image, quality: int, sampling: int) -> Image:
    """`image` written to a JPEG file and read again.

    Args:
        quality: 0..100, that of libjpeg.
        sampling: chroma subsampling, one of cv2's IMWRITE_JPEG_SAMPLING_FACTOR_*.
    """
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def augment(image: Image, params: AugmentParams, rng: np.random.Generator) -> Image:
    """A training image with corruptions: each corruption set is used with its own probability, in a random order.

    Raises UserError if the probability of an empty corruption set is not 0.
    """
    probabilities = params.corruption.probabilities
    if not probabilities:
        return image  # and nothing is drawn
    corruption_sets = [corruption_set for corruption_set, p in probabilities.items() if rng.random() < p]
    for i in rng.permutation(len(corruption_sets)):
        image = perturb(image, rng, (corruption_sets[i],), TRAINING_COUNT, tuple(params.corruption.strength))
    return image


def _families(corruption_sets: Sequence[CorruptionSet]) -> list[list[str]]:
    """The names of the corruptions of these sets, one list for each family."""
    if not corruption_sets or not set(corruption_sets) <= set(CORRUPTION_SETS):
        raise UserError(f"corruption sets are {', '.join(CORRUPTION_SETS)}, not {', '.join(corruption_sets) or 'none'}")
    if empty := set(corruption_sets) - {c.corruption_set for c in CORRUPTIONS.values()}:
        raise UserError(
            f"the corruption set {min(empty)} has no corruption yet; "
            "add one in detector/augment/corruption.py, or choose another set"
        )
    families: dict[str, list[str]] = {}
    for c in CORRUPTIONS.values():
        if c.corruption_set in corruption_sets:
            families.setdefault(c.family, []).append(c.name)
    return list(families.values())


def _px(image: Image, length: float) -> float:
    """`length` px of a 256 px image, in px of this one."""
    return length * min(image.shape[:2]) / 256


# --- compression and resolution -------------------------------------------------------------------


@_register("compression", "generic")
def jpeg(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """JPEG at quality 100 down to 30, with or without chroma subsampling."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)[rng.integers(2)]
    return through_jpeg(image, round(100 - 70 * strength), sampling)


def _shrunk(image: Image, factor: float, down: int, up: int) -> Image:
    """The image made `factor` times smaller and enlarged again, each with a cv2 interpolation."""
    height, width = image.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(cv2.resize(image, small, interpolation=down), (width, height), interpolation=up)


@_register("resolution", "generic")
def resize(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Made 1 to 5 times smaller (area, bilinear or bicubic), then enlarged (bilinear, bicubic or Lanczos)."""
    down = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    up = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(3)]
    return _shrunk(image, 1 + 4 * strength, down, up)


@_register("resolution", "matched")
def pixelate(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Square blocks of the mean colour, 1 to 8 px wide."""
    return _shrunk(image, max(1, _px(image, 1 + 7 * strength)), cv2.INTER_AREA, cv2.INTER_NEAREST)


# --- blur -----------------------------------------------------------------------------------------


@_register("blur", "generic")
def gaussian_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gaussian blur, sigma 0 to 4 px."""
    sigma = _px(image, 4 * strength)
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0.1 else image.copy()


def _odd(length: float) -> int:
    return 2 * int(length / 2) + 1


@_register("blur", "matched")
def average_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Mean over a square window, 1 to 11 px wide."""
    window = _odd(_px(image, 1 + 10 * strength))
    return cv2.blur(image, (window, window))


@_register("blur", "matched")
def median_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Median over a square window, 1 to 9 px wide."""
    return cv2.medianBlur(image, _odd(_px(image, 1 + 8 * strength)))


@_register("blur", "matched")
def motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Mean along a straight path of 0 to 20 px in any direction."""
    angle = rng.uniform(0, np.pi)
    step = _px(image, 20 * strength) * np.array([np.cos(angle), np.sin(angle)])
    # Averaging with a copy shifted by half the path, then a quarter, an eighth ... averages over all of it.
    shifts = []
    while np.hypot(*step) >= 1:
        step = step / 2
        shifts.append([round(s) for s in step])
    dx, dy = np.abs(shifts).sum(axis=0) if shifts else (0, 0)
    out = cv2.copyMakeBorder(image, dy // 2, dy - dy // 2, dx // 2, dx - dx // 2, cv2.BORDER_REFLECT_101)
    for dx, dy in shifts:
        height, width = out.shape[0] - abs(dy), out.shape[1] - abs(dx)
        here, there = (max(-dx, 0), max(-dy, 0)), (max(dx, 0), max(dy, 0))
        a, b = (out[y : y + height, x : x + width] for x, y in (here, there))
        out = cv2.addWeighted(a, 0.5, b, 0.5, 0)
    return out


# --- noise and dropout ----------------------------------------------------------------------------


def _uniform16(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform uint16, (H, W, 3): at even odds one draw a channel (coloured), or one a pixel (grey)."""
    channels = 1 + 2 * int(rng.integers(2))
    drawn = rng.integers(0, 1 << 16, (height, width, channels), dtype=np.uint16)
    return drawn if channels == 3 else cv2.merge([drawn] * 3)


@cache
def _quantiles(distribution: Literal["gaussian", "laplace"]) -> np.ndarray:
    """The 65,536 quantiles of a unit distribution, float32: looking draws up in them is 4 times faster."""
    p = (np.arange(1 << 16) + 0.5) / (1 << 16)
    if distribution == "gaussian":
        return np.array([NormalDist().inv_cdf(q) for q in p.tolist()], np.float32)
    return (-np.sign(p - 0.5) * np.log1p(-np.abs(2 * p - 1))).astype(np.float32)


def _draw(image: Image, distribution: str, scale: float, rng: np.random.Generator) -> np.ndarray:
    return (_quantiles(distribution) * np.float32(scale)).take(_uniform16(*image.shape[:2], rng), mode="wrap")


@_register("noise", "generic")
def gaussian_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Additive Gaussian noise, sigma 0 to 50 of 255 levels."""
    return cv2.add(image, _draw(image, "gaussian", 50 * strength, rng), dtype=cv2.CV_8U)


@_register("noise", "matched")
def laplace_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Additive Laplace noise, scale 0 to 35 of 255 levels."""
    return cv2.add(image, _draw(image, "laplace", 35 * strength, rng), dtype=cv2.CV_8U)


@_register("noise", "matched")
def poisson_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Photon noise of a sensor that counts 20 / strength^2 photons at white.

    Poisson counts in their normal approximation: the variance is proportional to the signal.
    """
    deviation = np.sqrt(255 * np.arange(256, dtype=np.float32) / 20)
    noise = _draw(image, "gaussian", strength, rng)
    noise *= cv2.LUT(image, deviation)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


@_register("noise", "matched")
def impulse_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Salt and pepper on 0 to 15 % of the pixels, or of the values in each channel."""
    drawn = _uniform16(*image.shape[:2], rng)
    edge = round(0.15 * strength * (1 << 15))
    out = image.copy()
    np.putmask(out, drawn < edge, 0)
    np.putmask(out, drawn >= (1 << 16) - edge, 255)
    return out


@_register("dropout", "matched")
def dropout(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blacks out 0 to 20 % of the pixels, or of the values in each channel."""
    return image * (_uniform16(*image.shape[:2], rng) >= 0.2 * strength * (1 << 16))


@_register("dropout", "matched")
def coarse_dropout(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blacks out 0 to 15 % of the cells of a grid of 5 to 20 px, in all channels or in each."""
    height, width = image.shape[:2]
    cell = max(1, _px(image, rng.uniform(5, 20)))
    drawn = _uniform16(math.ceil(height / cell), math.ceil(width / cell), rng)
    keep = (drawn >= 0.15 * strength * (1 << 16)).astype(np.uint8)
    return image * cv2.resize(keep, (width, height), interpolation=cv2.INTER_NEAREST)


# --- colour and tone ------------------------------------------------------------------------------

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_LEVELS = np.arange(256, dtype=np.float32)


def _saturate(factor: float) -> np.ndarray:
    """The matrix that scales the distance of a colour from its grey (Haeberli, "Matrix operations", 1993)."""
    return factor * np.eye(3) + (1 - factor) * _LUMA


def _rotate_hue(degrees: float) -> np.ndarray:
    """The matrix that turns colours about the grey axis (Haeberli, 1993), by Rodrigues' formula."""
    return cv2.Rodrigues(np.full(3, np.radians(degrees) / np.sqrt(3)))[0]


def _mix(image: Image, matrix: np.ndarray) -> Image:
    return cv2.transform(image, matrix.astype(np.float32))


def _curve(image: Image, levels: np.ndarray) -> Image:
    """Replace each of the 256 levels."""
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _sign(rng: np.random.Generator) -> int:
    return 2 * int(rng.integers(2)) - 1


@_register("colour", "generic")
def colour_shift(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A small shift: hue by 0 to 20 degrees either way and saturation by 0 to 50 % up or down."""
    turned = _rotate_hue(_sign(rng) * 20 * strength)
    return _mix(image, _saturate(1 + _sign(rng) * 0.5 * strength) @ turned)


@_register("colour", "generic")
def grey(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Fades to grey; from strength 0.5 on the image is wholly grey, as most grey images are."""
    return _mix(image, _saturate(max(0.0, 1 - 2 * strength)))


@_register("colour", "matched")
def hue(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Turns hues by 0 to 150 degrees either way."""
    return _mix(image, _rotate_hue(_sign(rng) * 150 * strength))


@_register("colour", "matched")
def saturation(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Saturation times 1 to 4, or 1 to 0.1."""
    return _mix(image, _saturate(1 + (3 if _sign(rng) > 0 else -0.9) * strength))


@_register("colour", "matched")
def temperature(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """White point moved from 6500 K by 0 to 150 mired, down to 3300 K (amber) or up to clear sky (blue).

    The gains are those of Planck's law at the wavelengths of the three primaries, at the same luma.
    """
    wavelength = np.array([0.600, 0.540, 0.450])  # micrometres
    mired = 1e6 / 6500
    before, after = (0.014388 * m / wavelength for m in (mired, mired + _sign(rng) * 150 * strength))
    gains = (np.expm1(before) / np.expm1(after)) ** (1 / 2.2)
    return _mix(image, np.diag(gains / (_LUMA @ gains)))


@_register("colour", "matched")
def posterise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Each channel rounded to steps of 1 to 85 levels: 256 colours a channel down to 4."""
    steps = round(255 / (1 + 84 * strength))
    return _curve(image, np.rint(_LEVELS * steps / 255) * 255 / steps)


@_register("tone", "generic")
def brightness(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Levels times 1 to 1.8, or 1 to 0.3."""
    return _curve(image, _LEVELS * (1 + (0.8 if _sign(rng) > 0 else -0.7) * strength))


@_register("tone", "generic")
def contrast(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Distance from the mean level times 1 to 3, or 1 to 0.25."""
    mean = np.mean(cv2.mean(image)[:3])
    return _curve(image, mean + (_LEVELS - mean) * (1 + (2 if _sign(rng) > 0 else -0.75) * strength))


@_register("tone", "matched")
def equalise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Fades to the equalised histogram, of the luma or of each channel."""
    if rng.integers(2):
        luma, *chroma = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
        flat = cv2.cvtColor(cv2.merge([cv2.equalizeHist(luma), *chroma]), cv2.COLOR_YCrCb2RGB)
    else:
        flat = cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])
    return cv2.addWeighted(image, 1 - strength, flat, strength, 0)


# --- edges ----------------------------------------------------------------------------------------


@_register("edges", "matched")
def sharpen(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Unsharp mask of sigma 1 px, amount 0 to 4."""
    blurred = cv2.GaussianBlur(image, (0, 0), max(0.5, _px(image, 1)))
    return cv2.addWeighted(image, 1 + 4 * strength, blurred, -4 * strength, 0)


@_register("edges", "matched")
def emboss(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Adds the slope of the image along one direction, 0 to 1.5 times, as if lit from there."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:2, -1:2]
    kernel = 1.5 * strength * (x * np.cos(angle) + y * np.sin(angle)) / 2
    kernel[1, 1] = 1
    return cv2.filter2D(image, -1, kernel.astype(np.float32))


@_register("edges", "matched")
def edge_overlay(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Fades 0 to 70 % to a drawing of the edges (Sobel gradient), white on black or black on white."""
    luma = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (3, 3), 0)
    dx, dy = (cv2.convertScaleAbs(cv2.Sobel(luma, cv2.CV_16S, *order)) for order in ((1, 0), (0, 1)))
    edges = cv2.merge([cv2.add(dx, dy)] * 3)
    drawing = edges if rng.integers(2) else 255 - edges
    return cv2.addWeighted(image, 1 - 0.7 * strength, drawing, 0.7 * strength, 0)


# --- geometry and pooling -------------------------------------------------------------------------


@_register("geometry", "matched")
def elastic_warp(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Smooth random displacements over cells of 16 to 48 px, of 0 to a quarter of a cell.

    After Simard et al., "Best practices for convolutional neural networks" (ICDAR 2003).
    """
    height, width = image.shape[:2]
    cell = max(1, _px(image, rng.uniform(16, 48)))
    grid = rng.uniform(-1, 1, (math.ceil(height / cell), math.ceil(width / cell), 2)).astype(np.float32)
    shift = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(cell / 4 * strength)
    x = np.arange(width, dtype=np.float32) + shift[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + shift[..., 1]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _pool(image: Image, window: int, filtered: Callable[[Image, int], Image]) -> Image:
    """Pool square blocks by a sliding filter read once a block, and enlarge to the old size."""
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % window, 0, -width % window, cv2.BORDER_REPLICATE)
    pooled = filtered(padded, window)[window // 2 :: window, window // 2 :: window]
    out = cv2.resize(pooled, padded.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return out[:height, :width].copy()


def _window(image: Image, strength: float) -> int:
    return max(1, round(_px(image, 1 + 5 * strength)))


@_register("pooling", "matched")
def average_pool(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Mean of blocks, 1 to 6 px wide."""
    return _pool(image, _window(image, strength), lambda padded, k: cv2.blur(padded, (k, k)))


@_register("pooling", "matched")
def max_pool(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Maximum of each channel over blocks, 1 to 6 px wide."""
    return _pool(image, _window(image, strength), lambda padded, k: cv2.dilate(padded, np.ones((k, k))))


@_register("pooling", "matched")
def min_pool(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Minimum of each channel over blocks, 1 to 6 px wide."""
    return _pool(image, _window(image, strength), lambda padded, k: cv2.erode(padded, np.ones((k, k))))


@_register("pooling", "matched")
def median_pool(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Median of each channel over blocks, 1 to 7 px wide (odd)."""
    return _pool(image, _odd(_px(image, 1 + 5 * strength)), cv2.medianBlur)


# --- weather --------------------------------------------------------------------------------------


def _cover(image: Image, alpha: np.ndarray, colour: Sequence[float]) -> Image:
    """Paint `colour` (RGB levels) over the image with opacity `alpha` (H, W), uint8 or float32 in 0..1."""
    if alpha.dtype != np.uint8:
        alpha = cv2.convertScaleAbs(alpha, alpha=255)
    paint = cv2.merge([cv2.convertScaleAbs(alpha, alpha=level / 255) for level in colour])
    return cv2.add(cv2.multiply(image, cv2.merge([255 - alpha] * 3), scale=1 / 255), paint)


def _fractal(image: Image, rng: np.random.Generator, cell: float, persistence: float, stretch: float = 1) -> np.ndarray:
    """Fractal noise, float32 (H, W) in 0..1: a sum of interpolated random grids, of `cell` px down to 4 px.

    Each grid is twice as fine as the one before and `persistence` times as strong (the octaves of Perlin, "An
    image synthesizer", SIGGRAPH 1985); cells are `stretch` times wider than high.
    """
    height, width = image.shape[:2]
    noise, amplitude = None, 1.0
    while cell >= 4:
        columns = math.ceil(min(width, width / _px(image, cell * stretch)))
        rows = math.ceil(min(height, height / _px(image, cell)))
        octave = np.float32(amplitude) * rng.random((rows, columns), dtype=np.float32)
        if noise is not None:
            octave += cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
        noise, amplitude, cell = octave, amplitude * persistence, cell / 2
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(noise, None, 0, 1, cv2.NORM_MINMAX)


def _strokes(image: Image, start: np.ndarray, along: np.ndarray, thickness: float) -> np.ndarray:
    """White lines on black, uint8 (H, W): from `start` (N, 2; x, y in px) along `along` (N, 2; px)."""
    canvas = np.zeros(image.shape[:2], np.uint8)
    lines = np.rint(16 * np.stack([start, start + along], axis=1)).astype(np.int32)
    return cv2.polylines(canvas, list(lines), False, 255, max(1, round(thickness)), cv2.LINE_AA, 4)


def _scatter(image: Image, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random places on and just around the image, (N, 2; x, y in px): N is `count` on a square image."""
    height, width = image.shape[:2]
    elongation = min(4, max(height, width) / min(height, width))
    return rng.uniform(-0.1, 1.1, (round(count * elongation), 2)) * (width, height)


@_register("weather", "matched")
def fog(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Grey airlight of opacity 1 - exp(-depth) (Koschmieder's law); fractal depth, at most 0.4 to 1.8."""
    depth = strength * (0.4 + 1.4 * _fractal(image, rng, 128, 0.5))
    return _cover(image, 1 - cv2.exp(-depth), [rng.uniform(190, 230)] * 3)


@_register("weather", "matched")
def clouds(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Drifting white patches with clear air between them, that widen and thicken up to 80 % opaque."""
    noise = _fractal(image, rng, 96, 0.55, stretch=1.6)
    cover = np.clip((noise - 0.65 + 0.4 * strength) / 0.6, 0, 1)
    return _cover(image, 0.8 * strength**0.5 * cover * cover * (3 - 2 * cover), (246, 248, 252))


@_register("weather", "matched")
def frost(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A frozen pane: feathered crystals that grow from its borders inward, on a film of rime."""
    height, width = image.shape[:2]
    ferns = 18
    root = rng.uniform(0, 1, (ferns, 2))
    border = rng.integers(0, 4, ferns)
    root[np.arange(ferns), border % 2] = border // 2
    inward = rng.normal(0.5, 0.25, (ferns, 2)) - root
    angle = np.arctan2(inward[:, 1], inward[:, 0])
    length = _px(image, 256) * rng.uniform(0.2, 0.6, ferns) * (0.3 + 0.7 * strength)
    start = root * (width, height)
    crystals = np.zeros((height, width), np.uint8)
    # A stem carries barbs on both sides, at 60 degrees as ice grows, shorter towards its tip; so does a barb.
    for barbs, shine in ((12, 1), (2, 0.7), (0, 0.5)):
        along = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        visible = length > _px(image, 2)
        layer = _strokes(image, start[visible], along[visible], _px(image, 1))
        crystals = cv2.max(crystals, cv2.convertScaleAbs(layer, alpha=shine))
        t = (np.arange(2 * barbs) + rng.uniform(0, 1, (len(start), 2 * barbs))) / max(1, 2 * barbs)
        side = np.tile([1, -1], barbs)
        start = (start[:, None] + t[..., None] * along[:, None]).reshape(-1, 2)
        angle = (angle[:, None] + side * rng.normal(np.pi / 3, 0.08, t.shape)).ravel()
        length = (0.35 * length[:, None] * (1 - t) * rng.uniform(0.5, 1.1, t.shape)).ravel()
    x, y = (np.abs(np.linspace(-1, 1, n, dtype=np.float32)) ** 3 for n in (width, height))
    rime = (0.2 + np.maximum(x, y[:, None])) * _fractal(image, rng, 32, 1)
    glow = cv2.GaussianBlur(crystals, (0, 0), max(0.5, _px(image, 2.5)))
    ice = 0.9 * rime + cv2.addWeighted(crystals, 0.4, glow, 0.5, 0) * np.float32(1 / 255)
    return _cover(image, np.minimum(1, ice) * np.float32(0.9 * strength**0.7), (222, 234, 246))


@_register("weather", "matched")
def snow(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Falling flakes, many small and far to few large and near, in a whitish haze."""
    slant = rng.uniform(-0.6, 0.6)
    flakes = np.zeros(image.shape[:2], np.uint8)
    for count, size in ((900, 1), (240, 2), (60, 4), (10, 8)):
        start = _scatter(image, rng, count)
        fall = _px(image, size) * rng.uniform(0.3, 1.5, (len(start), 1)) * (slant, 1)
        shown = round(strength * len(start))
        layer = _strokes(image, start[:shown], fall[:shown], _px(image, size))
        flakes = cv2.max(flakes, cv2.GaussianBlur(layer, (0, 0), max(0.4, _px(image, size / 3))))
    hazy = _cover(image, np.full(image.shape[:2], 0.35 * strength, np.float32), (225, 230, 235))
    return _cover(hazy, flakes, (250, 252, 255))


@_register("weather", "matched")
def rain(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Slanted streaks, thin and far to long and near, in dimmer light."""
    slant = rng.normal(0, 0.2)
    streaks = np.zeros(image.shape[:2], np.uint8)
    for count, length, shine in ((600, 12, 0.35), (150, 36, 0.55)):
        start = _scatter(image, rng, count)
        lean = slant + rng.normal(0, 0.03, len(start))
        direction = np.stack([lean, np.ones_like(lean)], axis=1)
        fall = _px(image, length) * rng.uniform(0.6, 1.4, (len(start), 1)) * direction
        shown = round(strength * len(start))
        layer = _strokes(image, start[:shown], fall[:shown], _px(image, 1))
        streaks = cv2.max(streaks, cv2.convertScaleAbs(layer, alpha=shine))
    return _cover(_curve(image, _LEVELS * (1 - 0.25 * strength)), streaks, (205, 210, 218))
