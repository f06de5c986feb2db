"""Local files and folders, as options of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.registry import nearest

#: more runs than these are not all named
_MOST_NAMED = 8


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


def run_place(name: str, runs_dir: Path) -> Path:
    """The folder of run `name`: the one in `runs_dir`, else the folder of that path, if it is one of a run."""
    inside, path = runs_dir / name, Path(name)
    return path if not inside.is_dir() and (path / "config.yaml").is_file() else inside


def runs_beside(folder: Path) -> str:
    """Where there is no run in `folder`: a hint at those beside it, the nearest by name or some of them."""
    parent = folder.parent
    known = sorted(path.parent.name for path in parent.glob("*/config.yaml"))
    if not known:
        return f"{parent} holds no run; --runs-dir says where runs are"
    hint = nearest(folder.name, known)
    some = f"{', '.join(known[:_MOST_NAMED])} and {len(known) - _MOST_NAMED} others"
    return f"known: {some}" if hint.startswith("known") and len(known) > _MOST_NAMED else hint
