"""The lines that a person follows a study by."""

from __future__ import annotations

import pytest

from trainer.study.progress import StudyProgress


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _progress(outcomes: dict[str, str | None], at_once: int = 2) -> tuple[StudyProgress, _Clock]:
    clock = _Clock()
    values = {"a": 0.2, "b": 0.3}
    return StudyProgress("abcdef", at_once, outcomes.get, values.get, clock), clock


def test_it_counts_what_ended_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    progress, clock = _progress({"c": "stopped early: others are better", "d": "OutOfMemoryError: no room"})
    for name in "abcd":
        progress.started(name)
    clock.now = 10.0
    progress.ended("a", None)
    progress.ended("b", None)
    progress.ended("c", None)
    progress.ended("d", None)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("a: validation 0.2000, 10 s  [1/6 trials ended, 3 running, best a 0.2000")
    assert told[2].startswith("c: stopped early")
    assert told[3].startswith("d: failed: OutOfMemoryError: no room")
    # two of six are left, ten seconds each, two at once
    assert told[3].endswith("[4/6 trials ended, 0 running, 1 stopped early, 1 failed, best b 0.3000, about 10 s left]")


def test_a_process_that_died_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    progress, _ = _progress({})
    progress.started("a")
    progress.ended("a", "the worker died")
    assert "a: failed: the worker died" in capsys.readouterr().out


def test_while_no_trial_ends_it_says_so_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress, clock = _progress({})
    progress.started("a")
    clock.now = 29.0
    progress.reported("a", 1, 0.05)
    assert capsys.readouterr().out == ""
    clock.now = 31.0
    progress.reported("a", 2, 0.06)
    assert capsys.readouterr().out == "  [0/6 trials ended, 1 running, best a 0.0600]\n"
    progress.reported("a", 3, 0.06)
    assert capsys.readouterr().out == ""


def test_trials_of_an_earlier_sitting_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    progress, clock = _progress({})
    progress.started("z")
    clock.now = 100.0
    progress.reported("z", 1, 0.9)
    progress.ended("z", None)
    assert capsys.readouterr().out == ""
    assert progress.line() == "0/6 trials ended, 0 running"
