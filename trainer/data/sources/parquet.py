"""Parquet files of users: one file, whatever its name, or a folder of parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
import psutil

from models.errors import UserError
from trainer.data.sources.checks import require_column

SUFFIXES = (".parquet", ".pq", ".parq")
_MAGIC = b"PAR1"
#: of a value in memory, at least; equal values take no room in the file
_VALUE_BYTES = 8


def is_parquet(file: Path) -> bool:
    """Whether to read `file` as Parquet: by its name, by its first bytes, or as a folder of parts."""
    if file.suffix.lower() in SUFFIXES or file.is_dir():
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False  # told by whoever opens it as text


def parquet_files(file: Path) -> tuple[Path, ...]:
    """`file`, or the parts in that folder, sorted by path; hidden files and those with "_" in front are not parts.

    Raises UserError for a folder that holds none.
    """
    if not file.is_dir():
        return (file,)
    found = sorted(path for path in file.rglob("*") if path.is_file())
    parts = [path for path in found if not any(name[0] in "._" for name in path.relative_to(file).parts)]
    parts = [path for path in parts if path.suffix.lower() in SUFFIXES]
    if not parts:
        there = f"such as {found[0].name}" if found else "it holds no files"
        raise UserError(
            f"{file} is a folder without Parquet parts ({there}); cannot read it: give one file, or a folder of parts "
            f"that end in {', '.join(SUFFIXES)}"
        )
    return tuple(parts)


def read_parquet(file: Path, columns: Iterable[str], extra: Iterable[str] = ()) -> pl.DataFrame:
    """`columns`, those of `extra` that are there, and the number of each row, `_row`, of a Parquet file or its parts.

    Of several parts `_file` says which one a row is from.
    Raises UserError: unreadable, a column that is not there or holds lists or the like, no rows, parts that differ.
    """
    parts = parquet_files(file)
    wanted, also = list(dict.fromkeys(columns)), list(extra)
    return joined({str(part): read_part(part, wanted, also) for part in parts}, str(file))


def joined(frames: Mapping[str, pl.DataFrame], source: str) -> pl.DataFrame:
    """The rows of all parts, by the name of each. Of several parts `_file` says which one a row is from.

    source: what they are parts of, for messages. Raises UserError: no rows, parts that differ in a type.
    """
    named = {name: frame for name, frame in frames.items() if not frame.is_empty()}
    common_types([frame.schema for frame in named.values()], source)
    if len(frames) == 1:
        return next(iter(named.values()))
    files = pl.Enum(list(named))  # a byte or few for a row
    marked = [frame.with_columns(_file=pl.lit(name, files)) for name, frame in named.items()]
    return pl.concat(marked, how="diagonal_relaxed")


def common_types(schemas: Sequence[pl.Schema], source: str) -> pl.Schema:
    """The types of the columns of all parts together. schemas: of those that have rows.

    source: what they are parts of, for messages. Raises UserError: there are none, or two differ in a type.
    """
    if not schemas:
        raise UserError(f"{source} has no rows; is it the right file?")
    for column in schemas[0]:
        types = {schema[column] for schema in schemas if column in schema}
        if not (len(types) == 1 or all(dtype.is_numeric() for dtype in types)):
            kinds = ", ".join(sorted(map(str, types)))
            raise UserError(f"the parts in {source} differ in the type of {column!r} ({kinds}); write them alike")
    return pl.concat([pl.DataFrame(schema=schema) for schema in schemas], how="diagonal_relaxed").schema


def schema_of(file: Path) -> pl.Schema:
    """Names and types of the columns of a Parquet file, or of the first of its parts. Raises UserError: unreadable."""
    part = parquet_files(file)[0]
    try:
        return pl.Schema(pl.read_parquet_schema(part))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{part} cannot be read as Parquet ({error})") from None


def read_part(file: Path, columns: Iterable[str], extra: Iterable[str] = ()) -> pl.DataFrame:
    """`read_parquet` of one file, which may have no rows."""
    schema = schema_of(file)
    try:
        wanted = [require_column(file, name, schema, text=False) for name in columns]
        wanted += [name for name in extra if name in schema and name not in wanted]
        rows = pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()  # as the file's metadata says
        needed, there = rows * len(wanted) * _VALUE_BYTES, psutil.virtual_memory().total
        if needed > there:
            raise UserError(
                f"{file} says that it has {rows:,} rows, which need {needed / 1e9:,.1f} GB of memory and more, and "
                f"this machine has {there / 1e9:,.1f}; take a sample of it"
            )
        frame = pl.read_parquet(file, columns=wanted, glob=False, hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({error})") from None
    for name, dtype in frame.schema.items():
        if dtype.is_nested() or dtype == pl.Object:
            raise UserError(f"{file}: column {name!r} is {dtype}; one value per row is expected")
    return frame.with_columns(_row=pl.int_range(1, pl.len() + 1))
