"""The trials of a plan: every run that it consists of, each with its complete configuration."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from models.errors import UserError
from models.systems import check_content
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import Manifest
from trainer.study.plan import Block, Part, Plan
from trainer.study.record import LeftOutRecord, TrialRecord, factors_suffix
from trainer.study.space import points

_MOST = 10_000


@dataclass(frozen=True)
class Data:
    """A dataset of a study. name: what tables call it. path: of the folder, absolute."""

    name: str
    path: str
    manifest: Manifest


@dataclass(frozen=True)
class Trial(TrialRecord):
    """One run of a study, with its complete configuration. test: whether the run reads the test targets at its end.
    alone: whether nothing runs beside it. searched: whether its part is a search, which may stop it."""

    config: RunConfig
    test: bool
    alone: bool
    searched: bool

    def record(self) -> TrialRecord:
        """What study.json says of it."""
        return TrialRecord(**{each.name: getattr(self, each.name) for each in fields(TrialRecord)})

    @property
    def shares(self) -> bool:
        """Whether another trial of the same configuration can have its results in this one's run.

        Not where time and memory are measured alone, nor where the scheduler of a search may stop the run.
        """
        return not (self.alone or self.searched)


@dataclass(frozen=True)
class Given:
    """What the command adds to a plan. settings: as in --set, over everything else. seeds, systems: instead of the
    plan's."""

    recipe: str = "default"
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    systems: tuple[str, ...] | None = None


def expand(plan: Plan, datasets: Sequence[Data], given: Given) -> tuple[list[Trial], list[LeftOutRecord]]:
    """All trials, in the order of the plan, and what is left out because a dataset lacks content for it.

    A configuration that two parts ask for is trained once. Raises UserError, naming part and system, for an unknown
    setting or a bad value, and for a plan without a trial.
    """
    if (count := len(datasets) * sum(_count(plan, part, given) for part in plan.parts.values())) > _MOST:
        raise UserError(f"the plan has {count:,} trials, more than {_MOST:,}; make its grids smaller")
    trials: list[Trial] = []
    left_out: list[LeftOutRecord] = []
    for (name, part), data in itertools.product(plan.parts.items(), datasets):
        several = f"-{data.name}" if len(datasets) > 1 else ""
        for block in part.runs:
            for system in block.systems:
                if given.systems and system not in given.systems:
                    continue
                try:
                    found = list(_of_system(plan, name, block, system, data, given, several))
                except _LacksContentError as error:
                    left_out.append(LeftOutRecord(name, system, data.name, str(error)))
                else:
                    trials += found
    if not trials:
        why = "; ".join(f"{each.system}: {each.why}" for each in left_out[:3])
        raise UserError(f"the plan has no trial left{f' ({why})' if why else ''}; see --systems and --data")
    return _shared(_distinct(trials)), left_out


def _count(plan: Plan, part: Part, given: Given) -> int:
    """How many trials a part has for each dataset, before any is left out."""
    seeds = len(given.seeds or part.seeds or plan.seeds)
    return seeds * sum(
        len(block.systems) * max(1, len(block.variants)) * (part.trials or math.prod(map(len, block.grid.values())))
        for block in part.runs
    )


class _LacksContentError(Exception):
    pass


def _of_system(
    plan: Plan, part_name: str, block: Block, system: str, data: Data, given: Given, several: str
) -> Iterator[Trial]:
    part = plan.parts[part_name]
    for variant, factors in itertools.product(block.variants or {"": {}}, _points(part, block)):
        varied = {**block.variants.get(variant, {}), **factors}
        _check_varied(part_name, varied, given.settings)
        settings = {**plan.settings, **block.settings, **varied}
        label = f"{variant or system}{factors_suffix(factors)}"
        try:
            config = recipe.load(
                given.recipe, system, [*map(_as_set, settings.items()), *given.settings], data.path,
                data.manifest.train_rows,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"part {part_name}, {label}: {error}") from None
        _check_content(config, data)
        for seed in given.seeds or part.seeds or plan.seeds:
            name = f"{part_name}-{_plain(label)}{several}-s{seed}"
            yield Trial(
                name, part_name, system, label, data.name, seed, factors, run=name,
                config=recipe.with_seed(config, seed), test=part.test == "all", alone=part.alone,
                searched=part.trials > 0,
            )  # fmt: skip


def _check_varied(part: str, varied: Mapping[str, Any], settings: Sequence[str]) -> None:
    """A setting of the command would make alternatives of the plan the same: raise UserError."""
    for setting in settings:
        key = setting.partition("=")[0]
        if near := [each for each in varied if f"{each}.".startswith(f"{key}.") or f"{key}.".startswith(f"{each}.")]:
            raise UserError(f"--set {setting}: part {part} of the plan varies {near[0]}; leave one of them out")


def _points(part: Part, block: Block) -> list[dict[str, Any]]:
    """The values of the factors of each configuration."""
    if part.trials:
        return points(block.dimensions(), part.trials, seed=0)
    return [dict(zip(block.grid, values, strict=True)) for values in itertools.product(*block.grid.values())]


def _check_content(config: RunConfig, data: Data) -> None:
    try:
        check_content(config.model.name, config.model.options, data.manifest.shapes)
    except UserError as error:
        raise _LacksContentError(str(error)) from None


def _as_set(item: tuple[str, Any]) -> str:
    return f"{item[0]}={json.dumps(item[1])}"  # JSON is YAML


def _plain(label: str) -> str:
    """A label as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label.replace(" -", " no ")).strip("-")


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, numbered where labels become the same name."""
    names: dict[str, int] = {}
    found = []
    for trial in trials:
        names[trial.name] = names.get(trial.name, 0) + 1
        number = names[trial.name]
        name = trial.name if number == 1 else f"{trial.name}-{number}"
        found.append(replace(trial, name=name, run=name))
    return found


def _shared(trials: Sequence[Trial]) -> list[Trial]:
    """The trials; those that share have their results in the folder of the first one with the same configuration.

    A run that two trials share is tested if one of them asks for it.
    """
    keys = [_identity(trial) if trial.shares else trial.name for trial in trials]
    first: dict[str, Trial] = {}
    for key, trial in zip(keys, trials, strict=True):
        first.setdefault(key, trial)
    tested = {key for key, trial in zip(keys, trials, strict=True) if trial.test}
    return [replace(trial, run=first[key].name, test=key in tested) for key, trial in zip(keys, trials, strict=True)]


def _identity(trial: Trial) -> str:
    config = trial.config
    content = [trial.dataset, config.fingerprint(), config.train.epochs, config.eval.model_dump(mode="json")]
    return json.dumps(content, sort_keys=True)
