"""Double quotes in delimited text: cells of a record, and records that go over several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from models.errors import UserError
from trainer.text_files import open_text


def is_regular(file: Path, separator: str) -> bool:
    """Whether each line of `file` is a record, and quotes only enclose cells or stand doubled within such cells.

    Only then do all readers of delimited text agree on what the file says.
    """
    sep = re.escape(separator)
    cell = rf'(?:"[^"\n]*(?:""[^"\n]*)*"|[^"\n{sep}]*)'
    regular = re.compile(rf"{cell}(?:{sep}{cell})*\r?\n?$".encode())
    with file.open("rb") as stream:
        first = stream.readline().removeprefix(b"\xef\xbb\xbf")
        if b'"' in first and not regular.match(first):
            return False
        return all(b'"' not in line or regular.match(line) for line in stream)


def records(file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins (from 1), and its cells.

    A cell that begins with a quote goes to the next single quote, over ends of lines too; a quote within any other cell
    is text. Raises UserError with the line: a quote that nothing closes, text after one that closes.
    """
    with open_text(file) as stream:
        stream.reconfigure(newline="\n")  # type: ignore[attr-defined]
        begun, text = 0, ""
        for number, line in enumerate(stream, start=1):
            end = line.rstrip("\n").removesuffix("\r")
            if not text:
                begun, text = number, end
            else:
                text += "\n" + end
                if '"' not in end:
                    continue
            found = cells_of(text, separator, f"{file}, line {begun}")
            if found is not None:
                yield begun, found
                text = ""
    if text:
        raise UserError(
            f"{file}, line {begun}: a double quote begins a cell and none ends it; add the one that is missing, or "
            'enclose the cell in quotes and write its own quote twice ("")'
        )


def cells_of(text: str, separator: str, where: str) -> list[str] | None:
    """The cells of a record; None if it ends within quotes. Raises UserError: text after the quote that closes."""
    cells, at = [], 0
    while True:
        if text.startswith('"', at):
            end = _closing(text, at + 1)
            if end < 0:
                return None
            cells.append(text[at + 1 : end].replace('""', '"'))
            at = end + 1
            if text[at : at + 1] not in ("", separator):
                raise UserError(
                    f"{where}: text after the closing quote of {text[end - len(cells[-1]) - 1 : at + 20]!r}; enclose "
                    'the whole cell in quotes and write its own quotes twice ("")'
                )
        else:
            end = text.find(separator, at)
            cells.append(text[at:] if end < 0 else text[at:end])
            at = len(text) if end < 0 else end
        if at >= len(text):
            return cells
        at += 1


def _closing(text: str, at: int) -> int:
    """Where the first single quote from `at` on is, -1 if there is none."""
    while True:
        end = text.find('"', at)
        if end < 0 or text[end + 1 : end + 2] != '"':
            return end
        at = end + 2
