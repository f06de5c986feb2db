"""Durations as text, for progress and reports."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """A duration as text, in s below two minutes, in min below two hours, else in h: "90 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
