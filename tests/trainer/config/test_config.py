"""Configuration and recipes: strict keys, typed values, and a run's config.yaml that repeats the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from models.options.plain import to_plain
from models.options.ranking import RankingOptions
from models.systems import SYSTEMS, options_class
from trainer.config import recipe
from trainer.config.schema import EngineConfig, RunConfig, TrainConfig, parse

BASE: dict[str, Any] = {"model": {"name": "sasrec"}}


def settings_of(*settings: str) -> RunConfig:
    named = any(setting.startswith(("model.name=", "model=")) for setting in settings)
    return recipe.load("demo", None if named else "mealrec", settings, "data")


def options(config: RunConfig) -> dict[str, Any]:
    return to_plain(config.model.options)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epoch=5", "unknown key train.epoch: did you mean 'epochs'?"),
        ("trian.epochs=5", "unknown key trian: did you mean 'train'?"),
        ("engine.zero=1", "engine.zero"),
        ("model.backbon=gru", "did you mean"),
        ("model.tcd.chanels=[8]", "did you mean 'channels'?"),
        ("model.name=sasrek", "unknown model 'sasrek': did you mean 'sasrec'?"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1 (given: 0)"),
        ("train.epochs=many", "train.epochs: Input should be a valid integer"),
        ("train.epochs=2.5", "train.epochs"),
        ("train.learning_rate=0", "train.learning_rate"),
        ("train.schedule.name=linear", "Input should be 'constant', 'step', 'cosine' or 'plateau'"),
        ("train.schedule.gamma=0.1", "unknown key train.schedule.gamma"),
        ("train={epochs: 30, schedule: {name: cosine, epochs: 20}}", "the learning rate is 0 after epoch 20 of 30"),
        ("engine.zero_stage=4", "engine.zero_stage: Input should be 0, 1, 2 or 3 (given: 4)"),
        ("engine.precision=fp16", "'tf32' or 'bf16'"),
        ("eval.index=faiss", "eval.index: unknown index: known: auto, exact, flat, hnsw, ivf, ivfpq (given: 'faiss')"),
        ("eval={index: ivf, index_options: [nprobes=4]}", "ivf has no option nprobes: did you mean 'nprobe'?"),
        ("eval={index: ivf, index_options: [nprobe]}", "index_options: 'nprobe' has no value"),
        ("eval={index: exact, index_options: [nprobe=4]}", "exact ranking has no index_options"),
        ("eval.recall=0", "eval.recall: Input should be greater than 0"),
        ("eval.index=hsnw", "did you mean 'hnsw'?"),
        ("eval.metrics=[HR,NDGC]", "eval.metrics: unknown metric 'NDGC': did you mean 'NDCG'?"),
        ("eval.metrics=[HR,HR]", "eval.metrics: metrics: name at least one, and each once"),
        ("eval.metrics=[]", "eval.metrics: metrics: name at least one"),
        ("eval.metrics=HR", "eval.metrics: Input should be a valid tuple"),
        ("eval.ks=[10,10]", "eval.ks: ks: name at least one, and each once"),
        ("eval.ks=[0]", "eval.ks: ks: 0 is not the length of a list"),
        ("eval.ks=[ten]", "eval.ks.0: "),
        ("eval.ks=[10,200]", "eval: depth is 100, below the largest of ks; set eval.depth=200 or more"),
        ("cluster={launcher: inline, workers: 2}", "launcher inline runs one worker"),
        ("cluster={workers: 2, workers_at_least: 3}", "workers_at_least is 3, more than workers, 2"),
        ("train=5", "train: "),
        ("model.steps=many", "model.steps"),
        ("model.steps=0", "steps is 0: it must be at least 1"),
        ("model.steps=1000000000", "steps is 1000000000: it must be at most 131,072"),
        ("model.tcd.channels=[8,1000000000]", "each must be at least 1 and at most 131,072"),
        ("model.sasrec.hidden=1000000000", "hidden is 1000000000: it must be at most 131,072"),
        ("model.sasrec.layers=1000000000", "layers is 1000000000: it must be at most 1,024"),
        ("model.tcd_start=soon", "model.tcd_start"),
        ("model.tcd_start=99", "tcd_start is 99: it must be in 0..25"),
        ("model.backbone=gru", "model.backbone"),
        ("model.tcd=5", "model.tcd"),
        ("model.tcd.channels=wide", "model.tcd.channels"),
        ("model=tedrek", "unknown model 'tedrek': did you mean 'tedrec'?"),
        ("seed=-1", "seed"),
        (f"seed={2**63}", "more than 63 bits"),
        (f"seed={'9' * 5000}", "is not a YAML value"),
        ("cluster.threads=99999999999", "cluster.threads"),
        ("cluster.workers=99999999999", "cluster.workers"),
        ("train.accumulation=99999999999", "train.accumulation"),
        ("epochs=3", "unknown key epochs: did you mean 'train.epochs'?"),
        (
            "layers=3",
            "known: cluster, data, engine, eval, model, seed, tracking, train; an option of a system is model.layers",
        ),
        ("train.epochs", "write it as section.key=value"),
        ("=5", "write it as section.key=value"),
        ("train.epochs=[", "is not a YAML value"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        settings_of(setting)
    assert said in str(error.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        settings_of("train.epoch=5", "eval.batch=1", "train.patience=0")
    assert [name in str(error.value) for name in ("train.epoch", "eval.batch", "train.patience")] == [True] * 3


def test_settings_override_the_recipe_and_the_last_one_wins() -> None:
    config = settings_of("train.epochs=5", "train.epochs=7", "model.tcd={channels: [8, 16]}", "model.tcd.dropout=0.5")
    assert config.train.epochs == 7
    written = yaml.safe_load((recipe.FOLDER / "demo.yaml").read_text())
    assert (
        config.train.batch_size == written["train"]["batch_size"] != RunConfig.model_fields["train"].default.batch_size
    )
    assert (options(config)["tcd"]["channels"], options(config)["tcd"]["dropout"]) == ([8, 16], 0.5)
    assert config.data.path == "data"


@pytest.mark.parametrize("value", ["1e-3", "0.001", "'0.001'"])
def test_numbers_as_people_write_them(value: str) -> None:
    assert settings_of(f"train.learning_rate={value}").train.learning_rate == 0.001
    assert options(settings_of(f"model.lambda_tcd={value}"))["lambda_tcd"] == 0.001


def test_a_system_is_named_in_any_of_three_ways() -> None:
    ways = [recipe.load("demo", "tedrec", [], "data"), settings_of("model.name=tedrec"), settings_of("model=tedrec")]
    assert ways[0] == ways[1] == ways[2]
    written = yaml.safe_load((recipe.FOLDER / "demo.yaml").read_text())["systems"]["tedrec"]
    assert written.items() <= options(ways[0]).items(), "the recipe's options of that system"


def test_the_model_section_is_complete() -> None:
    config = parse(BASE)
    assert config.model.name == "sasrec"
    assert to_plain(config.model.options) == {"hidden": 64, "inner": 256, "layers": 2, "heads": 2,
                                    "attention_dropout": 0.5, "hidden_dropout": 0.5,
                                    "ranking": asdict(RankingOptions())}  # fmt: skip
    with pytest.raises(UserError, match="give a section with at least a name"):
        parse({})


@pytest.mark.parametrize("name", recipe.names())
def test_packaged_recipes_parse_for_every_system(name: str, tmp_path: Path) -> None:
    for system in SYSTEMS:
        for rows in (None, 100, 30_000, 10**7):
            config = recipe.load(name, system, [], "data", rows)
            assert config.model.name == system
        _round_trip(config, tmp_path / f"{name}-{system}.yaml")


def _same(given: Mapping[str, Any], default: Mapping[str, Any]) -> list[str]:
    """Keys of `given` that have the same value in `default`, including keys of sections."""
    return [
        f"{key}.{inner}" if inner else key
        for key, value in given.items()
        for inner in (_same(value, default[key]) if isinstance(value, dict) else [""] * (value == default[key]))
    ]


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_say_only_what_differs_from_the_defaults(name: str) -> None:
    written = yaml.safe_load((recipe.FOLDER / f"{name}.yaml").read_text())
    common = {**TrainConfig().model_dump(), **written.get("train", {})}
    for system, section in written["systems"].items():
        default = {**to_plain(options_class(system)()), "train": common}
        assert section, f"{system} has nothing of its own"
        assert _same(section, default) == [], system
    rest = {key: value for key, value in written.items() if key not in ("systems", "sizes")}
    assert _same(rest, RunConfig.model_validate({"model": BASE["model"]}).model_dump(mode="json")) == []


@settings(max_examples=10)
@given(
    epochs=st.integers(1, 1000), rate=st.floats(1e-6, 1), workers=st.integers(1, 9), path=st.text(max_size=20),
    channels=st.lists(st.integers(1, 64), min_size=2, max_size=2), experiment=st.text(max_size=10),
)  # fmt: skip
def test_a_run_s_configuration_survives_its_file(
    epochs: int, rate: float, workers: int, path: str, channels: list[int], experiment: str
) -> None:
    values = {
        "model": {"name": "mealrec", "tcd": {"channels": channels}}, "data": {"path": path},
        "train": {"epochs": epochs, "learning_rate": rate}, "cluster": {"workers": workers},
        "tracking": {"experiment": experiment},
    }  # fmt: skip
    config = parse(values)
    assert parse(yaml.safe_load(recipe.dump(config, "mealrec train --name x"))) == config


def _round_trip(config: RunConfig, path: Path) -> None:
    path.write_text(recipe.dump(config, "mealrec train --recipe demo --name 'two\nlines'"), encoding="utf-8")
    again = recipe.load(str(path), None, [], None)
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert recipe.load(str(path), config.model.name, [], None) == config


SIZES = """
train: {epochs: 7, batch_size: 64}
systems: {sasrec: {hidden: 32, train: {patience: 4, learning_rate: 0.5}}}
sizes:
  - {rows: 100, because: few, train: {batch_size: 8}}
  - {rows: 1_000, because: more, train: {batch_size: 16}, systems: {sasrec: {hidden: 48, train: {patience: 6}}}}
  - {rows: 2_000, because: none of its own, train: {learning_rate: 0.25}, systems: }
  - {because: many, train: {epochs: 3}}
"""


@pytest.mark.parametrize(
    ("rows", "settings", "batch", "epochs", "hidden", "patience", "rate"),
    [(None, [], 64, 7, 32, 4, 0.5), (1, [], 8, 7, 32, 4, 0.5), (100, [], 8, 7, 32, 4, 0.5),
     (101, [], 16, 7, 48, 6, 0.5), (1001, [], 64, 7, 32, 4, 0.25), (5000, [], 64, 3, 32, 4, 0.5),
     (101, ["train.batch_size=5", "model.hidden=8", "train.patience=9"], 5, 7, 8, 9, 0.5)],
)  # fmt: skip
def test_sizes_override_the_recipe_and_settings_override_them(
    rows: int | None, settings: list[str], batch: int, epochs: int, hidden: int, patience: int, rate: float,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "mine.yaml").write_text(SIZES)
    config = recipe.load(str(tmp_path / "mine.yaml"), "sasrec", settings, "data", rows)
    train = config.train
    assert (train.batch_size, train.epochs, train.patience, train.learning_rate) == (batch, epochs, patience, rate)
    assert options(config)["hidden"] == hidden


@pytest.mark.parametrize(
    ("sizes", "said"),
    [("5", "list of sections"), ("[5]", "list of sections"), ("[{rows: many}, {}]", "whole numbers that grow"),
     ("[{rows: 9}, {rows: 8}, {}]", "whole numbers that grow"), ("[{}, {}]", "whole numbers that grow"),
     ("[{rows: '10', because: x}]", "the last of its `sizes` is for any number"), ("[{rows: 10}]", "has no `rows`"),
     ("[{rows: true}, {}]", "whole numbers that grow"), ("[{systems: 5}]", "`systems` holds a section of options"),
     ("[{systems: {sasrek: {}}}]", "sasrek"), ("[{systems: {5: {}}}]", "unknown model '5'"),
     ("[{model: mealrec}]", "stand under `systems`, not under `model`"), ("[{rows: 5}, {rows: 5}, {}]", "that grow"),
     ("[{systems: {sasrec: {name: tedrec}}}]", "options of sasrec, and a section `train`; not {'name': 'tedrec'}"),
     ("[{systems: {sasrec: {train: 5}}}]", "a section `train`; not {'train': 5}"),
     ("[{trian: {}}]", "unknown key trian: did you mean 'train'?")],
)  # fmt: skip
def test_wrong_sizes_are_refused(sizes: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"sizes: {sizes}")
    with pytest.raises(UserError) as error:
        recipe.load(str(tmp_path / "mine.yaml"), "sasrec", [], "data", 10)
    assert said in str(error.value)


def test_another_system_does_not_take_over_options(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(recipe.dump(settings_of("model.name=sasrec", "model.hidden=8"), "x"))
    assert options(recipe.load(str(path), "tedrec", [], None))["hidden"] == 300


@pytest.mark.parametrize(
    "text",
    ["", "- a\n", "model: [", "model: 5", "systems: 5", "systems: {sasrec: 5}\nmodel: sasrec",
     "systems: {sasrek: {}}\nmodel: sasrec", "model: {5: 6}", "5: 6\nmodel: sasrec",
     "train: {5: 6}\nmodel: sasrec", "model: {name: sasrec, 5: 6}", "model: null",
     "model: !!python/object/apply:os.getcwd []", "train: null\nmodel: sasrec", "data: {path: 5}\nmodel: sasrec"],
)  # fmt: skip
def test_a_bad_recipe_file_is_a_user_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError):
        recipe.load(str(tmp_path / "mine.yaml"), None, [], None)


def test_an_unknown_recipe_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown recipe 'demoo': did you mean 'demo'"):
        recipe.load("demoo", None, [], None)
    with pytest.raises(UserError, match="recipe: cannot read"):
        recipe.load(str(tmp_path / "absent.yaml"), None, [], None)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(UserError, match=r"recipe: .*latin\.yaml, line 1 is not UTF-8"):
        recipe.load(str(tmp_path / "latin.yaml"), None, [], None)


@pytest.mark.parametrize(
    "setting",
    ["train.epochs=9", "train.checkpoint_every=5", "cluster.workers=2", "tracking.mlflow=false", "eval.index=flat",
     "engine.name=torch", "engine.zero_stage=2", "engine.device=cpu", "data.path=elsewhere", "data.loader=mmap",
     "data.stream_window=2"],
)  # fmt: skip
def test_what_may_change_between_save_and_resume(setting: str) -> None:
    assert settings_of(setting).fingerprint() == settings_of().fingerprint()


@pytest.mark.parametrize(
    "setting",
    ["train.learning_rate=0.5", "train.batch_size=7", "train.accumulation=2", "train.clip_norm=1", "train.patience=4",
     "train.weight_decay=0.1", "train.schedule.warmup=9", "engine.precision=bf16", "seed=1", "model.mix=0.25",
     "model.name=sasrec", "model.tcd.channels=[8, 16]", "data.loader=stream"],
)  # fmt: skip
def test_what_may_not_change(setting: str) -> None:
    assert settings_of(setting).fingerprint() != settings_of().fingerprint()


def test_rows_of_a_step_are_counted_by_run_or_by_worker() -> None:
    workers = ("cluster.workers=4", "cluster.launcher=ray")
    run, each = (settings_of("train.batch_size=64", f"train.batch_per={per}", *workers) for per in ("run", "worker"))
    assert (run.step_rows, each.step_rows) == (64, 256)
    assert settings_of("train.batch_size=64", "train.batch_per=worker").step_rows == 64
    with pytest.raises(UserError, match=r"leave cluster.workers_at_least at 0, or train.batch_per at run"):
        settings_of("cluster={workers: 3, workers_at_least: 2}", "train.batch_per=worker")
    # what decides what is learned is the rows of a step, and not who counts them
    assert each.fingerprint() == settings_of("train.batch_size=256").fingerprint() != run.fingerprint()


def test_the_window_of_a_stream_decides_the_order_of_rows() -> None:
    prints = {settings_of("data.loader=stream", f"data.stream_window={n}").fingerprint() for n in (1, 2)}
    assert len(prints) == 2


def test_what_auto_came_to_is_what_chose_the_best_epoch() -> None:
    """A run by auto on few items goes on as one that ranks exactly, and the other way round; one on many does not."""
    auto, exact, ivf = (settings_of(f"eval.index={index}").eval for index in ("auto", "exact", "ivf"))
    small, large = (1000, 1000), (10**6, 10**6)
    assert auto.fingerprint(*small) == exact.fingerprint(*small) == exact.fingerprint(*large)
    assert auto.fingerprint(*large) not in (exact.fingerprint(*large), ivf.fingerprint(*large))
    for config, size, those in ((auto, small, (auto, exact)), (auto, large, (auto,)), (exact, large, (auto, exact))):
        accepted = [each for each in (auto, exact, ivf) if each.may_be(config.fingerprint(*size))]
        assert accepted == list(those)


def rates(epochs: int, schedule: dict[str, Any]) -> list[float]:
    """Learning rates of a run whose epochs have 4 steps, with a rate of 1."""
    train = TrainConfig.model_validate({"learning_rate": 1.0, "epochs": epochs, "schedule": schedule})
    return [train.rate(step, 4) for step in range(4 * epochs)]


def test_a_schedule_of_steps() -> None:
    """As torch's StepLR of 2 epochs and a factor of .5, which it counts at the end of an epoch."""
    assert rates(6, {"name": "step", "epochs": 2, "factor": 0.5}) == [1.0] * 8 + [0.5] * 8 + [0.25] * 8
    assert rates(2, {}) == [1.0] * 8


def test_a_schedule_rises_before_it_falls() -> None:
    assert rates(2, {"warmup": 3}) == [0.25, 0.5, 0.75, *[1.0] * 5]
    assert rates(1, {"warmup": 9}) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates(2, {"name": "step", "epochs": 1, "warmup": 2}) == pytest.approx([1 / 3, 2 / 3, 1, 1, *[0.1] * 4])


def test_a_schedule_of_half_a_cosine() -> None:
    found = rates(3, {"name": "cosine", "epochs": 3, "warmup": 4})
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[8] == pytest.approx(0.5), "half-way down"
    assert all(a > b for a, b in pairwise(found[4:]))
    train = TrainConfig.model_validate({"epochs": 3, "schedule": {"name": "cosine", "epochs": 3}})
    assert [train.rate(step, 4) for step in (12, 13, 99)] == [0.0] * 3


def test_a_schedule_depends_on_its_epochs_and_not_on_those_of_the_run() -> None:
    """A run that is given more epochs goes on, and has done no step at another rate."""
    schedule = {"name": "cosine", "epochs": 9}
    assert rates(2, schedule) == rates(9, schedule)[:8]


@pytest.mark.parametrize(
    ("engine", "workers", "installed", "expected"),
    [
        ({}, 1, True, "torch"), ({}, 2, True, "deepspeed"), ({}, 2, False, "torch"),
        ({"zero_stage": 1}, 1, True, "deepspeed"), ({"name": "deepspeed"}, 1, True, "deepspeed"),
        ({"name": "torch"}, 2, True, "torch"), ({"cuda_graphs": "always"}, 2, True, "torch"),
    ],
)  # fmt: skip
def test_deepspeed_is_for_what_it_can_divide(
    engine: dict[str, Any], workers: int, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if installed else None)
    assert EngineConfig(**engine).choose(workers) == expected


@pytest.mark.parametrize("engine", [{"name": "deepspeed"}, {"zero_stage": 2}, {"name": "torch", "zero_stage": 1}])
def test_an_engine_that_is_missing_is_told(engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="DeepSpeed"):
        EngineConfig(**engine).choose(1)
