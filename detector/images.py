"""The one decoder: training, evaluation, command line and API see the same pixels for the same bytes."""

import contextlib
import io
import threading
import warnings

import cv2
import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 100_000_000  # a 10,000 x 10,000 photograph; beyond it a small file may be built to fill the memory
LARGE = 25_000_000  # pixels; only two larger images are decoded at a time, each takes up to 10 bytes per pixel
MAX_SCANS = 100  # of a JPEG: a progressive one has about ten, each goes over all pixels again
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
UPRIGHT = {
    2 + i: Image.Transpose[name] for i, name in enumerate(_TURNS)
}  # undoes EXIF orientation 2 to 8; 1 is upright

# Pillow warns of odd metadata, which is harmless, and of big images, which are refused below. The filter is set once,
# because changing it around every image is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


_large_images = threading.BoundedSemaphore(2)


class BrokenImage(Exception):
    """The bytes are no image that can be decoded completely; the message is the reason in a few words."""


def decode(data: bytes) -> np.ndarray:
    """Decode an image file to pixels.

    The EXIF rotation is applied, an alpha channel is dropped, grey and palette images become RGB, 16-bit grey
    is scaled to 8, of an animation the first frame is taken.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file.

    Returns:
        uint8 array (height, width, 3), RGB, 0..255.

    Raises:
        BrokenImage: no image, an unknown format, truncated, more than `MAX_PIXELS` pixels (in all, or of a TIFF's tile)
            or `MAX_SCANS` scans.
    """
    if not data:
        raise BrokenImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            if (pixels := decoded_pixels(image)) > MAX_PIXELS:
                raise BrokenImage(f"a TIFF with tiles of more than {MAX_PIXELS:,} pixels")
            # Pillow calls a JPEG followed by others MPO. Within a scan FF is followed by 00, so FF DA begins a scan.
            if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
                raise BrokenImage(f"a JPEG of more than {MAX_SCANS} scans")
            with _large_images if pixels > LARGE else contextlib.nullcontext():
                return _pixels(image)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's plug-ins raise almost anything on hostile bytes
        if "truncated" in str(error).lower():  # with the number of bytes, a reason of its own for every image
            raise BrokenImage("cut short") from None
        raise BrokenImage(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from None


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    if (turn := UPRIGHT.get(_orientation(image))) is not None:  # the first of them is 0
        image = image.transpose(turn)
    if image.mode.startswith("I;16") or image.mode == "I":
        return np.repeat((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def decoded_pixels(image: Image.Image) -> int:
    """The pixels that decoding `image` takes: a TIFF's tile is decoded completely, however small the image is."""
    tile = 0
    if image.format == "TIFF":
        tile = int(image.tag_v2.get(322, 0)) * int(image.tag_v2.get(323, 0))
    return max(image.width * image.height, tile)


def _orientation(image: Image.Image) -> int | None:
    # Not ImageOps.exif_transpose: it writes the other tags again, and fails for the whole image if one is damaged.
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above
        return None


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
