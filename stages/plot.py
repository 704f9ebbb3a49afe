"""Stage 4: draw every picture from what the other stages wrote; TensorFlow is not needed."""

import shutil
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from detector import figures, tracking
from detector.data.sample import read_mask
from detector.data.shards import ShardReader, read_manifest
from detector.errors import exit_on_user_error
from detector.params import load_params
from detector.paths import EVALUATION, EVALUATION_RUN, HISTORY, PLOTS, PREDICTIONS, PREPARED
from detector.results import read_json, read_text

SHEET_COLUMNS = 8


def main() -> None:
    params = load_params()
    tracking.connect()
    manifest = read_manifest(PREPARED)
    shutil.rmtree(PLOTS, ignore_errors=True)
    for name, figure in pictures(manifest, params.plot.grid_images, params.seed):
        figures.save(figure, PLOTS / f"{name}.png")
    if params.data.source == "sample":
        figures.save(sample_sheet(manifest), PLOTS / "sample.png")
    tracking.log_artifacts(read_text(EVALUATION_RUN), {PLOTS: "plots"})
    print(f"pictures: {', '.join(sorted(file.name for file in PLOTS.iterdir()))} in {PLOTS}/")


def pictures(manifest: pd.DataFrame, grid_images: int, seed: int) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture of the training and the evaluation."""
    history = pd.read_csv(HISTORY)
    yield "accuracy", figures.accuracy_curve(history)
    yield "loss", figures.loss_curve(history)

    predictions = pd.read_csv(PREDICTIONS, dtype={"path": str, "set": str, "class": str}, keep_default_na=False)
    evaluation = read_json(EVALUATION)
    thresholds = {metrics["threshold"] for metrics in evaluation.values()}
    yield (
        "roc",
        figures.roc(
            {name: (rows["label"].to_numpy(), rows["p_fake"].to_numpy()) for name, rows in predictions.groupby("set")},
            threshold=thresholds.pop(),
        ),
    )
    for name, metrics in evaluation.items():
        classes = list(metrics["per_class"])
        counts = [[metrics["confusion"][true][called] for called in classes] for true in classes]
        yield f"confusion_matrix_{name}", figures.confusion_matrix(counts, classes, f"What was called what: {name}")
        yield (
            f"classification_report_{name}",
            figures.classification_report(metrics["per_class"], metrics, f"How well each class is recognised: {name}"),
        )
        rows = predictions[predictions["set"] == name]
        rows = rows.sample(min(grid_images, len(rows)), random_state=seed)
        stored = manifest[manifest["split"] == name].set_index("path").loc[rows["path"]].reset_index()
        yield (
            f"predictions_{name}",
            figures.prediction_grid(
                list(ShardReader(PREPARED, stored).images()),
                rows["label"].to_list(),
                rows["p_fake"].to_list(),
                metrics["threshold"],
                classes,
                f"Random images of {name}",
            ),
        )


def sample_sheet(manifest: pd.DataFrame) -> Figure:
    """A sheet of the drawn sample: real, fake with the forged region outlined, and test images clean and perturbed."""

    def first(split: str, kind: str, outline: bool) -> list[tuple[np.ndarray, np.ndarray | None]]:
        rows = manifest[(manifest["split"] == split) & (manifest["class"] == kind)].drop_duplicates("group")
        rows = rows.head(SHEET_COLUMNS)
        images = list(ShardReader(PREPARED, rows).images())
        if not outline:
            return [(image, None) for image in images]
        masks = [read_mask(PREPARED / "sample", path) for path in rows["path"]]
        return [(image, cv2.resize(mask, image.shape[1::-1])) for image, mask in zip(images, masks, strict=True)]

    return figures.sample_sheet(
        {
            "Train, real": first("train", "real", outline=False),
            "Train, fake": first("train", "fake", outline=False),
            "Train, the same fakes with the forged region outlined": first("train", "fake", outline=True),
            "Test, clean": first("test", "fake", outline=False),
            "Test, the same images perturbed": first("test_perturbed", "fake", outline=False),
        },
        title="The drawn sample",
        subtitle="Nobody's face: every portrait is drawn, every fake is a drawn face swapped into another portrait.",
    )


if __name__ == "__main__":
    exit_on_user_error(main)
