"""Which pictures a run gets, drawn by `detector.reporting.figures` from the files that the stages wrote."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from detector.data.masks import forged_paths, read_mask
from detector.data.shards import ShardReader, class_names, read_manifest
from detector.data.split_names import POOLED
from detector.evaluation.calibration import Calibration
from detector.images import decode
from detector.models.grad_cam import at_size, overlay
from detector.params import CORRUPTION_SETS
from detector.reporting import figures

SHEET_COLUMNS = 8
MISTAKES = 12


def training(history: pd.DataFrame, best: Mapping | None) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture of the training.

    Args:
        history: a row an epoch, none of a converted model. best: the row of the one kept.
    """
    if history.empty:
        return
    yield "accuracy", figures.accuracy_curve(history, best)
    yield "loss", figures.loss_curve(history, best)
    yield "training_log", figures.training_log(history, best)


def evaluation(
    metrics: Mapping[str, Mapping],
    roc: pd.DataFrame,
    curves: pd.DataFrame,
    bins: pd.DataFrame,
    ladder: pd.DataFrame,
    calibration: Calibration,
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture of the evaluation that shows no image.

    Args:
        metrics: metrics/evaluate.json. roc, curves, bins, ladder: the tables beside it, as they are.
    """
    sets = {name: found for name, found in metrics.items() if name != POOLED}
    lines = {kind: _by(rows, "set") for kind, rows in curves.groupby("curve", sort=False)}
    rates = _by(roc.rename(columns={"fpr": "x", "tpr": "y"}), "set")
    yield "roc", figures.roc(sets, rates, lines.get("roc_band", {}))
    recalls = lines.get("precision_recall", {}), lines.get("precision_recall_band", {})
    yield "precision_recall", figures.precision_recall(sets, *recalls)
    low, high = calibration.unsure
    for name, of_set in bins.groupby("set", sort=False):
        yield from _of_set(name, sets[name], of_set, lines["risk_coverage"][name], (low, high) if low < high else None)
    if len(ladder):
        (name,) = (name for name, found in sets.items() if "stress" in found)
        means = {kind: lines[f"stress_{kind}"][name] for kind in CORRUPTION_SETS if f"stress_{kind}" in lines}
        yield "robustness_ladder", figures.robustness_ladder(ladder, sets[name]["stress"], means)


def _of_set(
    name: str, metrics: Mapping, bins: pd.DataFrame, risk: Mapping, band: tuple[float, float] | None
) -> Iterator[tuple[str, Figure]]:
    yield f"confusion_matrix_{name}", figures.confusion_matrix(metrics, f"Confusion matrix: {name}")
    yield (
        f"classification_report_{name}",
        figures.classification_report(
            metrics["per_class"], metrics, f"How well each class is recognised: {name}", metrics["intervals"]
        ),
    )
    rows = {kind: rows.to_dict("records") for kind, rows in bins.groupby("histogram", sort=False)}
    errors = metrics["uncalibrated"]["ece"], metrics["ece"]
    title = f"Does P(fake) mean what it says? {name}"
    yield f"reliability_{name}", figures.reliability(rows["uncalibrated"], rows["calibrated"], errors, title)
    title = f"Scores of real and of fake images: {name}"
    histograms = _by(bins, "histogram")
    yield f"scores_{name}", figures.score_histogram(histograms, metrics["threshold"], band, title)
    selective = metrics["selective"]
    operating = None if selective["error_outside"] is None else (selective["coverage"], selective["error_outside"])
    title = f"What leaving unsure images to a person brings: {name}"
    yield f"risk_coverage_{name}", figures.risk_coverage(risk["x"], risk["y"], operating, title)


def _by(table: pd.DataFrame, column: str) -> dict[str, dict[str, np.ndarray]]:
    """Columns of the rows that share a value of `column`."""
    return {key: {name: rows[name].to_numpy() for name in rows} for key, rows in table.groupby(column, sort=False)}


def images(
    places: Mapping[str, Path],
    predictions: pd.DataFrame,
    threshold: float,
    count: int,
    seed: int,
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture that shows test images: random ones, and the surest mistakes of each set.

    Args:
        places: test set -> the folder with its shards. count: random images a set.
    """

    for name, rows in predictions.groupby("set", sort=False):
        drawn = rows.sample(min(count, len(rows)), random_state=seed)
        yield (
            f"predictions_{name}",
            figures.prediction_grid(
                _stored(places[name], name, drawn), drawn["label"].tolist(), drawn["p_fake"].tolist(), threshold,
                list(zip(drawn["class"], drawn["called"], strict=True)), f"Random images of {name}",
            ),
        )  # fmt: skip
        wrong = rows[(rows["p_fake"] >= threshold) != (rows["label"] == 1)]
        many = f"{name}, the first {MISTAKES} of {len(wrong):,}" if len(wrong) > MISTAKES else name
        worst = wrong.sort_values("confidence", ascending=False, kind="stable").head(MISTAKES)
        captions = [
            f"is {kind}, called {called}\nP(fake) {score:.3f}"
            for kind, called, score in zip(worst["class"], worst["called"], worst["p_fake"], strict=True)
        ]
        yield (
            f"mistakes_{name}",
            figures.mistakes(_stored(places[name], name, worst), captions, f"The surest mistakes: {many}"),
        )


def heat(
    places: Mapping[str, Path], predictions: pd.DataFrame, heatmaps: pd.DataFrame, threshold: float
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture of the surest calls beside what spoke for them.

    Args:
        places: test set -> the folder with its shards. heatmaps: as `detector.files.read_heatmaps`.
    """
    table = heatmaps.merge(predictions, on=["set", "path"]).rename(columns={"class": "kind"})
    for name, rows in table.groupby("set", sort=False):
        sheet: dict[str, list[figures.Explained]] = {}
        sample = places[name] / "sample"
        forged = forged_paths(sample)
        for row, image in zip(rows.itertuples(), _stored(places[name], name, rows), strict=True):
            mask = cv2.resize(read_mask(sample, row.path), image.shape[1::-1]) if row.path in forged else None
            laid, heated = overlay(image, at_size(row.heat, *image.shape[:2])), bool(row.heat.any())
            called = row.p_fake >= threshold
            title = f"{('Real', 'Fake')[row.label]} images called {('real', 'fake')[called]}"
            sheet.setdefault(title, []).append(
                figures.Explained(image, laid, heated, row.kind, row.called, row.p_fake, called == row.label, mask)
            )
        yield f"heat_{name}", figures.heat_sheet(sheet, threshold, f"Where the model looked: {name}")


def _stored(folder: Path, name: str, rows: pd.DataFrame) -> list[np.ndarray]:
    """The images of `rows` of the test set `name`, in their order."""
    manifest = read_manifest(folder)
    manifest = manifest[manifest["split"] == name].set_index("path").loc[rows["path"]].reset_index()
    return list(ShardReader(folder, manifest).images())


def duplicates(examples: Sequence[Mapping], folder: Path) -> Figure:
    """Pairs of images that are one and the same, as prepare found them.

    Args:
        examples: of metrics/data.json. folder: where prepare kept the files they name.
    """

    def side(example: Mapping, at: int) -> tuple[np.ndarray, str]:
        caption = f"{example['paths'][at]}\n{example['splits'][at]}, {example['classes'][at]}"
        return decode((folder / example["files"][at]).read_bytes()), caption

    exact = sum(example["kind"] == "exact" for example in examples)
    return figures.duplicate_pairs(
        [(side(example, 0), side(example, 1)) for example in examples],
        subtitle=f"The worst {len(examples)} pairs, by what they are: {exact} with equal pixels, "
        f"{len(examples) - exact} re-encoded, resized or otherwise altered.",
    )


def sample_sheet(prepared: Path) -> Figure:
    """A sheet of the drawn sample: real, each kind of fake with the forged region outlined, clean and perturbed."""
    manifest = read_manifest(prepared)
    real, *kinds = class_names(manifest)

    def first(split: str, kind: str, outline: bool = False) -> list[tuple[np.ndarray, np.ndarray | None]]:
        rows = manifest[(manifest["split"] == split) & (manifest["class"] == kind)].drop_duplicates("group")
        rows = rows.head(SHEET_COLUMNS)
        images = list(ShardReader(prepared, rows).images())
        if not outline:
            return [(image, None) for image in images]
        masks = [read_mask(prepared / "sample", path) for path in rows["path"]]
        return [(image, cv2.resize(mask, image.shape[1::-1])) for image, mask in zip(images, masks, strict=True)]

    sheet = {"Train, real": first("train", real)}
    for kind in kinds:
        sheet[f"Train, {kind}"] = first("train", kind)
        sheet[f"Train, {kind}, with the forged region outlined"] = first("train", kind, outline=True)
    sheet["Test, clean"] = first("test", kinds[0])
    sheet["Test, the same images perturbed"] = first("test_perturbed", kinds[0])
    return figures.sample_sheet(
        sheet,
        title="The drawn sample",
        subtitle="Nobody's face: every portrait is drawn, and so is every forgery.",
    )
