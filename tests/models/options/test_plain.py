"""Options from plain values and back: types, nesting, every problem at once, and nothing that imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from models.errors import UserError
from models.options.plain import from_plain, to_plain
from models.systems import SYSTEMS, options_class, options_of
from tests.helpers.paths import ROOT


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise UserError("rate is above 1")


@dataclass(frozen=True)
class Outer:
    size: int = 1
    rate: float = 0.1
    on: bool = True
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_plain_values_become_typed_options() -> None:
    given = {"size": "3", "rate": "1e-3", "on": False, "kind": "b", "pair": [4, 5.0], "names": ["x", "y", "z"],
             "inner": {"rate": 1}}  # fmt: skip
    options = from_plain(Outer, given)
    assert options == Outer(3, 0.001, False, "b", (4, 5), ("x", "y", "z"), Inner(1.0))
    assert [type(value) for value in (options.size, options.rate, *options.pair, options.inner.rate)] == [
        int, float, int, int, float
    ]  # fmt: skip
    assert from_plain(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"siez": 1}, "unknown option model.siez: did you mean 'size'?"),
        ({5: 1}, "unknown option model.5: known: "),
        ({"size": "many"}, "model.size: it must be a whole number (given: 'many')"),
        ({"size": 1.5}, "model.size: it must be a whole number (given: 1.5)"),
        ({"size": True}, "model.size: it must be a whole number (given: True)"),
        ({"size": float("inf")}, "model.size: it must be a whole number (given: inf)"),
        ({"size": None}, "model.size: it must be a whole number (given: None)"),
        ({"rate": "soon"}, "model.rate: it must be a number (given: 'soon')"),
        ({"on": "maybe"}, "model.on: it must be true or false (given: 'maybe')"),
        ({"kind": "c"}, "model.kind: it must be 'a' or 'b' (given: 'c')"),
        ({"kind": []}, "model.kind: it must be 'a' or 'b' (given: [])"),
        ({"pair": 5}, "model.pair: it must be a list (given: 5)"),
        ({"pair": [1]}, "model.pair: it must be a list of 2 (given: [1])"),
        ({"pair": [1, "x"]}, "model.pair.1: it must be a whole number (given: 'x')"),
        ({"names": "xyz"}, "model.names: it must be a list (given: 'xyz')"),
        ({"names": [1]}, "model.names.0: it must be text (given: 1)"),
        ({"inner": 5}, "model.inner: it must be a section of options (given: 5)"),
        ({"inner": {"raet": 1}}, "unknown option model.inner.raet: did you mean 'rate'?"),
        ({"inner": {"rate": 2}}, "rate is above 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[object, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        from_plain(Outer, given)
    assert str(error.value).startswith(said)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        from_plain(Outer, {"size": "many", "raet": 1, "inner": {"rate": "x"}})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "model.size", "unknown option model.raet", "model.inner.rate"
    ]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_options_of_every_system_survive_json_and_yaml(name: str) -> None:
    options = options_class(name)()
    plain = to_plain(options)
    assert options_of(name, json.loads(json.dumps(plain))) == options
    assert options_of(name, yaml.safe_load(yaml.safe_dump(plain))) == options


def test_options_of_every_system_are_known_without_torch() -> None:
    code = (
        "import sys; from models.systems import SYSTEMS, options_of\n"
        "print([options_of(name, {}).needs for name in SYSTEMS] and 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
