"""What each level prints, and where."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import unicodedata

import pytest

from cluster import console
from cluster.console import Harmless, Verbosity
from cluster.output import Tee
from tests.helpers.paths import ROOT

PRINTED = {
    Verbosity.QUIET: ("", "warning: trouble\n"),
    Verbosity.BRIEF: ("a run\n", "warning: trouble\n"),
    Verbosity.NORMAL: ("a run\nan epoch\n", "a note\nwarning: trouble\n"),
    Verbosity.VERBOSE: ("a run\nan epoch\ntimes\n", "a note\nwarning: trouble\nshelf: a library\n"),
}


def print_everything() -> None:
    console.say("a run", Verbosity.BRIEF)
    console.say("an epoch")
    console.say("times", Verbosity.VERBOSE)
    console.note("a note")
    console.warn("trouble")
    logging.getLogger("shelf").info("a library")


@pytest.mark.parametrize("level", Verbosity)
def test_each_level_adds_to_the_one_before(level: Verbosity, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    with console.printing(level):
        print_everything()
        out, err = PRINTED[level]
        assert capsys.readouterr() == (out, err)
        with console.of_a_worker():
            print_everything()
        assert capsys.readouterr().out.startswith(out + err.removesuffix("shelf: a library\n"))
    assert console.VARIABLE not in os.environ
    assert logging.getLogger().handlers == handlers
    print_everything()
    assert capsys.readouterr() == PRINTED[Verbosity.NORMAL]


def test_a_level_that_is_unknown_is_the_normal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.VARIABLE, "loud")
    assert console.verbosity() is Verbosity.NORMAL


def test_processes_that_are_started_print_as_much() -> None:
    code = "from cluster import console; console.say('an epoch'); console.warn('trouble')"
    for level in (Verbosity.QUIET, Verbosity.NORMAL):
        with console.printing(level):
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("an epoch\n" if level else "", "warning: trouble\n")


EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
HOSTILE = "\x1b]0;title\x07 \x9b2J\rhidden \u202ebackwards"
HARMLESS = "\\x1b]0;title\\x07 \\x9b2J\\rhidden \\u202ebackwards"


def test_no_control_character_is_printed_and_all_else_is() -> None:
    shown = console.harmless(EVERY)
    assert {each for each in shown if unicodedata.category(each) == "Cc"} == {"\n", "\t"}
    left_out = {*EVERY} - {*shown}
    assert {unicodedata.category(each) for each in left_out} == {"Cc", "Cf"}
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # that change the direction of text
    formats = {each for each in left_out if unicodedata.category(each) == "Cf"}
    assert formats == {each for each in EVERY if unicodedata.bidirectional(each) in turning}
    assert console.harmless(HOSTILE) == HARMLESS
    assert console.in_a_line("a\tb\n" + HOSTILE) == "a\\tb\\n" + HARMLESS
    assert console.harmless("a line\r\n猫 🐈\n") == "a line\n猫 🐈\n"


def test_streams_are_harmless_and_those_of_before_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with console.harmless_output():
        print(HOSTILE)
        console.warn(HOSTILE)
        sys.stdout.writelines([HOSTILE])
        assert console.terminal() is before[1]
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == (f"{HARMLESS}\n{HARMLESS}", f"warning: {HARMLESS}\n")


def test_what_a_worker_prints_is_kept_harmless() -> None:
    shown, kept = io.StringIO(), io.StringIO()
    print(HOSTILE, file=Tee(Harmless(shown), kept))  # type: ignore[arg-type]
    assert shown.getvalue() == kept.getvalue() == HARMLESS + "\n"
