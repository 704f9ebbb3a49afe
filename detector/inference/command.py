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
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from detector.errors import UserError
from detector.inference.detector import Detector
from detector.inference.scan import NO_FACE, Explain, Row, list_files, scan
from detector.models.faces import MARGIN, FaceFinder
from detector.models.grad_cam import overlay

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
    parser.add_argument("--explain", type=Path, metavar="DIR", help="write each face beside its heatmap to DIR, as PNG")
    arguments = parser.parse_args()
    if sys.stdout is None:
        raise UserError("standard output is closed; leave it open, the verdicts go there")
    if not arguments.paths and (sys.stdin is None or sys.stdin.isatty()):
        parser.error("name an image, a folder or an archive, or pipe in a list of paths")
    if arguments.paths and not any(path == "-" or os.path.lexists(path) for path in arguments.paths):
        raise UserError(f"PATH: {_printable(arguments.paths[0])} is not there; name an image, a folder or an archive")
    if arguments.explain:
        try:
            arguments.explain.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--explain: cannot make {arguments.explain} ({error.strerror}); name a folder") from None

    from detector.inference.find_model import find_model  # it may take MLflow, seconds

    detector = Detector(find_model(arguments.model))
    if detector.card.caveat:
        print(f"WARNING: {detector.card.caveat}; --model names another", file=sys.stderr)
    finder = None if arguments.no_detect else FaceFinder()
    explain = _heatmaps_in(arguments.explain) if arguments.explain else None
    rows = scan(list_files(_paths(arguments.paths)), detector, finder, arguments.margin, explain)
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
        yield row.verdict or ERROR


# ---- forms of output ---------------------------------------------------------------------------------------------

ERROR = "error"
COLUMNS = ("path", "face", "left", "top", "right", "bottom", "p_fake", "label", "verdict", "error")


def _csv(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """A header, then a line a row; nothing where nothing is known."""
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)

    def write(row: Row) -> None:
        p_fake = None if row.p_fake is None else f"{row.p_fake:.6f}"
        box = row.box or (None,) * 4
        lines.writerow(
            (_utf8(row.path), row.face, *box, p_fake, row.label, row.verdict, row.error and _utf8(row.error))
        )

    return write


def _jsonl(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """An object a line, null where nothing is known."""

    def write(row: Row) -> None:
        found = asdict(row) | {"path": _utf8(row.path), "error": row.error and _utf8(row.error)}
        if row.p_fake is not None:
            found["p_fake"] = round(row.p_fake, 6)
        file.write(json.dumps(found, ensure_ascii=False) + "\n")

    return write


def _table(file: TextIO, classes: Sequence[str]) -> Callable[[Row], None]:
    """Aligned columns, the path last as it is of any length; control characters are shown, not sent."""
    wide = max(len(_printable(name)) for name in ("verdict", "unsure", NO_FACE, *classes))
    form = f"{{:<{wide}}}  {{:>7}}  {{:>4}}  {{:<21}}  {{}}\n"
    file.write(form.format("verdict", "P(fake)", "face", "box", "path"))

    def write(row: Row) -> None:
        p_fake = "-" if row.p_fake is None else f"{row.p_fake:.4f}"
        box = "-" if row.box is None else "{},{} {},{}".format(*row.box)
        path = row.path if row.error is None else f"{row.path}: {row.error}"
        cells = (_printable(row.verdict or ERROR), p_fake, row.face or "-", box, _printable(path))
        file.write(form.format(*cells))

    return write


WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}


def _utf8(text: str) -> str:
    """`text` with every byte that is not UTF-8 as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """`text` with all that would move a terminal's cursor, or not show, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _utf8(text))


def _without_heat(face: np.ndarray) -> np.ndarray:
    """The face in grey with a note, uint8 (h, w, 3): no place in it speaks for fake."""
    grey = overlay(face, np.zeros(face.shape[:2]))
    scale = face.shape[1] / 160
    place = (round(8 * scale), round(20 * scale))
    for colour, thick in ((0, 4), (255, 1)):
        cv2.putText(grey, "no heat", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, (colour,) * 3, thick, cv2.LINE_AA)
    return grey


def _heatmaps_in(folder: Path) -> Explain:
    """Writes <name of the file>-<8 digits of the path's SHA-256>-<face>.png to `folder`: the face, and its heatmap."""

    def write(row: Row, face: np.ndarray, heat: np.ndarray) -> None:
        name = re.sub(r"[^\w.-]+", "_", _utf8(os.path.basename(row.path)), flags=re.ASCII)[-80:].lstrip(".-")
        digest = hashlib.sha256(os.fsencode(row.path)).hexdigest()[:8]
        beside = np.hstack([face, overlay(face, heat) if heat.any() else _without_heat(face)])
        _, png = cv2.imencode(".png", beside[..., ::-1])
        (folder / f"{name}-{digest}-{row.face or 1}.png").write_bytes(png.tobytes())

    return write
