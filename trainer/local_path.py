"""Local files and folders, as options of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def local_path(text: str) -> Path:
    """The path that an option names; every option that takes a local file or folder has this type.

    A URL is refused: as a path, `s3://bucket/a` would be a folder `s3:` in the current one.
    """
    scheme, found, _ = text.partition("://")
    if found:
        raise argparse.ArgumentTypeError(
            f"{text} is a {scheme}:// URL, and a local path is needed; give one, and copy from or to the URL yourself"
        )
    return Path(text)


def runs_dir_option(runs_dir: Path) -> list[str]:
    """--runs-dir as a command that can be pasted needs it: nothing for the folder that commands take by default."""
    return [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
