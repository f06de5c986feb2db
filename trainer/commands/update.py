"""Train a run on with data that have grown, and say whether the new model is better than the old one.

Users and items keep their weights by their raw ids, new ones begin anew. Both models are then tested on the test
targets of the new data, the old one as it would answer if it stayed in service.

Example: mealrec update --run demo-mealrec --data data/demo --name demo-today
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import console, preemption
from models.errors import UserError
from retrieval.disk import told_of_disk
from retrieval.files import write_json
from trainer.commands.register import register_run
from trainer.commands.tracker import add_tracker_arguments, prepare_mlflow, tracker_of
from trainer.commands.train import train_one
from trainer.commands.train_plan import check_name
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import load_manifest
from trainer.evaluation.report import metric_table, read_report
from trainer.local_path import local_path, run_place, runs_beside
from trainer.tracking.model_address import check_alias, parse_address, registry_uri
from trainer.tracking.model_address import check_name as check_model_name

if TYPE_CHECKING:
    from trainer.evaluation.evaluate import Evaluation
    from trainer.training.runs import Run

_CHANGEABLE = ("train", "engine", "cluster", "tracking", "eval", "data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec update`."""
    parser.add_argument("--run", required=True,
                        help="run to go on from; models:/NAME@ALIAS: the one it was made of")  # fmt: skip
    parser.add_argument("--data", type=local_path, required=True, metavar="DIR", help="the data as prepared now")
    parser.add_argument("--old-data", metavar="DIR", help="where the run's own data are (default: as at its training)")
    parser.add_argument("--name", help="name of the new run (default: RUN-u1, RUN-u2, ...)")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="change a setting of the run, e.g. train.epochs=10; not of the system")  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="continue the new run: that of --name, else the last RUN-uN"
    )
    parser.add_argument("--register-as", metavar="MODEL", help="put the better of the two into MLflow's registry")
    parser.add_argument("--alias", metavar="NAME", help="alias that then names it, such as champion")
    add_tracker_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train on, compare, and register the better one; return the exit code, which is 0 whichever is better."""
    _check(args)
    old_dir = run_place(_old_name(args.run), args.runs_dir)
    old_name = old_dir.name
    if not (old_dir / "test.json").is_file():
        raise UserError(f"{old_dir} holds no finished run (no test.json): {runs_beside(old_dir)}")
    load_manifest(args.data)
    name = args.name or _default_name(old_name, args.runs_dir, resume=args.resume)
    run_dir = (args.runs_dir / name).absolute()
    check_name(name, run_dir, args.resume)
    config = recipe.load(str(old_dir / "config.yaml"), None, args.settings, str(args.data.absolute()))
    before, told = _prepared(old_dir, args.old_data, config, run_dir)
    console.say(told)
    with preemption.listening(), told_of_disk(run_dir):
        train_one(name, config, run_dir, args.command_line)
    better = _compare(old_name, before, name, run_dir, config)
    if args.register_as:
        _register(args, old_name, name, better)
    return 0


def _check(args: argparse.Namespace) -> None:
    for setting in args.settings:
        if setting.partition(".")[0] not in _CHANGEABLE:
            raise UserError(f"--set {setting}: an update keeps the system, its options and the seed of the run")
    if args.alias and not args.register_as:
        raise UserError("--alias is an alias in the registry: give --register-as, too")
    if args.register_as:
        check_model_name(args.register_as, "--register-as")
    if args.alias:
        check_alias(args.alias)


def _old_name(named: str) -> str:
    """The run that is named, or that the named model of the registry was made of."""
    address = parse_address(named)
    if address is None:
        return named
    uri = registry_uri()
    prepare_mlflow()
    from trainer.tracking.registry import current  # imports MLflow

    version = current(uri, address)
    if not version.run:
        raise UserError(f"{address} does not say which run it was made of: `mealrec register` did not make it")
    return version.run


def _default_name(old: str, runs_dir: Path, *, resume: bool) -> str:
    """The first of OLD-u1, OLD-u2, ... that is free; to resume, the last that is there."""
    stem = re.sub(r"-u\d+$", "", old)
    free = next(n for n in itertools.count(1) if not (runs_dir / f"{stem}-u{n}").exists())
    last = f"{stem}-u{free - 1}"
    return last if resume and free > 1 and last != old else f"{stem}-u{free}"


def _prepared(old_dir: Path, old_data: str | None, config: RunConfig, run_dir: Path) -> tuple[Evaluation, str]:
    """How the old model does on the new data, and in words what the new run begins with; its first checkpoint is
    written, unless there is one."""
    from trainer.data.format.dataset import Dataset
    from trainer.data.known_rows import KnownRows, require_alike
    from trainer.evaluation.earlier import evaluate_earlier
    from trainer.training.runs import open_run

    opened, dataset = open_run(old_dir, old_data), Dataset.open(config.data.path)
    require_alike(opened.loaded.dataset.manifest, dataset.manifest, config.data.path)
    known = KnownRows.between(opened.loaded.dataset, dataset)
    counts = known.counts()
    if not counts["known_items"]:
        raise UserError(
            f"{config.data.path} holds no item of the run's data: this is other data; train a new run on it"
        )
    opened.model.inference = str(read_report(old_dir / "valid.json")["inference"])
    before = evaluate_earlier(opened.model, known, dataset, "test", config.eval, opened.loaded.device)
    lines = [
        f"{counts['known_items']:,} items and {counts['known_users']:,} users are known from {old_dir.name}, "
        f"{counts['new_items']:,} items and {counts['new_users']:,} users are new"
    ]
    if config.model.options.trained and not any((run_dir / "checkpoints").glob("step-*")):
        lines += _begin(opened, dataset, known, config, run_dir)
    return before, "\n".join(lines)


def _begin(opened: Run, dataset: Any, known: Any, config: RunConfig, run_dir: Path) -> list[str]:
    import torch

    from models.contract import SequenceModel
    from trainer.batches.loader import load
    from trainer.training.build import build_model
    from trainer.training.checkpoint import CheckpointStore
    from trainer.training.growth import begin, carried

    loaded = load(dataset, torch.device("cpu"), seed=config.seed, loader="mmap")
    fresh = build_model(config, loaded)
    found = CheckpointStore(opened.folder / "checkpoints").latest_and_best()
    assert isinstance(fresh, SequenceModel)
    assert found is not None
    assert found[1] is not None, "open_run has seen to it"
    tensors, told = carried(fresh, found[1], known)
    run_dir.mkdir(parents=True, exist_ok=True)
    with told_of_disk(run_dir):
        begin(run_dir, config, dataset, tensors)
    return told


def _compare(old: str, before: Evaluation, new: str, run_dir: Path, config: RunConfig) -> str:
    """Say which of the two runs is better on the new test targets, and note it in update.json; return its name."""
    from retrieval.metrics.registry import MetricChoice
    from retrieval.metrics.significance import paired_t_test
    from retrieval.metrics.summary import per_user
    from trainer.evaluation.config import CRITERION
    from trainer.evaluation.run_ranks import read_ranks

    after = read_ranks(run_dir)
    reports = {old: before.report(), new: read_report(run_dir / "test.json")}
    print(metric_table(reports, config.eval.choice.keys), flush=True)
    choice = MetricChoice(("NDCG",), (10,))
    values = {old: per_user(before.rank, choice)[CRITERION], new: per_user(after.rank, choice)[CRITERION]}
    mean = {name: float(each.mean()) for name, each in values.items()}
    better = new if mean[new] > mean[old] else old  # of equal ones the old one, which needs no change
    p = paired_t_test(values[new], values[old]).p if len(after.user) > 1 else None
    write_json(
        run_dir / "update.json",
        {"from": old, "better": better, CRITERION: mean, "p": p, "users": len(after.user), "old_report": reports[old]},
    )
    chance = "" if p is None else f"; p {p:.2g} of a paired t-test over {len(after.user):,} users"
    console.say(f"{better} is better: test {CRITERION} {mean[new]:.4f} of {new}, {mean[old]:.4f} of {old}{chance}")
    return better


def _register(args: argparse.Namespace, old: str, new: str, better: str) -> None:
    run_dir = args.runs_dir / better
    where = tracker_of(run_dir, args.uri, args.experiment)
    if better == old:
        prepare_mlflow()
        from trainer.tracking.registry import set_alias, version_of_run

        if version := version_of_run(where, args.register_as, old):
            if args.alias:
                set_alias(where, version, args.alias)
            console.say(f"{old} is version {version.number} of {args.register_as} already, and {new} is not registered")
            return
    register_run(run_dir, where, args.register_as, args.alias, args.old_data if better == old else None)
