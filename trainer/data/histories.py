"""Histories to recommend for: of a user of a dataset, or of many in Parquet, which is read by row groups."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError
from trainer.data.format.dataset import Dataset
from trainer.data.sources.checks import require_column
from trainer.data.sources.ids import as_id
from trainer.data.sources.parquet import is_parquet, parquet_files

USER, ITEMS = "user", "items"
#: of a file that is read at a time
_READ_BYTES = 1 << 20


class UserHistories:
    """What the users of a dataset watched, by their ids; the targets of validation and test included."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._names = dataset, dataset.item_ids()
        self._rows = {user: row for row, user in enumerate(dataset.user_ids())}

    def of(self, user: str) -> list[str]:
        """Raw ids of all that a user watched, oldest first. Raises UserError for a user that is not in the dataset."""
        row = self._rows.get(user)
        if row is None:
            example = next(iter(self._rows))
            raise UserError(
                f"{self._dataset.source} holds no user {user!r} (a user is {example!r}); `mealrec prepare` leaves out "
                "users with few interactions: give the history of such a user instead"
            )
        start, stop = self._dataset.offsets[row : row + 2].tolist()
        return [self._names[item - 1] for item in self._dataset.items[start:stop].tolist()]


@dataclass(frozen=True)
class HistoryFile:
    """Histories in Parquet: a column `user`, and a column `items` of lists of raw item ids, oldest first.

    parts: the files, and part_rows: how many rows each has. user_type: of the column `user`, equal in all.
    """

    parts: tuple[Path, ...]
    part_rows: tuple[int, ...]
    user_type: pa.DataType

    @classmethod
    def open(cls, file: Path) -> HistoryFile:
        """Look at `file`, or a folder of parts, without reading rows. Raises UserError: what is wrong, and where."""
        if not is_parquet(file):
            raise UserError(f"{file} is not a Parquet file; write {USER} and {ITEMS} (lists of item ids) as Parquet")
        parts = parquet_files(file)
        metadata = [_checked(part) for part in parts]
        types = {str(kind) for _, kind in metadata}
        if len(types) > 1:
            raise UserError(
                f"the parts in {file} differ in the type of {USER!r} ({', '.join(sorted(types))}); write them alike"
            )
        return cls(parts, tuple(rows for rows, _ in metadata), metadata[0][1])

    def units(self, size: int) -> list[HistoryUnit]:
        """All rows in their order, at most `size` in a unit."""
        found: list[HistoryUnit] = []
        for part, rows in zip(self.parts, self.part_rows, strict=True):
            for start in range(0, rows, size):
                found.append(HistoryUnit(len(found), str(part.absolute()), start, min(rows, start + size)))
        return found


@dataclass(frozen=True)
class HistoryUnit:
    """Some rows of a part of a HistoryFile; number: its place among all units."""

    number: int
    part: str
    start: int
    stop: int

    def read(self) -> tuple[pa.Array, list[list[str]]]:
        """Users (as they are) and histories. Raises UserError for a file that is damaged.

        An id is read as `prepare` reads it; one that is null is an empty text, and a list that is null is empty.
        """
        rows = _row_groups(self.part, self.start, self.stop)
        lists = rows.column(ITEMS).to_pylist()
        return rows.column(USER).combine_chunks(), [[as_id(item) for item in items or []] for items in lists]


def _row_groups(part: str, start: int, stop: int) -> pa.Table:
    """Rows start to stop, of the row groups that hold them."""
    with _readable(Path(part)):
        ends = _ends(part)
        first, last = bisect.bisect_right(ends, start), bisect.bisect_left(ends, stop)
        return _decoded(part, first, last).slice(start - (ends[first - 1] if first else 0), stop - start)


@lru_cache(maxsize=1)
def _ends(part: str) -> list[int]:
    metadata = pq.read_metadata(part)
    return [*itertools.accumulate(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups))]


@lru_cache(maxsize=1)  # the next unit is in the same row groups, as a rule
def _decoded(part: str, first: int, last: int) -> pa.Table:
    with pq.ParquetFile(part, buffer_size=_READ_BYTES) as file:
        return file.read_row_groups([*range(first, last + 1)], columns=[USER, ITEMS])


def _checked(part: Path) -> tuple[int, pa.DataType]:
    """The number of rows, and the type of the users. Raises UserError: no Parquet, or no lists of ids."""
    with _readable(part), pq.ParquetFile(part) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    for name in (USER, ITEMS):
        require_column(part, name, schema.names, text=False)
    kind: Any = schema.field(ITEMS).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or pa.types.is_nested(kind.value_type):
        raise UserError(f"{part}: column {ITEMS!r} is {kind}; a list of item ids per row is expected")
    return rows, schema.field(USER).type


@contextmanager
def _readable(part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{part} cannot be read as Parquet ({error})") from None
