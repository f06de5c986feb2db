"""Which version of this program is running."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path


def program_version() -> str:
    """The version of the installed package."""
    try:
        return importlib.metadata.version("mealrec")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_revision() -> str | None:
    """The commit that is checked out, None where the program is not run from a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
