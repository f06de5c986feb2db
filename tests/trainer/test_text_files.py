"""Text files of users: a byte order mark is dropped, and errors name the line. YAML holds what it says, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from trainer.text_files import MOST_YAML, open_text, parse_yaml

#: 60 million letters once its aliases are resolved; printing them took 1.6 GB
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 9))
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


def test_yaml_gives_plain_values() -> None:
    assert parse_yaml("a: [1, -2.5, x, null, 0x10]\nb: {c: true}") == {"a": [1, -2.5, "x", None, 16], "b": {"c": True}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"(?s)aliases \(\*name\) are not read.*line 2"),
        ("&a [*a]", "aliases"),
        (f"a: {2**63}", "more than 63 bits"),
        (f"a: 0x{'f' * 5000}", "more than 63 bits"),
        (f"a: {'9' * 5000}", "4300 digits"),
        ("a: 2026-99-99", "month must be"),
        ("a: 0x_", "invalid literal"),
        ("[" * 5000, "recursion"),
        ("#" * (MOST_YAML + 1), "more than 262,144 characters"),
        ("a: [", "line 1"),
        ("a: \x01", "special characters are not allowed"),
        ("\ud800", "special characters are not allowed"),
        ("a: !!bool x", r"tags \(tag:yaml.org,2002:bool\) are not read.*\n.*line 1"),
        ("!!int ''", "tags"),
        ("!!timestamp foo", "tags"),
        ("!own {a: 1}", r"tags \(!own\)"),
    ],
    ids=range(16),
)
def test_yaml_that_is_a_trap_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_yaml(text)
