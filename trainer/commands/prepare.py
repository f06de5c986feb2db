"""`mealrec prepare`: raw logs, or a synthetic world, to a prepared dataset."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
import typing
from pathlib import Path

from cluster import console
from models.errors import UserError
from retrieval.folders import sole_maker, writable_folder
from trainer.commands.activation import activation
from trainer.commands.subcommands import add_subcommands
from trainer.commands.train_plan import no_rows
from trainer.data.format.manifest import Manifest, load_manifest
from trainer.data.kept import PrepareOptions
from trainer.data.partitioned.run import Where
from trainer.data.prepare import TitlesToContent, prepare, prepare_in_partitions
from trainer.data.sources.base import Source
from trainer.data.sources.registry import SOURCES
from trainer.data.sources.table import SourceInParts
from trainer.data.synthetic.generate import SyntheticOptions, generate
from trainer.extract.pipeline.protocols import ENCODERS, model_folder
from trainer.extract.titles import encoders
from trainer.extract.titles.content import TitleContent
from trainer.local_path import local_path

_SYNTHETIC = (
    "a generated world whose truth is known",
    "mealrec prepare synthetic --users 1000 --items 400 --out data/small",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources and their options to the parser of `mealrec prepare`."""
    kinds = {name: (SOURCES[name].help, SOURCES[name].example) for name in SOURCES} | {"synthetic": _SYNTHETIC}
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "examples:\n" + "\n".join(f"  {example}" for _, example in kinds.values())
    made = add_subcommands(parser, "source", kinds)
    for name, sub in made.items():
        if name in SOURCES:
            SOURCES[name].add_arguments(sub)
        sub.add_argument("--out", type=local_path, required=True, help="folder to write, new or empty")
        if name in SOURCES:
            _add_selection(sub)
            if isinstance(SOURCES[name], SourceInParts):
                _add_partitions(sub)
            sub.set_defaults(make=functools.partial(_from_source, SOURCES[name]))
        else:
            _add_fields(sub)
            sub.set_defaults(make=_generated)


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset, print its statistics, what was dropped and why, and where it is."""
    with sole_maker(args.out):  # refused before a long log is read
        manifest: Manifest = args.make(args)
    console.say(report(manifest))
    console.say(f"written to {args.out}")
    if not manifest.train_rows:
        console.warn(no_rows(args.out))
        return 0
    console.say("\n".join(["next:", *(f"  {line}" for line in [*activation(), next_command(args.out)])]))
    return 0


def next_command(out: Path) -> str:
    """The command that trains on the dataset, as a shell takes it: several systems, to see which is worth keeping."""
    data = str(out) if not str(out).startswith("-") else f"./{out}"
    name = out.absolute().name.lstrip(".-")
    return shlex.join(["mealrec", "train", "--data", data, "--name", name or "first"])


def report(manifest: Manifest) -> str:
    """The statistics of the paper's Table 1, content, and everything dropped, as text."""
    numbers, cold = manifest.statistics, manifest.splits
    lines = [
        f"{'users':<16}{numbers.users:>14,}",
        f"{'items':<16}{numbers.items:>14,}",
        f"{'interactions':<16}{numbers.interactions:>14,}",
        f"{'average length':<16}{numbers.average_length:>14.2f}",
        f"{'sparsity':<16}{numbers.sparsity:>14.2%}",
        f"{'train rows':<16}{manifest.train_rows:>14,}",
        f"{'history length':<16}{manifest.max_length:>14,}",
        f"cold targets: {cold.validation.cold_targets:,} validation, {cold.test.cold_targets:,} test",
    ]
    for field, info in manifest.content.items():
        shape = " x ".join(map(str, info.shape))
        lines.append(f"content {field}: {info.kind}, {shape}, missing for {info.missing:,} items")
    dropped = {reason: count for reason, count in manifest.dropped.items() if count}
    lines += [f"dropped: {count:,} {reason}" for reason, count in dropped.items()] or ["dropped: nothing"]
    return "\n".join(lines)


def _from_source(source: Source, args: argparse.Namespace) -> Manifest:
    names = [field.name for field in dataclasses.fields(PrepareOptions)]
    options = PrepareOptions(**{name: getattr(args, name) for name in names} | {"features": tuple(args.features)})
    of_titles = _of_titles(args)  # refuses a wrong encoder before a long log is read
    writable_folder(args.out)
    if isinstance(source, SourceInParts) and (where := _where(args)):
        return prepare_in_partitions(source.in_parts(args), where, args.out, options, args.command_line, of_titles)
    log = source.read(args)
    for note in log.notes:
        console.note(f"note: {note}")
    return prepare(log, args.out, options, args.command_line, of_titles)


def _where(args: argparse.Namespace) -> Where | None:
    """Where the log is prepared in partitions; None: in this process, as a whole."""
    if args.partitions is not None and args.partitions < 1:
        raise UserError(f"--partitions {args.partitions}: give a number of at least 1")
    return Where(args.launcher, args.partitions) if args.launcher == "ray" or args.partitions else None


def _generated(args: argparse.Namespace) -> Manifest:
    names = [field.name for field in dataclasses.fields(SyntheticOptions)]
    generate(args.out, SyntheticOptions.fitting({name: getattr(args, name) for name in names if name in args}))
    return load_manifest(args.out)


def _of_titles(args: argparse.Namespace) -> TitlesToContent | None:
    if args.segments is not None and args.segments < 1:
        raise UserError(f"--segments {args.segments}: give a number of at least 1")
    if args.text is None:
        if args.segments:
            raise UserError("--segments cuts the titles that --text embeds: add --text minilm")
        if args.layers:
            raise UserError("--layers keeps the states of the encoder that --text runs: add --text minilm")
        return None
    encoder = str(model_folder(args.text) or args.text)
    encoders.describe(encoder, args.layers)
    return TitleContent(encoder, args.segments, args.layers)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    default = PrepareOptions()
    add = parser.add_argument
    add(
        "--k-core", type=int, default=default.k_core, help="fewest interactions per user and item (default %(default)s)"
    )
    add("--core-on", choices=["both", "users", "items", "none"], default=default.core_on, help="sides it holds on")
    add("--sample-users", type=int, metavar="N", help="keep N users, drawn before the k-core")
    add("--seed", type=int, default=default.seed, help="of the sample (default %(default)s)")
    add("--max-length", type=int, help="items in a history (default: 10 to 50, by the length of users' histories)")
    add(
        "--features",
        action="append",
        default=[],
        metavar="DIR",
        help="what `mealrec extract` made (path or URL), or ids.txt or ids.json beside frames.npy, video.npy, "
        "text.npy, *_layers.npy; may be given several times",
    )
    known = ", ".join(ENCODERS["titles"])
    add(
        "--text",
        metavar="NAME",
        help=f"embed titles with {known}, or another text encoder, as `mealrec extract titles --encoder` does",
    )
    add("--segments", type=int, metavar="K", help="cut titles into K overlapping windows, each embedded")
    add("--layers", action="store_true", help="keep the encoder's layer states too (IISAN)")


def _add_partitions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--launcher",
        choices=["inline", "ray"],
        default="inline",
        help="ray: on all CPUs of a Ray cluster, or of this machine, in partitions; inline: in this process (default)",
    )
    add(
        "--partitions",
        type=int,
        metavar="N",
        help="divide the log by user into N partitions on the disk beside --out, and hold one in memory at a time; the "
        "same dataset (default: inline, the whole log in memory; ray, one for each 4,000,000 rows)",
    )


#: what each option of the generated world means
_WORLD = {
    "users": "users",
    "items": "videos",
    "seed": "of everything that is drawn",
    "topics": "topics of the videos, of 20 videos at least; fewer for a catalogue under 400",
    "favourites": "topics that a user likes",
    "mean_length": "videos that a user watches, on average",
    "frames": "frames of a video",
    "width": "numbers in the vector of a frame",
    "text_width": "numbers in the vector of a title",
    "layers": "states of the encoders that are kept, for IISAN",
    "on_topic": "frames that show the video's topic; the others are filler",
    "misleading": "share of the filler that shows another topic",
    "noise": "deviation of the noise on frames, whose signal has about 1",
    "title_signal": "share of a title's words that are of its topic",
    "accident": "share of clicks on any video",
    "drift": "how often a user's interest moves to another favourite",
    "follow": "how often a user goes on with one of the next three videos of a topic",
    "zipf": "how uneven popularity is; 0: even",
    "cold": "share of videos that come out for the last two clicks of users alone",
    "max_length": "videos in a history",
    "behaviours": "some views are likes, too",
}


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """One option per field of SyntheticOptions."""
    types = typing.get_type_hints(SyntheticOptions)
    for field in dataclasses.fields(SyntheticOptions):
        flag = f"--{field.name.replace('_', '-')}"
        if types[field.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                                help=_WORLD[field.name])  # fmt: skip
            continue
        told = f"{_WORLD[field.name]} (default {field.default})"
        kind = types[field.name]
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar="N" if kind is int else "X", help=told)
