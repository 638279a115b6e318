"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_names: int = 1
) -> str:
    """Aligned columns under a ruled head.

    Args:
      columns: headings.
      rows: cells, as many in each as there are headings.
      num_names: how many of the first columns are aligned left, as names; the others are numbers.
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if index < num_names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[1:]])
