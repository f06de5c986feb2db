"""The lines that a training run prints."""

from __future__ import annotations

import pytest

from trainer.training.reporting import EpochReporter


def test_terms_have_one_order_in_all_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The loss terms of a step come as the system made them, those of an epoch sorted."""
    reporter = EpochReporter(enabled=True, epochs=3)
    reporter.step(1, 1, 2, 64, {"tcd": 1.0, "ranking": 2.0, "contrast": 3.0})
    reporter.epoch(1, {"contrast": 3.0, "ranking": 2.0, "tcd": 1.0}, 10.0, "NDCG@10 0.1", 5.0)
    for line in capsys.readouterr().out.splitlines():
        assert "ranking 2.0000 contrast 3.0000 tcd 1.0000" in line
