"""Stage 4: draw every picture and write the report from what the other stages wrote; TensorFlow is not needed."""

from itertools import chain

from detector.data.shards import read_manifest, test_sets
from detector.errors import UserError, exit_on_user_error
from detector.evaluation.calibration import read_calibration
from detector.files import read_heatmaps, read_json, read_table, read_text, replaced_folder
from detector.models.file import CONVERTED
from detector.params import flatten, load_params
from detector.paths import (
    BINS,
    BY_ATTRIBUTE,
    CALIBRATION,
    CURVES,
    DATA_SUMMARY,
    EVALUATION,
    EVALUATION_RUN,
    EXTRA,
    HEATMAPS,
    HISTORY,
    MODEL,
    PLOTS,
    PREDICTIONS,
    PREPARED,
    REPORT,
    ROC,
    STRESS,
    TRAIN_SUMMARY,
)
from detector.reporting import figures, gallery, report
from detector.tracking import runs, store


def main() -> None:
    params = load_params()
    store.connect()
    data, train, evaluation = read_json(DATA_SUMMARY), read_json(TRAIN_SUMMARY), read_json(EVALUATION)
    calibration = read_calibration(MODEL)
    predictions = read_table(PREDICTIONS, texts=["path", "set", "class", "group", "called", "verdict", "sha256"])
    ladder = read_table(STRESS, texts=["name", "family", "corruption_set"])
    attributes = read_table(BY_ATTRIBUTE, texts=["set", "attribute", "value"])
    if any(metrics["threshold"] != calibration.threshold for metrics in evaluation.values()):
        raise UserError(
            f"{EVALUATION}: made with another calibration than {CALIBRATION}; run `dvc repro -s -f evaluate`"
        )
    in_prepared = test_sets(read_manifest(PREPARED))
    places = {name: PREPARED if name in in_prepared else EXTRA / name for name in predictions["set"].unique()}

    pictures = [
        gallery.training(read_table(HISTORY, texts=[]), train.get("best")),
        gallery.evaluation(
            evaluation,
            read_table(ROC, texts=["set"]),
            read_table(CURVES, texts=["set", "curve"]),
            read_table(BINS, texts=["set", "histogram"]),
            ladder,
            calibration,
        ),
    ]
    if not params.plot.private:
        count, threshold = params.plot.grid_images, calibration.threshold
        pictures.append(gallery.images(places, predictions, threshold, count, params.seed))
        pictures.append(gallery.heat(places, predictions, read_heatmaps(HEATMAPS), threshold))
        if examples := data["duplicates"]["examples"]:
            pictures.append([("duplicates", gallery.duplicates(examples, PREPARED / "duplicates"))])
        if params.data.source == "sample":
            pictures.append([("sample", gallery.sample_sheet(PREPARED))])

    with replaced_folder(PLOTS) as folder:
        for name, figure in chain.from_iterable(pictures):
            figures.save(figure, folder / f"{name}.png")
    drawn = {file.stem: file for file in sorted(PLOTS.iterdir())}
    run_id = read_text(EVALUATION_RUN)
    used = flatten(params)
    if train["weights"] == CONVERTED:
        used = {key: value for key, value in used.items() if not key.startswith(("model.", "augment.", "train."))}
        used |= {"converted": train["file"], "converted_by": train["command"]}
    origin = {**runs.origin(), "mlflow_run": run_id, **used}
    page = report.render(data, train, read_json(CALIBRATION), evaluation, ladder, attributes, drawn, origin)
    REPORT.write_text(page, encoding="utf-8")
    runs.log_artifacts(run_id, {PLOTS: "plots", REPORT: "metrics"})
    print(f"{len(drawn)} pictures: {PLOTS}/; report: {REPORT}")


if __name__ == "__main__":
    exit_on_user_error(main)
