"""Bounds of options, checked as soon as the options are made: a bad value is refused before anything starts."""

from __future__ import annotations

from models.errors import UserError


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raises UserError that says which option is wrong, its value, and the rule it breaks."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {rule}")


def at_least_one(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is 1 or more."""
    for name in names:
        value = getattr(options, name)
        require(value >= 1, name, value, "it is at least 1")


def probabilities(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is a dropout probability: 0 or more, below 1."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, name, value, "it lies in 0..1, 1 excluded")


def whole_heads(width: int, heads: int, name: str = "heads") -> None:
    """Raises UserError unless `heads` divide `width`."""
    require(heads >= 1 and width % heads == 0, name, heads, f"heads divide the hidden width ({width})")
