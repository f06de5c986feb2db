"""What `mealrec train` will do: which systems, with which settings, and everything that can be refused before torch."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.systems import check_content
from trainer.config import recipe
from trainer.config.catalogue import check_sample, growing_costs
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import Manifest, load_manifest, read_manifest
from trainer.data.storage import is_url
from trainer.tracking.study_files import FAILURE
from trainer.training.checkpoint_files import read_progress, require_nothing_to_do

#: what is trained where the command names no system: the baselines that any system has to beat, the usual encoder of
#: histories, and this project's own
COMPARISON: tuple[str | None, ...] = ("popularity", "content-knn", "transition-knn", "sasrec", "mealrec")

#: what a refused start may leave in a run's folder
_REFUSED_START = {".lock", "ray", "group.json", "console.log", FAILURE}


@dataclass(frozen=True)
class PlannedRun:
    """One run to be trained, and its folder."""

    name: str
    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class Plan:
    """All runs of one command. told: lines for the user on what was chosen, and why."""

    runs: list[PlannedRun]
    manifest: Manifest
    told: list[str]


def no_rows(data: object) -> str:
    """What is wrong with a dataset (a folder or URL) on which nothing can be trained, and what to do."""
    return (
        f"{data} has no training rows: every user has only 3 items, and the last two are the targets of validation and "
        "test; prepare more data, or with a lower --k-core"
    )


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for the arguments of `mealrec train`. Raises UserError for whatever the workers would refuse."""
    named = _systems(args)
    seeds: Sequence[int | None] = parse_seeds(args.seeds) or [None]
    data = recipe.load(args.recipe, (named or [*COMPARISON])[0], args.settings, args.data).data.path
    if not data:
        raise UserError("no dataset: give --data (a folder that `mealrec prepare` made)")
    data, manifest = named_dataset(data)
    if manifest.train_rows == 0:
        raise UserError(no_rows(data))
    configs, told = [], []
    for system in named or [*COMPARISON]:
        own = [] if named else _suited(system, manifest)
        config = recipe.load(args.recipe, system, [*args.settings, *own], data, manifest.train_rows)
        try:
            check_content(config.model.name, config.model.options, manifest.shapes)
        except UserError as error:
            if named:
                raise
            told.append(f"without {system}: {error}")
        else:
            _check(config)
            configs.append(config)
    if size := recipe.size_for(args.recipe, manifest.train_rows):
        told.insert(0, _about(args.recipe, size, manifest, configs))
    told += [line for config in configs for line in growing_costs(config, manifest.items)]
    return Plan(_runs(args, configs, seeds), manifest, told)


def named_dataset(path: str) -> tuple[str, Manifest]:
    """The dataset at a path or URL as the user wrote it: its absolute path, or its URL, and its manifest.

    Raises UserError if there is none.
    """
    if is_url(path):
        return path, read_manifest(path)[0]
    absolute = Path(path).absolute()
    return str(absolute), load_manifest(absolute)


def check_name(name: str, folder: Path, resume: bool) -> None:
    """Raise UserError unless a run of this name can begin in `folder`, or go on there."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"--name {name!r} is not a plain folder name")
    started = (folder / "metrics.jsonl").exists()  # a refused start leaves at most the names below
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = folder.exists() and "config.yaml" not in left and not left <= _REFUSED_START
    if (started or foreign) and not resume:
        raise UserError(f"run {name!r} exists in {folder.parent}: use --resume to continue it, or another --name")
    if resume and (folder / "config.yaml").exists():
        recipe.load(str(folder / "config.yaml"), None, [], None)  # refuses a file that an earlier version wrote


def check_more_epochs(config: RunConfig, folder: Path) -> None:
    """Refuse a run that has finished without its optimizer's state and would train on; workers would refuse it too."""
    progress = read_progress(folder / "checkpoints")
    if progress is not None and not progress.can_go_on:
        require_nothing_to_do(progress.state, config.train.epochs, config.train.patience, folder)


def _systems(args: argparse.Namespace) -> list[str | None]:
    """The systems that are named; [None] if the recipe or a setting names it, [] if nothing does."""
    if args.model:
        systems: list[str | None] = args.model.split(",")
        if len(set(systems)) < len(systems) or "" in systems:
            raise UserError(f"--model {args.model}: name each system once, separated by commas")
        return systems
    options = recipe.nest(args.settings).get("model")
    if recipe.names_a_system(args.recipe) or isinstance(options, str) or "name" in (options or {}):
        return [None]
    if options:
        raise UserError("--set model.*: these options belong to one system; name it with --model")
    return []


def parse_seeds(text: str | None) -> list[int] | None:
    """The seeds that --seeds names; None without it. Raises UserError unless each is a whole number, named once."""
    if text is None:
        return None
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise UserError(f"--seeds {text}: name each seed once, as whole numbers separated by commas")
    return [int(seed) for seed in seeds]


def _suited(system: str | None, manifest: Manifest) -> list[str]:
    """Settings without which a system of the comparison could not use the content that there is."""
    pictures_only = "visual" in manifest.content and "text" not in manifest.content
    return ["model.field=visual"] if system == "content-knn" and pictures_only else []


def _check(config: RunConfig) -> None:
    config.engine.choose(config.cluster.workers)
    check_sample(config)
    if config.eval.index not in ("auto", "exact") and not config.model.options.trained:
        raise UserError(f"eval.index={config.eval.index}: {config.model.name} has no item vectors to index; use exact")


def _runs(args: argparse.Namespace, configs: Sequence[RunConfig], seeds: Sequence[int | None]) -> list[PlannedRun]:
    runs = []
    for config, seed in itertools.product(configs, seeds):
        name = f"{args.name}-{config.model.name}" if len(configs) > 1 else args.name
        name += "" if seed is None else f"-s{seed}"
        seeded = config if seed is None else recipe.with_seed(config, seed)
        runs.append(PlannedRun(name, seeded, args.runs_dir.absolute() / name))
    return runs


def _about(name: str, size: recipe.Size, manifest: Manifest, configs: Sequence[RunConfig]) -> str:
    """One line: which settings the recipe chose for the size of the dataset, as they came out, and why."""
    common = {section: values for section, values in size.settings.items() if section != "systems"}
    systems_of: dict[str, list[str]] = {}  # by setting
    options: list[str] = []
    for config in configs:
        system, values = config.model.name, config.model_dump(mode="json")
        own = dict(size.settings["systems"].get(system) or {})
        training = {"train": own.pop("train", {})}
        for text in dict.fromkeys([*_as_set(common, values), *_as_set(training, values)]):
            systems_of.setdefault(text, []).append(system)
        options += [f"{each} of {system}" for each in _as_set(own, values["model"])]
    chosen = [
        text if len(systems) == len(configs) else f"{text} of {' and '.join(systems)}"
        for text, systems in systems_of.items()
    ]
    return (
        f"recipe {name}, for {manifest.train_rows:,} training rows: {', '.join([*chosen, *options])} ({size.because}); "
        f"--set changes any.\nHistories hold {manifest.max_length} items, as prepared (mealrec prepare --max-length)."
    )


def _as_set(keys: Mapping[str, Any], values: Mapping[str, Any], before: str = "") -> list[str]:
    """The keys of {"a": {"b": ...}}, with the value that `values` have for them, as --set takes them: ["a.b=1"]."""
    return [
        text
        for key, value in keys.items()
        for text in (
            _as_set(value, values[key], f"{before}{key}.")
            if isinstance(value, Mapping)
            else [f"{before}{key}={values[key]}"]
        )
    ]


def local_data(config: RunConfig) -> list[Path]:
    """The folder of the dataset, which every node must see; none if it is a URL."""
    return [] if is_url(config.data.path) else [Path(config.data.path)]
