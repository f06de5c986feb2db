"""Listings that a command prints as text, Markdown or JSON; pages of the documentation are made of the same."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

Row = Mapping[str, object]
_WIDEST = 24  # of a column of text that is not the last; a single word may be longer


@dataclass(frozen=True)
class Listing:
    """A table. name: in JSON. rows: column -> value, the same columns in each. notes: sentences that belong to it."""

    name: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())


def add_format(parser: argparse.ArgumentParser) -> None:
    """The option --format."""
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default: text")


def render(listings: Sequence[Listing], form: str) -> str:
    """One listing, or several with their titles, as "text", "markdown" or "json": a list of rows, or lists by name."""
    several = len(listings) > 1
    if form == "json":
        rows = {each.name: [dict(row) for row in each.rows] for each in listings}
        return json.dumps(rows if several else listings[0].rows, indent=2, ensure_ascii=False)
    width = shutil.get_terminal_size((120, 24)).columns if form == "text" else 120
    parts: list[str] = []
    for each in listings:
        table = _columns(each.rows, width) if form == "text" else _markdown(each.rows)
        title = each.title if form == "text" else f"## {each.title}"
        notes = [textwrap.fill(note, min(width, 120), break_on_hyphens=False) for note in each.notes]
        parts += [part for part in (title if several else "", table, *notes) if part]
    return "\n\n".join(parts)


def _markdown(rows: Sequence[Row]) -> str:
    """A table of Markdown, whose first column is code."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    for row in rows:
        first, *others = (_cell(value).replace("|", "\\|") for value in row.values())
        lines.append(f"| {' | '.join([f'`{first}`', *others])} |")
    return "\n".join(lines)


def _columns(rows: Sequence[Row], width: int) -> str:
    """Aligned columns, with a rule under their names; the last one takes the rest of `width`. Words are not broken."""
    if not rows:
        return ""
    table = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = []
    for column in zip(*table, strict=True):
        longest = max(len(word) for cell in column for word in cell.split() or [""])
        widths.append(max(longest, min(_WIDEST, max(map(len, column)))))
    widths[-1] = max(30, width - sum(widths[:-1]) - 2 * (len(widths) - 1))
    lines = [line for row in table for line in _wrapped(row, widths)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
        for cell, width in zip(row, widths, strict=True)
    ]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _cell(value: object) -> str:
    """A value as YAML and `--set` take it, in one line; nothing is shown as "-"."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_cell, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
