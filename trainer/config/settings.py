"""Every setting of a run: its key, its type, its default and its meaning, read from the classes that hold them.

A class is a section of `trainer.config.schema` or an options class of a system. The meaning of a setting is the line
`field: meaning` in the docstring of its class, or of a class that this one is derived from. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from models.options.plain import plain_value
from models.systems import options_class
from trainer.config.schema import ModelConfig, RunConfig

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
#: bounds of pydantic's fields: the attribute that holds the bound, and how to say it
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Setting:
    """One line of a recipe. default: as JSON and YAML hold it."""

    key: str
    type: str
    default: object
    meaning: str


def general() -> list[Setting]:
    """The settings of every run, except the options of its system."""
    return list(_settings(RunConfig, ""))


def of_system(name: str) -> list[Setting]:
    """The options of a system, `model.KEY`. Raises UserError, with the nearest name, for an unknown system."""
    return list(_settings(options_class(name), "model."))


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of those it is derived from say about fields, in lines `field: meaning`.

    A meaning may go on in further lines; an empty line ends it. A derived class overrides its base.
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        field = ""
        for line in inspect.cleandoc(each.__dict__.get("__doc__") or "").splitlines():
            if start := re.match(r"([a-z]\w*): (.+)", line):
                field, found[start[1]] = start[1], start[2]
            elif not line:
                field = ""
            elif field:
                found[field] += f" {line.strip()}"
    return found


def _settings(cls: type, prefix: str) -> Iterator[Setting]:
    """The settings of a section, with those of the sections in it."""
    said = meanings(cls)
    for name, kind, default, bounds in _fields(cls):
        if kind is ModelConfig:
            yield Setting(f"{prefix}{name}", "name of a system", None, said.get(name, ""))
        elif is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield from _settings(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield Setting(f"{prefix}{name}", in_words(kind) + bounds, plain_value(default), said.get(name, ""))


def _fields(cls: type) -> Iterator[tuple[str, Any, object, str]]:
    """Name, type, default and bounds (in words) of each field."""
    if issubclass(cls, BaseModel):
        for name, info in cls.model_fields.items():
            default = None if info.default is PydanticUndefined else info.default
            yield name, info.annotation, default, _bounds(info)
        return
    kinds = get_type_hints(cls)
    for each in fields(cls):  # type: ignore[arg-type]
        yield each.name, kinds[each.name], None if each.default is MISSING else each.default, ""


def _bounds(info: FieldInfo) -> str:
    return "".join(
        f", {words} {getattr(bound, name)}"
        for bound in info.metadata
        for name, words in _BOUNDS.items()
        if hasattr(bound, name)
    )


def in_words(kind: Any) -> str:
    """A type of an option in words, such as "whole number" or "dot or cosine"."""
    if get_origin(kind) is Literal:
        *others, last = map(str, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(kind) is tuple:
        each, *more = get_args(kind)
        number = "" if more == [Ellipsis] else f"{1 + len(more)} "
        return f"list of {number}{_WORDS[each]}s".replace("texts", "words")
    return _WORDS[kind]
