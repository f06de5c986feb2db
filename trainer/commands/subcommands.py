"""Subcommands, `mealrec COMMAND SUBCOMMAND ...`, each with its own options and example."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from trainer.commands.output import add_output_options


def add_subcommands(
    parser: argparse.ArgumentParser, dest: str, subcommands: Mapping[str, tuple[str, str]]
) -> dict[str, argparse.ArgumentParser]:
    """Add a parser for each subcommand; return them by name. subcommands: name -> (description, example)."""
    made = parser.add_subparsers(dest=dest, metavar=dest.upper(), required=True)
    parsers = {
        name: made.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, (text, example) in subcommands.items()
    }
    for each in parsers.values():
        add_output_options(each)
    return parsers
