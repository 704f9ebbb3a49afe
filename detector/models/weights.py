"""The initial weights of the backbone: a file, Keras's ImageNet weights, or random ones."""

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from detector.errors import UserError
from detector.models.backbones import BACKBONES, PublishedWeights
from detector.paths import existing_path, project_root

KERAS_STORAGE = "https://storage.googleapis.com/"
TIMEOUT = 20  # seconds without an answer


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training starts from: `origin` is imagenet, random or file; `path` is None for random.

    `note` says why ImageNet weights are missing; "" if they are not.
    """

    origin: str
    path: Path | None = None
    note: str = ""


def find_weights(weights: str, backbone: str) -> InitialWeights:
    """The weights that the parameter model.weights names; ImageNet weights are downloaded if necessary.

    Args:
        weights: auto | imagenet | none | a path (relative to the project's root).
        backbone: a key of `BACKBONES`.

    Raises:
        UserError: the file does not exist, or ImageNet weights are required and cannot be downloaded.
    """
    if weights == "none":
        return InitialWeights("random")
    if weights not in ("auto", "imagenet"):
        return InitialWeights("file", existing_path("model.weights", weights))
    published = BACKBONES[backbone].imagenet
    try:
        return InitialWeights("imagenet", _imagenet(published))
    except OSError as error:
        reason = f"ImageNet weights cannot be downloaded ({getattr(error, 'reason', None) or error})"
    if weights == "imagenet":
        raise UserError(
            f"model.weights: {reason}; put {Path(published.place).name}, "
            f"{_algorithm(published.digest).upper()} {published.digest}, into data/weights/, "
            "or set model.weights to auto, none or a file"
        )
    return InitialWeights("random", note=reason)


def _imagenet(published: PublishedWeights) -> Path:
    """The file under data/weights/, downloaded if it is missing or incomplete; OSError if that fails."""
    folder = project_root() / "data" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(published.place).name
    if path.exists() and _is_complete(path, published.digest):  # the folder may be read-only
        return path
    with FileLock(f"{path}.lock"):  # experiments that start together download once
        if not path.exists() or not _is_complete(path, published.digest):
            _download(KERAS_STORAGE + published.place, path, published.digest)
    return path


def _download(url: str, path: Path, digest: str) -> None:
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
        if not _is_complete(part, digest):
            raise OSError(f"the file from {url} is not the published one")
        os.replace(part, path)
    except http.client.HTTPException as error:  # not an HTTP answer, or an incomplete one
        raise OSError(f"{type(error).__name__}: {error}".strip()) from None
    finally:
        part.unlink(missing_ok=True)


def _algorithm(digest: str) -> str:
    return "sha256" if len(digest) == 64 else "md5"


def _is_complete(path: Path, digest: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _algorithm(digest)).hexdigest() == digest
