"""How a result is written: numbers with their error, tables as text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_DECIMALS = 10


def decimals(error: float) -> int:
    """Returns the decimals that show two digits of an error; 4 where it is not known."""
    if not (0 < error < math.inf):
        return 4
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(error))))


def number(value: float, error: float, sign: str = "") -> str:
    """Returns a number with the decimals of its error; `sign` as in a format."""
    return f"{value:{sign},.{decimals(error)}f}"


def half_width(error: float) -> str:
    return f"± {number(error, error)}"


def short(value: float) -> str:
    """Returns a number with two digits, without an exponent where it is not tiny."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.2g}" if abs(value) < 1e-4 else f"{value:,.{decimals(abs(value))}f}"


def given(value: float) -> str:
    return f"{value:g}"


def p_value(p: float) -> str:
    """Returns "p = 0.031"; "p < 0.0001" below that."""
    if p < 1e-4:
        return "p < 0.0001"
    return f"p = {p:.{max(2, 1 - math.floor(math.log10(p)))}f}"


def count(n: int, what: str) -> str:
    """Returns "1 pair", "8 pairs"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def ranges(numbers: Sequence[int]) -> str:
    """Returns sorted numbers as "0-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as columns of text, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows, the first of them the head, as a table of Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
