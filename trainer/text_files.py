"""Text files of users: UTF-8, with or without a byte order mark. For anything else the error names the line."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

from models.errors import UserError


def open_text(file: Path) -> TextIO:
    """Open `file` as text, without its byte order mark and with its line ends unchanged. Raises as `check_text`.

    All code that reads a user's text file opens it with this function, so that all accept and refuse the same files.
    """
    check_text(file)
    return file.open(encoding="utf-8-sig", newline="")


def check_text(file: Path) -> None:
    """Read all of `file`. Raises UserError if it cannot be read, is empty, or is not UTF-8 (with the line)."""
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
                    # error.object may begin with part of a character from the previous piece, which has no newline
                    line += error.object[: error.start].count(b"\n")
                    raise UserError(f"{file}, line {line} is not UTF-8; convert it, e.g. with iconv") from None
                line += piece.count(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {line} ends in the middle of a character: the file is truncated") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
