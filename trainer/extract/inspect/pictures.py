"""Frames of videos as small JPEG pictures for a page, decoded anew from where the videos are."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from models.errors import UserError
from trainer.data.storage import is_url
from trainer.extract.pipeline.protocols import Sampling, Unusable

_SIZE = (320, 640)  # at most: width, height
_QUALITY = 80
_THUMBNAIL_TIMEOUT_S = 5.0


def sampled(source: str, count: int, fps: float, fetch: Sequence[str]) -> tuple[list[str], list[float]]:
    """The `count` frames that are sampled of a video at `fps`, as data: URIs, and the time of each in seconds.

    fetch: a video at a URL is read only if it is at or below one of these. Whoever made the features wrote its address,
    which may be that of a service that only this machine can reach.
    Raises Unusable where the video may not or cannot be read, UserError where the extra `video` is not installed.
    """
    return _pictures(source, fetch, frames=count, fps=fps)


def thumbnail(source: str, fetch: Sequence[str]) -> str:
    """The frame in the middle of a video, as a data: URI; gives up after five seconds. fetch, errors: as `sampled`."""
    return _pictures(source, fetch, frames=1, timeout=_THUMBNAIL_TIMEOUT_S)[0][0]


def moved(recorded: Sequence[float], times: Sequence[float]) -> bool:
    """Whether frames have other times than those recorded (in float32)."""
    return not np.allclose(times, recorded, rtol=1e-6, atol=1e-3)


def may_be_read(source: str, fetch: Sequence[str]) -> bool:
    """Whether `source` is a local path, or at or below one of the addresses `fetch`: same scheme, host and port."""
    if not is_url(source) or source.lower().startswith("file://"):
        return True
    return any(_below(urlsplit(source), urlsplit(address)) for address in fetch)


def _below(source: SplitResult, address: SplitResult) -> bool:
    folder = address.path.rstrip("/")
    same = (source.scheme, source.netloc) == (address.scheme, address.netloc)
    climbs = ".." in unquote(source.path).split("/")
    return same and not climbs and (source.path == folder or source.path.startswith(f"{folder}/"))


def _pictures(source: str, fetch: Sequence[str], **how: Any) -> tuple[list[str], list[float]]:
    if not may_be_read(source, fetch):
        raise Unusable(f"it is at {source}, which is fetched only if --fetch names that address or a folder above it")
    try:
        from PIL import Image

        from trainer.extract.video import decode
    except ImportError as error:
        raise UserError(f"frames are shown with PyAV and Pillow ({error}): pip install 'mealrec[video]'") from None
    try:
        frames, times = decode.sample(source, Sampling(**how))
    except UserError as error:  # the package for this kind of URL is not installed
        raise Unusable(str(error)) from error
    made = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.thumbnail(_SIZE)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_QUALITY)
        made.append(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
    return made, times.tolist()
