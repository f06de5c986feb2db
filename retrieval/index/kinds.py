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
