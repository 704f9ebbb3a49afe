"""The files that a stage writes for others to read: JSON, tables, heatmaps; and folders that are replaced whole."""

import json
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from detector.errors import UserError


def write_json(path: Path, content: Mapping) -> None:
    """Write `content` for people and for DVC: indented, in order, with a final newline; NaN is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """What `write_json` wrote; UserError if the stage that writes it has not run or the file is damaged."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run `dvc repro -f`") from None


def read_text(path: Path) -> str:
    """A result file's text without surrounding white space; UserError if the stage that writes it has not run."""
    with _from_a_stage(path):
        return path.read_text(encoding="utf-8").strip()


def read_table(path: Path, texts: Collection[str]) -> pd.DataFrame:
    """A CSV file that a stage wrote: the columns `texts` as they are, the others as numbers, "" for NaN."""
    with _from_a_stage(path, (ValueError,)):  # pandas's own errors and UnicodeDecodeError among them
        columns = pd.read_csv(path, nrows=0).columns
        numbers = {name: [""] for name in columns if name not in texts}
        return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=numbers)


def write_heatmaps(path: Path, table: pd.DataFrame) -> None:
    """Write the columns set, path and heat, float (size, size) in 0..1, in 256 steps; equal tables give equal bytes."""
    heat = np.uint8(np.stack(table["heat"]) * 255 + 0.5)
    np.savez_compressed(path, set=table["set"].to_numpy(str), path=table["path"].to_numpy(str), heat=heat)


def read_heatmaps(path: Path) -> pd.DataFrame:
    """What `write_heatmaps` wrote; UserError if the stage that writes it has not run or the file is damaged."""
    damaged = (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
    with _from_a_stage(path, damaged, "dvc repro -s -f evaluate"), np.load(path) as file:
        heat = [image.astype(np.float32) / 255 for image in file["heat"]]
        return pd.DataFrame({"set": file["set"], "path": file["path"], "heat": heat})


@contextmanager
def _from_a_stage(
    path: Path, damaged: tuple[type[Exception], ...] = (), remedy: str = "dvc repro -f"
) -> Iterator[None]:
    """`UserError` for a file that is not there, or whose reading ends in one of the errors `damaged`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro` first") from None
    except damaged:
        raise UserError(f"{path}: damaged; run `{remedy}`") from None


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces `folder` when the block ends without an error, and else is deleted."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
