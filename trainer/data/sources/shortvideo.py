"""Shortvideo: an interaction CSV with behaviour columns and titles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from trainer.data.sources.base import Log, make_log
from trainer.data.sources.checks import refuse_where
from trainer.data.sources.one_file import OneFile
from trainer.data.sources.reading import read_columns, read_header

#: shortvideo's behaviour columns, in bit order
SHORTVIDEO_BEHAVIOURS = ("cvm_like", "comment", "follow", "collect", "forward", "effective_view", "hate")
_TRUE, _FALSE = ("1", "1.0", "true", "t", "yes"), ("0", "0.0", "false", "f", "no")


def read_shortvideo(interactions: Path, time_format: str | None = None) -> Log:
    """Shortvideo's interaction CSV: ids, time, the behaviours that the file has (as bits) and titles."""
    header = read_header(interactions, ",")
    names = tuple(name for name in SHORTVIDEO_BEHAVIOURS if name in header)
    extra = [*names, *(["title"] if "title" in header else [])]
    frame = read_columns(interactions, ",", {"user": "user_id", "item": "pid", "time": "exposed_time"}, extra)
    bits = pl.lit(0, pl.UInt8)
    for bit, name in enumerate(names):
        text = pl.col(name).fill_null("0").str.to_lowercase()
        refuse_where(frame, ~text.is_in([*_TRUE, *_FALSE]), name, interactions, "is neither true nor false")
        bits = bits | pl.when(text.is_in(_TRUE)).then(pl.lit(1 << bit, pl.UInt8)).otherwise(pl.lit(0, pl.UInt8))
    if names:
        frame = frame.with_columns(bits.alias("behaviours"))
    return replace(make_log(frame, interactions, time_format), behaviour_names=names)


SHORTVIDEO = OneFile(
    help="Shortvideo: user_id, pid, exposed_time and behaviour columns",
    example="mealrec prepare shortvideo --interactions interaciton.csv --features arrays/ --out data/short",
    option="interactions",
    is_for="the CSV of interactions",
    reader=read_shortvideo,
)
