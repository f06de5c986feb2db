"""`mealrec report`: Make one HTML page of a study: its tables, figures, training, data and what is missing.

Example: mealrec report --study paper --out report
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import console
from models.errors import UserError
from models.registry import nearest
from retrieval.files import write_text
from retrieval.folders import whole_folder, writable_folder
from trainer.local_path import local_path, runs_dir_option
from trainer.tracking.study_files import STUDY

if TYPE_CHECKING:
    from trainer.report.figures.style import PageFigure

#: in the head of each page
GENERATOR = '<meta name="generator" content="mealrec report">'
PAGE, FIGURES = "index.html", "figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec report`."""
    parser.add_argument("--study", required=True, metavar="NAME", help="name or folder of a study")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR",
                        help="folder of runs and studies (default: runs)")  # fmt: skip
    parser.add_argument("--out", type=local_path, default=Path("report"), metavar="DIR",
                        help=f"folder to write {PAGE} and {FIGURES}/ into; an earlier report there is replaced "
                        "(default: report)")  # fmt: skip
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True,
                        help="also write figures as PNG and PDF; needs Chrome or Chromium (default: yes)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the page and the pictures, and say where they are."""
    folder = _study_folder(args.study, args.runs_dir)
    replace = _is_report(args.out)
    writable_folder(args.out, replace=replace)  # before the work, not after
    from trainer.report.analyses import complete
    from trainer.report.build import build  # Plotly and the rest take seconds
    from trainer.report.page import render
    from trainer.report.read import read

    study = read(folder)
    complete(study)
    page = build(study, _remake(args))
    with whole_folder(args.out, replace=replace) as new:
        pictures = args.pictures and _draw(page.figures, new / FIGURES)
        write_text(new / PAGE, render(page, pictures=pictures))
    console.say(
        f"{len(page.figures)} figures of {len(study.in_state('finished'))} finished trials in {args.out / PAGE}; "
        "open it in a browser"
    )
    return 0


def _draw(figures: list[PageFigure], folder: Path) -> bool:
    """Write the pictures; False, with a warning, where no browser can draw them."""
    from trainer.report.pictures import NoBrowserError, write_pictures

    folder.mkdir()
    try:
        write_pictures(figures, folder)
    except NoBrowserError as error:
        folder.rmdir()
        console.warn(
            f"no PNG and PDF: {error}. The page has all figures. For the pictures install Chromium (Debian: apt "
            "install chromium), or name a browser in BROWSER_PATH, and run this again; --no-pictures leaves them out"
        )
        return False
    return True


def _study_folder(name: str, runs_dir: Path) -> Path:
    """The folder of the study. Raises UserError with the nearest name if there is none."""
    folder = Path(name) if (Path(name) / STUDY).exists() else runs_dir / name
    if (folder / STUDY).exists():
        return folder
    known = sorted(path.parent.name for path in runs_dir.glob(f"*/{STUDY}"))
    hint = nearest(name, known) if known else f"there is none in {runs_dir}; --runs-dir says where studies are"
    raise UserError(f"there is no study {name!r} ({STUDY}): {hint}")


def _is_report(out: Path) -> bool:
    """Whether the folder holds an earlier report and nothing else, so that it may be replaced."""
    page = out / PAGE
    if not page.is_file() or {path.name for path in out.iterdir()} - {PAGE, FIGURES}:
        return False
    with page.open(encoding="utf-8", errors="replace") as file:
        return GENERATOR in file.read(2000)


def _remake(args: argparse.Namespace) -> str:
    """The command, as it was given."""
    where = runs_dir_option(args.runs_dir)
    return shlex.join(["mealrec", "report", "--study", args.study, *where, "--out", str(args.out)])
