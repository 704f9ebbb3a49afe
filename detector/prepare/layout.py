"""The folder layout of a data set: which folders are splits, which are classes, and which are neither."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from detector.data.split_names import split_name
from detector.errors import UserError

Folders = tuple[str, ...]


class Reading(NamedTuple):
    """One way to read a folder path: below `base`, some folders are the split and the class."""

    form: str  # "split/class", "class/split" or "class"
    base: Folders
    split: str | None
    kind: str


def read_layout(images_in: Mapping[Folders, int], real: str, key: str) -> dict[Folders, Reading]:
    """Tell split and class folders from the folders around them.

    A folder above the data may be called "test" or "train" as well, and so may one below the classes. The right
    reading starts from the folder that has the real class below it; of several such folders, from the one with the
    most images; of equals, from the deepest.

    Args:
        images_in: number of images directly in each folder, a folder as its names from the root down.
        real: the real class, in lower case.
        key: the parameter that names the data, for messages.

    Returns:
        The reading of every folder that has one; a best guess where no folder is called `real`.

    Raises:
        UserError: some images lie in split folders, but most do not.
    """
    readings = {folders: list(_readings(folders)) for folders in images_in}
    kinds: dict[tuple[str, Folders], set[str]] = defaultdict(set)
    images: Counter[tuple[str, Folders]] = Counter()
    for folders, options in readings.items():
        for option in options:
            kinds[option.form, option.base].add(option.kind)
            images[option.form, option.base] += images_in[folders]

    def has_real(option: Reading) -> bool:
        return real in kinds[option.form, option.base]

    best: dict[str, dict[Folders, Reading]] = {"split/class": {}, "class/split": {}, "class": {}}
    for folders, options in readings.items():
        # The sort is stable, and the deepest come last.
        for option in sorted(options, key=lambda option: (has_real(option), images[option.form, option.base])):
            best[option.form][folders] = option
    with_real = {form: [folders for folders, option in best[form].items() if has_real(option)] for form in best}
    covered = {form: sum(images_in[folders] for folders in with_real[form]) for form in best}
    if not any(covered.values()):
        return best["split/class"] or best["class"]
    for form in ("split/class", "class/split"):
        if 2 * covered[form] >= max(covered.values()):
            return best[form]
        if covered[form]:
            example = "/".join(min(with_real[form]))
            raise UserError(
                f"{key}: {covered[form]:,} images lie in split folders (such as {example}) and "
                f"{covered['class'] - covered[form]:,} do not; name the folder of the one or of the other"
            )
    return {folders: best["class"][folders] for folders in with_real["class"]}


def _readings(folders: Folders) -> Iterator[Reading]:
    splits = [split_name(folder) for folder in folders]
    for i, folder in enumerate(folders):
        below = i + 1 < len(folders)
        if splits[i] and below:
            yield Reading("split/class", folders[:i], splits[i], folders[i + 1].lower())
        if below and splits[i + 1]:
            yield Reading("class/split", folders[:i], splits[i + 1], folder.lower())
        yield Reading("class", folders[:i], None, folder.lower())


def innermost_split(folders: Folders) -> str | None:
    """The split of the innermost of `folders` that is named after one."""
    return next(filter(None, map(split_name, reversed(folders))), None)
