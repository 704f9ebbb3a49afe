"""The one decoder: training, evaluation, command line and API see the same pixels for the same bytes."""

import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000  # a 10,000 x 10,000 photograph; beyond it a small file may be built to fill the memory
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class BrokenImage(Exception):
    """The bytes are no image that can be decoded whole; the message is the reason in a few words."""


def decode(data: bytes) -> np.ndarray:
    """Decode an image file to pixels.

    The EXIF rotation is applied, an alpha channel is dropped, grey and palette images become RGB, 16-bit grey
    is scaled to 8, of an animation the first frame is taken.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file.

    Returns:
        uint8 array (height, width, 3), RGB, 0..255.

    Raises:
        BrokenImage: no image, an unknown format, truncated, or more than `MAX_PIXELS` pixels.
    """
    if not data:
        raise BrokenImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and big images: the first is harmless, the second refused below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BrokenImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                image.load()
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16") or image.mode == "I":
                    return np.repeat((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
                return np.array(image.convert("RGB"))
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's plug-ins raise almost anything on hostile bytes
        raise BrokenImage(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from None


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Scale to a square of `size` pixels a side, stretching: uint8 (h, w, 3) -> uint8 (size, size, 3).

    Area averaging down, bilinear up: both are free of the ringing that a detector could mistake for a trace.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shrinks = height >= size and width >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def shrink_to(image: np.ndarray, max_side: int) -> np.ndarray:
    """Scale so that the longer side is at most `max_side` pixels, keeping the shape; uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    return cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
