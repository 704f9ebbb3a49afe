"""Names of files, folders and classes, as manifests, messages and file systems can carry them."""

from collections.abc import Collection


def clean_path(name: str) -> str:
    r"""`name` as a relative posix path that can be printed: a byte that is not UTF-8 becomes "\xff"."""
    return printable("/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".")))


def printable(text: str) -> str:
    r"""`text` with "\xff" for every byte that is not UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_few(names: Collection[str], limit: int = 8) -> str:
    """The first `limit` of `names` and the number of the others, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
