"""Frames of videos as small JPEG pictures for a page, decoded anew from where the videos are."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.errors import UserError
from trainer.extract.pipeline.protocols import Sampling, Unusable

_SIZE = (320, 640)  # at most: width, height
_QUALITY = 80
_THUMBNAIL_TIMEOUT_S = 5.0


def sampled(source: str, count: int, fps: float) -> tuple[list[str], list[float]]:
    """The `count` frames that are sampled of a video at `fps`, as data: URIs, and the time of each in seconds.

    Raises Unusable where the video cannot be read (or no longer), UserError where the extra `video` is not installed.
    """
    return _pictures(source, frames=count, fps=fps)


def thumbnail(source: str) -> str:
    """The frame in the middle of a video, as a data: URI; gives up after five seconds. Raises as `sampled`."""
    return _pictures(source, frames=1, timeout=_THUMBNAIL_TIMEOUT_S)[0][0]


def moved(recorded: Sequence[float], times: Sequence[float]) -> bool:
    """Whether frames have other times than those recorded (in float32)."""
    return not np.allclose(times, recorded, rtol=1e-6, atol=1e-3)


def _pictures(source: str, **how: Any) -> tuple[list[str], list[float]]:
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
