"""Free disk space: what finished runs do not need, and what killed commands and ended Rays left behind.

Of a finished run the weights of its last and its best checkpoint stay, so it can be evaluated, exported and compared;
what goes is needed only to train it for more epochs. Without --yes nothing is removed.

Example: mealrec clean --yes
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from filelock import Timeout

from cluster import console, leftovers
from models.errors import UserError
from retrieval.disk import disk_trouble
from retrieval.files import locked, remove_own, sole_writer, temporaries
from retrieval.folders import left_by_killed_makers, sweep
from trainer.data.storage import default_cache
from trainer.local_path import local_path, runs_beside
from trainer.tracking.describe import read_config
from trainer.tracking.metrics_log import read_lines
from trainer.training.checkpoint_files import read_progress, surplus
from trainer.training.weights_only import keep_weights_only

#: folders in folders, below the one of `--under`, in which killed commands are looked for: export/NAME/index
_DEPTH = 3
#: a run's own files, which `retrieval.files.write_bytes` writes beside their place first
_RUN_FILES = temporaries(r"[a-z0-9.-]+\.(json|jsonl|yaml|npz)")


@dataclass(frozen=True)
class Item:
    """Something that can be freed. remove: does it. about: what it is, as text."""

    name: str
    about: str
    bytes: int
    remove: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec clean`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these runs (default: all finished runs that were "
                        "not trained with train.keep_optimizer=true, and what killed commands left)")  # fmt: skip
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR", help="folder of runs")
    parser.add_argument("--under", type=local_path, default=Path(), metavar="DIR", help="where to look for what killed "
                        "commands left: in this folder and three levels below it (default: here)")  # fmt: skip
    parser.add_argument("--unfinished", action="store_true", help="also of named runs that have not finished; they "
                        "cannot be resumed then")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove what is listed")


def run(args: argparse.Namespace) -> int:
    """List what can be freed; with --yes free it. Raises UserError for a name that is no run, and for what failed."""
    if args.unfinished and not args.runs:
        raise UserError("--unfinished: name the runs that may lose what is needed to resume them")
    items, alone = _of_runs(args.runs, args.runs_dir, args.unfinished)
    if not args.runs:
        items += [*_of_killed_commands([args.under, args.runs_dir, default_cache()]), *_of_rays()]
    for item in items:
        print(f"{_size(item.bytes):>12}  {item.name}: {item.about}")
    for text in alone:
        console.say(f"left alone    {text}")
    total = _size(sum(item.bytes for item in items))
    if not items:
        print("nothing to free")
    elif not args.yes:
        print(f"{total:>12}  in all. Nothing is removed yet: add --yes to remove it")
    else:
        _remove(items)
        print(f"{total:>12}  freed")
    return 0


def _remove(items: Sequence[Item]) -> None:
    failed = [told for item in items if (told := _failure(item))]
    if failed:
        raise UserError("\n".join(failed))


def _failure(item: Item) -> str | None:
    """Remove the item; return what went wrong, if anything did."""
    try:
        item.remove()
    except UserError as error:
        return f"{item.name} was not cleaned: {error}"
    except OSError as error:
        return f"{item.name} was not cleaned: {disk_trouble(error, Path.cwd()) or error}"
    return None


def _of_runs(names: Sequence[str], runs_dir: Path, unfinished: bool) -> tuple[list[Item], list[str]]:
    """What can be freed of runs, and which runs are left alone, with the reason."""
    if missing := [name for name in names if not _is_run(runs_dir / name)]:
        raise UserError(f"there is no run {missing[0]!r} in {runs_dir}: {runs_beside(runs_dir / missing[0])}")
    folders = [runs_dir / name for name in names] or sorted(each for each in runs_dir.glob("*") if _is_run(each))
    items, alone = [], []
    for folder in folders:
        reason = _busy(folder) or _why_not(folder, bool(names), unfinished)
        progress = read_progress(folder / "checkpoints")
        if reason is None and (progress is None or progress.best_step < 0):
            reason = "it has no checkpoint of a validated epoch yet"
        if reason is not None or progress is None:
            alone.append(f"{folder.name}: {reason}")
            continue
        goes = surplus(folder / "checkpoints", {progress.step, progress.best_step})
        parts = [f"{len(goes.optimizers)} optimizer states"] if goes.optimizers else []
        parts += [f"{len(goes.folders)} older checkpoints"] if goes.folders else []
        if parts:
            remove = partial(_clean_run, folder, bool(names), unfinished)
            items.append(Item(folder.name, ", ".join(parts), goes.bytes, remove))
    return items, alone


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def _busy(folder: Path) -> str | None:
    """Why nobody else can write in the run's folder at the moment; None if one can."""
    try:
        with locked(folder / ".lock", wait_s=0):
            return None
    except Timeout:
        return "it is being trained"
    except UserError as error:  # its lock is a link
        return str(error)
    except OSError as error:
        return f"it cannot be written ({error.strerror})"


def _why_not(folder: Path, named: bool, unfinished: bool) -> str | None:
    """Why a run that nobody trains is left alone; None if it is not."""
    metrics = folder / "metrics.jsonl"
    lines = read_lines(metrics, 0)[0] if metrics.exists() else []
    if not unfinished and not (lines and lines[-1]["event"] == "end"):
        return "it has not finished (--unfinished and its name give up resuming it)"
    try:
        train = read_config(folder).get("train") or {}
    except UserError as error:
        return str(error)
    if not named and train.get("keep_optimizer"):
        return "train.keep_optimizer=true asks to keep its optimizer's state (its name frees it all the same)"
    return None


def _clean_run(folder: Path, named: bool, unfinished: bool) -> None:
    from trainer.training.checkpoint import CheckpointStore  # imports torch, which the list does not need

    with sole_writer(folder, wait_s=0):
        if reason := _why_not(folder, named, unfinished):  # it may have been resumed since it was listed
            raise UserError(reason)
        remove_own(folder, _RUN_FILES)  # first: on a full disk there is no room for a new manifest
        keep_weights_only(CheckpointStore(folder / "checkpoints"))


def _of_killed_commands(places: Sequence[Path]) -> Iterator[Item]:
    """What commands left that were killed while they made a dataset, an export or an index."""
    folders = {path.parent.resolve() for place in places for path in chain(*(
        place.glob("*/" * depth + ".*.mealrec-lock") for depth in range(_DEPTH + 1)))}  # fmt: skip
    for folder in sorted(folders):
        for out, left in left_by_killed_makers(folder).items():
            size = sum(map(_bytes, left))
            yield Item(_shown(out), "left by a killed command", size, partial(sweep, out))


def _of_rays() -> Iterator[Item]:
    for folder in leftovers.of_ended_rays():
        yield Item(str(folder), "of a Ray that has ended", _bytes(folder), partial(shutil.rmtree, folder))


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.lstat().st_size for each in files if each.is_file() and not each.is_symlink())


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
