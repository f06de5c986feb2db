"""What a run costs because of the size of its catalogue: told before it begins, with the settings that change it."""

from __future__ import annotations

from models.errors import UserError
from models.options.base import SystemOptions
from models.options.ranking import RankingOptions
from trainer.config.schema import RunConfig

#: from so many items on, the work on all of them is most of a step (docs/scale.md)
LARGE = 100_000
#: what is wrong with `train.lazy_adam` where no sample is taken
NO_SAMPLE = (
    "train.lazy_adam=true (and with it engine.item_rows=sharded) is for steps that read few rows of the item table, "
    "and the steps of this system read every row; it needs sasrec, cl4srec or tedrec, alone or under mealrec, with "
    "ranking.negatives, such as --set model.ranking.negatives=4096 (mealrec: model.tedrec.ranking.negatives)"
)


def growing_costs(config: RunConfig, items: int) -> list[str]:
    """One line per thing in a step of this run that grows with the number of items, if the catalogue is large."""
    if items < LARGE:
        return []
    if config.model.options.reads_catalogue:
        return [
            f"{config.model.name}: a step of this system reads and updates the vectors of all {items:,} items, and no "
            "setting changes that; sasrec, cl4srec, tedrec and mealrec can do with a sample (docs/scale.md)"
        ]
    found, lines = _ranking(config.model.options), []
    if found is None:
        return []
    where, ranking = found
    if not ranking.negatives:
        lines.append(
            f"{config.model.name}: a step compares each of its rows with all {items:,} items; "
            f"--set {where}.negatives=4096 compares with a sample (docs/scale.md)"
        )
    if not config.train.lazy_adam:
        also = "" if ranking.negatives else f", with {where}.negatives"
        lines.append(
            f"{config.model.name}: a step updates the vectors of all {items:,} items; --set train.lazy_adam=true "
            f"--set engine.name=torch updates those that it reads{also} (docs/scale.md)"
        )
    return lines


def check_sample(config: RunConfig) -> None:
    """Raise UserError for `train.lazy_adam` with a system, or options of it, whose steps read all items."""
    found = _ranking(config.model.options)
    if config.train.lazy_adam and (found is None or not found[1].negatives):
        raise UserError(f"{config.model.name}: {NO_SAMPLE}")


def table_width(options: SystemOptions) -> int:
    """Numbers that a system learns for each item, in tables of vectors; 0 if it has no such table, or none is known."""
    found = _ranking(options)
    if found is None and not options.reads_catalogue:
        return 0
    part = getattr(options, getattr(options, "backbone", ""), options)
    return int(getattr(part, "hidden", 0)) * (2 if found is not None and found[1].untied else 1)


def _ranking(options: SystemOptions) -> tuple[str, RankingOptions] | None:
    """The section of ranking options that is in effect, and its key."""
    backbone = getattr(options, "backbone", None)
    section = "model" if backbone is None else f"model.{backbone}"
    ranking = getattr(options if backbone is None else getattr(options, backbone), "ranking", None)
    return (f"{section}.ranking", ranking) if isinstance(ranking, RankingOptions) else None
