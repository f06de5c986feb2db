"""Histories to recommend for: of a user of a dataset, or of many in Parquet; and the file of answers.

Files are read and written in batches, so that any number of users fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError
from retrieval.disk import told_of_disk
from retrieval.files import whole_file
from trainer.data.format.dataset import Dataset
from trainer.data.sources.checks import require_column
from trainer.data.sources.ids import as_id
from trainer.data.sources.parquet import is_parquet, parquet_files

USER, ITEMS = "user", "items"
#: of a file that is read at a time
_READ_BYTES = 1 << 20
#: users, and for each the recommended items, their scores, and a note or None
Write = Callable[[pa.Array, Sequence[Sequence[str]], Sequence[Sequence[float | None]], Sequence[str | None]], None]


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

    parts: the files. rows: of all of them. user_type: of the column `user`, equal in all.
    """

    parts: tuple[Path, ...]
    rows: int
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
        return cls(parts, sum(rows for rows, _ in metadata), metadata[0][1])

    def batches(self, size: int) -> Iterator[tuple[pa.Array, list[list[str]]]]:
        """Users (as they are) and histories, at most `size` at a time. Raises UserError for a file that is damaged.

        An id is read as `prepare` reads it; one that is null is an empty text, and a list that is null is empty.
        """
        for part in self.parts:
            with _readable(part), pq.ParquetFile(part, buffer_size=_READ_BYTES) as file:
                for batch in file.iter_batches(size, columns=[USER, ITEMS]):
                    lists = batch.column(ITEMS).to_pylist()
                    yield batch.column(USER), [[as_id(item) for item in items or []] for items in lists]


@contextmanager
def answer_file(out: Path, user_type: pa.DataType) -> Iterator[Write]:
    """Give a function that writes the answers of a batch of users to the Parquet file `out`, which is there whole or
    not at all. Its columns: user, items, scores and ranks (lists of one length), note (null if there is none).

    Raises UserError if the disk is full.
    """
    lists = {"items": pa.string(), "scores": pa.float32(), "ranks": pa.int32()}
    columns = {USER: user_type, **{name: pa.list_(kind) for name, kind in lists.items()}, "note": pa.string()}
    schema = pa.schema(columns)
    with told_of_disk(out.parent), whole_file(out) as new, pq.ParquetWriter(new, schema) as writer:

        def write(
            users: pa.Array,
            items: Sequence[Sequence[str]],
            scores: Sequence[Sequence[float | None]],
            notes: Sequence[str | None],
        ) -> None:
            ranks = [range(1, len(row) + 1) for row in items]
            values = [items, scores, [[*row] for row in ranks], notes]
            arrays = [pa.array(x, kind) for x, kind in zip(values, [*columns.values()][1:], strict=True)]
            writer.write_batch(pa.record_batch([users, *arrays], schema=schema))

        yield write


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
