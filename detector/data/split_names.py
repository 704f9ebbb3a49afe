"""What splits are called: in the folders of a data set, and where results stand by test set."""

import hashlib
import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
LONGEST = 60  # characters of the name of a further test set, which becomes part of file names
POOLED = "pooled"  # where results stand by test set: all of them together; no test set bears the name


def split_name(folder: str) -> str | None:
    """The split a folder stands for: "Valid" -> "validation", "Test-Fog" -> "test_fog", "Real" -> None."""
    word = folder.strip().lower()
    if extra := re.fullmatch(r"test[_-](.*\w.*)", word):
        name = re.sub(r"\W+", "_", extra[1]).strip("_")
        if len(name) > LONGEST:  # cut, and still not another's name
            name = f"{name[: LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"test_{name}"
    return SPLIT_NAMES.get(word)
