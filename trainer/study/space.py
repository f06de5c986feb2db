"""What a search draws settings from: a list of values, or a range written as `1e-4..1e-2`, `log:1e-4..1e-2`, `1..8`.

The same words are used in plans and on the command line. Points are drawn by a scrambled Sobol sequence, which fills a
space more evenly than independent draws do, and is the same again after a study was killed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import UserError
from trainer.text_files import parse_yaml

_RANGE = re.compile(r"(log:)?\s*([^.\s].*?)\s*\.\.\s*(.+)")


@dataclass(frozen=True)
class Dimension:
    """One setting of a search: one of `values`, or a number from `low` to `high` (whole: only whole numbers)."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> Any:
        """The value at `share` (0..1, 1 excluded) of the dimension."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.whole:
            return int(self.low) + int(share * (self.high - self.low + 1))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.4g}")  # a value that a person can write again


def dimension(key: str, text: str | Sequence[Any]) -> Dimension:
    """The dimension that `text` describes. Raises UserError, naming `key`, if it describes none."""
    if not isinstance(text, str):
        if not text:
            raise UserError(f"space: {key} has no values")
        return Dimension(values=tuple(text))
    found = _RANGE.fullmatch(text.strip())
    if not found:
        return Dimension(values=tuple(values_of(key, text)))
    log, low, high = bool(found[1]), _number(key, text, found[2]), _number(key, text, found[3])
    if not low < high or (log and low <= 0):
        rule = "a logarithmic range begins above 0 and" if log and low <= 0 else "a range"
        raise UserError(f"{key}={text}: {rule} goes from a smaller number to a larger one")
    whole = not log and float(low).is_integer() and float(high).is_integer() and not re.search(r"[.e]\d|\de", found[2])
    return Dimension(low=low, high=high, log=log, whole=whole)


def values_of(key: str, text: str) -> list[Any]:
    """The values that are listed in `text`, separated by commas, each as YAML. Raises UserError if one is missing."""
    try:
        values = parse_yaml(f"[{text}]")
    except UserError as error:
        raise UserError(f"{key}={text}: write values separated by commas, such as 0.1,0.5 ({error})") from None
    if not values or any(value is None for value in values):
        raise UserError(f"{key}={text}: a value is missing between its commas")
    return list(values)


def points(space: Mapping[str, Dimension], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` points of the space, each with a value for every key. The first points are the same for any count."""
    from scipy.stats import qmc

    size = 1 << max(0, count - 1).bit_length()  # the sequence is balanced over powers of two
    shares = qmc.Sobol(len(space), rng=seed).random(size)[:count]
    return [{key: each.at(float(share)) for (key, each), share in zip(space.items(), row, strict=True)}
            for row in shares]  # fmt: skip


def _number(key: str, text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        raise UserError(f"{key}={text}: {part!r} is not a number; a range is written as 1e-4..1e-2") from None
    if not math.isfinite(number):
        raise UserError(f"{key}={text}: the ends of a range are finite numbers")
    return number
