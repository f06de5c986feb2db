"""RecBole: an atomic `.inter` file."""

from __future__ import annotations

from pathlib import Path

from models.errors import UserError
from trainer.data.sources.base import Log, make_log
from trainer.data.sources.checks import require_column
from trainer.data.sources.one_file import OneFile
from trainer.data.sources.reading import read_columns, read_header


def read_recbole(inter: Path, time_format: str | None = None) -> Log:
    """A RecBole atomic `.inter` file: tab-separated, header `name:type`, with user_id, item_id, timestamp."""
    header = read_header(inter, "\t")
    for cell in header:
        if cell.count(":") != 1:
            raise UserError(f"{inter}, line 1: column {cell!r} is not name:type as in RecBole atomic files")
    lists = [cell for cell in header if cell.endswith("_list:token_seq")]
    if lists:
        raise UserError(
            f"{inter}, line 1: {lists[0]} holds a list of items in each row. This is a benchmark file, whose rows are "
            "beginnings of the same histories, without a time for each item; give the .inter file that it was made of, "
            "with one interaction in a row"
        )
    typed = {cell.split(":")[0]: cell for cell in header}
    wanted = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    names = {ours: typed[require_column(inter, theirs, typed)] for ours, theirs in wanted.items()}
    return make_log(read_columns(inter, "\t", names), inter, time_format)


RECBOLE = OneFile(
    help="RecBole atomic file with user_id, item_id, timestamp",
    example="mealrec prepare recbole --inter ml-1m.inter --core-on none --out data/ml-1m",
    option="inter",
    is_for="the .inter file",
    reader=read_recbole,
)
