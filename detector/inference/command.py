"""Verdicts for a person or a program: the command line `python -m detector predict`."""

import argparse
import csv
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from detector.errors import UserError
from detector.inference.detector import Detector
from detector.inference.scan import Row, list_files, scan
from detector.models.faces import MARGIN, FaceFinder
from detector.models.grad_cam import at_size, overlay

HELP = """\
Say of every face in photographs whether it is real or fake, one row a face.

PATH is an image, a folder (with all below it) or an archive (.zip, .tar, .tar.gz, .tgz). Without one, or with -, paths
are read from standard input, one a line.
"""
EPILOG = """\
Columns: path; face, 1 for the largest of the image; its box in pixels; p_fake, the calibrated probability of fake;
label, the class it is called at the threshold; verdict, the same or "unsure", or "no face" where none is found; error,
of a file that could not be read.

exit code: 0; 1 if a file could not be read; 2 if nothing could be done at all

examples:
  python -m detector predict photo.jpg holidays/ more.zip
  find / -name '*.jpg' | python -m detector predict --format jsonl > verdicts.jsonl
  python -m detector predict --no-detect --model models:/deepfake-detector@champion crops/
"""


def main() -> None:
    arguments = _arguments()
    from detector.inference.find_model import find_model  # it may take MLflow, seconds

    detector = Detector(find_model(arguments.model))
    if detector.card.caveat:
        print(f"WARNING: {detector.card.caveat}; --model names another", file=sys.stderr)
    finder = None if arguments.no_detect else FaceFinder()
    picture = PICTURE if arguments.explain else 0
    rows = scan(list_files(_paths(arguments.paths)), detector, finder, arguments.margin, picture)
    if arguments.explain:
        rows = _explained(rows, detector, arguments.explain)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    write = WRITERS[arguments.format or ("table" if sys.stdout.isatty() else "csv")]
    counts = Counter(_counted(rows, write(sys.stdout, detector.card.classes)))
    if sys.stderr.isatty():
        print(", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items())), file=sys.stderr)
    if not counts and arguments.paths and "-" not in arguments.paths:
        raise UserError(
            f"PATH: there are no images in {_printable(', '.join(arguments.paths[:5]))}; name another place"
        )
    sys.exit(1 if counts[ERROR] else 0)


def _arguments() -> argparse.Namespace:
    """The command's arguments; UserError, or the parser's exit code 2, where one of them cannot be."""
    parser = argparse.ArgumentParser(
        "python -m detector predict",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="images, folders, archives; - for a list on stdin")
    parser.add_argument(
        "--model", metavar="NAME", help="a folder, a file, an MLflow run or models:/name@alias (default: the champion)"
    )
    parser.add_argument("--format", choices=WRITERS, help="default: table on a terminal, else csv")
    parser.add_argument("--no-detect", action="store_true", help="score the images as they are, each of one face")
    parser.add_argument(
        "--margin",
        type=_margin,
        default=MARGIN,
        help=f"around a face, as a share of its longer side, as in the training images (default: {MARGIN})",
    )
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="write each face beside its heat map to DIR, as PNG"
    )
    arguments = parser.parse_args()
    if sys.stdout is None:
        raise UserError("standard output is closed; leave it open, the verdicts are written to it")
    if not arguments.paths and (sys.stdin is None or sys.stdin.isatty()):
        parser.error("name an image, a folder or an archive, or pipe in a list of paths")
    if arguments.paths and not any(path == "-" or os.path.lexists(path) for path in arguments.paths):
        raise UserError(f"PATH: {_printable(arguments.paths[0])} is not there; name an image, a folder or an archive")
    if arguments.explain:
        try:
            arguments.explain.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--explain: cannot make {arguments.explain} ({error.strerror}); name a folder") from None
    return arguments


def _paths(arguments: Sequence[str]) -> Iterator[str]:
    for path in arguments or ["-"]:
        if path == "-":
            lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            yield from (os.fsdecode(line) for line in lines if line)
        else:
            yield path


def _margin(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be 0 to 1, got {text}")
    return float(text)


def _counted(rows: Iterable[Row], write: Callable[[Row], None]) -> Iterator[str]:
    """Write the rows, with a progress bar on a terminal; yield their verdicts."""
    from tqdm import tqdm

    on_screen = sys.stdout.isatty()  # a bar would run through the table
    for row in tqdm(rows, unit=" rows", disable=True if on_screen else None, leave=False):
        write(row)
        sys.stdout.flush()
        yield _verdict(row)


# ---- forms of output ---------------------------------------------------------------------------------------------

NO_FACE, ERROR = "no face", "error"
COLUMNS = ("path", "face", "left", "top", "right", "bottom", "p_fake", "label", "verdict", "error")


def _verdict(row: Row) -> str:
    return row.face.verdict if row.face else ERROR if row.error else NO_FACE


def _fields(row: Row) -> dict:
    """The row as JSON has it, None where nothing is known."""
    face = row.face
    return {
        "path": _utf8(row.path),
        "face": row.number,
        "box": face.crop.box if face and row.number else None,  # None of an image that is scored as it is
        "p_fake": round(face.p_fake, 6) if face else None,
        "label": face.label if face else None,
        "verdict": None if row.error else _verdict(row),
        "error": row.error and _utf8(row.error),
    }


def _csv(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """A header, then a line a row; nothing where nothing is known."""
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)

    def write(row: Row) -> None:
        fields = _fields(row)
        fields |= zip(("left", "top", "right", "bottom"), fields["box"] or (None,) * 4, strict=True)
        if row.face:
            fields["p_fake"] = f"{row.face.p_fake:.6f}"
        lines.writerow(fields[column] for column in COLUMNS)

    return write


def _jsonl(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """An object a line, null where nothing is known."""
    return lambda row: file.write(json.dumps(_fields(row), ensure_ascii=False) + "\n")


def _table(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """Aligned columns, the path last as it is of any length; control characters are shown, not sent."""
    width = max(len(_printable(name)) for name in ("verdict", "unsure", NO_FACE, *classes))
    line = f"{{:<{width}}}  {{:>7}}  {{:>4}}  {{:<21}}  {{}}\n"
    file.write(line.format("verdict", "P(fake)", "face", "box", "path"))

    def write(row: Row) -> None:
        p_fake = f"{row.face.p_fake:.4f}" if row.face else "-"
        box = "{},{} {},{}".format(*row.face.crop.box) if row.face and row.number else "-"
        path = row.path if row.error is None else f"{row.path}: {row.error}"
        file.write(line.format(_printable(_verdict(row)), p_fake, row.number or "-", box, _printable(path)))

    return write


WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}


def _utf8(text: str) -> str:
    """`text` with every byte that is not UTF-8 as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """`text` with all that would move a terminal's cursor, or not show, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _utf8(text))


# ---- heat maps ---------------------------------------------------------------------------------------------------

PICTURE = 512  # pixels of the longer side of a face that is shown beside its heat map


def _explained(rows: Iterable[Row], detector: Detector, folder: Path) -> Iterator[Row]:
    """The rows; of each face, <name of the file>-<8 digits of the path's SHA-256>-<face>.png is written to `folder`.

    The picture shows the face and, beside it, the same under the heat map of the pixels that were scored.
    """
    for row in rows:
        if row.face:
            picture = row.face.crop.picture
            heat = at_size(detector.explain(row.face.crop), *picture.shape[:2])
            name = re.sub(r"[^\w.-]+", "_", _utf8(os.path.basename(row.path)), flags=re.ASCII)[-80:].lstrip(".-")
            digest = hashlib.sha256(os.fsencode(row.path)).hexdigest()[:8]
            beside = overlay(picture, heat) if heat.any() else _without_heat(picture)
            _, png = cv2.imencode(".png", np.hstack([picture, beside])[..., ::-1])
            (folder / f"{name}-{digest}-{row.number or 1}.png").write_bytes(png.tobytes())
        yield row


def _without_heat(face: np.ndarray) -> np.ndarray:
    """The face in grey with a note, uint8 (h, w, 3): no place in it speaks for fake."""
    grey = overlay(face, np.zeros(face.shape[:2]))
    scale = face.shape[1] / 160
    place = (round(8 * scale), round(20 * scale))
    for colour, thick in ((0, 4), (255, 1)):
        cv2.putText(grey, "no heat", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, (colour,) * 3, thick, cv2.LINE_AA)
    return grey
