"""Commands of several kinds, `mealrec COMMAND KIND ...`, each with its own options and example."""

from __future__ import annotations

import argparse
from collections.abc import Mapping


def add_kinds(
    parser: argparse.ArgumentParser, dest: str, kinds: Mapping[str, tuple[str, str]]
) -> dict[str, argparse.ArgumentParser]:
    """A parser per kind; `kinds`: what it is for, in words, and an example."""
    made = parser.add_subparsers(dest=dest, metavar=dest.upper(), required=True)
    return {
        name: made.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, (text, example) in kinds.items()
    }
