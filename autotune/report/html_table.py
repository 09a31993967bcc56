"""A table of the page: every cell escaped, numbers carried beside their text so that script can sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, and the number it is sorted by."""

    text: str
    value: float | None = None
    kind: str = ""
    """A class: ``left`` or ``words``; or ``b-memory`` for a binder."""


@dataclass(frozen=True)
class Head:
    """One column's title."""

    title: str
    kind: str = ""
    hint: str = ""


def table(heads: Sequence[Head], rows: Sequence[Sequence[Cell]], caption: str = "") -> str:
    """A table in a box of its own that scrolls; the first column is the rows' name, and sticks."""
    numbers = [any(row[i].value is not None for row in rows) for i in range(len(heads))]
    titles = "".join(
        f'<th scope="col"{_class(head.kind)}{_title(head.hint)}{" data-number" if of_numbers else ""}>{escape(head.title)}</th>'
        for head, of_numbers in zip(heads, numbers, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(cell, i, numbers[i]) for i, cell in enumerate(row))}</tr>" for row in rows)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="box" role="region" aria-label="{escape(caption or heads[0].title, quote=True)}">'
        f'<table class="sortable">{told}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell, column: int, of_numbers: bool) -> str:
    value = "" if cell.value is None else repr(float(cell.value))
    sort = f' data-v="{value}"' if of_numbers else ""
    content = escape(cell.text)
    if column == 0:
        return f'<th scope="row"{_class(cell.kind)}{sort}>{content}</th>'
    if cell.kind.startswith("b-"):
        return f'<td class="left"{sort}><span class="tag {escape(cell.kind, quote=True)}">{content}</span></td>'
    return f"<td{_class(cell.kind)}{sort}>{content}</td>"


def _class(kind: str) -> str:
    return f' class="{escape(kind, quote=True)}"' if kind else ""


def _title(hint: str) -> str:
    return f' title="{escape(hint, quote=True)}"' if hint else ""
