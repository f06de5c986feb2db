"""`mealrec settings`: list what `--set` and recipes can set: key, type, default and meaning.

Example: mealrec settings sasrec
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from models.errors import UserError
from models.systems import SYSTEMS
from trainer.commands.listing import Listing, add_format, render
from trainer.config.settings import general, of_system

_HOW = (
    "`mealrec train --set KEY=VALUE` changes a setting; values are written as in YAML, such as "
    "`--set eval.ks=[5,10]`. A recipe (YAML) has the same keys, nested: `train: {epochs: 20}`. There, `model` is the "
    "name of a system, and `systems: {sasrec: {hidden: 128, train: {epochs: 20}}}` has options (without `model.`) and "
    "training settings that hold where this system is trained. `sizes` has such settings for datasets of different "
    "size, as recipe `default` shows."
)
_SYSTEMS = "`mealrec settings SYSTEM` lists the options of a system (`mealrec systems`), `--all` those of all systems."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", nargs="?", help="a system, to list its options (default: the settings of every run)")
    parser.add_argument("--all", action="store_true", help="the settings of every run, and the options of all systems")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    if args.all and args.system:
        raise UserError(f"--all lists all systems; leave {args.system} out")
    if args.all:
        print(page() if args.format == "markdown" else render(everything(), args.format))
    else:
        print(render([_of_system(args.system) if args.system else _general(_HOW, _SYSTEMS)], args.format))
    return 0


def everything() -> list[Listing]:
    """The settings of every run, then the options of each system that has some."""
    return [_general(), *(each for name in SYSTEMS if (each := _of_system(name)).rows)]


def page() -> str:
    """docs/settings.md; a test compares them."""
    made = "This page is the output of `mealrec settings --all --format markdown`."
    how = textwrap.fill(_HOW, 120, break_on_hyphens=False)
    return f"# Settings\n\n{made}\n\n{how}\n\n{render(everything(), 'markdown')}"


def _general(*notes: str) -> Listing:
    return Listing("run", "Settings of every run", [asdict(setting) for setting in general()], notes)


def _of_system(name: str) -> Listing:
    settings = [asdict(setting) for setting in of_system(name)]
    notes = () if settings else (f"{name} has no options.",)
    return Listing(name, f"Options of {name}", settings, notes)
