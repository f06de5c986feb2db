"""Durations as text."""

from __future__ import annotations

import pytest

from trainer.durations import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.6, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (30_000, "8.3 h")],
)
def test_a_time_has_the_unit_of_its_size(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
