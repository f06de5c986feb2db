"""One extraction from start to end: what is left is streamed through the stages and kept; then it is finished."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from cluster import console
from cluster.cores import usable_cores
from cluster.ray_data import stream, usable_gpus
from models.errors import UserError
from retrieval.disk import disk_trouble, told_of_disk
from retrieval.files import refuse_link, sole_writer
from trainer.data.features import FEATURES, ITEMS, FeatureManifest, open_features
from trainer.data.format.shards import BLOCK_ROWS
from trainer.extract.pipeline.finish import OWN_HIDDEN, finish, reasons
from trainer.extract.pipeline.units import Job, Unit
from trainer.extract.pipeline.work import UNFINISHED, Work, has_begun, holds_others, remove_work
from trainer.progress import Progress

_FAILURES_EVERY_S = 10.0
#: items that are tried one by one before those whose process died again are recorded as failed
_ALONE = 256
DIED = "the process that worked on it died (a crash of the decoder, or out of memory)"


@dataclass(frozen=True)
class Where:
    """What executes an extraction. loaders, encoders: how many processes, None for as many as there are CPUs and GPUs;
    launcher: "inline" is this process, without Ray; folders: that every node must be able to read."""

    launcher: Literal["ray", "inline"] = "ray"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loaders: int | None = None
    encoders: int | None = None
    folders: tuple[Path, ...] = ()

    @property
    def use_gpus(self) -> bool | None:
        """Whether GPUs encode; None: where there are any."""
        return None if self.device == "auto" else self.device == "cuda"


@dataclass(frozen=True)
class Limits:
    """unit: items per unit. failures: more failed items than this (a number, or a share like "10%") end the run.
    again: items that failed in an earlier start are tried again."""

    unit: int = 16
    failures: str = "50%"
    again: bool = False

    def most_failures(self, items: int) -> int:
        """Raises UserError where `failures` is neither a number nor a share."""
        text = self.failures.strip()
        try:
            value = float(text.removesuffix("%"))
            if not 0 <= value < float("inf") or (not text.endswith("%") and value != int(value)):
                raise ValueError
        except ValueError:
            raise UserError(f"--max-failures {self.failures}: give a number of items, or a share such as 10%") from None
        return int(value * items / 100) if text.endswith("%") else int(value)


@dataclass(frozen=True)
class Outcome:
    """What one start of an extraction did. items: how many it encoded; seconds: from start to end; load_seconds,
    encode_seconds: work of all processes; load_mib, encode_mib: peak memory of one process; reasons: of failures."""

    manifest: FeatureManifest
    items: int
    seconds: float
    load_seconds: float
    encode_seconds: float
    load_mib: float
    encode_mib: float
    reasons: str


def extract(
    job: Job,
    items: Callable[[], pl.DataFrame],
    out: Path,
    *,
    limits: Limits,
    where: Where,
    command: str,
    sources: Mapping[str, str],
    place: str = "",
) -> Outcome:
    """Encode items into `out`, or continue an earlier start of the same extraction.

    items: gives item, title and source of each; called when the extraction begins, and to try failed items again.
    place: where the sources are; an extraction is not continued with another.
    Raises UserError: `out` holds something else, too many failures (what is done stays), an encoder that cannot work.
    """
    encoder = job.encoder
    settings = {**job.settings, "encoder_model": encoder, "batch_size": limits.unit, "place": place}
    settings["sources"] = dict(sources)
    limits.most_failures(1)  # reports a mistake in --max-failures before anything starts
    _refuse_other(out)
    _make(out)
    with told_of_disk(out), sole_writer(out):
        _refuse_other(out)  # another process may have finished while this one waited
        started = time.monotonic()
        try:
            work = Work.resume(out, settings) or Work.begin(out, items(), settings)
        except BaseException:
            _leave_nothing(out)
            raise
        before = work.n_done
        if before or work.failed:
            console.say(f"going on: {before:,} of {len(work.items):,} items are done, {len(work.failed):,} failed")
        if limits.again:
            work.try_again(items())
        try:
            _work_off(work, job, limits, where)
        except BaseException:
            work.write_failures()
            raise
        costs = work.costs()
        manifest = finish(work, job, encoder, command, sources, held=2 + BLOCK_ROWS // limits.unit)
        seconds = time.monotonic() - started
        return Outcome(manifest, manifest.items - before, seconds, *_totals(costs), reasons=reasons(work))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = disk_trouble(error, out.parent)
        raise UserError(told or f"cannot make the folder {out} ({error.strerror}); choose another --out") from None


def _leave_nothing(out: Path) -> None:
    """Remove the folder of an extraction that did not begin."""
    if not has_begun(out):
        remove_work(out)
    if [path.name for path in out.iterdir()] == [".lock"]:
        (out / ".lock").unlink()
        out.rmdir()


def _refuse_other(out: Path) -> None:
    if (out / FEATURES).exists():
        remove_work(out)  # its removal may have been interrupted
        done = open_features(str(out)).manifest
        raise UserError(f"{out} holds a finished extraction ({done.items:,} items); choose another --out or remove it")
    if not out.exists():
        return
    for name in ("shards", ITEMS, UNFINISHED, f"{UNFINISHED}/parts"):
        refuse_link(out / name)
    own = rf"{UNFINISHED}|\.lock|{OWN_HIDDEN}"
    if has_begun(out):
        own += r"|shards|failed\.csv|items\.parquet|\..*"  # hidden files of others are no obstacle, and stay
    ours = out.is_dir() and all(re.fullmatch(own, path.name) for path in out.iterdir())
    if not ours or (holds_others(out) and not has_begun(out)):
        raise UserError(f"{out} exists and is neither empty nor an unfinished extraction; choose another --out")


def _work_off(work: Work, job: Job, limits: Limits, where: Where) -> None:
    most = limits.most_failures(len(work.items))
    before = work.n_done + len(work.failed)
    if units := work.units(limits.unit):
        _pass(work, job, units, where, most)
    lost = work.units(1)
    if len(lost) > 2 * limits.unit and work.n_done + len(work.failed) == before:
        raise UserError(
            "every process that worked on these items died: too little memory (fewer --loaders, a smaller "
            "--batch-size), or a decoder or driver that crashes; Ray's logs are in /tmp/ray/session_latest/logs"
        )
    # Now each item is a unit of its own, and alone in its process: one that kills it does not make others fail.
    for start in range(0, len(lost), _ALONE):
        _pass(work, job, lost[start : start + _ALONE], where, most, apart=True)
        tried = {position for unit in lost[start : start + _ALONE] for position in unit.positions}
        died = [position for unit in work.units(1) for position in unit.positions if position in tried]
        if died:
            work.give_up_on(died, DIED)
        _check_failures(work, most)
    _check_failures(work, most)  # also where an earlier start had left nothing to do


def _check_failures(work: Work, most: int) -> None:
    if len(work.failed) > most:
        raise UserError(
            f"{len(work.failed):,} of {len(work.items):,} items have failed, more than --max-failures allows: "
            f"{reasons(work)}; see {work.out}/failed.csv. Mend what is wrong and give the same command with "
            "--retry-failed, or with a larger --max-failures: it goes on where it was"
        )


def _pass(work: Work, job: Job, units: Sequence[Unit], where: Where, most: int, *, apart: bool = False) -> None:
    progress = Progress("extracting", len(work.items), work.n_done + len(work.failed))
    written = time.monotonic()
    for data in _results(job, units, where, work.out, apart):
        work.keep(data)
        progress.update(work.n_done + len(work.failed))
        _check_failures(work, most)
        if time.monotonic() - written > _FAILURES_EVERY_S:
            work.write_failures()
            written = time.monotonic()
    progress.close()


def _results(job: Job, units: Sequence[Unit], where: Where, out: Path, apart: bool) -> Iterator[bytes]:
    if where.launcher == "inline":
        gpus = usable_gpus(torch.cuda.device_count(), where.use_gpus)
        encode = job.make_encoder("cuda" if gpus else "cpu", None)
        return (encode(job.load(unit)) for unit in units)
    return stream(
        units,
        job.load,
        job.make_encoder,
        cpus=usable_cores(),
        gpus=torch.cuda.device_count(),
        use_gpus=where.use_gpus,
        loaders=where.loaders,
        encoders=where.encoders,
        unit_bytes=job.item_bytes() * max(len(unit.positions) for unit in units),
        out=out,
        folders=where.folders,
        apart=apart,
    )


def _totals(costs: Any) -> tuple[float, float, float, float]:
    if not len(costs):
        return 0.0, 0.0, 0.0, 0.0
    return tuple(float(x) for x in (*costs[:, :2].sum(axis=0), *costs[:, 2:].max(axis=0)))  # type: ignore[return-value]
