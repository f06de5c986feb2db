"""Tables of items: their ids, and their titles and videos where these are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from trainer.data.sources.checks import refuse_where, require_column
from trainer.data.sources.ids import with_ids, with_text
from trainer.data.sources.parquet import is_parquet, read_parquet, schema_of
from trainer.data.sources.reading import first_cells, read_columns, read_delimited, read_header, separator_of

#: what a table of items may say about them
_ITEM_COLUMNS = ("title", "video")


def read_items(file: Path, names: Sequence[str] = ("item",), repeated: bool = False) -> pl.DataFrame:
    """Items: columns item, title and video (String, the last two null where unknown), in the order of the file.

    file: CSV, TSV or Parquet with a column of ids, and `title` and `video` (path or URL) where it has them;
    MicroLens's `item,title` without a header; or one id a line. names: what the column of ids is called, the last of
    these that is there. repeated: an item may be there more than once.
    Raises UserError: file, line, and what is wrong.
    """
    if is_parquet(file):
        schema = schema_of(file)
        item = _named(names, schema) or require_column(file, names[-1], schema, text=False)
        frame = read_parquet(file, [item], _ITEM_COLUMNS).rename({item: "item"})
    else:
        frame = _text_items(file, names)
    frame = with_ids(frame, "item", file)
    absent = [pl.lit(None, pl.String).alias(name) for name in _ITEM_COLUMNS if name not in frame.columns]
    frame = frame.with_columns(absent)
    for column in _ITEM_COLUMNS:
        frame = with_text(frame, column, file)
    if not repeated:
        refuse_where(frame, pl.col("item").is_duplicated(), "item", file, "is there twice")
    return frame.select("item", *_ITEM_COLUMNS)


def _named(names: Iterable[str], header: Iterable[str]) -> str | None:
    there = set(header)
    return next((name for name in reversed([*names]) if name in there), None)


def _text_items(file: Path, names: Sequence[str]) -> pl.DataFrame:
    separator = separator_of(file, names)
    cells = [cell.strip() for cell in first_cells(file, separator)]
    if item := _named(names, cells):
        header = read_header(file, separator)
        retry = {"source", "reason"} <= {*header} and "video" not in header  # the failed.csv of an extraction
        extra = ["source"] if retry else [name for name in _ITEM_COLUMNS if name in header and name != item]
        return read_columns(file, separator, {"item": item}, extra).rename({"source": "video"} if retry else {})
    if "item" not in names:  # only a name that the user gave
        require_column(file, names[-1], cells)
    if file.suffix.lower() == ".txt" or len(cells) == 1:
        return read_delimited(file, "\t", ["item"])
    if all(cell.isidentifier() for cell in cells):
        require_column(file, "item", cells)
    return read_delimited(file, separator, ["item", "title"])
