"""Recipes: YAML files of settings for a dataset and the systems trained on it. Here they are read and overridden.

A recipe has the sections of `trainer.config.schema.RunConfig`, with three differences. `model` is the name of the
system to train where the command names none, and may be left out. `systems` has a section for each system whose options
differ from the defaults; the key `train` of such a section overrides the training settings for that system. `sizes` is
a list of such settings for datasets of different size: the first entry whose `rows` is at least the number of training
rows counts (the last has no `rows`), and its `because` tells the user why. What is said for a size overrides what the
rest of the recipe says, also for a system. A run's `config.yaml`, where `model` is a section, is a recipe too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.errors import UserError
from models.registry import nearest
from models.systems import options_class
from trainer.config.schema import RunConfig, parse
from trainer.text_files import parse_yaml, read_yaml

FOLDER = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """Names of the recipes that come with MealRec."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class Size:
    """One entry of a recipe's `sizes`. rows: the most training rows it is meant for (None: any number)."""

    rows: int | None
    because: str
    settings: Mapping[str, Any]


def size_for(recipe: str, rows: int) -> Size | None:
    """The entry of the recipe's `sizes` for a dataset with so many training rows; None if it has no `sizes`."""
    return _size_for(_sizes(recipe, _read(recipe).get("sizes", [])), rows)


def names_a_system(recipe: str) -> bool:
    """Whether the recipe says itself which system it trains, as the configuration of a run does."""
    return bool(_read(recipe).get("model"))


def load(
    recipe: str, model: str | None, settings: Iterable[str], data: str | None, rows: int | None = None
) -> RunConfig:
    """The configuration from `recipe` (a name, or the path of a YAML file) for the system `model`.

    settings: "section.key=value", override the recipe. data: overrides the path of the dataset. rows: number of its
    training rows; without it the recipe's `sizes` do not count.
    Raises UserError for an unknown recipe, system, key or value.
    """
    values = _read(recipe)
    sizes = _sizes(recipe, values.pop("sizes", []))
    layers = [values]
    if rows is not None and (size := _size_for(sizes, rows)):
        layers.append(dict(size.settings))
    if isinstance(values.get("model"), Mapping):
        _check_written_by_a_run(recipe, values)
    overrides = nest(settings)
    if not isinstance(overrides.get("model", {}), Mapping):  # model=NAME, as in recipes
        overrides["model"] = {"name": overrides["model"]}
    model = str(overrides.get("model", {}).pop("name", "")) or model
    systems = [_systems(recipe, layer.pop("systems", None)) for layer in layers]
    if not isinstance(values.get("model"), Mapping):
        values["model"] = {"name": model or str(values.get("model", ""))}
    elif model and model != values["model"].get("name"):
        values["model"] = {"name": model}  # do not keep the options of another system
    for layer, of_systems in zip(layers, systems, strict=True):
        if layer is not values:
            _merge(values, layer)
        own = dict(of_systems.get(values["model"].get("name")) or {})
        if training := own.pop("train", None):
            _merge(values, {"train": training})
        _merge(values, {"model": own})
    _merge(values, overrides)
    if data:
        _merge(values, {"data": {"path": data}})
    return parse(values)


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same configuration with another seed. Raises UserError for a seed out of range."""
    return parse({**config.model_dump(mode="json"), "seed": seed})


def _systems(recipe: str, given: object) -> Mapping[str, Mapping[str, Any] | None]:
    """The section `systems`, checked."""
    systems = given or {}
    if not isinstance(systems, Mapping) or not all(isinstance(options, Mapping | None) for options in systems.values()):
        raise UserError(f"recipe {recipe}: `systems` holds a section of options for each system")
    for system, options in systems.items():
        options_class(str(system))  # raises for an unknown name
        own = options or {}
        if "name" in own or not isinstance(own.get("train", {}), Mapping):
            raise UserError(f"recipe {recipe}: `systems` has options of {system}, and a section `train`; not {own}")
    return systems


def _sizes(recipe: str, given: object) -> list[Size]:
    """The section `sizes`, checked, smallest first."""
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise UserError(f"recipe {recipe}: `sizes` is a list of sections of settings, each with rows and because")
    limits = [each.get("rows") for each in given]
    if not all(type(rows) is int for rows in limits[:-1]) or limits[:-1] != sorted({*limits[:-1]}):
        raise UserError(f"recipe {recipe}: the `rows` of its `sizes` are not whole numbers that grow")
    if limits and limits[-1] is not None:
        raise UserError(
            f"recipe {recipe}: the last of its `sizes` is for any number of rows above, so it has no `rows`"
        )
    if any("model" in each for each in given):
        raise UserError(f"recipe {recipe}: options of a system in `sizes` stand under `systems`, not under `model`")
    own = ("rows", "because")
    sizes = []
    for each in given:
        settings = {key: value for key, value in each.items() if key not in own}
        settings["systems"] = _systems(recipe, settings.get("systems"))
        sizes.append(Size(each.get("rows"), str(each.get("because", "")), settings))
    return sizes


def _size_for(sizes: Iterable[Size], rows: int) -> Size | None:
    return next((size for size in sizes if size.rows is None or rows <= size.rows), None)


def _check_written_by_a_run(path: str, values: Mapping[str, Any]) -> None:
    try:
        parse(values)
    except UserError as error:
        raise UserError(
            f"{path} does not fit this version of MealRec:\n{error}\n"
            "If an earlier version wrote it, use the run with that version, or train it again from a recipe"
        ) from None


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{recipe}.yaml"
        if not path.exists():
            raise UserError(f"unknown recipe {recipe!r}: {nearest(recipe, names())} (or give a path to a .yaml file)")
    try:
        return read_yaml(path)
    except UserError as error:
        raise UserError(f"recipe: {error}") from None


def nest(settings: Iterable[str]) -> dict[str, Any]:
    """Turn ["a.b=1"] into {"a": {"b": 1}}; values are YAML. Raises UserError for a setting in another form."""
    nested: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UserError(f"--set {setting}: write it as section.key=value, e.g. --set train.epochs=5")
        try:
            value = parse_yaml(text)
        except UserError as error:
            raise UserError(f"--set {setting[:80]}: {text[:80]!r} is not a YAML value ({error})") from None
        branch: dict[str, Any] = {key.rpartition(".")[2]: value}
        for part in reversed(key.split(".")[:-1]):
            branch = {part: branch}
        _merge(nested, branch)
    return nested


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value if not isinstance(value, Mapping) else dict(value)


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def dump(config: RunConfig, command: str) -> str:
    """The text of a run's `config.yaml`: the command as a comment, then every setting. The file is a recipe itself."""
    settings = yaml.dump(config.model_dump(mode="json"), Dumper=_WithoutAliases, sort_keys=False)
    return f"# {' '.join(command.split())}\n{settings}"
