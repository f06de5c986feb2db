"""Every setting is listed with its type, its default and its meaning, and what is listed is what can be set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

import pytest

from models.errors import UserError
from models.options.base import SystemOptions
from models.systems import SYSTEMS, options_class
from retrieval.index.kinds import KINDS
from retrieval.metrics.registry import METRICS
from trainer.config import schema
from trainer.config.recipe import nest
from trainer.config.settings import general, in_words, meanings, of_system
from trainer.evaluation.config import EvalConfig

ALL = {"run": general(), **{name: of_system(name) for name in SYSTEMS}}
SECTIONS = [schema.DataConfig, schema.TrainConfig, schema.EngineConfig, EvalConfig, schema.ClusterConfig]


@pytest.mark.parametrize("system", ALL)
def test_every_setting_has_a_meaning(system: str) -> None:
    assert [setting.key for setting in ALL[system] if not setting.meaning] == []


@pytest.mark.parametrize("system", ALL)
def test_what_is_listed_is_what_can_be_set(system: str) -> None:
    """A configuration of all defaults, each given by --set, is the one of none, and it has no other key."""
    model = {"name": "sasrec" if system == "run" else system}
    defaults = schema.parse({"model": model})
    listed = {each.key: each.default for each in ALL[system] if each.key != "model"}
    given = nest(f"{key}={json.dumps(value)}" for key, value in listed.items())
    assert schema.parse(given | {"model": model | given.get("model", {})}) == defaults
    keys = set(flat(defaults.model_dump(mode="json"))) - {"model.name"}
    assert {*listed} == {key for key in keys if key.startswith("model.") == (system != "run")}


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def holders(cls: type) -> Iterator[type]:
    """An options class and those of its sections."""
    yield cls
    for kind in get_type_hints(cls).values():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from holders(kind)


def test_no_docstring_explains_what_is_not_there() -> None:
    for cls in {each for name in SYSTEMS for each in holders(options_class(name))}:
        known = {field.name for field in fields(cls)} | {*meanings(SystemOptions)}
        assert {*meanings(cls)} <= known, cls.__name__
    for section in SECTIONS:
        assert {*meanings(section)} <= {*section.model_fields, *meanings(schema.BaseModel)}, section.__name__


def test_names_that_are_registered_are_named() -> None:
    said = {setting.key: setting.meaning for setting in general()}
    for key, names in (("eval.metrics", METRICS), ("eval.index", KINDS)):
        assert [name for name in names if not re.search(rf"\b{name}\b", said[key])] == []


def test_an_unknown_system_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sasrec'"):
        of_system("sasrek")


def test_a_meaning_may_take_several_lines_and_is_inherited() -> None:
    @dataclass(frozen=True)
    class Example(SystemOptions):
        """What this is for.

        hidden: one line,
            and another
        layers: here something else

        An end: not a field.
        """

    said = meanings(Example)
    assert said["hidden"] == "one line, and another"
    assert said["layers"] == "here something else"
    assert said["inner"] == meanings(SystemOptions)["inner"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "whole number"),
        (Literal["one"], "one"),
        (Literal["a", "b", "c"], "a, b or c"),
        (tuple[int, int], "list of 2 whole numbers"),
        (tuple[str, ...], "list of words"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert in_words(kind) == words
