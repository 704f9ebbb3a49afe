"""Stage 3: score every test set with the trained model, the only stage that looks at test images."""

import csv

import pandas as pd
from tqdm import tqdm

from detector import tracking
from detector.data.pipeline import stored_batches
from detector.data.shards import ShardReader, read_manifest, test_sets
from detector.errors import exit_on_user_error
from detector.params import flatten, load_params
from detector.paths import EVALUATION, EVALUATION_RUN, MODEL, PREDICTIONS, PREPARED, ROC, TRAINING_RUN
from detector.predict import Detector, p_fake
from detector.results import read_text, write_json
from detector.scoring import confusion, per_class, roc_points, score

BATCH_SIZE = 32


def main() -> None:
    params = load_params()
    tracking.connect()
    threshold = params.evaluate.threshold
    detector = Detector(MODEL)
    classes = detector.card.classes
    manifest = read_manifest(PREPARED)

    evaluation, predictions, roc = {}, [], []
    for name in test_sets(manifest):
        rows = manifest[manifest["split"] == name].reset_index(drop=True)
        labels = rows["label"].to_numpy()
        batches = stored_batches(ShardReader(PREPARED, rows), detector.card.image_size, BATCH_SIZE)
        total = -(-len(rows) // BATCH_SIZE)
        scores = p_fake(detector.model, tqdm(batches, name, total, disable=None, leave=False))
        called = (scores >= threshold).astype(int)
        evaluation[name] = {
            **score(labels, scores, threshold),
            "per_class": per_class(labels, called, classes),
            "confusion": confusion(labels, called, classes),
        }
        predictions.append(rows[["path", "split", "class", "label"]].assign(p_fake=scores))
        if evaluation[name]["auc"] is not None:
            roc.append(pd.DataFrame(roc_points(labels, scores)).assign(set=name))

    write_json(EVALUATION, evaluation)
    pd.concat(predictions).rename(columns={"split": "set"}).to_csv(
        PREDICTIONS, index=False, quoting=csv.QUOTE_NONNUMERIC
    )
    pd.concat(roc).to_csv(ROC, index=False)
    settings = {key: value for key, value in flatten(params).items() if key.startswith("evaluate.")}
    run_id = tracking.evaluation_run(read_text(TRAINING_RUN), settings, {"data.digest": detector.card.data_digest})
    EVALUATION_RUN.write_text(run_id + "\n")
    tracking.log_metrics(run_id, evaluation)
    tracking.log_artifacts(run_id, {path: "metrics" for path in (EVALUATION, PREDICTIONS, ROC)})

    for name, metrics in evaluation.items():
        auc = "-" if metrics["auc"] is None else f"{metrics['auc']:.3f}"
        print(
            f"{name:16s} n {metrics['n']:,}  accuracy {metrics['accuracy']:.3f}  AUC {auc}  loss {metrics['loss']:.3f}"
        )
    print(f"results: {EVALUATION}, {PREDICTIONS}; MLflow run {run_id}")


if __name__ == "__main__":
    exit_on_user_error(main)
