"""Waiting for an autoscaler: until the nodes are there, or the time is over."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest

from cluster.scaling import Workers, scaled_up, wait_for


def test_it_waits_until_the_nodes_are_there() -> None:
    grown = itertools.chain(
        [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}], itertools.repeat({"CPU": 4.0, "GPU": 2.0})
    )
    slept: list[float] = []
    there = wait_for(Workers(2, gpus=True, scale_up_s=60.0), total=lambda: next(grown), sleep=slept.append)
    assert there
    assert len(slept) == 3


def test_it_waits_no_longer_than_asked_and_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not wait_for(Workers(2, gpus=True, scale_up_s=0.05), total=lambda: {"CPU": 4.0})
    said = capsys.readouterr().err
    assert said.count("2 workers need 2 GPUs and the cluster has 0") == 1
    assert "waiting up to 0.05 s for the autoscaler" in said


def test_without_a_wait_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    sdk = SimpleNamespace(request_resources=lambda bundles: asked.append(bundles))
    monkeypatch.setitem(sys.modules, "ray.autoscaler.sdk", sdk)
    with scaled_up(Workers(9999, gpus=True)):
        assert not asked
    assert not asked
