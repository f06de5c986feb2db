"""Where the video of each item is: a folder or a bucket that is listed once, or a column of the items' table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

import fsspec
import polars as pl

from models.errors import UserError
from trainer.data.storage import check_scheme, is_url, join, sent_elsewhere, web_options

#: endings of video files; of an item with several files, the earliest ending here is taken
SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mpg", ".mpeg", ".wmv", ".3gp", ".ogv", ".gif",
)  # fmt: skip


def locate(items: pl.DataFrame, root: str) -> list[str]:
    """The path or URL of each item's video, "" where there is none.

    items: as `trainer.data.sources.items.read_items`. A `video` there is relative to `root`; other items have the file
    `root`/**/ITEM.mp4 (or another of SUFFIXES). A web server that gives no listing is asked for ITEM.mp4.
    Raises UserError: `root` cannot be listed, a scheme that is not read, no item has a video.
    """
    check_scheme(root)
    named = [_absolute(video, root) if video else "" for video in items["video"].to_list()]
    if all(named):
        return named
    files = _listing(root)
    if files is None:
        return [
            one or join(root, f"{quote(item, safe='')}.mp4") for one, item in zip(named, items["item"], strict=True)
        ]
    by_item = _by_item(files)
    found = [one or by_item.get(item, "") for one, item in zip(named, items["item"], strict=True)]
    if not any(found):
        example = f"; a file there is {files[0]}" if files else "; there are no files"
        raise UserError(
            f"none of the {len(found):,} items (such as {items['item'][0]!r}) has a video in {root}: expected "
            f"{items['item'][0]}.mp4 or another of {', '.join(SUFFIXES[1:4])} ...{example}"
        )
    return found


def require_folder(root: str) -> None:
    """Raise UserError if `root` is a local path and no folder."""
    if not is_url(root) and not Path(root).is_dir():
        raise UserError(f"{root} is not a folder; --videos is the folder (or URL) that holds the videos")


def _absolute(video: str, root: str) -> str:
    if is_url(video):
        check_scheme(video)
        return video
    return join(root, video) if is_url(root) else str((Path(root) / video).absolute())


def _by_item(files: Iterable[str]) -> dict[str, str]:
    """The best file of each stem: the earliest ending of SUFFIXES, then the shortest path."""
    rank = {suffix: number for number, suffix in enumerate(SUFFIXES)}
    best: dict[str, tuple[int, int, str]] = {}
    for file in files:
        name = PurePosixPath(unquote(file) if file.lower().startswith("http") else file).name
        stem, dot, ending = name.rpartition(".")
        order = rank.get(f"{dot}{ending.lower()}")
        if order is not None:
            key = (order, len(file), file)
            best[stem] = min(best.get(stem, key), key)
    return {stem: file for stem, (_, _, file) in best.items()}


def _files(folder: Path) -> Iterator[str]:
    """All files under `folder`, through links to folders too, each folder once."""
    seen: set[tuple[int, int]] = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        found = Path(at).stat()
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()  # a second way here, or a circle
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        yield from (os.path.join(at, name) for name in names)  # noqa: PTH118


def _listing(root: str) -> Sequence[str] | None:
    """All files under `root`, sorted; None for a web server without a listing."""
    if not is_url(root):
        require_folder(root)
        return sorted(_files(Path(root).absolute()))
    web = root.lower().startswith("http")
    try:
        system, path = fsspec.core.url_to_fs(root, **web_options(root))
        # a web server's links may lead anywhere: only its own listing of this folder is read
        names = system.ls(path, detail=False) if web else system.find(path)
    except ImportError as error:
        raise UserError(f"{root}: {error}") from None
    except Exception as error:  # the client of each protocol has its own exceptions
        if elsewhere := sent_elsewhere(error):
            raise UserError(f"cannot list {root}: {elsewhere}") from None
        if web:
            return None
        raise UserError(f"cannot list {root} ({type(error).__name__}: {error}); is it there and readable?") from None
    files = sorted(str(system.unstrip_protocol(name)) for name in names)
    return None if web and not _by_item(files) else files
