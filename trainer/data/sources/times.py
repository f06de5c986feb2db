"""Times of interactions, as whole numbers and as what orders them within one."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import refuse_null, refuse_where


def whole_times(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    """`time` as Int64 seconds (or whatever unit the source has), and `_exact` to order rows within one of them."""
    time = pl.col("time")
    if frame.schema["time"].is_temporal():
        exact = frame.with_columns(time.cast(pl.Datetime("us")).dt.epoch("us").alias("_exact"))
        refuse_null(exact, "time", file)
        return exact.with_columns((pl.col("_exact") // 1_000_000).alias("time"))
    whole = frame.with_columns(time.cast(pl.Int64, strict=False).alias("_exact"))
    if frame.schema["time"].is_integer() or frame.schema["time"] == pl.String:
        if not whole["_exact"].has_nulls():
            return whole.with_columns(pl.col("_exact").alias("time"))
    elif not frame.schema["time"].is_float():
        raise UserError(f"{file}: the time column is {frame.schema['time']}; give numbers such as Unix seconds")
    real = frame.with_columns(time.cast(pl.Float64, strict=False).alias("_exact"))
    bad = ~(pl.col("_exact").is_finite() & (pl.col("_exact").abs() < 2.0**63)).fill_null(False)
    refuse_where(real, bad, "time", file, "is not a time; give numbers such as Unix seconds")
    # integers beside fractions go through Float64 only for the order: 2^53 seconds is far beyond any calendar
    return real.with_columns(pl.col("_exact").floor().cast(pl.Int64).alias("time"))
