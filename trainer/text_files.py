"""Text files that users give: UTF-8, with or without a byte order mark; anything else is refused with its line."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

from models.errors import UserError


def open_text(file: Path) -> TextIO:
    """A stream over the text of `file` without a byte order mark; line ends stay as they are. Raises as `check_text`.

    Every reader of text that a user wrote opens it by this function, so that all take and refuse the same files.
    """
    check_text(file)
    return file.open(encoding="utf-8-sig", newline="")


def check_text(file: Path) -> None:
    """Read all of `file`. Raises UserError: cannot be opened, empty, or not UTF-8 (with the line of the bad byte)."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise UserError(f"{file} is empty")
            stream.seek(0)
            while piece := stream.read(1 << 20):
                try:
                    decoder.decode(piece)
                except UnicodeDecodeError as error:
                    # error.object begins with bytes kept from the piece before: part of a character, so no newlines
                    line += error.object[: error.start].count(b"\n")
                    raise UserError(f"{file}, line {line} is not UTF-8; convert it, e.g. with iconv") from None
                line += piece.count(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {line} ends within a character: the file is truncated") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
