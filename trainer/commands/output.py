"""`--quiet` and `--verbose`, which every command has; what they mean is in `cluster.console`."""

from __future__ import annotations

import argparse

from cluster.console import Verbosity


def add_output_options(parser: argparse.ArgumentParser, *, brief: bool = False) -> None:
    """Add the options. brief: also `--brief`, for commands that train. `chosen` reads what was given."""
    group = parser.add_argument_group("how much is printed").add_mutually_exclusive_group()
    options = [
        (Verbosity.QUIET, "-q", "only results, warnings and errors"),
        *([(Verbosity.BRIEF, None, "one line for each run instead of one for each epoch")] if brief else []),
        (Verbosity.VERBOSE, "-v", "also times, memory and the messages of libraries"),
    ]
    for level, short, text in options:
        names = [*([short] if short else []), f"--{level.name.lower()}"]
        # a subcommand has the options too, and must not undo what was given before its name
        group.add_argument(
            *names, action="store_const", const=level, dest="verbosity", default=argparse.SUPPRESS, help=text
        )


def chosen(args: argparse.Namespace) -> Verbosity:
    """The level that the arguments ask for."""
    level: Verbosity = getattr(args, "verbosity", Verbosity.NORMAL)
    return level
