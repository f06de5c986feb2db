"""What each level prints, and where."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from cluster import console
from cluster.console import Verbosity
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
