"""A log that no machine has to hold: its rows are divided among partitions by user, in files, and each step is done
partition by partition, here or on a Ray cluster. The dataset is the same as from one process, byte for byte.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import console
from cluster.ray_tasks import on_ray
from trainer.data.format.manifest import file_info
from trainer.data.kept import PrepareOptions, Selected, by_name, lost, nothing_left, warn_of_core
from trainer.data.partitioned import numbers, parts, rows
from trainer.data.partitioned.core import PartitionedRows, Run
from trainer.data.selection import MIN_ITEMS, sample_users
from trainer.data.sources.table import LogInParts
from trainer.data.sources.times import Span, collapsed
from trainer.progress import Progress

Ints = NDArray[np.int64]
#: of a partition, where their number is not given: a process that works on one needs about a gigabyte
_PARTITION_ROWS = 4_000_000


@dataclass(frozen=True)
class Where:
    """What prepares a log in partitions. launcher: "inline" is this process, one partition after the other; partitions:
    how many, None for one in each 4,000,000 rows."""

    launcher: Literal["inline", "ray"]
    partitions: int | None = None


def select(log: LogInParts, where: Where, options: PrepareOptions, folder: Path) -> Selected:
    """What `options` keep of the log. folder: for files, at least as large as the log; with Ray, all nodes must see it.

    Raises UserError as reading the log in memory does, and where nothing is left; PreflightError and WorkerFailed
    as `cluster.ray_tasks`.
    """
    with _runner(where, log, folder) as run:
        looked = run("looking at parts", functools.partial(parts.look, log.table), range(len(log.table.parts)))
        filled = [part for part, each in enumerate(looked) if each.rows]
        partitions = where.partitions or -(-sum(each.rows for each in looked) // _PARTITION_ROWS)
        how = parts.written(looked, log.table.name)
        scatter = functools.partial(parts.scatter, log.table, how, partitions, folder)
        if mistake := parts.first_mistake(run("dividing rows by user", scatter, filled)):
            raise mistake
        gathered = run("ordering partitions", functools.partial(rows.gather, folder, filled), range(partitions))
        parts.remove(folder, filled)
        _tell_times(log, [each.span for each in gathered if each.span is not None])
        catalogue, titles = numbers.items_of_log(folder, partitions)
        if log.titles is not None:
            titles = log.titles(catalogue)
        digests = {part.name: each.digest for part, each in zip(log.table.parts, looked, strict=True)}
        local = {path: digests.pop(str(path)) for path in log.table.local_files}
        local |= {path: file_info(path).sha256 for path in log.title_files}
        kept, dropped = _keep(folder, partitions, catalogue, options, run)
    repeated = sum(each.duplicates for each in gathered)
    return Selected(kept, {"duplicate rows": repeated, **dropped}, titles, (), by_name(local) | digests)


def _tell_times(log: LogInParts, spans: Sequence[Span]) -> None:
    if note := collapsed(functools.reduce(Span.__or__, spans)):
        console.note(f"note: {log.table.first}: {note}")


def _keep(
    folder: Path, partitions: int, catalogue: pl.Series, options: PrepareOptions, run: Run
) -> tuple[Any, dict[str, int]]:
    """The sequences, and what was dropped of the log. catalogue: its items."""
    users, user_rows, codes = numbers.users_of_log(folder, partitions)
    total = int(user_rows.sum())
    alive, sample = np.ones(len(codes), np.bool_), None
    if options.sample_users is not None:
        alive = sample_users(codes, len(codes), options.sample_users, options.seed)
        sample = (int((~alive).sum()), int(user_rows[~alive].sum()))
    few = alive & (user_rows < MIN_ITEMS)
    alive &= ~few
    for partition in range(partitions):
        rows.Files(folder, partition).save(alive=alive[users.number == partition])
    catalogue.to_frame("item").write_parquet(folder / "catalogue.parquet")
    placed = run(
        "numbering items", functools.partial(rows.place, folder, folder / "catalogue.parquet"), range(partitions)
    )
    counts = np.zeros(len(catalogue), np.int64)
    for items, there in placed:
        counts[items] += there
    before = PartitionedRows(folder, partitions, run, counts, int(alive.sum()))
    core = before.core(options.k_core, options.core_on)
    all_users, all_items = before.all_counts()
    outside = (all_users - core.users, all_items - core.items, int(counts.sum()) - core.rows)
    dropped = lost(options, sample, (int(few.sum()), int(user_rows[few].sum())), outside)
    if not core.rows:
        raise nothing_left(total, dropped)
    warn_of_core(before, (core.users, core.items), options)
    firsts = run("numbering users", functools.partial(rows.first_rows, folder, core.name), range(partitions))
    return numbers.number_all(folder, core.name, firsts, catalogue), dropped


@contextmanager
def _runner(where: Where, log: LogInParts, folder: Path) -> Iterator[Run]:
    def inline(label: str, work: Any, units: Sequence[int]) -> list[Any]:
        return _with_progress(label, map(work, units), len(units))

    if where.launcher == "inline":
        yield inline
        return
    folders = sorted({path.absolute().parent for path in log.table.local_files})
    with on_ray(folder, folders) as each:
        yield lambda label, work, units: _with_progress(label, each(work, units), len(units))


def _with_progress(label: str, answers: Iterator[Any], total: int) -> list[Any]:
    progress, found = Progress(label, total), []
    for answer in answers:
        found.append(answer)
        progress.update(len(found))
    progress.close()
    return found
