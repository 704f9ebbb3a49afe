"""Prepared data: TFRecord shards with the images' original bytes, and a manifest with the place of each image.

The shards are ordinary TFRecord files of tf.train.Example (features `image`, `label`, `path`), so that any TensorFlow
program reads them. The manifest also gives the place of the image bytes inside the file, so that this project reads
any image at random without TensorFlow, on any Keras backend, and memory does not grow with the data.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from detector.errors import UserError
from detector.images import BrokenImage, decode
from detector.quiet import quiet_native_stderr

SHARD_BYTES = 128 * 2**20  # large enough that DVC tracks few files, small enough to move
COLUMNS = ("path", "split", "class", "label", "group", "width", "height", "bytes", "sha256", "shard", "offset")
_RECORD_HEADER, _RECORD_FOOTER = 12, 4  # length and its checksum before the record, the record's checksum after it


class ShardWriter:
    """Writes `<split>-<number>.tfrecord` files into `folder`, with one open shard per split."""

    def __init__(self, folder: Path):
        with quiet_native_stderr():
            import tensorflow as tf  # heavy, and needed for writing alone

        self._tf, self._folder = tf, folder
        self._open: dict[str, tuple[object, str, int]] = {}
        self._numbers: dict[str, int] = {}

    def write(self, split: str, path: str, label: int, image: bytes) -> tuple[str, int]:
        """Append one image file; returns the shard's name and the byte offset of `image` in it."""
        train, text = self._tf.train, path.encode("utf-8", "backslashreplace")
        feature = {
            "image": train.Feature(bytes_list=train.BytesList(value=[image])),
            "label": train.Feature(int64_list=train.Int64List(value=[label])),
            "path": train.Feature(bytes_list=train.BytesList(value=[text])),
        }
        record = train.Example(features=train.Features(feature=feature)).SerializeToString(deterministic=True)
        if split in self._open and self._open[split][2] > SHARD_BYTES:
            full, name, _ = self._open.pop(split)
            self._checked(full.close, name)
        if split not in self._open:
            number = self._numbers[split] = self._numbers.get(split, -1) + 1
            name = f"{split}-{number:05d}.tfrecord"
            self._open[split] = (self._tf.io.TFRecordWriter(str(self._folder / name)), name, 0)
        writer, name, start = self._open[split]
        self._checked(lambda: writer.write(record), name)
        self._open[split] = (writer, name, start + _RECORD_HEADER + len(record) + _RECORD_FOOTER)
        return name, start + _RECORD_HEADER + record.index(image)

    def close(self) -> None:
        while self._open:
            _, (writer, name, _) = self._open.popitem()
            self._checked(writer.close, name)

    def _checked(self, write: Callable[[], None], name: str) -> None:
        try:
            write()
        except self._tf.errors.OpError as error:  # a full disk, most of all
            raise UserError(f"{self._folder / name}: cannot be written ({error.message}); make room") from None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def write_manifest(rows: Iterable[Mapping[str, object]], attributes: Iterable[str], path: Path) -> None:
    """Write manifest.csv: `COLUMNS`, then the data set's own `attributes` (method, source, ...)."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        # Texts are quoted, all of them: the csv module would leave a bare "\r" as it is, and readers end the row there.
        writer = csv.DictWriter(
            file, [*COLUMNS, *attributes], restval="", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        writer.writeheader()
        writer.writerows(rows)


def read_manifest(folder: Path | str) -> pd.DataFrame:
    """The rows of `folder`/manifest.csv, one per image: the columns of `COLUMNS` and the attributes, as texts.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    path = Path(folder) / "manifest.csv"
    numbers = dict.fromkeys(("label", "width", "height", "bytes", "offset"), np.int64)
    try:
        manifest = pd.read_csv(path, dtype=defaultdict(lambda: str, numbers), keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro prepare` first") from None
    except ValueError:  # pandas's own errors and UnicodeDecodeError among them
        manifest = pd.DataFrame()
    if not set(COLUMNS) <= set(manifest.columns):
        raise UserError(f"{path}: damaged; run `dvc repro -f prepare`")
    return manifest


def test_sets(manifest: pd.DataFrame) -> list[str]:
    """The names of the test splits: `test` first, then the further ones (`test_perturbed`, ...) by name."""
    return sorted(name for name in manifest["split"].unique() if name == "test" or name.startswith("test_"))


def class_names(manifest: pd.DataFrame) -> list[str]:
    """The classes of the data, in the order of a model's outputs: the real one, then the kinds of fake by name."""
    real = manifest.loc[manifest["label"] == 0, "class"].unique().tolist()
    return real + sorted(manifest.loc[manifest["label"] == 1, "class"].unique())


def class_indices(rows: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """The place of each row's class among `classes`: int (n,)."""
    return rows["class"].map({name: index for index, name in enumerate(classes)}).to_numpy(np.int64)


def dataset_digest(manifest: pd.DataFrame) -> str:
    """SHA-256 over every image's path, split, class, label, group, content and source: the data set's identity."""
    digest = hashlib.sha256()
    columns = ["path", "split", "class", "label", "group", "sha256", *(["source"] if "source" in manifest else [])]
    for row in manifest[columns].itertuples(index=False):
        digest.update("\0".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()


class ShardReader:
    """Random access to the images of `manifest` (rows of `read_manifest`) in `folder`; safe to use from many threads.

    A shard is opened for every read, which takes 1 % of the time to decode: so there may be more shards than a process
    may have files open, and there is nothing to close.

    Raises:
        UserError: a shard is not there; while reading, one is damaged.
    """

    def __init__(self, folder: Path | str, manifest: pd.DataFrame):
        self._folder = Path(folder)
        for name in manifest["shard"].unique():
            if not (self._folder / name).is_file():
                raise UserError(f"{self._folder / name}: not found; run `dvc repro -f prepare`")
        self._places = list(zip(manifest["shard"], manifest["offset"], manifest["bytes"], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """The original bytes of image `index`."""
        shard, offset, length = self._places[index]
        with (self._folder / shard).open("rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise self._damaged(index)
        return data

    def image(self, index: int) -> np.ndarray:
        """The decoded image `index`: uint8 (height, width, 3), RGB."""
        try:
            return decode(self.read(index))
        except BrokenImage:  # it was whole when it was written
            raise self._damaged(index) from None

    def images(self) -> Iterator[np.ndarray]:
        """All of them, decoded, in the manifest's order."""
        return (self.image(index) for index in range(len(self)))

    def _damaged(self, index: int) -> UserError:
        return UserError(f"{self._folder / self._places[index][0]}: damaged; run `dvc repro -f prepare`")
