"""Pictures of items, from a folder of files that are called by the item's id."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_MOST_BYTES = 4 << 20


class Thumbnail(NamedTuple):
    """content: of the file. media_type: by its suffix."""

    content: bytes
    media_type: str


class Thumbnails:
    """folder: holds ID.jpg (or .jpeg, .png, .webp), and in folders called ID the frames 1.jpg, 2.jpg ...; in an id,
    % is written %25 and / is written %2F."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, item: str, frame: int | None = None) -> Thumbnail | None:
        """The picture of an item, or of one of its frames, from 1; None if there is none."""
        stem = item.replace("%", "%25").replace("/", "%2F")
        if frame is not None:
            if stem in ("", ".", ".."):  # of no item, and other folders
                return None
            stem = f"{stem}/{frame}"
        for suffix, media_type in _TYPES.items():
            try:
                with (self._folder / f"{stem}{suffix}").open("rb") as file:
                    content = file.read(_MOST_BYTES + 1)
            except (OSError, ValueError):  # absent, or an id that no file can be called by
                continue
            return Thumbnail(content, media_type) if len(content) <= _MOST_BYTES else None
        return None
