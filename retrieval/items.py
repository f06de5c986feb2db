"""The items of an exported model: ids, titles and counts, read from a memory-mapped Arrow file.

A list and a dictionary of 10 million ids take gigabytes in each process; here the processes of a machine share the
pages of the file that they need. An id is found by its hash, in a sorted column of hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError

T = TypeVar("T")
_COLUMNS = {"id": "large_string", "title": "large_string", "train_count": "int64", "hash": "uint64", "row": "int64"}
_AT_ONCE = 65_536


class Column(Sequence[T]):
    """A column of an Arrow file, read where it is asked for."""

    def __init__(self, values: Any) -> None:
        """values: a pyarrow.Array."""
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                return [self[n] for n in range(start, stop, step)]
            found: list[T] = self._values[start:stop].to_pylist()
            return found
        value: T = self._values[at].as_py()
        return value

    def taken(self, at: NDArray[np.int64]) -> Any:
        """The values at these places, as a pyarrow.Array."""
        return self._values.take(_arrow(at))

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]


class Items:
    """Entry n of each column belongs to item row n + 1. train_counts: (I - 1,) training interactions of each item, by
    which the popular ones are known."""

    def __init__(self, table: dict[str, Any]) -> None:
        """table: the columns of the file by name, pyarrow.Array each."""
        self.ids: Column[str] = Column(table["id"])
        self.titles: Column[str | None] = Column(table["title"])
        self.train_counts, self._hashes, self._rows = (
            table[name].to_numpy(zero_copy_only=True) for name in ("train_count", "hash", "row")
        )

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item: str) -> int | None:
        """The row, from 1, of the item with this id; None if there is none."""
        return self.rows([item])[0]

    def rows(self, items: Sequence[str]) -> list[int | None]:
        """`row` of several ids."""
        if not items or not len(self):
            return [None] * len(items)
        wanted = _hashes(items)
        first = np.searchsorted(self._hashes, wanted)
        likely = self._rows[np.minimum(first, len(self) - 1)]
        return [
            row if name == item else self._row_from(item, value, at)
            for item, value, at, row, name in zip(
                items, wanted, first.tolist(), likely.tolist(), self.ids.taken(likely - 1).to_pylist(), strict=True
            )
        ]

    def _row_from(self, item: str, value: np.uint64, at: int) -> int | None:
        """The row of an item whose hash is `value`, from place `at` of the hashes; several ids may have one hash."""
        while at < len(self) and self._hashes[at] == value:
            row = int(self._rows[at])
            if self.ids[row - 1] == item:
                return row
            at += 1
        return None


def _arrow(values: NDArray[np.int64]) -> Any:
    import pyarrow as pa

    return pa.array(values)


def _hashes(items: Iterable[str]) -> NDArray[np.uint64]:
    data = b"".join(hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=8).digest() for item in items)
    return np.frombuffer(data, "<u8")


def write_items(path: Path, ids: Sequence[str], titles: Sequence[str | None], train_counts: Sequence[int]) -> None:
    """Write the file that `read_items` reads: of one length, from item row 1. Raises OSError."""
    import pyarrow as pa

    hashes = _hashes(ids)
    order = np.argsort(hashes, kind="stable")
    columns = [ids, titles, train_counts, hashes[order], order + 1]
    made = [pa.array(column, pa.type_for_alias(kind)) for column, kind in zip(columns, _COLUMNS.values(), strict=True)]
    batch = pa.record_batch(made, list(_COLUMNS))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_items(path: Path, remedy: str) -> Items:
    """The items in `path`, memory-mapped. Raises UserError with `remedy` if it is not such a file."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        kinds = {field.name: str(field.type) for field in table.schema}
        if kinds != _COLUMNS:
            raise ValueError(f"its columns are {kinds}, not {_COLUMNS}")
        columns = {name: table.column(name).combine_chunks() for name in _COLUMNS}
        for name, column in columns.items():
            column.validate(full=name in ("train_count", "row"))
            if name != "title" and column.null_count:
                raise ValueError(f"{name} has gaps")
        items = Items(columns)
        row = columns["row"].to_numpy()
        if len(row) and not 1 <= row.min() <= row.max() <= len(row):
            raise ValueError("row leads beyond the items")
    except (pa.ArrowException, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; {remedy}") from None
    return items
