"""Make options from plain values (of YAML, JSON, the command line), check their types, and turn them back.

An option is a number, a string, true or false, one of several words (Literal), a tuple of these, or a frozen dataclass
of options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from models.errors import UserError
from models.registry import nearest

T = TypeVar("T")


def from_plain(cls: type[T], values: Mapping[Any, object], where: str = "model") -> T:
    """Make an options dataclass from plain values, with nested dataclasses from nested mappings.

    An option that is not given has its default. Numbers may be text, because YAML reads 1e-3 as text. Raises UserError
    with one line per unknown key (and the nearest known key) and per value of the wrong type; if there is none of
    these, for the first value out of bounds.
    """
    kinds, known = get_type_hints(cls), [f.name for f in fields(cls)]  # type: ignore[arg-type]
    checked, problems = {}, []
    for key, value in values.items():
        if key not in known:
            problems.append(f"unknown option {where}.{key}: {nearest(str(key), known)}")
            continue
        try:
            checked[key] = _value(kinds[key], value, f"{where}.{key}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return cls(**checked)


def to_plain(options: object) -> dict[str, Any]:
    """All options as values that JSON and YAML can hold; `from_plain` turns them back into equal options."""
    return {f.name: plain_value(getattr(options, f.name)) for f in fields(options)}  # type: ignore[arg-type]


def plain_value(value: object) -> object:
    """One option as a value that JSON and YAML can hold."""
    if is_dataclass(value):
        return to_plain(value)
    return [plain_value(each) for each in value] if isinstance(value, tuple) else value


def _value(kind: Any, value: object, where: str) -> object:
    """`value` as an option of type `kind`."""
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _refused(where, "a section of options", value)
        return from_plain(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _refused(where, " or ".join(map(repr, get_args(kind))), value)
        return value
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and value in (True, False):
        return bool(value)
    if kind in (int, float):
        return _number(kind, value, where)
    raise _refused(where, {bool: "true or false", str: "text"}.get(kind, str(kind)), value)


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise _refused(where, "a list", value)
    kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(kinds) != len(value):
        raise _refused(where, f"a list of {len(kinds)}", value)
    return tuple(_value(kind, each, f"{where}.{n}") for n, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _number(kind: type[int] | type[float], value: object, where: str) -> int | float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            number = None
        if number is not None and (isinstance(value, str) or number == value or kind is float):
            return number
    raise _refused(where, "a whole number" if kind is int else "a number", value)


def _refused(where: str, expected: str, value: object) -> UserError:
    return UserError(f"{where}: it must be {expected} (given: {value!r})")
