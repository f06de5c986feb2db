"""Plan files: what they may say, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from models.systems import SYSTEMS
from trainer.study.plan import at_scale, load_plan, names


def _plan(folder: Path, text: str) -> str:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", names())
def test_every_plan_that_comes_with_us_loads_at_each_scale(name: str) -> None:
    plan = load_plan(name)
    assert plan.parts
    assert set(plan.scales) == {"tiny"}
    tiny, scale = at_scale(plan, "tiny")
    assert list(tiny.parts) == list(plan.parts)
    assert scale.world is not None


def test_the_whole_paper_has_the_parts_of_the_other_plans() -> None:
    whole = load_plan("paper")
    for name in names():
        assert set(load_plan(name).parts) <= set(whole.parts), name
    assert whole.parts["table2"].seeds == (2020, 2021, 2022)
    assert whole.parts["table2"].runs[0].systems == tuple(SYSTEMS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("about: x\npartz: {}", r"unknown key partz: did you mean 'parts'"),
        ("about: x\nparts: {a: {title: t, runs: [{systems: [sasrek]}]}}", r"sasrek.*did you mean 'sasrec'"),
        ("about: x\nparts: {a: {title: t, figur: bars, runs: [{systems: [sasrec]}]}}", "did you mean 'figure'"),
        ("about: x\nparts: {a: {title: t, runs: [{systems: [sasrec], gird: {}}]}}", "did you mean 'grid'"),
        ("about: x\nparts: {a: {title: t, runs: [{systems: [sasrec], grid: {model.hidden: []}}]}}", "has no values"),
        ("about: x\nparts: {a: {title: t, runs: [{systems: [sasrec], space: {k: 2..1}}], trials: 2}}", "k=2..1"),
        ("about: x\nparts: {a: {title: t, runs: [{systems: [sasrec], space: {k: 1..2}}]}}", "needs both"),
        (
            "about: x\nparts: {a: {title: t, trials: 2, runs: [{systems: [sasrec], space: {k: 1..2}}]}}",
            "test: chosen",
        ),
        ("about: x\nparts: {}", "no parts"),
        ("about: x\ninclude: [tabel2]", "did you mean 'table2'"),
        ("about: x\ninclude: [table2]\nscales: {s: {parts: {tabel2: {}}}}", "did you mean 'table2'"),
        ("parts: {}", "about: Field required"),
    ],
)
def test_a_wrong_plan_is_told_where_and_what_is_near(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_plan(_plan(tmp_path, text))


def test_an_unknown_plan_or_scale_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'ablation'"):
        load_plan("ablatoin")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        at_scale(load_plan("table2"), "tini")


def test_a_scale_replaces_only_what_it_names(tmp_path: Path) -> None:
    plan = load_plan(
        _plan(
            tmp_path,
            "about: x\nseeds: [1, 2]\nsettings: {train.epochs: 9}\nparts:\n"
            "  a: {title: t, runs: [{systems: [sasrec, tedrec],"
            " grid: {model.hidden: [8, 16], model.layers: [1, 2]}}]}\n"
            "scales: {s: {seeds: [5], settings: {train.epochs: 1},"
            " parts: {a: {grid: {model.hidden: [4]}, systems: [tedrec]}}}}",
        )
    )
    small, _ = at_scale(plan, "s")
    part = small.parts["a"]
    assert part.runs[0].grid == {"model.hidden": (4,), "model.layers": (1, 2)}
    assert part.runs[0].systems == ("tedrec",)
    assert part.seeds == (5,)
    assert small.settings == {"train.epochs": 1}
    assert at_scale(plan, "full")[0] == plan
