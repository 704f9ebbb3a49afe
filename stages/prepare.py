"""Stage 1: examine every image, exclude broken ones and duplicates across splits, write shards and manifest."""

import sys

import numpy as np

from detector.errors import exit_on_user_error
from detector.files import replaced_folder, write_json
from detector.models.file import DRAWN_SAMPLE
from detector.params import load_params
from detector.paths import DATA_SUMMARY, PREPARED, existing_path
from detector.prepare.face_crops import face_crops
from detector.prepare.ingest import ingest
from detector.prepare.sources import open_folder, open_source
from detector.synthetic.sample import write_sample


def main() -> None:
    params = load_params()
    if params.model.weights not in ("auto", "imagenet", "none"):
        existing_path("model.weights", params.model.weights)  # not after hours of preparing
    with replaced_folder(PREPARED) as folder:
        if params.data.source == "sample":
            write_sample(folder / "sample", params.data.sample, params.seed)
            source = open_folder(folder / "sample", params.data, params.seed, name=DRAWN_SAMPLE)
        else:
            source = open_source(params.data, params.seed)
        if params.data.face_crop == "largest":
            source = face_crops(source)
        rng = np.random.default_rng(params.seed)
        summary = ingest(source, folder, params.data.max_side, params.data.duplicates, rng)
    write_json(DATA_SUMMARY, summary)

    for split, kinds in summary["counts"].items():
        print(f"{split:16s}" + "  ".join(f"{kind} {count:,}" for kind, count in kinds.items()))
    for reason, images in summary["excluded"]["reasons"].items():
        example = " = ".join([images["examples"][0], *images.get("partners", [])[:1]])
        print(f"excluded: {images['images']:,} x {reason} (e.g. {example})")
    for warning in warnings(summary):
        print(f"WARNING: {warning}", file=sys.stderr)
    print(f"prepared {summary['images']:,} images: {PREPARED}/manifest.csv, {DATA_SUMMARY}")


def warnings(summary: dict) -> list[str]:
    """Sentences about what the audit found and the data still contains."""
    duplicates, ungrouped = summary["duplicates"], summary["ungrouped"]
    sentences = list(summary["shortcuts"]["warnings"])
    if 0 < ungrouped < summary["images"] + summary["excluded"]["images"]:
        sentences.append(f"The manifest puts {ungrouped:,} images in no group: each counts as a group of its own.")
    if duplicates["policy"] == "report":
        for splits, pairs in duplicates["leaks"].items():
            count = pairs["exact"] + pairs["near"]
            sentences.append(f"{count:,} pairs of duplicates in {splits} stay, as data.duplicates is report.")
    if not duplicates["search_complete"]:
        sentences.append("So many images are alike that only the nearest of each were compared: duplicates may remain.")
    return sentences


if __name__ == "__main__":
    exit_on_user_error(main)
