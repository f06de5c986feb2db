"""The kinds of index, by name. To add one, write its file and a line here, or call `KINDS.register`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.errors import UserError
from models.registry import Registry, nearest
from retrieval.index.base import IndexKind
from retrieval.index.flat import Flat
from retrieval.index.hnsw import Hnsw
from retrieval.index.ivf import Ivf

KINDS: Registry[type[IndexKind]] = Registry("index", {"flat": Flat, "ivf": Ivf, "hnsw": Hnsw})

# From here on hnsw answers at least nine times as fast as flat, and still finds 99 %; below it flat needs at most a
# millisecond or two for a user, and is exact (benchmarks/README.md, "Which index")
_HNSW_FROM = 100_000


def suggested_kind(items: int) -> str:
    """The kind of index to suggest for so many items. Never ivf: with default options it finds least."""
    return "hnsw" if items >= _HNSW_FROM else "flat"


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
