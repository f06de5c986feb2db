"""Tables of items, for `mealrec extract`: their ids, and their titles and videos where these are known."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from trainer.data.sources.checks import refuse_null, refuse_where, require_column
from trainer.data.sources.parquet import read_parquet
from trainer.data.sources.reading import first_line, read_columns, read_delimited, read_header

#: what a table of items may say about them
_ITEM_COLUMNS = ("title", "video")


def read_items(file: Path) -> pl.DataFrame:
    """Items: columns item, title and video (String, the last two null where unknown), in the order of the file.

    file: CSV, TSV or Parquet with a column `item`, and `title` and `video` (path or URL) where it has them;
    MicroLens's `item,title` without a header; or one id a line. Raises UserError: file, line, and what is wrong.
    """
    if file.suffix.lower() in (".parquet", ".pq"):
        frame = read_parquet(file, ["item"], _ITEM_COLUMNS)
        frame = frame.with_columns(pl.exclude("_line").cast(pl.String))
    else:
        frame = _text_items(file)
    refuse_null(frame, "item", file)
    refuse_where(frame, pl.col("item").is_duplicated(), "item", file, "is there twice")
    absent = [pl.lit(None, pl.String).alias(name) for name in _ITEM_COLUMNS if name not in frame.columns]
    return frame.with_columns(absent).select("item", *_ITEM_COLUMNS)


def _text_items(file: Path) -> pl.DataFrame:
    first = first_line(file)
    separator = "\t" if "\t" in first else ","
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]
    if "item" in cells:
        header = read_header(file, separator)
        retry = {"source", "reason"} <= {*header} and "video" not in header  # the failed.csv of an extraction
        extra = ["source"] if retry else [name for name in _ITEM_COLUMNS if name in header]
        return read_columns(file, separator, {"item": "item"}, extra).rename({"source": "video"} if retry else {})
    if file.suffix.lower() == ".txt" or len(cells) == 1:
        return read_delimited(file, "\t", ["item"])
    if all(cell.isidentifier() for cell in cells):
        require_column(file, "item", cells)
    return read_delimited(file, separator, ["item", "title"])
