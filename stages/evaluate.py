"""Stage 3: calibrate the model on validation images, then score every test set; no other stage does."""

import csv
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from detector.data.loader import stored_batches
from detector.data.shards import ShardReader, dataset_digest, read_manifest, test_sets
from detector.data.split_names import POOLED
from detector.errors import UserError, exit_on_user_error
from detector.evaluation.calibration import UNCALIBRATED, save_calibration
from detector.evaluation.findings import (
    bin_table,
    confidence,
    curve_table,
    with_exact_accuracy,
    with_findings,
    with_mean_auc,
)
from detector.evaluation.images import Damage
from detector.evaluation.localization import forged_regions, localisation, with_known_forgery
from detector.evaluation.robustness import RUNG_COLUMNS, reencode, stress_ladder, stress_summary
from detector.evaluation.summary import choose_calibration, evaluate, pooled, showcase
from detector.files import read_text, write_heatmaps, write_json
from detector.inference.detector import Detector
from detector.models.grad_cam import grad_cam
from detector.models.outputs import network_outputs
from detector.params import flatten, load_params
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


def main() -> None:
    params = load_params()
    store.connect()
    settings, seed = params.evaluate, params.seed
    detector = Detector(MODEL, UNCALIBRATED)
    manifest = read_manifest(PREPARED)
    extra = write_extra_sets(params, PREPARED, EXTRA)

    def outputs(rows: pd.DataFrame, damage: Damage | None, folder: Path = PREPARED, name: str = "") -> np.ndarray:
        batches = stored_batches(ShardReader(folder, rows), detector.card.image_size, BATCH_SIZE, damage)
        total = -(-len(rows) // BATCH_SIZE)
        bar = tqdm(batches, name, total, disable=None, leave=False)
        return network_outputs(detector.model, bar, settings.flip_average)

    def heat(rows: pd.DataFrame, folder: Path) -> np.ndarray:
        batches = stored_batches(ShardReader(folder, rows), detector.card.image_size, BATCH_SIZE)
        return np.concatenate([grad_cam(detector.model, batch) for batch in batches])

    validation, classes = manifest[manifest["split"] == "validation"], detector.card.classes
    calibrating = partial(outputs, name="calibration")
    calibration, chosen_on = choose_calibration(validation, calibrating, classes, settings, seed)

    found, shown, ladder = {}, [], pd.DataFrame(columns=RUNG_COLUMNS)
    places = {**dict.fromkeys(test_sets(manifest), PREPARED), **{name: EXTRA / name for name in extra}}
    for name, folder in places.items():
        rows = read_manifest(folder)
        rows = rows[rows["split"] == name].reset_index(drop=True)
        started = time.perf_counter()
        output = outputs(rows, None, folder, name)
        if name == "test":  # by now compiled
            speed = len(rows) / (time.perf_counter() - started)
        again = outputs(rows, reencode, folder, f"{name}, re-encoded") if settings.reencoded else None
        found[name] = evaluate(rows, output, calibration, classes, settings.bootstrap, seed, again)
        found[name].metrics.update(extra.get(name, {}))
        sheet = showcase(found[name].predictions, calibration.threshold)
        shown.append(sheet[["set", "path"]].assign(heat=list(heat(rows.loc[sheet.index], folder))))
        if len(fakes := with_known_forgery(rows, folder, seed)):
            forged = forged_regions(fakes, folder, detector.card.image_size)
            found[name].metrics["localisation"] = localisation(
                heat(fakes, folder), forged, fakes["group"].tolist(), settings.bootstrap, seed
            )
        if name == "test" and settings.stress_images:
            ladder = stress_ladder(rows, partial(outputs, name="stress"), calibration, settings.stress_images, seed)
            found[name].metrics["stress"] = stress_summary(ladder)

    def joined(table: str) -> pd.DataFrame:
        return pd.concat([getattr(result, table) for result in found.values()], ignore_index=True)

    calibration_file = save_calibration(calibration, MODEL, chosen_on)
    evaluation = {name: result.metrics for name, result in found.items()}
    predictions = joined("predictions")
    if len(found) > 1:
        evaluation[POOLED] = pooled(predictions, calibration.threshold, settings.bootstrap, seed)
    evaluation = with_findings(evaluation, predictions)
    write_json(EVALUATION, evaluation)
    write_heatmaps(HEATMAPS, pd.concat(shown))
    with_mean_auc(ladder).to_csv(STRESS, index=False)
    tables = {
        PREDICTIONS: predictions.assign(confidence=confidence(predictions["p_fake"], calibration.threshold)),
        BY_ATTRIBUTE: with_exact_accuracy(joined("attributes")),
        ROC: joined("roc"),
        CURVES: curve_table(predictions, ladder, calibration.threshold, settings.bootstrap, seed),
        BINS: bin_table(predictions, calibration),
    }
    for path, table in tables.items():
        table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)

    logged = {key: value for key, value in flatten(params).items() if key.startswith("evaluate.")}
    logged |= {f"evaluate.extra_sets.{name}": facts["digest"] for name, facts in extra.items()}
    digest = dataset_digest(manifest)
    if digest != detector.card.data_digest:  # of a converted model: on other data it is another evaluation
        logged["evaluate.data"] = digest
    run_id = runs.evaluation_run(read_text(TRAINING_RUN), logged, {"data.digest": digest})
    EVALUATION_RUN.write_text(run_id + "\n")
    runs.log_metrics(run_id, evaluation)
    size = {"parameters": detector.model.count_params(), "megabytes": MODEL.stat().st_size / 1e6}
    runs.log_metrics(run_id, {"size": size, "speed.scoring_images_per_second": speed})
    runs.log_artifacts(run_id, {path: "metrics" for path in (EVALUATION, STRESS, *tables, calibration_file)})
    registry.log_model(run_id, MODEL, calibration_file)
    try:
        registered = f", {registry.REGISTERED} {registry.register(run_id)}"
    except UserError as error:  # the run is complete without it
        print(f"WARNING: not registered: {error}", file=sys.stderr)
        registered = ""
    report(evaluation)
    print(f"results: {EVALUATION}, {PREDICTIONS}; MLflow run {run_id}{registered}")


def report(evaluation: dict[str, dict]) -> None:
    """Print each set's headline numbers with their 95 % intervals, those in one format, and what was left out of it."""

    def headlines(metrics: dict) -> str:
        shown = {"accuracy": ("right", ".1%"), "auc": ("AUC", ".3f")}
        shown |= {"false_positive_rate": ("real called fake", ".1%")}
        numbers = []
        for key, (said, form) in shown.items():
            if metrics[key] is not None:
                interval = metrics["intervals"][key]
                between = f" ({interval['low']:{form}} to {interval['high']:{form}})" if interval else ""
                numbers.append(f"{said} {metrics[key]:{form}}{between}")
        return "  ".join(numbers)

    for name, metrics in evaluation.items():
        print(f"{name:16s} n {metrics['n']:,}  {headlines(metrics)}")
        if "reencoded" in metrics:
            print(f"{'':16s} in one format: {headlines(metrics['reencoded'])}")
        if metrics.get("excluded"):
            print(
                f"{'':16s} excluded: {metrics['excluded']:,}; of the set {metrics['seen_in_training']:,} stand in the"
                f" training data, {metrics['seen_in_test']:,} in a test split ({EXTRA}/sets.json)"
            )


if __name__ == "__main__":
    exit_on_user_error(main)
