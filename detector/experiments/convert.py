"""A Keras classifier becomes a model of ours: `python -m detector convert FILE --classes Fake Real --pixels 0..1`."""

import argparse
import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.errors import UserError
from detector.evaluation.calibration import UNCALIBRATED, read_calibration, save_calibration
from detector.files import write_json
from detector.models.file import CONVERTED, ModelCard, save_model
from detector.paths import HISTORY, MODEL, PREPARED, TRAIN_SUMMARY, TRAINING_RUN, project_root

AGREEMENT = 1e-5  # P(fake) of the converted model against the file's own
PIXELS = {
    "0..1": "divided by 255, as ImageDataGenerator(rescale=1/255) does",
    "0..255": "as they are; also where the model has a Rescaling layer or scales its input otherwise itself",
    "-1..1": "divided by 127.5, less 1",
    "imagenet": "0..1, less ImageNet's mean, divided by its standard deviation (torch)",
    "caffe": "0..255, blue first, less ImageNet's mean",
}
HISTORY_COLUMNS = "epoch,loss,accuracy,val_loss,val_accuracy,val_auc,learning_rate"

HELP = """\
Make a Keras classifier of real and fake faces a model of this project, whatever its class order and its pixels.

FILE is what `model.save` wrote, .h5 or .keras, of Keras 2 or 3: a functional or Sequential model with one sigmoid or a
softmax at its end. It is rebuilt to take RGB 0..255 and to give P(fake), and kept only if it scores as the file does.
Nothing that the file holds is run.
"""
EPILOG = f"""\
--pixels is what you did to the pixels before you gave them to the model:
{chr(10).join(f"  {name:9s} {meaning}" for name, meaning in PIXELS.items())}

Without --output, it becomes the model that the next evaluation scores, and an MLflow run of its own. Then

  dvc repro prepare                      if your data are not prepared yet
  dvc repro -s evaluate plot             calibrate, score, report; -s leaves the training alone
  python -m detector compare main workspace

`dvc repro` afterwards brings back the model that params.yaml describes, from DVC's cache. With --output, the file and
its calibration.json (none: the threshold is 0.5) are written and nothing else is touched: use them with --model.

examples:
  python -m detector convert XceptionNet_best_model.h5 --classes Fake Real --pixels 0..1
  python -m detector convert mine.keras --classes ai photo --real photo --pixels=-1..1 --output mine/model.keras
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m detector convert",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a .h5 or .keras file")
    parser.add_argument(
        "--classes",
        nargs="+",
        required=True,
        metavar="NAME",
        help="in the order of the outputs; of one sigmoid first the class at 0, then the one at 1",
    )
    parser.add_argument("--real", metavar="NAME", help="which class is the real one, if none of the names says real")
    parser.add_argument("--pixels", required=True, metavar="RANGE", help=f"{', '.join(PIXELS)}; see below")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels, of a model that takes any size")
    parser.add_argument("--logits", action="store_true", help="its outputs lack the sigmoid or softmax")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"another place than {MODEL}; .keras")
    arguments = parser.parse_args(_joined(sys.argv[1:]))
    classes = [name.strip().lower() for name in arguments.classes]
    real = real_class(classes, arguments.real)
    if arguments.pixels not in PIXELS:
        raise UserError(f"--pixels: there is no {arguments.pixels!r}; choose from {', '.join(PIXELS)}")
    if arguments.image_size is not None and not 16 <= arguments.image_size <= 2048:
        raise UserError(f"--image-size: {arguments.image_size} is not in 16 .. 2048")
    output = arguments.output or MODEL
    check_output(output)

    card, gap = convert(arguments.file, output, classes, real, arguments.pixels, arguments.image_size, arguments.logits)
    print(
        f"{output}: {card.backbone}, {card.image_size} px, classes {', '.join(card.classes)}; "
        f"scores as {arguments.file.name} does, to {gap:.0e}"
    )
    if arguments.output:
        print(f"Not calibrated: called fake from 0.5 on. Use it with --model {output}")
        return
    run_id = enter(arguments.file, card, shlex.join(["convert", *sys.argv[1:]]))
    print(f"Not calibrated yet: called fake from 0.5 on. MLflow run {run_id}")
    print(f"Next: {'' if PREPARED.is_dir() else 'dvc repro prepare && '}dvc repro -s evaluate plot")


def real_class(classes: Sequence[str], named: str | None = None) -> str:
    """The one of `classes` (lower case) that is the real one: `named` or, without it, the one that says real.

    Raises:
        UserError: a name is empty or there twice, there is only one, or which of them is real is not clear.
    """
    if "" in classes or len(set(classes)) < len(classes) or len(classes) < 2:
        twice = "a name is there twice" if len(set(classes)) < len(classes) else "there is one name alone"
        reason = "a name is empty" if "" in classes else twice
        raise UserError(f"--classes: {reason}; give each output's class, in their order, such as: --classes Fake Real")
    if named is not None:
        if named.strip().lower() not in classes:
            raise UserError(f"--real: {named} is none of the classes {', '.join(classes)}; name one of them")
        return named.strip().lower()
    real = [name for name in classes if "real" in re.split(r"[^a-z]+", name)]
    if len(real) != 1:
        raise UserError(
            f"--classes: {'none' if not real else 'more than one'} of {', '.join(classes)} says real; "
            "name the class of real images with --real"
        )
    return real[0]


def check_output(output: Path) -> None:
    """UserError if a model cannot be written to `output`, or its calibration would take the place of another's."""
    if output.suffix != MODEL.suffix:
        raise UserError(f"--output: {output} must end in {MODEL.suffix}")
    if not output.parent.is_dir():
        if output.parent != MODEL.parent:
            raise UserError(f"--output: there is no folder {output.parent}; make it first")
        output.parent.mkdir()
    if output.exists() and not output.is_file():
        raise UserError(f"--output: {output} is no file; name another")
    if output != MODEL and output.with_name("calibration.json").exists():
        try:
            calibrated = output.exists() and read_calibration(output)
        except UserError:
            calibrated = None
        if not calibrated:
            raise UserError(
                f"--output: {output.parent} holds the calibration of another model; name a file in a folder of its own"
            )


def convert(
    file: Path, output: Path, classes: Sequence[str], real: str, pixels: str, size: int | None, logits: bool
) -> tuple[ModelCard, float]:
    """Write the model in `file` to `output` as one of ours, and beside it a calibration that changes nothing.

    A model at `output` that DVC does not keep is moved aside.

    Args:
        classes, real: lower case; as `keras_file.rebuild`.
        pixels: a key of `PIXELS`. size: of a model that takes any; None otherwise.

    Returns:
        The card, and the largest difference between the P(fake) of the file and of the converted model that was seen.

    Raises:
        UserError: the file cannot be converted (`detector.models.keras_file`), or what came of it scores otherwise.
    """
    from detector.inference.detector import Detector
    from detector.models import keras_file  # seconds
    from detector.models.outputs import network_outputs

    source = keras_file.read_keras_file(file)
    scale = keras_file.PIXELS[pixels]
    try:
        network, order = keras_file.rebuild(source, classes, real, scale, size, logits)
    except UserError as error:
        raise UserError(f"{file}: {error}" if not str(error).startswith("--") else str(error)) from None
    size = network.input_shape[1]
    trained_on = f"data that are not known here (converted from {file.name})"
    card = ModelCard(order, size, network.name, CONVERTED, "", trained_on)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        part = Path(folder) / output.name
        save_model(network, card, part)
        images = sample_images(size)
        own = source.predict_on_batch(scale.of(images))
        wanted = keras_file.p_fake_of(np.asarray(own), classes, real, logits)
        scores = network_outputs(Detector(part, UNCALIBRATED).model, [images])
        scores = scores if scores.ndim == 1 else 1 - scores[:, 0]
        if not np.isfinite(wanted).all():
            raise UserError(f"{file}: its scores are not finite; has its training diverged?")
        gap = float(np.abs(scores - wanted).max())
        if gap > AGREEMENT:
            raise UserError(f"{file}: cannot be converted: the scores would differ by {gap:.1g}")
        if output.is_file() and _sha256(output) != _sha256(part):
            _keep(output)
        os.replace(part, output)
    output.with_name("calibration.json").unlink(missing_ok=True)  # never through a link into DVC's cache
    save_calibration(UNCALIBRATED, output, {})
    return card, gap


def sample_images(size: int) -> np.ndarray:
    """uint8 (8, size, size, 3): plain ones, soft ones and noise."""
    rng = np.random.default_rng(0)
    plain = np.broadcast_to(np.array([[0], [127], [255]], np.uint8)[:, :, None, None], (3, size, size, 3))
    coarse = rng.integers(0, 256, (3, -(-size // 16), -(-size // 16), 3), np.uint8)
    soft = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :size, :size]
    return np.concatenate([plain, soft, rng.integers(0, 256, (2, size, size, 3), np.uint8)])


def enter(file: Path, card: ModelCard, command: str) -> str:
    """Say of the model at `MODEL`, converted from `file` by `command`, what `train` says of its own.

    Returns:
        The id of its MLflow run; the same model has one alone.
    """
    from detector.tracking import runs  # seconds

    digests = {"converted.sha256": _sha256(file), "converted.model": _sha256(MODEL)}
    tags = {
        "source": "converted",
        "converted.file": file.name,
        **digests,
        "weights": card.weights,
        "mlflow.source.name": "python -m detector convert",
    }
    known = (run for run in runs.all_runs() if digests.items() <= run.data.tags.items())
    earlier = next((run.info.run_id for run in known), None)
    params = {"model.backbone": card.backbone, "model.image_size": card.image_size}
    with runs.training_run(params, tags, earlier, file.stem) as run_id:
        TRAINING_RUN.unlink(missing_ok=True)
        TRAINING_RUN.write_text(run_id + "\n")
        HISTORY.parent.mkdir(exist_ok=True)
        HISTORY.write_text(HISTORY_COLUMNS + "\n")  # there was no training here
        about = {"weights": card.weights, "file": file.name, "sha256": digests["converted.sha256"], "command": command}
        write_json(TRAIN_SUMMARY, about)
        runs.log_artifacts(run_id, {TRAIN_SUMMARY: "metrics"})
    return run_id


def _keep(model: Path) -> None:
    """Move a model aside that is about to be replaced, unless it is in DVC's cache."""
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if (project_root() / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).is_file():
        return
    aside = model.with_name(f"{model.stem}-{_sha256(model)[:8]}{model.suffix}")
    os.replace(model, aside)
    print(f"{model} was not in DVC's cache; it is kept as {aside}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--pixels -1..1` as one word: argparse would take its second for an option."""
    return re.sub("--pixels\0(?=-1)", "--pixels=", "\0".join(arguments)).split("\0") if arguments else []
