"""Where the backbone's initial weights come from: a file, Keras's ImageNet weights, or nowhere (random)."""

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from detector.errors import UserError
from detector.paths import existing_path, project_root

KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/"
TIMEOUT = 20  # seconds without an answer


@dataclass(frozen=True)
class PublishedWeights:
    """Keras's ImageNet weights of a backbone without its classifier: place under `KERAS_APPLICATIONS`, MD5."""

    place: str
    md5: str


IMAGENET = {
    "xception": PublishedWeights(
        "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5", "b0042744bf5b25fce3cb969f33bebb97"
    ),
}


@dataclass(frozen=True)
class InitialWeights:
    """What a model starts from: `origin` is imagenet, random or file; `path` is None for random."""

    origin: str
    path: Path | None = None
    note: str = ""


def find_weights(weights: str, backbone: str) -> InitialWeights:
    """What the parameter model.weights means here and now; may download.

    Args:
        weights: auto | imagenet | none | a path (relative to the project's root).
        backbone: a key of `IMAGENET`.

    Raises:
        UserError: ImageNet weights are demanded and cannot be had, or the file is not there.
    """
    if weights == "none":
        return InitialWeights("random")
    if weights not in ("auto", "imagenet"):
        return InitialWeights("file", existing_path("model.weights", weights))
    try:
        return InitialWeights("imagenet", _imagenet(IMAGENET[backbone]))
    except OSError as error:
        reason = f"ImageNet weights cannot be downloaded ({getattr(error, 'reason', None) or error})"
    if weights == "imagenet":
        raise UserError(
            f"model.weights: {reason}; put {Path(IMAGENET[backbone].place).name}, MD5 {IMAGENET[backbone].md5}, "
            "into data/weights/, or set model.weights to auto, none or a file"
        )
    return InitialWeights("random", note=reason)


def _imagenet(published: PublishedWeights) -> Path:
    """The file under data/weights/, downloaded if it is not there or not whole; OSError if it cannot be had."""
    folder = project_root() / "data" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(published.place).name
    with FileLock(f"{path}.lock"):  # experiments that start together download once
        if not path.exists() or _md5(path) != published.md5:
            _download(KERAS_APPLICATIONS + published.place, path, published.md5)
    return path


def _download(url: str, path: Path, md5: str) -> None:
    part = path.with_suffix(".part")
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
            part.open("wb") as file,
            tqdm(total=answer.length, unit="B", unit_scale=True, desc=path.name, disable=None, leave=False) as bar,
        ):
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
        if _md5(part) != md5:
            raise OSError(f"what came from {url} is not the published file")
        os.replace(part, path)
    except http.client.HTTPException as error:  # an answer that is no HTTP, or ends too early
        raise OSError(f"{type(error).__name__}: {error}".strip()) from None
    finally:
        part.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
