"""Text files of users: a byte order mark is dropped, and for text that is not UTF-8 the error names the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from trainer.text_files import open_text

PIECE = 1 << 20  # bytes that are read at a time


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_comes_without_a_byte_order_mark_and_with_its_line_ends(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(mark + "é\r\nb\n".encode())
    with open_text(tmp_path / "a.txt") as stream:
        assert stream.read() == "é\r\nb\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*a.txt"),
        (b"", "a.txt is empty"),
        (b"a\nb\xff\n", "line 2 is not UTF-8"),
        (b"\n" * PIECE + b"a\n\xff", f"line {PIECE + 2} is not UTF-8"),
        (b"x" * (PIECE - 1) + b"\xe2\x82", "line 1 ends in the middle of a character"),
        ("é\n".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_text(tmp_path / "a.txt")


def test_a_character_may_lie_across_two_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * (PIECE - 1) + "é".encode())
    with open_text(tmp_path / "a.txt") as stream:
        assert stream.read()[-1] == "é"
