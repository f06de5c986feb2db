"""Files at a path or URL, and arrays in files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.errors import UserError

#: URL schemes that are opened; everything else is a local path, never a command (webdataset's `pipe:` stays off)
SCHEMES = ("file", "http", "https", "s3", "gs")


def is_url(source: str) -> bool:
    """Whether `source` is a URL (scheme://...) and not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def join(root: str, name: str) -> str:
    """The path or URL of file `name` of the dataset at `root`."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root) / name)


def default_cache() -> Path:
    """The default folder for local copies of datasets at URLs."""
    return Path.home() / ".cache" / "mealrec"


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros in a new .npy file, memory-mapped, whose room on the disk is reserved.

    Without that, a full disk ends the process when the array is written. Raises OSError.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def open_file(source: str) -> IO[bytes]:
    """A binary stream over the file at a local path or a URL.

    Raises UserError: a scheme that is not one of SCHEMES, a missing package for it, a file that cannot be opened.
    """
    if is_url(source) and (source.split("://")[0].lower() not in SCHEMES or "::" in source):
        raise UserError(f"{source}: only {', '.join(SCHEMES)} URLs and local paths are read")
    try:
        if not is_url(source):
            return Path(source).open("rb")
        return cast("IO[bytes]", fsspec.open(source, "rb").open())
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # each protocol's client has errors of its own; all mean that this cannot be opened
        raise UserError(f"cannot open {source} ({type(error).__name__}: {error}); is it there and readable?") from None
