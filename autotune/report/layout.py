"""Tables that fit a width: columns are dropped, least needed first, before a number is ever broken."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

ROOMY = 100
"""From this width on operator passes are spelled out."""
_NARROW = 50
_GAPS = (2, 1)
"""Spaces between columns: the narrower before a column is dropped."""


@dataclass(frozen=True)
class Column:
    """One column of a table, as text."""

    title: str
    cells: Sequence[str]
    """One entry a row; a line break inside makes a cell of several lines."""
    need: int = 9
    """Priority from 0 to 9: the column with the lowest is dropped first, and 9 stays at any width."""
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        return max((cell_len(line) for cell in (self.title, *self.cells) for line in cell.split("\n")), default=0)


def operator_names(keys: Sequence[str], width: int) -> list[str]:
    """Operator passes as a table of `width` characters spells them: in full, or so that even a narrow one tells them apart."""
    if width >= ROOMY:
        return list(keys)
    from autotune.ops.base import abbreviations  # with every operator, whose words they are

    for long, short in abbreviations(shortest=width < _NARROW):
        keys = [key.replace(long, short) for key in keys]
    return list(keys)


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit `width` characters side by side. Columns without any content are left out."""
    kept = [column for column in columns if any(column.cells)]
    while _over(kept, width, min(_GAPS)) > 0:
        least = min(kept, key=lambda column: column.need)
        if least.need >= 9:
            break
        kept = [column for column in kept if column is not least]
    return kept


def _over(columns: Sequence[Column], width: int, gap: int) -> int:
    """Characters by which the columns pass `width`; negative where there is room."""
    return sum(column.width for column in columns) + gap * (len(columns) - 1) - width


def table(columns: Sequence[Column], width: int, title: str | None = None) -> Table:
    """A table of those columns that fit; where even the last ones do not, text is cut with an ellipsis and numbers stay whole."""
    kept = fit(columns, width)
    gap = next((gap for gap in _GAPS if _over(kept, width, gap) <= 0), min(_GAPS))
    over = _over(kept, width, gap)
    out = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in kept:
        cut = over > 0 and column.justify == "left"
        limit = max(column.width - over, 8) if cut else column.width
        over -= column.width - limit
        out.add_column(column.title, justify=column.justify, no_wrap=True, overflow="ellipsis", min_width=limit, max_width=limit)
    for row in zip(*(column.cells for column in kept), strict=True):
        out.add_row(*row)
    return out


def page(head: str, *parts: RenderableType) -> RenderableType:
    """Head and parts with an empty line between them."""
    return Group(Text(head, style="bold"), *(line for part in parts for line in (Text(""), part)))


def notes(remarks: Iterable[str], style: str = "") -> list[RenderableType]:
    """Remarks below a result, one a line; nothing where there are none."""
    text = "\n".join(f"note: {remark}" for remark in remarks)
    return [Text(text, style=style)] if text else []


def to_text(renderable: RenderableType, width: int = 80) -> str:
    """Plain text of what a renderer returned, without colour, trailing spaces or more than `width` columns."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
