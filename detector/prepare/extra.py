"""Further test sets: folders or archives that are never trained on, to test the model on data from elsewhere."""

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from detector.data.shards import read_manifest
from detector.data.split_names import LONGEST, POOLED
from detector.errors import UserError
from detector.files import replaced_folder, write_json
from detector.params import Params
from detector.paths import existing_path
from detector.prepare.archives import without_suffix
from detector.prepare.face_crops import face_crops
from detector.prepare.ingest import ingest_test_set
from detector.prepare.sources import open_test_set

KEY = "evaluate.extra_sets"


def write_extra_sets(params: Params, prepared: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Write each of `evaluate.extra_sets` into a folder of its own below `folder`, which is replaced, and sets.json.

    Args:
        prepared: the data that the model was made and tested with; its images are no test on other data.

    Returns:
        By the set's name: how many images were excluded, seen in training, seen in a test split;
        whether the search for these was complete; the set's digest.

    Raises:
        UserError: one of them is not there, holds no image to score, or two would have the same name.
    """
    places = [existing_path(KEY, value) for value in params.evaluate.extra_sets]
    if len(set(places)) < len(places):
        raise UserError(f"{KEY}: names one place twice; remove one of the two")
    names = set_names(places, taken=read_manifest(prepared)["split"].unique())
    summaries = {}
    with replaced_folder(folder) as part:
        for name, place in zip(names, places, strict=True):
            (part / name).mkdir()
            source = open_test_set(place, params.data.real_class, KEY)
            if params.data.face_crop == "largest":
                source = face_crops(source)
            summaries[name] = ingest_test_set(
                source, part / name, name, params.data.max_side, prepared, params.data.duplicates
            )
            if not summaries[name]["search_complete"]:
                why = "so many images are alike that only the nearest of each were compared"
                print(f"WARNING: {name}: {why}: some that were trained on may remain", file=sys.stderr)
        write_json(part / "sets.json", summaries)
    facts = ("seen_in_training", "seen_in_test", "search_complete", "digest")
    return {
        name: {"excluded": summary["excluded"]["images"], **{fact: summary[fact] for fact in facts}}
        for name, summary in summaries.items()
    }


def set_names(places: Sequence[Path], taken: Collection[str]) -> list[str]:
    """A name for each place, good in a file's name: its own, with its folder's before it where that is taken.

    Raises:
        UserError: two places would still have the same name.
    """
    names: list[str] = []
    for place in places:
        own = Path(without_suffix(place)).name
        for parts in ([own], [place.parent.name, own], [place.parent.parent.name, place.parent.name, own]):
            name = re.sub(r"[^\w.-]+", "_", "-".join(filter(None, parts))).strip("._-")[:LONGEST]
            if name and name.lower() not in {other.lower() for other in [*names, *taken, "sets.json", POOLED]}:
                names.append(name)
                break
        else:
            raise UserError(f"{KEY}: {place} would be called like another test set; rename it")
    return names
