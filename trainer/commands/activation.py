"""The command that commands printed for pasting need before them."""

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
    shown = prefix.relative_to(Path.cwd()) if prefix.is_relative_to(Path.cwd()) else prefix
    return [shlex.join([".", str(shown / "bin/activate")])]
