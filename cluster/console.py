"""What a process prints besides its results: as much as the user asked for (`--quiet`, `--verbose` ...).

The choice travels in an environment variable, so that workers, which are other processes and may be on other nodes,
know it too. Results themselves (a table of metrics, recommendations) are printed with `print`, always.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

VARIABLE = "MEALREC_VERBOSITY"
#: what a terminal obeys instead of showing it (line ends and tabs apart), and what turns the direction of text around
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Verbosity(enum.IntEnum):
    """How much is printed; each level prints what the level before it prints, and more."""

    QUIET = 0  #: results, warnings and errors
    BRIEF = 1  #: a line for each run that is trained
    NORMAL = 2  #: a line for each epoch, progress, what was written and what to do next
    VERBOSE = 3  #: also times, memory and the messages of libraries


class _Process:
    """on_stdout: whether notes and warnings go there, because nobody reads this process's standard error."""

    def __init__(self) -> None:
        self.on_stdout = False


_PROCESS = _Process()


def verbosity() -> Verbosity:
    """The level of this process; NORMAL where none was chosen that is known, as in a program that uses our modules."""
    return Verbosity.__members__.get(os.environ.get(VARIABLE, ""), Verbosity.NORMAL)


def shows(level: Verbosity) -> bool:
    """Whether what belongs to `level` is printed."""
    return verbosity() >= level


@contextmanager
def printing(level: Verbosity) -> Iterator[None]:
    """In the block this process, and every process that it starts, prints as much as `level` says."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = level.name
    try:
        with _library_messages():
            yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@contextmanager
def of_a_worker() -> Iterator[None]:
    """For the block, in a worker of Ray: notes and warnings go to standard output, the only stream the user sees."""
    _PROCESS.on_stdout = True
    try:
        with _library_messages():
            yield
    finally:
        _PROCESS.on_stdout = False


def say(text: str, at: Verbosity = Verbosity.NORMAL) -> None:
    """Print to standard output, at once, unless less than the level `at` was asked for."""
    if shows(at):
        print(text, flush=True)


def note(text: str, at: Verbosity = Verbosity.NORMAL) -> None:
    """As `say`, but to standard error: what must not mix with results that another program reads."""
    if shows(at):
        print(text, file=_beside_results(), flush=True)


def warn(text: str) -> None:
    """Print "warning: ..." to standard error, at every level: what is wrong must not pass in silence."""
    print(f"warning: {text}", file=_beside_results(), flush=True)


def harmless(text: str) -> str:
    """`text` with each control character written as an escape (\\x1b): ids and titles of a log may hold any.

    A terminal would obey them: they move the cursor, hide text, or type into the command line. Line ends stay.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def in_a_line(text: str) -> str:
    """`text` as `harmless` gives it, and without line ends and tabs: for a cell of a table."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


class Harmless:
    """A stream that writes text to `first` as `harmless` does; all other attributes are those of `first`."""

    def __init__(self, first: TextIO) -> None:
        self.first = first

    def write(self, text: str) -> int:
        self.first.write(harmless(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)


@contextmanager
def harmless_output() -> Iterator[None]:
    """In the block, whatever this process prints is harmless to a terminal. So is the traceback of an error that leaves
    the block: the streams then stay as they are."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = made = cast(tuple[TextIO, TextIO], tuple(map(Harmless, before)))
    yield
    for name, ours, theirs in zip(("stdout", "stderr"), made, before, strict=True):
        if getattr(sys, name) is ours:  # else it was closed meanwhile
            setattr(sys, name, theirs)


def terminal() -> TextIO:
    """Standard error itself, for a bar, which moves the cursor."""
    return sys.stderr.first if isinstance(sys.stderr, Harmless) else sys.stderr


def library_level(calm: int) -> int:
    """The level for the logger of a library that tells too much: `calm`, but INFO with --verbose."""
    return logging.INFO if shows(Verbosity.VERBOSE) else calm


def _beside_results() -> TextIO:
    return sys.stdout if _PROCESS.on_stdout else sys.stderr


@contextmanager
def _library_messages() -> Iterator[None]:
    """With --verbose, show the messages of libraries that use Python's logging."""
    if not shows(Verbosity.VERBOSE):
        yield
        return
    root = logging.getLogger()
    handler, level = logging.StreamHandler(_beside_results()), root.level
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
