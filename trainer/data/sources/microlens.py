"""MicroLens: `user<TAB>item item ...` or the official `user,item,timestamp` CSV, and titles."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from trainer.data.sources.base import Log, first_line, make_log, read_delimited, refuse_null, titles_of
from trainer.data.sources.table import read_table


def read_microlens(pairs: Path, titles: Path | None = None) -> Log:
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
        log = read_table(pairs, "user", "item", "timestamp")
    if titles is None:
        return log
    table = read_delimited(titles, ",", ["item", "title"])
    if table.row(0)[:2] == ("item", "title"):
        table = table.slice(1)
    refuse_null(table, "item", titles)
    return Log(log.frame, (pairs, titles), titles_of(table), dropped=log.dropped)
