"""MicroLens: `user<TAB>item item ...` or the official `user,item,timestamp` CSV, and titles."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import polars as pl

from trainer.data.sources.base import Log, first_titles, make_log
from trainer.data.sources.checks import refuse_null
from trainer.data.sources.ids import with_ids
from trainer.data.sources.reading import first_line, read_delimited
from trainer.data.sources.table import read_table
from trainer.data.sources.times import add_time_format
from trainer.local_path import local_path


class MicroLens:
    """`mealrec prepare microlens`."""

    help = "MicroLens: pairs as TSV (user<TAB>item item ...) or CSV (user,item,timestamp)"
    example = (
        "mealrec prepare microlens --pairs MicroLens-50k_pairs.tsv --titles MicroLens-50k_titles.csv "
        "--text minilm --segments 5 --out data/microlens"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pairs", type=local_path, required=True, help="the TSV or CSV of interactions")
        parser.add_argument("--titles", type=local_path, help="item,title CSV")
        add_time_format(parser)

    def read(self, args: argparse.Namespace) -> Log:
        return read_microlens(args.pairs, args.titles, args.time_format)


def read_microlens(pairs: Path, titles: Path | None = None, time_format: str | None = None) -> Log:
    """MicroLens: `user<TAB>item item ...` (chronological, no times) or the official `user,item,timestamp` CSV.

    titles: `item,title` with or without a header. Raises UserError naming file and line.
    """
    if "\t" in first_line(pairs):
        lines = read_delimited(pairs, "\t", ["user", "items"])
        refuse_null(lines, "items", pairs)
        frame = lines.with_columns(pl.col("items").str.split(" ")).explode("items").filter(pl.col("items") != "")
        order = pl.int_range(pl.len())
        log = make_log(frame.select("user", pl.col("items").alias("item"), order.alias("time"), "_line"), pairs)
    else:
        log = read_table(pairs, "user", "item", "timestamp", time_format=time_format)
    if titles is None:
        return log
    table = read_delimited(titles, ",", ["item", "title"])
    if table.row(0)[:2] == ("item", "title"):
        table = table.slice(1)
    return replace(log, files=(*log.files, titles), titles=first_titles(with_ids(table, "item", titles)))
