"""Registries of things that a user chooses by name: systems, sources, kinds of index, metrics."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from models.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order in which they were registered. To add an entry, call `register`.

    Access by an unknown name raises UserError with the nearest known name. what: a word for an entry in messages
    ("model", "source", "index", "metric").
    """

    def __init__(self, what: str, entries: Mapping[str, T]) -> None:
        self.what = what
        self._entries = dict(entries)

    def register(self, name: str, entry: T) -> None:
        """Add an entry. Raises ValueError if the name is taken, so that no entry is replaced by accident."""
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered already")
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry that `register` added. Raises KeyError if there is none of this name."""
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UserError(f"unknown {self.what} {name!r}: {nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(set(known)))}"


def refuse_misspelt(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is almost a known one, where other names are searched elsewhere, which takes long.

    Raises UserError with the known name. what: as for Registry.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close and close[0] != name:
        raise UserError(f"unknown {what} {name!r}: did you mean {close[0]!r}?")
