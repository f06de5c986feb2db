"""Text files of users: UTF-8, with or without a byte order mark; and YAML. Errors name the line of what is wrong."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path
from typing import Any, TextIO

import yaml

from models.errors import UserError

#: what files begin with that are not text, what they are, and what to do
_PACKED = {
    b"\x1f\x8b": ("gzip", "unpack it: gunzip -k {file}"),
    b"PK\x03\x04": ("zip (or Excel)", "unpack it: unzip {file} (or save the sheet as CSV)"),
    b"BZh": ("bzip2", "unpack it: bunzip2 -k {file}"),
    b"\xfd7zXZ": ("xz", "unpack it: unxz -k {file}"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it: unzstd {file}"),
    b"PAR1": ("Parquet", "text is read here; write it as CSV"),
}
_MAGIC_BYTES = max(map(len, _PACKED))
#: characters of YAML that are read: a hundred times a recipe
MOST_YAML = 1 << 18


def open_text(file: Path) -> TextIO:
    """Open `file` as text, without its byte order mark and with its line ends unchanged. Raises as `check_text`.

    All code that reads a user's text file opens it with this function, so that all accept and refuse the same files.
    """
    check_text(file)
    return file.open(encoding="utf-8-sig", newline="")


def check_text(file: Path) -> None:
    """Read all of `file`.

    Raises UserError if it cannot be opened, is empty, compressed or Parquet, or is not UTF-8 (with the line).
    """
    if file.is_dir():
        raise UserError(f"cannot read {file}: it is a folder; give a file")
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise UserError(f"{file} is empty")
            stream.seek(0)
            _refuse_packed(file, stream.read(_MAGIC_BYTES))
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


class _Plain(yaml.SafeLoader):
    """Plain values that are as large as their text: an alias (*name) could repeat what it names any number of times."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write out the value", mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if (getattr(event, "tag", None) or "!") != "!":
            problem = f"tags ({event.tag}) are not read; write the value alone"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))
        if value.bit_length() > 63:
            raise yaml.constructor.ConstructorError(None, None, "the number has more than 63 bits", node.start_mark)
        return value


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The plain values in `text`. All YAML is read here.

    Raises UserError: no YAML, an alias, a whole number of more than 63 bits, more than MOST_YAML characters.
    """
    if len(text) > MOST_YAML:
        raise UserError(f"it has more than {MOST_YAML:,} characters")
    try:
        loader = _Plain(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # a date such as 2026-99-99, too
        raise UserError(f"it is not YAML that is read: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections in the YAML file at `path`. Raises UserError, naming the file: see `parse_yaml` and `open_text`."""
    with open_text(path) as stream:
        text = stream.read(MOST_YAML + 1)
    try:
        values = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of sections")
    return values


def _refuse_packed(file: Path, begin: bytes) -> None:
    for magic, (kind, advice) in _PACKED.items():
        if begin.startswith(magic):
            raise UserError(f"{file} is a {kind} file; {advice.format(file=shlex.quote(str(file)))}")
