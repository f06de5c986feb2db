"""Train many runs by a plan, some at a time: all systems, ablations, grids, searches.

Example: mealrec study --plan table2 --data data/demo --name first --dry-run
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

from cluster import console, preemption
from cluster.console import Verbosity
from cluster.cores import usable_cores
from models.errors import UserError
from models.registry import nearest
from retrieval.disk import told_of_disk
from retrieval.files import sole_writer
from trainer.commands.train_plan import check_name, named_dataset, parse_seeds
from trainer.config.schema import TrackingConfig
from trainer.data.format.manifest import load_manifest
from trainer.data.synthetic.generate import SyntheticOptions, generate
from trainer.evaluation.config import CRITERION
from trainer.local_path import local_path, runs_dir_option
from trainer.study.plan import FULL, Plan, Scale, at_scale, load_plan, names, parse_plan
from trainer.study.record import (
    LeftOutRecord,
    PartRecord,
    StudyRecord,
    read_study,
    write_study,
)
from trainer.study.space import values_of
from trainer.study.summary import costs_table, summary
from trainer.study.trials import Data, Given, Trial, expand
from trainer.tracking import Status, start_mirror, where_runs_are, write_group
from trainer.tracking.study_files import STUDY

_GRID, _SEARCH = "grid", "search"
_MIRROR_SECONDS, _MIRROR_SECONDS_STOPPED = 120.0, 3.0
_OWN = f"those of --{_GRID} and --{_SEARCH}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec study`."""
    parser.add_argument("--plan", help=f"{', '.join(names())}, or the path of a .yaml file (default: {_OWN})")
    parser.add_argument("--name", required=True, help="name of the study; its runs go to RUNS_DIR/NAME")
    parser.add_argument("--data", action="append", default=[], metavar="DIR",
                        help="prepared dataset, a folder or URL; may be repeated")  # fmt: skip
    parser.add_argument("--scale", default=FULL, help=f"a smaller form of the plan, such as tiny (default: {FULL})")
    parser.add_argument("--recipe", default=None, help="recipe of all runs (default: that of the scale, else default)")
    parser.add_argument("--systems", metavar="A,B", help="only these systems of the plan")
    parser.add_argument("--seeds", metavar="A,B", help="seeds of every configuration (default: those of the plan)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="override one setting in all runs; may be repeated")  # fmt: skip
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B",
                        help="without --plan: train --systems with each value; may be repeated")  # fmt: skip
    parser.add_argument("--search", action="append", default=[], metavar="KEY=LOW..HIGH",
                        help="without --plan: search a range (log:1e-4..1e-2, 1..8) or values (a,b)")  # fmt: skip
    parser.add_argument("--trials", type=int, metavar="N", help="configurations of a --search, for each system")
    parser.add_argument("--parallel", type=int, metavar="N",
                        help="trials at once; more than there are GPUs share them (default: one for each GPU, else for "
                        "each CPU)")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="refuse a dataset that lacks content for a system")
    parser.add_argument("--dry-run", action="store_true", help="measure some steps, say what the study will cost, stop")
    parser.add_argument("--resume", action="store_true", help="go on with the study of this name")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), help="folder of runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Check the whole plan before the first trial, run what is not finished, say what came out."""
    plan, scale = at_scale(_named_plan(args) if args.plan else _own_plan(args), args.scale)
    folder = args.runs_dir.absolute() / args.name
    if (folder / STUDY).exists() and not args.resume and not args.dry_run:
        raise UserError(f"study {args.name!r} exists in {folder.parent}: use --resume to go on, or another --name")
    check_name(args.name, folder, args.resume or (folder / STUDY).exists())
    if args.parallel is not None and args.parallel < 1:
        raise UserError(f"--parallel {args.parallel}: at least one trial runs at a time")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = (scratch if args.dry_run else folder) / "world"
        datasets = _datasets(args.data, scale, world, scratch / "world")
        trials, left_out = expand(plan, datasets, _given(args, scale))
        _check(trials, left_out, args.strict)
        if args.dry_run:
            print(costs_table(trials, args.parallel))
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(sole_writer(folder))
        if (scratch / "world").exists():  # generated before the checks, which must leave nothing behind
            shutil.move(scratch / "world", world)
        study = _record(args, plan, datasets, trials, left_out, folder)
        stack.enter_context(preemption.listening())
        stack.enter_context(told_of_disk(folder))
        _conduct(study, plan, trials, args)
    print(summary(study))
    console.say(_next(study, args.runs_dir), Verbosity.BRIEF)
    return 0


def _named_plan(args: argparse.Namespace) -> Plan:
    if args.grid or args.search or args.trials is not None:
        raise UserError("--grid, --search and --trials are for a study without --plan; a plan file can have them")
    plan = load_plan(args.plan)
    trained = {system for part in plan.parts.values() for block in part.runs for system in block.systems}
    for system in args.systems.split(",") if args.systems else []:
        if system not in trained:
            raise UserError(f"--systems {args.systems}: plan {args.plan} does not train {system!r}: "
                            f"{nearest(system, trained)}")  # fmt: skip
    return plan


def _own_plan(args: argparse.Namespace) -> Plan:
    """A plan with one part, from the command line."""
    if not (args.grid or args.search):
        raise UserError(f"give --plan ({', '.join(names())}, or a file), or --grid KEY=A,B, or --search KEY=LOW..HIGH")
    if args.grid and args.search:
        raise UserError("--grid and --search exclude each other: a search takes lists of values too (KEY=A,B)")
    if not args.systems:
        raise UserError("--systems: name the systems to train, separated by commas")
    if bool(args.search) != (args.trials is not None):
        raise UserError(
            "--search needs --trials N, the number of configurations to try; without it, leave --trials out"
        )
    pairs = dict(_pair(text, _SEARCH if args.search else _GRID) for text in args.search or args.grid)
    block = {"systems": args.systems.split(",")}
    if args.search:
        part = {"title": "Search", "figure": "search", "test": "chosen", "trials": args.trials,
                "runs": [{**block, "space": pairs}]}  # fmt: skip
        return parse_plan({"about": "A search over settings.", "parts": {_SEARCH: part}}, "--search")
    grid = {key: values_of(key, text) for key, text in pairs.items()}
    figure = {1: "lines", 2: "heatmap"}.get(len(grid), "bars")
    part = {"title": "Grid", "figure": figure, "test": "chosen", "runs": [{**block, "grid": grid}]}
    return parse_plan({"about": "A grid of settings.", "parts": {_GRID: part}}, "--grid")


def _pair(text: str, option: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (separator and key and value):
        raise UserError(f"--{option} {text}: write it as section.key=values, e.g. --{option} model.hidden=32,64")
    return key, value


def _datasets(paths: Sequence[str], scale: Scale, world: Path, new: Path) -> list[Data]:
    """The datasets that are named, or the one that the scale generates, at `world`; where it is not, it is made as
    `new`, to be moved there."""
    if not paths:
        if scale.world is None:
            raise UserError("no dataset: give --data (a folder that `mealrec prepare` made)")
        there = world if world.exists() else new
        if there is new:
            try:
                options = SyntheticOptions.fitting(scale.world)
            except TypeError as error:
                raise UserError(f"the scale's world: {error}") from None
            console.say(f"generating the world of the plan: {options.users:,} users, {options.items:,} items")
            generate(new, options)
        return [Data("world", str(world), load_manifest(there))]
    found = []
    for path in paths:
        where, manifest = named_dataset(path)
        found.append(Data(where.rstrip("/").rpartition("/")[2], where, manifest))
    known = [data.name for data in found]
    if len(set(known)) < len(known):
        raise UserError(
            f"--data: two datasets have the same folder name ({', '.join(known)}); rename one of the folders"
        )
    return found


def _given(args: argparse.Namespace, scale: Scale) -> Given:
    settings = (f"tracking.experiment={args.name}", *args.settings)
    seeds = parse_seeds(args.seeds)
    return Given(
        args.recipe or scale.recipe or "default", settings,
        tuple(seeds) if seeds else None, tuple(args.systems.split(",")) if args.systems else None,
    )  # fmt: skip


def _check(trials: Sequence[Trial], left_out: Sequence[LeftOutRecord], strict: bool) -> None:
    told = list(dict.fromkeys(f"without {each.system} on {each.dataset}: {each.why}" for each in left_out))
    if told and strict:
        raise UserError("\n".join(["--strict: the data lack what systems of the plan need", *told]))
    for line in told:
        console.say(line, Verbosity.BRIEF)
    for trial in trials:
        if trial.config.cluster.workers > 1:
            raise UserError("cluster.workers: a trial of a study is one process; use --parallel for several at once")
        trial.config.engine.choose(1)


def _record(
    args: argparse.Namespace,
    plan: Plan,
    datasets: Sequence[Data],
    trials: Sequence[Trial],
    left_out: Sequence[LeftOutRecord],
    folder: Path,
) -> StudyRecord:
    """The study's record, written. Raises UserError if a study that goes on would lose trials that it has."""
    made = StudyRecord(
        folder, args.name, args.command_line, args.plan or (_SEARCH if args.search else _GRID), plan.about,
        datetime.now(timezone.utc).isoformat(timespec="seconds"), CRITERION,
        {data.name: data.path for data in datasets},
        tuple(PartRecord(name, part.title, part.figure, tuple(part.factors), part.test)
              for name, part in plan.parts.items()),
        tuple(trial.record() for trial in trials), tuple(left_out),
    )  # fmt: skip
    if (folder / STUDY).exists():
        before = read_study(folder)
        if lost := {trial.name for trial in before.trials} - {trial.name for trial in trials}:
            raise UserError(
                f"study {args.name!r} has {len(lost)} trials that this command does not name ({min(lost)}): it was "
                f"begun by `{before.command}`; add to that, or use another --name"
            )
    write_study(made)
    write_group(args.name, [folder / run for run in dict.fromkeys(trial.run for trial in trials)])
    return made


def _conduct(study: StudyRecord, plan: Plan, trials: Sequence[Trial], args: argparse.Namespace) -> None:
    import torch  # only after all checks, so that mistakes are told at once

    from trainer.study.conduct import Machine, conduct, outstanding

    first = trials[0].config
    left = outstanding(study, trials)
    runs = {trial.run for trial in trials}
    shared = f" in {len(runs):,} runs" if len(runs) < len(trials) else ""
    console.say(f"{args.name}: {len(trials):,} trials{shared}, {len(runs) - len(left):,} of them finished earlier",
                Verbosity.BRIEF)  # fmt: skip
    machine = Machine(
        args.parallel, first.engine.gpus,
        usable_cores(), torch.cuda.device_count(), first.cluster.launcher == "inline",
    )  # fmt: skip
    with _mirrored(study, first.tracking):
        conduct(study, plan, trials, machine)
    if first.tracking.mlflow and (page := _page(study, trials)):
        console.say(f"\nthe study in MLflow\n{page}", Verbosity.BRIEF)


@contextmanager
def _mirrored(study: StudyRecord, tracking: TrackingConfig) -> Iterator[None]:
    """In the block, one process mirrors all runs of the study to MLflow."""
    if not tracking.mlflow:
        yield
        return
    again = f"{study.command} --resume" if "--resume" not in shlex.split(study.command) else study.command
    mirror = start_mirror(study.folder, tracking.uri, tracking.experiment, study=again)
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        mirror.close(_MIRROR_SECONDS if status == "FINISHED" else _MIRROR_SECONDS_STOPPED, status)


def _page(study: StudyRecord, trials: Sequence[Trial]) -> str:
    tracking = trials[0].config.tracking
    return where_runs_are(study.folder, tracking.uri, tracking.experiment, of=study.folder / trials[0].run)


def _next(study: StudyRecord, runs_dir: Path) -> str:
    report = ["mealrec", "report", "--study", study.name, *runs_dir_option(runs_dir), "--out", f"report/{study.name}"]
    commands = [report]
    if len(study.parts) == 1:  # the runs of different parts are not made to be compared
        commands.append(["mealrec", "compare", str(runs_dir / study.name)])
    return "\n".join(["", "next:", *(f"  {shlex.join(command)}" for command in commands)])
