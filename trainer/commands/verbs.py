"""The commands of `mealrec` by name, each a module of this package, and their parsers."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from trainer.commands.output import add_output_options

VERBS = (
    "extract",
    "inspect",
    "prepare",
    "train",
    "evaluate",
    "export",
    "index",
    "recommend",
    "register",
    "update",
    "serve",
    "compare",
    "study",
    "analyse",
    "report",
    "systems",
    "settings",
    "track",
    "clean",
    "doctor",
    "completion",
)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of the arguments of one command."""
    return _filled(verb, argparse.ArgumentParser(prog=f"mealrec {verb}"))


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands. It imports all of them, which takes seconds, so `mealrec` itself does not use it."""
    parser = argparse.ArgumentParser(prog="mealrec")
    commands = parser.add_subparsers(metavar="COMMAND")
    for verb in VERBS:
        _filled(verb, commands.add_parser(verb, help=help_of(verb)))
    return parser


def _filled(verb: str, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    module = module_of(verb)
    parser.description, parser.epilog = _summary(module.__doc__), _example(module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    add_output_options(parser, brief=verb == "train")
    return parser


def module_of(verb: str) -> ModuleType:
    """The module of a command: `add_arguments(parser)`, `run(args)`, and a docstring for its help."""
    return importlib.import_module(f"trainer.commands.{verb}")


def top_parser() -> argparse.ArgumentParser:
    """What `mealrec --help` and `--version` print; no command is imported for it."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {help_of(verb)}" for verb in VERBS)
    parser = argparse.ArgumentParser(
        prog="mealrec",
        usage="mealrec COMMAND ...",
        description="MealRec: hierarchical diffusion models for micro-video recommendation.",
        epilog=f"commands:\n{verbs}\n\nexample:\n"
        "  mealrec prepare synthetic --users 1000 --items 400 --out data/small\n"
        "\nmealrec COMMAND --help lists the options of a command, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        number = version("mealrec")
    except PackageNotFoundError:  # run from a working tree, as on a cluster
        number = "(not installed)"
    parser.add_argument("--version", action="version", version=f"mealrec {number}")
    return parser


def help_of(verb: str) -> str:
    """The first line of a command's docstring, read without importing the command, which may load torch."""
    source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
    return _summary(ast.get_docstring(ast.parse(source)))


def _summary(docstring: str | None) -> str:
    """The first line of a docstring, without the name of the command at its start."""
    first = (docstring or "").strip().partition("\n")[0]
    return first.partition(": ")[2] if first.startswith("`") else first


def _example(docstring: str | None) -> str | None:
    """The paragraph of a command's docstring that begins with "Example"."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return next((each for each in paragraphs if each.startswith("Example")), None)
