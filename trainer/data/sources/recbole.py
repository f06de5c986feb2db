"""RecBole: an atomic `.inter` file."""

from __future__ import annotations

from pathlib import Path

from models.errors import UserError
from trainer.data.sources.base import Log, make_log, read_columns, read_header, require_column


def read_recbole(inter: Path) -> Log:
    """A RecBole atomic `.inter` file: tab-separated, header `name:type`, with user_id, item_id, timestamp."""
    header = read_header(inter, "\t")
    for cell in header:
        if cell.count(":") != 1:
            raise UserError(f"{inter}, line 1: column {cell!r} is not name:type as in RecBole atomic files")
    typed = {cell.split(":")[0]: cell for cell in header}
    wanted = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    names = {ours: typed[require_column(inter, theirs, typed)] for ours, theirs in wanted.items()}
    return make_log(read_columns(inter, "\t", names), inter)
