"""A plan: a YAML file that says which runs a study consists of.

A plan has `parts`, each of which answers one question and has one figure. A part has `runs`: blocks that name systems
and what they are trained with. `include` takes over the parts of other plans, and `scales` has smaller forms of a plan,
chosen by `mealrec study --scale`. docs/study.md describes every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import UserError
from models.registry import nearest
from models.systems import SYSTEMS
from trainer.study.record import FigureKind, Tested
from trainer.study.space import Dimension, dimension
from trainer.text_files import read_yaml

FOLDER = Path(__file__).parent / "plans"
FULL = "full"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Section):
    """Systems, and what they are trained with.

    systems: their names, or "all"
    settings: what differs from the recipe, by key, as in --set
    variants: named alternatives, each with settings of its own; each system is trained once as each of them
    grid: values of settings; every combination is trained
    space: what a search draws settings from, see `trainer.study.space`
    """

    systems: tuple[str, ...]
    settings: Mapping[str, Any] = {}
    variants: Mapping[str, Mapping[str, Any]] = {}
    grid: Mapping[str, tuple[Any, ...]] = {}
    space: Mapping[str, str | tuple[Any, ...]] = {}

    @model_validator(mode="before")
    @classmethod
    def _all_systems(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("systems") == "all":
            return {**values, "systems": tuple(SYSTEMS)}
        return values

    @model_validator(mode="after")
    def _known(self) -> Block:
        for system in self.systems:
            SYSTEMS[system]  # raises UserError with the nearest name
        if empty := [key for key, values in self.grid.items() if not values]:
            raise UserError(f"grid: {empty[0]} has no values")
        self.dimensions()
        return self

    def dimensions(self) -> dict[str, Dimension]:
        """The dimensions of `space` by key."""
        return {key: dimension(key, text) for key, text in self.space.items()}


class Part(_Section):
    """One question.

    title: of its figure
    figure: how the report shows it: bars, heatmap, lines, complexity, embedding or search
    runs: what is trained
    seeds: each configuration is trained once with each (default: those of the plan)
    test: all, or chosen: only the configuration with the best validation is tested, one for each system and dataset
    alone: one run at a time, for figures of time and memory
    trials: configurations that a search draws for each system
    patience: epochs that a search trains every configuration for, before it stops bad ones
    """

    title: str
    figure: FigureKind = "bars"
    runs: tuple[Block, ...] = Field(min_length=1)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    test: Tested = "all"
    alone: bool = False
    trials: int = Field(default=0, ge=0, le=1 << 14)
    patience: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _searches_or_not(self) -> Part:
        searched = [bool(block.space) for block in self.runs]
        if any(searched) != all(searched):
            raise UserError("a part is a search or it is not: give every block of its runs a space, or none")
        if all(searched) != (self.trials > 0):
            raise UserError("a search needs both: trials in its part, and a space in each block of its runs")
        if self.trials and self.test == "all":
            raise UserError("a search chooses on validation: give its part test: chosen")
        return self

    @property
    def factors(self) -> list[str]:
        """The settings that differ between its runs, by key."""
        return list(dict.fromkeys(key for block in self.runs for key in (*block.grid, *block.space)))


class Smaller(_Section):
    """What a scale replaces in a part. grid: values of these keys; the other keys stay. systems: only these stay."""

    grid: Mapping[str, tuple[Any, ...]] = {}
    seeds: tuple[int, ...] | None = None
    trials: int | None = None
    systems: tuple[str, ...] | None = None


class Scale(_Section):
    """A smaller form of a plan. world: a dataset that is generated where no --data is given, with these options of
    `mealrec prepare synthetic`."""

    recipe: str | None = None
    settings: Mapping[str, Any] = {}
    seeds: tuple[int, ...] | None = None
    parts: Mapping[str, Smaller] = {}
    world: Mapping[str, Any] | None = None


class Plan(_Section):
    """The content of a plan file. about: one sentence on what it answers."""

    about: str
    include: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(default=(2020,), min_length=1)
    settings: Mapping[str, Any] = {}
    parts: Mapping[str, Part] = {}
    scales: Mapping[str, Scale] = {}


def names() -> list[str]:
    """Names of the plans that come with MealRec."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_plan(plan: str) -> Plan:
    """The plan of this name, or in the YAML file at this path, with the parts of the plans that it includes.

    Raises UserError that names the file, the part and the nearest valid name for an unknown plan, key or system.
    """
    path = Path(plan)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{plan}.yaml"
        if not path.exists():
            raise UserError(f"unknown plan {plan!r}: {nearest(plan, names())} (or give the path of a .yaml file)")
    made = parse_plan(read_yaml(path), f"plan {path}")
    for name in reversed(made.include):  # each stands before those that were taken over already
        made = _with(made, load_plan(name))
    if not made.parts:
        raise UserError(f"plan {path}: it has no parts, and includes none")
    for scale in made.scales.values():
        for name in scale.parts:
            if name not in made.parts:
                raise UserError(f"plan {path}, scales: unknown part {name!r}: {nearest(name, made.parts)}")
    return made


def _with(plan: Plan, other: Plan) -> Plan:
    """The plan with the parts of another one, and what that one's scales replace in them; its own go before."""
    parts = {key: part.model_copy(update={"seeds": part.seeds or other.seeds}) for key, part in other.parts.items()}
    scales = {}
    for name, scale in plan.scales.items():
        theirs = other.scales.get(name, Scale())
        smaller = {key: theirs.parts.get(key, Smaller()) for key in parts}
        inherited = {
            key: each.model_copy(update={"seeds": each.seeds or theirs.seeds}) for key, each in smaller.items()
        }
        scales[name] = scale.model_copy(update={"parts": {**inherited, **scale.parts}})
    return plan.model_copy(update={"parts": {**parts, **plan.parts}, "scales": scales})


def parse_plan(values: Mapping[str, Any], where: str) -> Plan:
    """A plan from plain values, without what it includes. where: names it in messages. Raises UserError."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}:\n{_explain(error)}") from None


def at_scale(plan: Plan, scale: str) -> tuple[Plan, Scale]:
    """The plan in its form of this scale, and the scale. Raises UserError for an unknown one."""
    if scale == FULL:
        return plan, Scale()
    if scale not in plan.scales:
        raise UserError(f"unknown scale {scale!r}: {nearest(scale, [FULL, *plan.scales])}")
    chosen = plan.scales[scale]
    parts = {name: _smaller(part, chosen, chosen.parts.get(name)) for name, part in plan.parts.items()}
    return plan.model_copy(update={"parts": parts, "settings": {**plan.settings, **chosen.settings}}), chosen


def _smaller(part: Part, scale: Scale, own: Smaller | None) -> Part:
    own = own or Smaller()
    runs = []
    for block in part.runs:
        kept = tuple(system for system in block.systems if own.systems is None or system in own.systems)
        grid = {key: own.grid.get(key, values) for key, values in block.grid.items()}
        runs += [block.model_copy(update={"grid": grid, "systems": kept})] if kept else []
    return part.model_copy(
        update={
            "runs": tuple(runs),
            "seeds": own.seeds or scale.seeds or part.seeds,
            "trials": part.trials if own.trials is None else own.trials,
        }
    )


def _explain(error: ValidationError) -> str:
    """One line for each problem, with the nearest valid key for an unknown one."""
    lines = []
    for problem in error.errors(include_url=False):
        place = [str(step) for step in problem["loc"]]
        cause = problem.get("ctx", {}).get("error")
        where = ".".join(place) or "the plan"
        if problem["type"] == "too_short" and len(error.errors()) > 1:  # of a list whose only entry is wrong itself
            continue
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where}: {nearest(place[-1], _keys(place[:-1]))}")
        elif isinstance(cause, UserError):
            lines.append(f"{where}: {cause}")
        else:
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _keys(place: list[str]) -> list[str]:
    """Valid keys of the section at `place`."""
    sections: dict[str, type[BaseModel]] = {"parts": Part, "runs": Block, "scales": Scale}
    section: type[BaseModel] = Plan
    for step in place:
        section = sections.get(step, section)
        if step == "parts" and place[0] == "scales":
            section = Smaller
    return list(section.model_fields)
