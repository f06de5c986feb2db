"""`mealrec extract`: videos or titles to item features, which `prepare --features` reads.

Example: mealrec extract titles --titles data/demo/items.parquet --encoder minilm --out features/titles
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import shlex
from pathlib import Path

import polars as pl

from cluster import console
from models.errors import UserError
from trainer.commands.subcommands import add_subcommands
from trainer.data.format.manifest import file_info
from trainer.data.sources.items import read_items
from trainer.data.storage import is_url
from trainer.extract.pipeline.execute import Limits, Outcome, Where, extract
from trainer.extract.pipeline.protocols import ENCODERS, Sampling, model_folder
from trainer.extract.pipeline.units import Job
from trainer.extract.titles.job import TitleJob
from trainer.extract.video.locate import locate, require_folder
from trainer.local_path import local_path

_KINDS = {
    "videos": (
        "frames of videos through a vision model",
        "mealrec extract videos --videos clips/ --items items.csv --encoder efficientnet-lite0 --out features/video",
    ),
    "titles": (
        "titles through a text model",
        "mealrec extract titles --titles data/demo/items.parquet --encoder minilm --out features/titles",
    ),
}
#: how many items are encoded at a time
_UNITS = {"videos": 16, "titles": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two kinds, and their options."""
    made = add_subcommands(parser, "kind", _KINDS)
    _add_videos(made["videos"])
    _add_titles(made["titles"])
    for name, sub in made.items():
        known = ", ".join(ENCODERS[name])
        sub.add_argument(
            "--encoder", required=True, metavar="NAME", help=f"{known}, or a model of transformers (hub name or folder)"
        )
        _add_common(sub, _UNITS[name])


def run(args: argparse.Namespace) -> int:
    """Extract, or continue an earlier start; print what came out and where it is."""
    for name in ("batch_size", "loaders", "encoders", "frames", "fps", "timeout", "segments"):
        value = getattr(args, name, None)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    given: Path = args.items if args.kind == "videos" else args.titles
    try:
        outcome = extract(
            _job(args),
            functools.partial(_items, args, given),
            Path(os.path.realpath(args.out)),
            limits=Limits(args.batch_size, args.max_failures, args.retry_failed),
            where=Where(args.launcher, args.device, args.loaders, args.encoders, _folders(args)),
            command=args.command_line,
            sources={given.name: _sha256(given)},
            place=_place(args),
        )
    except KeyboardInterrupt:
        console.note("what is done is kept: the same command continues from there")
        raise
    console.say(report(outcome, args.out))
    return 0


def report(outcome: Outcome, out: Path) -> str:
    """What came out, what failed and why, where the time went, and what to do next, as text."""
    manifest = outcome.manifest
    content = ", ".join(f"{name} {' x '.join(map(str, info.shape))}" for name, info in manifest.content.items())
    lines = [f"{manifest.items:,} items encoded by {manifest.encoder}: {content}"]
    if manifest.failed:
        lines.append(f"{manifest.failed:,} items failed: {outcome.reasons} (each one is in {out}/failed.csv)")
    if manifest.unknown:
        lines.append(
            f"{manifest.unknown:,} items hold no word that the encoder knows: their vectors are the mean of the others"
        )
    work = outcome.load_seconds + outcome.encode_seconds
    if outcome.items and work:
        rate = outcome.items / outcome.seconds
        lines += [
            f"{outcome.items:,} items in {outcome.seconds:.0f} s ({rate:,.3g}/s), start and end included; of the work "
            f"{outcome.load_seconds / work:.0%} was loading (up to {outcome.load_mib:,.0f} MiB a process), "
            f"{outcome.encode_seconds / work:.0%} encoding ({outcome.encode_mib:,.0f} MiB)"
        ]
    return "\n".join([*lines, f"written to {out}; next: mealrec prepare ... --features {shlex.quote(str(out))}"])


def _job(args: argparse.Namespace) -> Job:
    # other processes, and other nodes, need the absolute path of a local folder
    encoder = str(model_folder(args.encoder) or args.encoder)
    if args.kind == "titles":
        return TitleJob(encoder, args.segments, args.layers)
    try:
        from trainer.extract.video.job import VideoJob
    except ImportError as error:
        raise UserError(f"videos need packages that are not here ({error}): pip install 'mealrec[video]'") from None
    require_folder(args.videos)  # before the encoder, which may be asked for far away
    return VideoJob(encoder, args.layers, Sampling(args.frames, args.fps, args.timeout))


def _place(args: argparse.Namespace) -> str:
    if args.kind == "titles":
        return ""
    return str(args.videos if is_url(args.videos) else Path(args.videos).absolute())


def _folders(args: argparse.Namespace) -> tuple[Path, ...]:
    """Local folders that every node must be able to read."""
    model = model_folder(args.encoder)
    videos = Path(args.videos).absolute() if args.kind == "videos" and not is_url(args.videos) else None
    return tuple(folder for folder in (model, videos) if folder)


def _sha256(file: Path) -> str:
    try:
        return file_info(file).sha256
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None


def _items(args: argparse.Namespace, given: Path) -> pl.DataFrame:
    """item, title, source of what is to be encoded."""
    items = read_items(given, (args.item_column,))
    if args.kind == "videos":
        return items.select("item", "title").with_columns(pl.Series("source", locate(items, args.videos), pl.String))
    if items["title"].null_count() == len(items):
        raise UserError(f"{given} has no titles: it needs the columns {args.item_column} and title")
    return items.select("item", "title", pl.col("title").fill_null("").alias("source"))


def _add_videos(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--videos",
        required=True,
        metavar="DIR",
        help="folder, or http(s)://, s3:// or gs:// URL, with ITEM.mp4 and so on",
    )
    add(
        "--items",
        type=local_path,
        required=True,
        metavar="FILE",
        help="one id a line, or a table with `item` (and `title`, `video`)",
    )
    default = Sampling()
    add("--frames", type=int, default=default.frames, metavar="K", help="frames per video (default %(default)s)")
    add("--fps", type=float, default=default.fps, help="frames per second, around the middle (default %(default)s)")
    add(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="S",
        help="seconds for one video (default %(default)s)",
    )


def _add_titles(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--titles", type=local_path, required=True, metavar="FILE", help="a table with the columns item and title")
    add("--segments", type=int, metavar="K", help="also K overlapping windows of each title: a content sequence")


def _add_common(parser: argparse.ArgumentParser, unit: int) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=local_path,
        required=True,
        metavar="DIR",
        help="folder to write; an unfinished one is continued",
    )
    add("--item-column", default="item", metavar="COLUMN", help="name of the column of ids (default %(default)s)")
    add("--layers", action="store_true", help="keep the encoder's layer states too (IISAN)")
    limits, where = Limits(), Where()
    add("--batch-size", type=int, default=unit, metavar="N", help="items encoded at a time (default %(default)s)")
    add(
        "--max-failures",
        default=limits.failures,
        metavar="N",
        help="give up when more items fail: a number, or a share of all (default 50%%)",
    )
    add("--retry-failed", action="store_true", help="try those again that failed in an earlier start")
    add("--loaders", type=int, metavar="N", help="processes that decode, one CPU each (default: the CPUs left)")
    add(
        "--encoders",
        type=int,
        metavar="N",
        help="processes that encode (default: one per GPU, else half of the CPUs, or those that --loaders leaves)",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default=where.device, help="what encodes (default %(default)s)")
    add("--launcher", choices=["ray", "inline"], default=where.launcher, help="inline: in this process, without Ray")
