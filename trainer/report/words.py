"""Settings of trials in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(value: object) -> str:
    """The value of a factor as text: 0.1, [64, 128], true."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def factors_text(factors: Mapping[str, Any]) -> str:
    """The settings of a trial in words: `lambda_tcd 0.1, steps 5`."""
    return ", ".join(f"{key.rpartition('.')[2]} {plain(value)}" for key, value in factors.items())
