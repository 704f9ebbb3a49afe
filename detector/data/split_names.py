"""The names of splits: of their folders in a data set, and in results by test set."""

import hashlib
import re

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LONGEST = 60  # characters of the name of a further test set, which becomes part of file names
POOLED = "pooled"  # in results by test set: all of them together; no test set may have this name


def split_name(folder: str) -> str | None:
    """The split a folder stands for: "Valid" -> "validation", "Test-Fog" -> "test_fog", "Real" -> None."""
    word = folder.strip().lower()
    if extra := re.fullmatch(r"test[_-](.*\w.*)", word):
        name = re.sub(r"\W+", "_", extra[1]).strip("_")
        if len(name) > LONGEST:  # shortened, and still unlike the name of any other
            name = f"{name[: LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"test_{name}"
    return SPLIT_NAMES.get(word)
