"""Times in words, for progress and reports."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours with one decimal: "90 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
