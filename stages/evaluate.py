"""Stage 3: calibrate the model on validation images, then score every test set; no other stage scores one."""

import csv
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from detector.data.loader import stored_batches
from detector.data.shards import ShardReader, dataset_digest, read_manifest, test_sets
from detector.data.split_names import POOLED
from detector.errors import UserError, exit_on_user_error
from detector.evaluation.calibration import UNCALIBRATED, Calibration, save_calibration
from detector.evaluation.findings import (
    bin_table,
    confidence,
    curve_table,
    with_exact_accuracy,
    with_findings,
    with_mean_auc,
)
from detector.evaluation.images import Corrupt
from detector.evaluation.localization import forged_regions, localisation, with_known_forgery
from detector.evaluation.robustness import RUNG_COLUMNS, reencode, stress_ladder, stress_summary
from detector.evaluation.summary import Evaluation, choose_calibration, evaluate, pooled, showcase
from detector.files import read_text, write_heatmaps, write_json
from detector.inference.detector import Detector
from detector.metrics import HEADLINES, METRICS
from detector.models.grad_cam import grad_cam
from detector.models.outputs import network_outputs
from detector.params import Params, flatten, load_params
from detector.paths import (
    BINS,
    BY_ATTRIBUTE,
    CURVES,
    EVALUATION,
    EVALUATION_RUN,
    EXTRA,
    HEATMAPS,
    MODEL,
    PREDICTIONS,
    PREPARED,
    ROC,
    STRESS,
    TRAINING_RUN,
)  # fmt: skip
from detector.prepare.extra import write_extra_sets
from detector.tracking import registry, runs, store

BATCH_SIZE = 32


@dataclass(frozen=True)
class SetResults:
    """The results on one test set.

    Attributes:
        evaluation: its metrics, and the tables that are written as CSV.
        heatmaps: set, path and heat of the images that `showcase` chooses.
        ladder: as `stress_ladder`; without rows where the set is not put under corruptions.
        images_per_second: how fast its images were read and scored.
    """

    evaluation: Evaluation
    heatmaps: pd.DataFrame
    ladder: pd.DataFrame
    images_per_second: float


class Scorer:
    """The trained model on stored images."""

    def __init__(self, detector: Detector, flip_average: bool):
        self.model, self.card, self._flip_average = detector.model, detector.card, flip_average

    def outputs(
        self, rows: pd.DataFrame, corrupt: Corrupt | None, folder: Path = PREPARED, bar: str = ""
    ) -> np.ndarray:
        """`network_outputs` of the images in `folder`, each changed by `corrupt`; `bar` names the progress bar."""
        batches = stored_batches(ShardReader(folder, rows), self.card.image_size, BATCH_SIZE, corrupt)
        batches = tqdm(batches, bar, -(-len(rows) // BATCH_SIZE), disable=None, leave=False)
        return network_outputs(self.model, batches, self._flip_average)

    def heat(self, rows: pd.DataFrame, folder: Path) -> np.ndarray:
        """The heat maps of the images, float (n, size, size)."""
        batches = stored_batches(ShardReader(folder, rows), self.card.image_size, BATCH_SIZE)
        return np.concatenate([grad_cam(self.model, batch) for batch in batches])


def main() -> None:
    params = load_params()
    store.connect()
    scorer = Scorer(Detector(MODEL, UNCALIBRATED), params.evaluate.flip_average)
    manifest = read_manifest(PREPARED)
    extra = write_extra_sets(params, PREPARED, EXTRA)
    validation = manifest[manifest["split"] == "validation"]
    calibration, chosen_on = choose_calibration(
        validation, partial(scorer.outputs, bar="calibration"), scorer.card.classes, params.evaluate, params.seed
    )
    folders = {**dict.fromkeys(test_sets(manifest), PREPARED), **{name: EXTRA / name for name in extra}}
    sets = {name: score_set(name, folder, scorer, calibration, params) for name, folder in folders.items()}
    for name, facts in extra.items():
        sets[name].evaluation.metrics.update(facts)

    evaluation, files = write_results(sets, calibration, params)
    files = [*files, save_calibration(calibration, MODEL, chosen_on)]

    logged = {key: value for key, value in flatten(params).items() if key.startswith("evaluate.")}
    logged |= {f"evaluate.extra_sets.{name}": facts["digest"] for name, facts in extra.items()}
    digest = dataset_digest(manifest)
    if digest != scorer.card.data_digest:  # of a converted model: on other data it is another evaluation
        logged["evaluate.data"] = digest
    run_id = runs.evaluation_run(read_text(TRAINING_RUN), logged, {"data.digest": digest})
    EVALUATION_RUN.write_text(run_id + "\n")
    runs.log_metrics(run_id, evaluation)
    size = {"parameters": scorer.model.count_params(), "megabytes": MODEL.stat().st_size / 1e6}
    runs.log_metrics(run_id, {"size": size, "speed.scoring_images_per_second": sets["test"].images_per_second})
    runs.log_artifacts(run_id, dict.fromkeys(files, "metrics"))
    registry.log_model(run_id, MODEL, files[-1])
    try:
        registered = f", {registry.REGISTERED} {registry.register(run_id)}"
    except UserError as error:  # the run is complete without it
        print(f"WARNING: not registered: {error}", file=sys.stderr)
        registered = ""
    report(evaluation)
    print(f"results: {EVALUATION}, {PREDICTIONS}; MLflow run {run_id}{registered}")


def score_set(name: str, folder: Path, scorer: Scorer, calibration: Calibration, params: Params) -> SetResults:
    """Score the test set `name`, whose images are stored in `folder`, in every way that the parameters ask for."""
    settings, seed = params.evaluate, params.seed
    rows = read_manifest(folder)
    rows = rows[rows["split"] == name].reset_index(drop=True)
    started = time.perf_counter()
    outputs = scorer.outputs(rows, None, folder, name)
    speed = len(rows) / (time.perf_counter() - started)
    again = scorer.outputs(rows, reencode, folder, f"{name}, re-encoded") if settings.reencoded else None
    evaluation = evaluate(rows, outputs, calibration, scorer.card.classes, settings.bootstrap, seed, again)

    sheet = showcase(evaluation.predictions, calibration.threshold)
    heatmaps = sheet[["set", "path"]].assign(heat=list(scorer.heat(rows.loc[sheet.index], folder)))
    if len(fakes := with_known_forgery(rows, folder, seed)):
        forged = forged_regions(fakes, folder, scorer.card.image_size)
        evaluation.metrics["localisation"] = localisation(
            scorer.heat(fakes, folder), forged, fakes["group"].tolist(), settings.bootstrap, seed
        )
    ladder = pd.DataFrame(columns=RUNG_COLUMNS)
    if name == "test" and settings.stress_images:
        stressed = partial(scorer.outputs, bar="stress")
        ladder = stress_ladder(rows, stressed, calibration, settings.stress_images, seed)
        evaluation.metrics["stress"] = stress_summary(ladder)
    return SetResults(evaluation, heatmaps, ladder, speed)


def write_results(
    sets: Mapping[str, SetResults], calibration: Calibration, params: Params
) -> tuple[dict[str, dict], list[Path]]:
    """Write the results under metrics/; metrics/evaluate.json as it is written, and the files that the run keeps."""
    threshold, resamples, seed = calibration.threshold, params.evaluate.bootstrap, params.seed

    def joined(table: str) -> pd.DataFrame:
        return pd.concat([getattr(one.evaluation, table) for one in sets.values()], ignore_index=True)

    evaluation = {name: one.evaluation.metrics for name, one in sets.items()}
    predictions, ladder = joined("predictions"), sets["test"].ladder
    if len(sets) > 1:
        evaluation[POOLED] = pooled(predictions, threshold, resamples, seed)
    evaluation = with_findings(evaluation, predictions)
    write_json(EVALUATION, evaluation)
    write_heatmaps(HEATMAPS, pd.concat([one.heatmaps for one in sets.values()]))
    with_mean_auc(ladder).to_csv(STRESS, index=False)
    tables = {
        PREDICTIONS: predictions.assign(confidence=confidence(predictions["p_fake"], threshold)),
        BY_ATTRIBUTE: with_exact_accuracy(joined("attributes")),
        ROC: joined("roc"),
        CURVES: curve_table(predictions, ladder, threshold, resamples, seed),
        BINS: bin_table(predictions, calibration),
    }
    for path, table in tables.items():
        table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return evaluation, [EVALUATION, STRESS, *tables]


def report(evaluation: Mapping[str, Mapping]) -> None:
    """Print each set's headline metrics with their 95 % intervals, those in one format, and its excluded images."""

    def headlines(metrics: Mapping) -> str:
        figures = []
        for metric in (METRICS[name] for name in HEADLINES):
            if metrics[metric.name] is not None:
                interval = metrics["intervals"][metric.name]
                between = f" ({metric.between(interval['low'], interval['high'])})" if interval else ""
                figures.append(f"{metric.title} {metric.text(metrics[metric.name])}{between}")
        return "  ".join(figures)

    for name, metrics in evaluation.items():
        print(f"{name:16s} n {metrics['n']:,}  {headlines(metrics)}")
        if "reencoded" in metrics:
            print(f"{'':16s} in one format: {headlines(metrics['reencoded'])}")
        if metrics.get("excluded"):
            print(
                f"{'':16s} excluded: {metrics['excluded']:,}; {metrics['seen_in_training']:,} images of the set are"
                f" also in the training data, {metrics['seen_in_test']:,} in a test split ({EXTRA}/sets.json)"
            )


if __name__ == "__main__":
    exit_on_user_error(main)
