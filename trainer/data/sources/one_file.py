"""A source whose log is one file with fixed columns: `--NAME FILE` and `--time-format` are all its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.data.sources.base import Log
from trainer.data.sources.times import add_time_format
from trainer.local_path import local_path


@dataclass
class OneFile:
    """option: the name of the option that takes the file. is_for: what the file is, for the help.

    reader: reads it; its second argument is the format of times, None if it was not given.
    """

    help: str
    example: str
    option: str
    is_for: str
    reader: Callable[[Path, str | None], Log]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(f"--{self.option}", type=local_path, required=True, help=self.is_for)
        add_time_format(parser)

    def read(self, args: argparse.Namespace) -> Log:
        return self.reader(getattr(args, self.option), args.time_format)
