"""Files at a path or URL, and arrays in files."""

from __future__ import annotations

import functools
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


def check_scheme(source: str) -> None:
    """Raises UserError for a URL that is not file, http(s), s3 or gs."""
    if is_url(source) and (source.split("://")[0].lower() not in SCHEMES or "::" in source):
        raise UserError(f"{source}: only {', '.join(SCHEMES)} URLs and local paths are read")


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


class SentElsewhere(OSError):
    """A web server sends us on to another host, or to another port: an address that nobody asked to be read."""


def web_options(source: str) -> dict[str, Any]:
    """Options for fsspec's client of this path or URL: redirects of a web server to another place are not followed.

    They could lead to services that only this machine can reach. From http to https of the same host is no other place.
    """
    web = source.lower().startswith(("http://", "https://"))
    return {"client_kwargs": {"trace_configs": [_redirects()]}} if web else {}


@functools.cache
def _redirects() -> Any:
    """One for all: fsspec keeps a client for each set of options."""
    import aiohttp

    async def check(_session: Any, _context: Any, asked: Any) -> None:
        here, there = asked.url, asked.response.headers.get("Location", "")
        to = here.join(type(here)(there))
        if to.host != here.host or (to.port != here.port and (here.port, to.port) != (80, 443)):
            asked.response.close()
            raise SentElsewhere(
                f"its server sends us on to {to.origin()}, which is not followed; give the address there yourself"
            )

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(check)
    return config


def sent_elsewhere(error: BaseException | None) -> SentElsewhere | None:
    """The `SentElsewhere` that caused an error of fsspec, if one did."""
    while error is not None and not isinstance(error, SentElsewhere):
        error = error.__cause__ or error.__context__
    return error


def open_file(source: str) -> IO[bytes]:
    """A binary stream over the file at a local path or a URL.

    Raises UserError: a scheme that is not one of SCHEMES, a missing package for it, a file that cannot be opened.
    """
    check_scheme(source)
    try:
        if not is_url(source):
            return Path(source).open("rb")
        return cast("IO[bytes]", fsspec.open(source, "rb", **web_options(source)).open())
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # each protocol's client has errors of its own; all mean that this cannot be opened
        if elsewhere := sent_elsewhere(error):
            raise UserError(f"cannot open {source}: {elsewhere}") from error
        raise UserError(f"cannot open {source} ({type(error).__name__}: {error}); is it there and readable?") from None
