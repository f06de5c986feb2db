"""`mealrec prepare`: raw logs, or a synthetic world, to a prepared dataset."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from pathlib import Path

from trainer.commands.kinds import add_kinds
from trainer.data.format.manifest import Manifest, load_manifest
from trainer.data.prepare import PrepareOptions, prepare
from trainer.data.sources.base import Log
from trainer.data.sources.microlens import read_microlens
from trainer.data.sources.recbole import read_recbole
from trainer.data.sources.shortvideo import read_shortvideo
from trainer.data.sources.table import read_table
from trainer.data.synthetic.generate import SyntheticOptions, generate

_KINDS = {
    "microlens": (
        "MicroLens: pairs as TSV (user<TAB>item item ...) or CSV (user,item,timestamp)",
        "mealrec prepare microlens --pairs MicroLens-50k_pairs.tsv --titles MicroLens-50k_titles.csv "
        "--text minilm --segments 5 --out data/microlens",
    ),
    "shortvideo": (
        "Shortvideo: user_id, pid, exposed_time and behaviour columns",
        "mealrec prepare shortvideo --interactions interaciton.csv --features arrays/ --out data/short",
    ),
    "recbole": (
        "RecBole atomic file with user_id, item_id, timestamp",
        "mealrec prepare recbole --inter ml-1m.inter --core-on none --out data/ml-1m",
    ),
    "table": (
        "any CSV, TSV or Parquet file with a user, an item and a time column",
        "mealrec prepare table --file log.parquet --user user --item video --time seen_at --out data/log",
    ),
    "synthetic": (
        "a generated world whose truth is known",
        "mealrec prepare synthetic --users 10000 --items 2000 --out data/demo",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources and their options to the parser of `mealrec prepare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "examples:\n" + "\n".join(f"  {example}" for _, example in _KINDS.values())
    made = add_kinds(parser, "source", _KINDS)
    made["microlens"].add_argument("--pairs", type=Path, required=True, help="the TSV or CSV of interactions")
    made["microlens"].add_argument("--titles", type=Path, help="item,title CSV")
    made["shortvideo"].add_argument("--interactions", type=Path, required=True, help="the CSV of interactions")
    made["recbole"].add_argument("--inter", type=Path, required=True, help="the .inter file")
    made["table"].add_argument("--file", type=Path, required=True, help="CSV, TSV or Parquet")
    for column in ("user", "item", "time"):
        made["table"].add_argument(f"--{column}", required=True, metavar="COLUMN", help=f"name of the {column} column")
    for name, sub in made.items():
        sub.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
        if name == "synthetic":
            _add_fields(sub)
        else:
            _add_selection(sub)


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset, print its statistics, what was dropped and why, and where it is."""
    if args.source == "synthetic":
        names = [field.name for field in dataclasses.fields(SyntheticOptions)]
        generate(args.out, SyntheticOptions(**{name: getattr(args, name) for name in names}))
        manifest = load_manifest(args.out)
    else:
        names = [field.name for field in dataclasses.fields(PrepareOptions)]
        options = PrepareOptions(**{name: getattr(args, name) for name in names} | {"features": tuple(args.features)})
        manifest = prepare(_import(args), args.out, options, shlex.join(["mealrec", *sys.argv[1:]]))
    print(report(manifest))
    print(f"written to {args.out}")
    return 0


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
        f"cold targets: {cold.validation.cold_targets:,} validation, {cold.test.cold_targets:,} test",
    ]
    for field, info in manifest.content.items():
        shape = " x ".join(map(str, info.shape))
        lines.append(f"content {field}: {info.kind}, {shape}, missing for {info.missing:,} items")
    dropped = {reason: count for reason, count in manifest.dropped.items() if count}
    lines += [f"dropped: {count:,} {reason}" for reason, count in dropped.items()] or ["dropped: nothing"]
    return "\n".join(lines)


def _import(args: argparse.Namespace) -> Log:
    if args.source == "microlens":
        return read_microlens(args.pairs, args.titles)
    if args.source == "shortvideo":
        return read_shortvideo(args.interactions)
    if args.source == "recbole":
        return read_recbole(args.inter)
    return read_table(args.file, args.user, args.item, args.time)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    default = PrepareOptions()
    add = parser.add_argument
    add(
        "--k-core", type=int, default=default.k_core, help="fewest interactions per user and item (default %(default)s)"
    )
    add("--core-on", choices=["both", "users", "items", "none"], default=default.core_on, help="sides it holds on")
    add("--sample-users", type=int, metavar="N", help="keep N users, drawn before the k-core")
    add("--seed", type=int, default=default.seed, help="of the sample (default %(default)s)")
    add("--max-length", type=int, default=default.max_length, help="items in a history (default %(default)s)")
    add(
        "--features",
        action="append",
        default=[],
        metavar="DIR",
        help="what `mealrec extract` made (path or URL), or ids.txt or ids.json beside frames.npy, video.npy, "
        "text.npy, *_layers.npy; may be given several times",
    )
    add("--text", choices=["minilm"], help="embed titles (needs the extra `text`)")
    add("--segments", type=int, metavar="K", help="cut titles into K overlapping windows, each embedded")
    add("--layers", action="store_true", help="keep the encoder's layer states too (IISAN)")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """One option per field of SyntheticOptions."""
    types = typing.get_type_hints(SyntheticOptions)
    for field in dataclasses.fields(SyntheticOptions):
        flag = f"--{field.name.replace('_', '-')}"
        if types[field.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
            continue
        parser.add_argument(flag, type=types[field.name], default=field.default, help=f"default {field.default}")
