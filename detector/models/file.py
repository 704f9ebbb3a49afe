"""The model file: a Keras archive with a card that gives its scores their meaning; equal models have equal bytes."""

import json
import os
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detector.errors import UserError

if TYPE_CHECKING:
    import keras

DRAWN_SAMPLE = "the drawn sample"  # the name of the project's own data set
CONVERTED = "converted"  # the initial weights of a model that was trained elsewhere
CARD = "detector.json"  # Keras ignores members that it does not know
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can state


@dataclass(frozen=True)
class ModelCard:
    """The facts that a program needs to use the model.

    Attributes:
        classes: class names in the order of the labels; the first is the real one, so P(fake) = 1 - P(classes[0]).
        image_size: side of the input in pixels.
        backbone: key of `detector.models.backbones.BACKBONES`, or the name in a converted model.
        weights: the initial weights of the training (imagenet, random, file), or `CONVERTED`.
        data_digest: SHA-256 of the training data (`detector.data.shards.dataset_digest`), "" if they are not known.
        trained_on: the training data in words ("the drawn sample", "folder faces", ...); "" if they are not known.
    """

    classes: list[str]
    image_size: int
    backbone: str
    weights: str
    data_digest: str
    trained_on: str = ""

    @property
    def caveat(self) -> str:
        """A warning to show with every score of the model; "" if there is none."""
        if self.trained_on != DRAWN_SAMPLE:
            return ""
        return "this model has only seen faces drawn by a program: what it says of photographs means nothing"


def save_model(model: "keras.Model", card: ModelCard, path: Path) -> None:
    """Write `path` (.keras), atomically, without dates and memory addresses: equal models have equal SHA-256."""
    raw, part = path.with_name("raw-" + path.name), path.with_name("part-" + path.name)
    try:
        model.save(raw)
        with zipfile.ZipFile(raw) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as target:
            members = {name: source.read(name) for name in source.namelist()}
            # Whether data type policies are one object in memory depends on how the model was made, not on what it is.
            members["config.json"] = re.sub(rb', "shared_object_id": \d+', b"", members["config.json"])
            metadata = json.loads(members["metadata.json"])
            metadata.pop("date_saved", None)
            members["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
            members[CARD] = json.dumps(asdict(card), indent=2, sort_keys=True).encode()
            for name in sorted(members):
                target.writestr(zipfile.ZipInfo(name, _EPOCH), members[name])
        os.replace(part, path)
    finally:
        raw.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def read_card(path: Path | str) -> ModelCard:
    """The card inside a model file.

    Raises:
        UserError: there is no such file, or it is not a model of this project.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return ModelCard(**json.loads(archive.read(CARD)))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; train a model first with `dvc repro train`") from None
    except Exception:  # zipfile and its decompressors raise almost anything on a damaged archive
        raise UserError(f"{path}: not a model of this project; name a file that `dvc repro train` wrote") from None
