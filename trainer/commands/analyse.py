"""`mealrec analyse`: Show where a run wins and loses: by history, popularity, frames, calibration, and single users.

Example: mealrec analyse --run demo-mealrec --against demo-sasrec
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import console
from models.errors import UserError
from retrieval.disk import disk_trouble
from retrieval.folders import writable_file
from trainer.analysis.record import ANALYSIS, SAMPLE, write_analysis
from trainer.local_path import local_path
from trainer.training.runs import run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec analyse`."""
    parser.add_argument("--run", required=True, help="name or folder of a finished run")
    parser.add_argument("--against", metavar="RUN", help="another run on the same data, shown beside it in each group")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--data", help="where the run's dataset is now (default: its path at training)")
    parser.add_argument("--sample", type=int, default=SAMPLE, metavar="N",
                        help=f"users whose vectors are looked at; metrics are of all (default: {SAMPLE})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the t-SNE map (default: 0)")
    parser.add_argument("--out", type=local_path, metavar="DIR",
                        help="folder to write analysis.json into (default: that of the run, where `mealrec report` "
                        "looks for it)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the analysis and write analysis.json."""
    if args.sample < 1:
        raise UserError(f"--sample {args.sample}: give a number of at least 1")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: give a number from 0 to {2**32 - 1}")
    from trainer.analysis.analyse import analyse, command  # torch and scikit-learn take seconds
    from trainer.analysis.words import as_text

    folder = run_folder(args.run, args.runs_dir)
    against = run_folder(args.against, args.runs_dir) if args.against else None
    with _made(args.out or folder) as place:
        out = writable_file(place / ANALYSIS)  # before the work, not after
        given = {"data": args.data, "sample": args.sample, "seed": args.seed}
        made_by = command(args.run, args.runs_dir, against=args.against, **given)
        found = analyse(folder, made_by, against=against, **given)
        print(as_text(found))
        write_analysis(out, found)
    console.say(f"\nwritten to {out}; mealrec report shows it in the page of a study")
    return 0


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """`folder` is there, links followed; one that was not is removed again if the block fails.

    Raises UserError if there is a file in its place, or no folder can be made.
    """
    real = Path(os.path.realpath(folder))
    new = not real.exists()
    try:
        real.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = disk_trouble(error, real.parent)
        raise UserError(told or f"cannot make the folder {real} ({error.strerror}); choose another --out") from None
    try:
        yield real
    except BaseException:
        if new:
            shutil.rmtree(real)
        raise
