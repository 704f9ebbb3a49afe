"""Tables of text for a terminal."""

from collections.abc import Collection, Sequence


def aligned(lines: Sequence[Sequence[str]], flush_left: Collection[int]) -> list[str]:
    """The lines of cells, the headings among them, as text: the columns `flush_left` start together, others end so."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in flush_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
