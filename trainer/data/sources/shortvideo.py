"""Shortvideo: an interaction CSV with behaviour columns and titles."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from trainer.data.sources.base import Log, make_log, read_columns, read_header, refuse_where, titles_of

#: shortvideo's behaviour columns, in bit order
SHORTVIDEO_BEHAVIOURS = ("cvm_like", "comment", "follow", "collect", "forward", "effective_view", "hate")
_TRUE, _FALSE = ("1", "1.0", "true", "t", "yes"), ("0", "0.0", "false", "f", "no")


def read_shortvideo(interactions: Path) -> Log:
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
    log = make_log(frame.with_columns(bits.alias("behaviours")), interactions, behaviours=bool(names))
    titles = titles_of(frame) if "title" in extra else {}
    return Log(log.frame, log.files, titles, names, log.dropped)
