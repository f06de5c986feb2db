"""The file of answers for many users, made of units that are kept on disk as they come: OUT.unfinished until OUT is
whole. The same work goes on where a kill has ended it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError
from retrieval.answers import RankedRows, remarks
from retrieval.disk import told_of_disk
from retrieval.files import refuse_link, remove_own, sole_writer, temporaries, whole_file, write_bytes, write_json
from retrieval.items import Column
from trainer.data.histories import USER

_SETTINGS, _UNIT = "settings.json", r"\d{8}\.parquet"
_OWN = rf"settings\.json|{_UNIT}|\.lock|" + temporaries(r"settings\.json", _UNIT)
_NOTE = "note"


def _schema(user_type: pa.DataType) -> pa.Schema:
    lists = {"items": pa.string(), "scores": pa.float32(), "ranks": pa.int32()}
    return pa.schema({USER: user_type, **{name: pa.list_(kind) for name, kind in lists.items()}, _NOTE: pa.string()})


def pack(users: pa.Array, ranked: RankedRows, ids: Column[str]) -> bytes:
    """The answers of a unit, as Parquet: user, items, scores and ranks (lists of one length), note (null if none).

    ids: of the items, from row 1.
    """
    given = ranked.rows > 0
    counts = given.sum(1)
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32())
    places = np.broadcast_to(np.arange(1, given.shape[1] + 1, dtype=np.int32), given.shape)
    values = {
        "items": ids.taken(ranked.rows[given] - 1).cast(pa.string()),
        "scores": pa.array(ranked.scores[given], mask=ranked.popular.repeat(counts)),
        "ranks": pa.array(places[given]),
    }
    lists = [pa.ListArray.from_arrays(offsets, column) for column in values.values()]
    notes = [remarks(*each) or None for each in zip(ranked.unknown, ranked.notes, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([users, *lists, notes], _schema(users.type)), sink)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


class UnfinishedAnswers:
    """The units of `out` that are done. folder: where they are."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self.folder = out, folder
        self.done = {int(path.stem) for path in folder.iterdir() if re.fullmatch(_UNIT, path.name)}

    def keep(self, number: int, packed: bytes) -> None:
        """Write a unit, completely or not at all."""
        write_bytes(self._unit(number), packed)
        self.done.add(number)

    def finish(self, units: int, user_type: pa.DataType) -> int:
        """Write `out` of all units, and remove them; return how many users have a note."""
        noted, schema = 0, _schema(user_type)
        with whole_file(self.out) as new, pq.ParquetWriter(new, schema) as writer:
            for number in range(units):
                with pq.ParquetFile(self._unit(number)) as file:
                    table = file.read()
                noted += len(table) - table.column(_NOTE).null_count
                writer.write_table(table.cast(schema))
        remove_own(self.folder, _OWN)
        return noted

    def _unit(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"


@contextmanager
def unfinished(out: Path, settings: Mapping[str, Any]) -> Iterator[UnfinishedAnswers]:
    """What is done of `out` already. settings: all that decides the answers; plain values.

    If the block fails, what is done stays; nothing stays where nothing is done. Raises UserError: what is there was
    made with other settings, another process is at work, the disk is full.
    """
    folder = out.with_name(f"{out.name}.unfinished")
    refuse_link(folder)
    with told_of_disk(out.parent):
        folder.mkdir(exist_ok=True)
        with sole_writer(folder):
            try:
                _agree(folder, settings)
                yield UnfinishedAnswers(out, folder)
            finally:
                if folder.exists() and not any(re.fullmatch(_UNIT, path.name) for path in folder.iterdir()):
                    remove_own(folder, _OWN)


def _agree(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / _SETTINGS
    try:
        before = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        before = {}
    if before is None:
        write_json(path, settings)
    elif before != json.loads(json.dumps(settings)):
        other = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        raise UserError(
            f"{folder} holds unfinished work with another {', '.join(other)}; give the same command as then to go on, "
            "remove that folder, or give another --out"
        )
