"""`mealrec recommend --users`: the answers for a file of users, in this process or by Ray Data, and resumable."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from cluster import console
from cluster.cores import usable_cores
from cluster.failures import WorkerFailed
from cluster.ray_data import stream
from cluster.session import on_a_cluster
from models.errors import UserError
from retrieval.files import digest_file
from retrieval.folders import writable_file
from retrieval.recommender import Recommender
from trainer.commands.model_source import model_source
from trainer.data.answers import UnfinishedAnswers, pack, unfinished
from trainer.data.histories import HistoryFile, HistoryUnit
from trainer.progress import Progress

#: users of a unit, and their recommendations (a few hundred bytes each)
_USERS, _RECOMMENDATIONS = 8192, 1 << 18
_USER_BYTES = 2048


def answer_users(args: argparse.Namespace) -> int:
    """Write the recommendations for all rows of a file of histories; return the exit code."""
    out = writable_file(args.out)  # before the work, not after
    histories = HistoryFile.open(args.users)
    if out in [part.resolve() for part in histories.parts]:
        raise UserError(f"--out {args.out} is the file of --users; give another one")
    if args.k < 1:
        raise UserError(f"{args.k} recommendations were asked for; ask for at least 1")
    folder = model_source(args.model).folder().absolute()
    recommender = Recommender.load(folder, index=args.index)
    units = histories.units(max(1, min(_USERS, _RECOMMENDATIONS // min(args.k, len(recommender.items)))))
    settings = {
        "model": recommender.card.checksum, "index": args.index, "k": args.k, "keep_history": args.keep_history,
        "users": [digest_file(part).sha256 for part in histories.parts], "rows of a unit": [u.stop for u in units[:1]],
    }  # fmt: skip
    answer = partial(_answerer, folder, args.index, args.k, args.keep_history)
    with unfinished(out, settings) as work:
        _work_off(work, units, answer, launcher(args.launcher), (folder, *{part.parent for part in histories.parts}))
        noted = work.finish(len(units), histories.user_type)
    rows = sum(histories.part_rows)
    console.say(f"recommendations for {rows:,} users written to {args.out}, ranked by {recommender.description}")
    if noted:
        console.warn(f"{noted:,} of them have a note: unknown ids, popular items instead of ranked ones, or few items")
    return 0


def launcher(asked: str | None) -> str:
    """The launcher that was asked for; else Ray on a cluster, and this process elsewhere."""
    return asked or ("ray" if on_a_cluster(os.environ) else "inline")


def _work_off(
    work: UnfinishedAnswers,
    units: Sequence[HistoryUnit],
    make: Callable[[str, int], Callable[[bytes], bytes]],
    launcher: str,
    folders: Sequence[Path],
) -> None:
    rows = sum(unit.stop - unit.start for unit in units)
    done = sum(unit.stop - unit.start for unit in units if unit.number in work.done)
    if done:
        console.say(f"going on: {done:,} of {rows:,} users are done")
    left = [unit for unit in units if unit.number not in work.done]
    progress = Progress("recommending", rows, done)
    for number, packed in map(_unmarked, _results(left, make, launcher, work.folder, folders)):
        work.keep(number, packed)
        done += units[number].stop - units[number].start
        progress.update(done)
    progress.close()
    if lost := [unit.number for unit in units if unit.number not in work.done]:
        raise WorkerFailed(
            "WorkerDied",
            f"the processes that worked on {len(lost):,} of {len(units):,} parts died (killed, or out of memory?); "
            "the same command tries these again, and keeps the others",
        )


def _results(
    units: Sequence[HistoryUnit],
    make: Callable[[str, int], Callable[[bytes], bytes]],
    launcher: str,
    out: Path,
    folders: Sequence[Path],
) -> Iterator[bytes]:
    if not units:
        return iter(())
    if launcher == "inline":
        answer = make("cpu", 0)
        return (answer(_load(unit)) for unit in units)
    cpus = usable_cores()
    return stream(
        units, _load, make, cpus=cpus, gpus=0, use_gpus=False, loaders=1, encoders=None,
        unit_bytes=_USERS * _USER_BYTES, out=out, folders=folders,
    )  # fmt: skip


def _load(unit: HistoryUnit) -> bytes:
    users, histories = unit.read()
    table = pa.table({"user": users, "items": pa.array(histories, pa.list_(pa.string()))})
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _marked(unit.number, sink.getvalue())


def _answerer(
    folder: Path, index: str, k: int, keep_history: bool, device: str, threads: int
) -> Callable[[bytes], bytes]:
    """Runs in each process. threads: 0 leaves torch its own."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    recommender = Recommender.load(folder, index=index, device=device, threads=threads or None)

    def answer(loaded: bytes) -> bytes:
        number, data = _unmarked(loaded)
        table: Any = pyarrow.ipc.open_stream(data).read_all()
        histories = table.column("items").to_pylist()
        ranked = recommender.rank_all(histories, k, exclude_history=not keep_history)
        return _marked(number, pack(table.column("user").combine_chunks(), ranked, recommender.items.ids))

    return answer


def _marked(number: int, data: bytes) -> bytes:
    """The number of a unit before its data: results come in any order."""
    return number.to_bytes(8, "big") + data


def _unmarked(marked: bytes) -> tuple[int, bytes]:
    return int.from_bytes(marked[:8], "big"), marked[8:]
