"""Commands that are printed for pasting: what the shell needs before them, and paths in them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path


def activation(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command that makes `mealrec` known to the user's shell, if it runs from a virtual environment that the shell
    has not activated.
    """
    prefix, active = Path(sys.prefix).resolve(), environment.get("VIRTUAL_ENV")
    if sys.prefix == sys.base_prefix or (active and Path(active).resolve() == prefix):
        return []
    return [shlex.join([".", from_here(prefix / "bin/activate")])]


def from_here(path: Path) -> str:
    """The path relative to the current folder, if it is below it: shorter, and still right if the folder moves."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
