"""The state of an unfinished extraction on disk: `OUT/unfinished`, with its settings and one file per encoded unit."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.files import remove_own, temporaries, write_bytes, write_json, write_text
from trainer.data.bounded import MALFORMED, read_npz
from trainer.extract.pipeline.protocols import Arrays
from trainer.extract.pipeline.units import COST, FAILED, POSITIONS, REASONS, Unit, pack, unpack

UNFINISHED = "unfinished"
FAILED_CSV = "failed.csv"
_PARTS, _SETTINGS, _LIST = "parts", "settings.json", "items.parquet"
_OWN = r"settings\.json|items\.parquet|" + temporaries(r"settings\.json", r"items\.parquet")
_OWN_PARTS = r"\d{8}\.npz|" + temporaries(r"\d{8}\.npz")


def has_begun(out: Path) -> bool:
    """Whether `out` holds an extraction that can be continued."""
    return (out / UNFINISHED / _SETTINGS).exists()


def holds_others(out: Path) -> bool:
    """Whether the folder of unfinished work in `out` holds anything that no extraction writes there."""
    folder = out / UNFINISHED
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    parts = [path.name for path in (folder / _PARTS).iterdir()] if (folder / _PARTS).is_dir() else []
    return not (
        all(name == _PARTS or re.fullmatch(_OWN, name) for name in names)
        and all(re.fullmatch(_OWN_PARTS, name) for name in parts)
    )


def remove_work(out: Path) -> None:
    """Remove the files of an extraction, finished or never begun, from `out`; what others put there stays."""
    remove_own(out / UNFINISHED / _PARTS, _OWN_PARTS)
    remove_own(out / UNFINISHED, _OWN)


class Work:
    """Which items are done and which have failed; parts are added as they come, in any order.

    items: item, title, source, in the order of the user's list; positions count them from 0.
    """

    def __init__(self, out: Path, items: pl.DataFrame) -> None:
        self.out, self.items = out, items
        self.failed: dict[int, str] = {}
        #: per item: number of its part, and row there; -1 where it is not done
        self.place = np.full((len(items), 2), -1, np.int32)
        self.n_done = 0
        self._folder = out / UNFINISHED
        self._next = 0
        self._costs: list[NDArray[np.float64]] = []

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,) whether the item is encoded."""
        return np.asarray(self.place[:, 0] >= 0)

    @classmethod
    def begin(cls, out: Path, items: pl.DataFrame, settings: dict[str, Any]) -> Work:
        """Begin an extraction in `out`, which may hold nothing else."""
        folder = out / UNFINISHED
        remove_work(out)  # left by a start that was interrupted
        (folder / _PARTS).mkdir(parents=True, exist_ok=True)
        items.write_parquet(folder / _LIST)
        write_json(folder / _SETTINGS, settings)  # last: this file marks that the extraction has begun
        return cls(out, items)

    @classmethod
    def resume(cls, out: Path, settings: dict[str, Any]) -> Work | None:
        """The unfinished extraction in `out`, None where there is none.

        Raises UserError: it was begun with other settings, or its list of items is damaged.
        """
        folder = out / UNFINISHED
        if not has_begun(out):
            return None
        try:
            begun = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
            items = pl.read_parquet(folder / _LIST, glob=False)
        except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{folder} is damaged ({error}); remove it to begin again") from None
        different = [
            f"{key} was {begun.get(key)!r} and is {settings.get(key)!r}"
            for key in {**begun, **settings}
            if begun.get(key) != settings.get(key)
        ]
        if different:
            raise UserError(
                f"{out} holds an extraction that was begun otherwise: {'; '.join(different)}; "
                "choose another --out, or remove that folder to begin again"
            )
        work = cls(out, items)
        for path in work.parts():
            work._note(path)
        return work

    def keep(self, data: bytes) -> None:
        """Put an encoded unit on disk, whole; from then on its items are done."""
        path = self._folder / _PARTS / f"{self._next:08d}.npz"
        write_bytes(path, data)
        self._note(path)

    def give_up_on(self, positions: Sequence[int], reason: str) -> None:
        """Note that these items have failed, for a reason that the stages could not record themselves."""
        nothing = {POSITIONS: np.zeros(0, np.int64), COST: np.zeros(4)}
        self.keep(
            pack({**nothing, FAILED: np.array(positions, np.int64), REASONS: np.array([reason] * len(positions))})
        )

    def try_again(self, items: pl.DataFrame) -> None:
        """Make the failed items to do again. items: as at the beginning; gives the present locations of their files."""
        failed = np.zeros(len(self.items), np.bool_)
        failed[list(self.failed)] = True
        sources = pl.when(pl.Series(failed)).then(items["source"]).otherwise(self.items["source"])
        self.items = self.items.with_columns(sources.alias("source"))
        buffer = io.BytesIO()
        self.items.write_parquet(buffer)
        write_bytes(self._folder / _LIST, buffer.getvalue())
        self.failed.clear()

    def units(self, size: int) -> list[Unit]:
        """What is left to do, in units of at most `size` items.

        The borders of units do not depend on what is done: a resume encodes an item in the same batch as before.
        """
        left = ~self.done
        left[list(self.failed)] = False
        positions = np.flatnonzero(left)
        if not len(positions):
            return []
        sources = self.items["source"].gather(positions).to_list()
        ends = [*(np.flatnonzero(np.diff(positions // size)) + 1).tolist(), len(positions)]
        numbers = positions.tolist()
        return [
            Unit(tuple(numbers[start:end]), tuple(sources[start:end]))
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def parts(self) -> list[Path]:
        """Files of the encoded units, in the order in which they came."""
        return sorted((self._folder / _PARTS).glob("[0-9]*.npz"))

    def part(self, number: int) -> Arrays:
        """The arrays of part `number`."""
        return unpack((self._folder / _PARTS / f"{number:08d}.npz").read_bytes())

    def costs(self) -> NDArray[np.float64]:
        """(parts, 4): seconds of loading and of encoding, and peak MiB of the loading and of the encoding process."""
        return np.stack(self._costs) if self._costs else np.zeros((0, 4))

    def write_failures(self) -> None:
        """`OUT/failed.csv`: item, source and reason of every item that has failed, in the order of the list."""
        positions = sorted(self.failed)
        rows = self.items.select("item", "source").with_columns(pl.all().fill_null(""))[positions].rows()
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["item", "source", "reason"])
        table.writerows((*row, self.failed[position]) for row, position in zip(rows, positions, strict=True))
        write_text(self.out / FAILED_CSV, text.getvalue())

    def _note(self, path: Path) -> None:
        try:
            arrays = read_npz(path)
            positions, failed, reasons = arrays[POSITIONS], arrays[FAILED], arrays[REASONS]
            self._costs.append(arrays[COST])
        except MALFORMED as error:
            raise UserError(f"{path} is damaged ({error}); remove it, its items are then done again") from None
        self._next = int(path.stem) + 1
        self.failed |= dict(zip(failed.tolist(), reasons.tolist(), strict=True))
        self.n_done += int((self.place[positions, 0] < 0).sum())
        self.place[positions] = np.stack([np.full(len(positions), int(path.stem)), np.arange(len(positions))], axis=1)
        for position in positions.tolist():
            self.failed.pop(position, None)
