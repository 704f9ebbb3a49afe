"""Stage 1: decode every image, set the broken aside, write shards, manifest and counts."""

from detector.data.ingest import ingest, replaced_folder
from detector.data.sample import write_sample
from detector.data.sources import open_folder, open_source
from detector.errors import exit_on_user_error
from detector.params import load_params
from detector.paths import DATA_SUMMARY, PREPARED, existing_path
from detector.results import write_json


def main() -> None:
    params = load_params()
    if params.model.weights not in ("auto", "imagenet", "none"):
        existing_path("model.weights", params.model.weights)  # not after hours of preparing
    with replaced_folder(PREPARED) as folder:
        if params.data.source == "sample":
            write_sample(folder / "sample", params.data.sample, params.seed)
            source = open_folder(folder / "sample", params.data, params.seed, name="the drawn sample")
        else:
            source = open_source(params.data, params.seed)
        summary = ingest(source, folder, params.data.max_side)
    write_json(DATA_SUMMARY, summary)

    for split, kinds in summary["counts"].items():
        print(f"{split:16s}" + "  ".join(f"{kind} {count:,}" for kind, count in kinds.items()))
    for reason, images in summary["set_aside"]["reasons"].items():
        print(f"set aside: {images['images']:,} x {reason} (e.g. {images['examples'][0]})")
    print(f"prepared {summary['images']:,} images: {PREPARED}/manifest.csv, {DATA_SUMMARY}")


if __name__ == "__main__":
    exit_on_user_error(main)
