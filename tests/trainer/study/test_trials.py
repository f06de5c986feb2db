"""The trials that a plan becomes: each configuration once, complete, named; what data cannot serve is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from tests.helpers.tiny_runs import OPTIONS
from trainer.data.format.manifest import load_manifest
from trainer.data.synthetic.generate import generate
from trainer.study.plan import Plan
from trainer.study.trials import Data, Given, Trial, expand


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("data") / "tiny"
    generate(path, OPTIONS)
    return Data("tiny", str(path), load_manifest(path))


def _plan(**parts: object) -> Plan:
    return Plan.model_validate({"about": "x", "seeds": [1, 2], "parts": parts})


def _part(*runs: dict[str, object], **more: object) -> dict[str, object]:
    return {"title": "t", "runs": list(runs), **more}


def _trials(plan: Plan, data: Data, given: Given | None = None) -> list[Trial]:
    return expand(plan, [data], given or Given("demo"))[0]


def test_a_grid_is_every_combination_with_every_seed(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"], "grid": {"model.hidden": [8, 16], "train.learning_rate": [0.1]}}))
    trials = _trials(plan, data)
    assert [(t.seed, t.config.model.options.hidden) for t in trials] == [(1, 8), (2, 8), (1, 16), (2, 16)]  # type: ignore[attr-defined]
    assert trials[0].label == "sasrec hidden=8 learning_rate=0.1"
    assert trials[0].factors == {"model.hidden": 8, "train.learning_rate": 0.1}
    assert trials[3].name == "a-sasrec-hidden-16-learning-rate-0.1-s2"
    assert all(t.config.seed == t.seed and t.config.data.path == data.path for t in trials)


def test_variants_are_named_and_settings_of_the_command_go_before(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"], "settings": {"model.inner": 8, "train.epochs": 5},
                          "variants": {"Small": {"model.hidden": 8}, "Large -x": {"model.hidden": 32}}}))  # fmt: skip
    trials = _trials(plan, data, Given("demo", ("train.epochs=3",), seeds=(7,)))
    assert [t.label for t in trials] == ["Small", "Large -x"]
    assert [t.name for t in trials] == ["a-Small-s7", "a-Large-no-x-s7"]
    assert {t.config.train.epochs for t in trials} == {3}


def test_a_configuration_that_two_parts_ask_for_is_trained_once(data: Data) -> None:
    block = {"systems": ["sasrec"], "grid": {"model.hidden": [8, 64]}}
    plan = _plan(
        a=_part({"systems": ["sasrec"], "settings": {"model.hidden": 8}}, test="chosen"),
        b=_part(block),
        c=_part({"systems": ["sasrec"], "settings": {"model.hidden": 8}}, alone=True),
    )
    trials = {t.name: t for t in _trials(plan, data, Given("demo", seeds=(1,)))}
    assert trials["b-sasrec-hidden-8-s1"].run == "a-sasrec-s1"
    assert trials["a-sasrec-s1"].test  # because b tests it
    assert trials["b-sasrec-hidden-64-s1"].run == "b-sasrec-hidden-64-s1"
    assert trials["c-sasrec-s1"].run == "c-sasrec-s1"  # its time is measured


def test_runs_that_differ_in_epochs_or_evaluation_are_not_shared(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"], "settings": {"train.epochs": 2}}),
                 b=_part({"systems": ["sasrec"], "settings": {"train.epochs": 3}}))  # fmt: skip
    assert all(t.run == t.name for t in _trials(plan, data))


def test_labels_that_become_one_name_are_numbered(data: Data) -> None:
    plan = _plan(
        a=_part({"systems": ["sasrec"], "variants": {"a+b": {"model.hidden": 8}, "a b": {"model.hidden": 16}}})
    )
    assert [t.name for t in _trials(plan, data, Given("demo", seeds=(1,)))] == ["a-a-b-s1", "a-a-b-s1-2"]


def test_several_datasets_have_their_names_in_the_trials(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"]}))
    other = Data("other", data.path, data.manifest)
    trials, _ = expand(plan, [data, other], Given("demo", seeds=(1,)))
    assert [t.name for t in trials] == ["a-sasrec-tiny-s1", "a-sasrec-other-s1"]


def test_a_search_draws_its_trials(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"], "space": {"train.learning_rate": "log:1e-4..1e-2"}},
                         trials=4, test="chosen"))  # fmt: skip
    trials = _trials(plan, data, Given("demo", seeds=(1,)))
    rates = [t.config.train.learning_rate for t in trials]
    assert len({*rates}) == 4
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert rates == [t.config.train.learning_rate for t in _trials(plan, data, Given("demo", seeds=(1,)))]


def test_a_system_without_its_content_is_left_out_with_the_reason(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec", "iisan"]}))
    trials, left_out = expand(plan, [data], Given("demo"))
    assert {t.system for t in trials} == {"sasrec"}
    assert [(each.system, each.dataset) for each in left_out] == [("iisan", "tiny")]
    assert "visual_layers" in left_out[0].why


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (
            {"systems": ["sasrec"], "grid": {"model.hiden": [8]}},
            r"part a, sasrec hiden=8.*model.hiden: did you mean 'hidden'",
        ),
        ({"systems": ["sasrec"], "settings": {"train.epoch": 8}}, r"part a, sasrec.*did you mean 'epochs'"),
        ({"systems": ["sasrec"], "settings": {"eval.metrics": ["HRR"]}}, r"part a.*HRR"),
        ({"systems": ["iisan"]}, "no trial left.*visual_layers"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(data: Data, block: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){told}"):
        expand(_plan(a=_part(block)), [data], Given("demo"))


def test_a_plan_of_a_size_that_nobody_means_is_refused(data: Data) -> None:
    values = list(range(1, 200))
    plan = _plan(a=_part({"systems": ["sasrec"], "grid": {"train.epochs": values, "train.patience": values}}))
    with pytest.raises(UserError, match="79,202 trials, more than 10,000"):
        expand(plan, [data], Given("demo"))


def test_systems_of_the_command_are_a_part_of_the_plans(data: Data) -> None:
    plan = _plan(a=_part({"systems": ["sasrec", "popularity"]}))
    assert {t.system for t in _trials(plan, data, Given("demo", systems=("popularity",)))} == {"popularity"}
    assert Path(data.path).exists()


@pytest.mark.parametrize("setting", ["model.hidden=8", "model={hidden: 8}"])
def test_a_setting_of_the_command_may_not_undo_what_the_plan_varies(data: Data, setting: str) -> None:
    plan = _plan(a=_part({"systems": ["sasrec"], "grid": {"model.hidden": [8, 16]}}))
    with pytest.raises(UserError, match=r"part a of the plan varies model\.hidden"):
        _trials(plan, data, Given("demo", (setting,)))
