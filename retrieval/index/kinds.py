"""The kinds of index, by name. To add one, write its file and a line here, or call `KINDS.register`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.errors import UserError
from models.registry import Registry, nearest
from retrieval.index.base import SAMPLE, IndexKind
from retrieval.index.flat import Flat
from retrieval.index.hnsw import Hnsw
from retrieval.index.ivf import Ivf, build_cost
from retrieval.index.ivfpq import IvfPq

KINDS: Registry[type[IndexKind]] = Registry("index", {"flat": Flat, "ivf": Ivf, "ivfpq": IvfPq, "hnsw": Hnsw})

#: below this an index saves little: see docs/ranking.md for what exact ranking takes by the size of the catalogue
EXACT_BELOW = 100_000


def suggested_kind(items: int) -> str:
    """The kind of index to suggest for so many items, to answer from."""
    return "ivf" if items >= EXACT_BELOW else "flat"


def cheapest(items: int, users: int, measured: int) -> tuple[str, str]:
    """How to rank so many users once by vectors that change before the next time: "exact" or a kind; and why, in words.

    measured: users who are ranked exactly besides, to know the recall. The work decides, not the time it took, so that
    a run that is repeated or resumed ranks as before. It is in inner products, which both ways compute alike.
    """
    if items < EXACT_BELOW:
        return "exact", f"{items:,} items, fewer than {EXACT_BELOW:,}"
    even = build_cost(items) // items + SAMPLE + measured
    if users < even:
        return "exact", f"an index of {items:,} items takes the work of ranking {even:,} users, and there are {users:,}"
    return "ivf", f"{items:,} items; building it takes the work of ranking {even:,} of the {users:,} users exactly"


def parse_options(kind: str, values: Mapping[str, object]) -> IndexKind:
    """The options of `kind` from plain values or their text; options that are not given have their defaults.

    Raises UserError for an unknown kind or option (with the nearest name), or a value of the wrong type or range.
    """
    known = [field.name for field in fields(KINDS[kind])]
    for name in values:
        if name not in known:
            raise UserError(f"{kind} has no option {name}: {nearest(name, known) if known else 'it has no options'}")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(KINDS[kind])
        options: IndexKind = adapter.validate_python(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise UserError(f"index {kind}: {where}{problem['msg'].removeprefix('Value error, ')}") from None
    return options
