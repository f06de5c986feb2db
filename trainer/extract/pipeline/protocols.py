"""The types that the modules of an extraction share.

A *unit* is a few items that are loaded together by one task on a CPU (decoded videos, or titles), encoded together in
one batch, and kept together on disk as soon as they are encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.options.base import ContentField

#: arrays by name, the first dimension of each counting items
Arrays = dict[str, NDArray[Any]]

#: what the vectors of a field are, in words, by what was encoded
VIDEO_KINDS: dict[ContentField, str] = {"sequence": "frames", "visual": "video", "visual_layers": "video layers"}
TITLE_KINDS: dict[ContentField, str] = {
    "text": "title",
    "text_layers": "title layers",
    "sequence": "segments",
    "visual": "segments mean",
    "visual_layers": "segments layers mean",
}


#: encoders with a name of their own, by what they encode; any other is a model's hub name or folder
ENCODERS = {"videos": ("videomae", "efficientnet-lite0"), "titles": ("bert", "minilm", "glove")}


def model_folder(encoder: str) -> Path | None:
    """The absolute path of the folder that is given as an encoder; None where a name is given.

    A folder that is called like one of ENCODERS is given as ./NAME.
    """
    named = any(encoder in names for names in ENCODERS.values())
    return None if named or not Path(encoder).is_dir() else Path(encoder).absolute()


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken of a video, and the limits for one video (MealRec 5.1.3: 5 frames, 1 per second)."""

    frames: int = 5
    fps: float = 1.0  # frames taken per second
    timeout: float = 60.0  # seconds for one video
    max_bytes: int = 2 << 30  # most that is copied of a file on a server without range requests


class Unusable(Exception):
    """This item cannot be used; the message is the reason in failed.csv: short, and equal for equal causes."""


class VideoEncoder(Protocol):
    """A vision model, loaded once in each process that encodes."""

    def __call__(self, clips: NDArray[np.uint8]) -> dict[ContentField, NDArray[np.float32]]:
        """Vectors of clips (n, K, height, width, 3), RGB, as `Preparation` gives them: sequence (n, K, V), visual
        (n, V), and where asked for visual_layers (n, S, V)."""
        ...


class Preparation(Protocol):
    """Turns frames into the encoder's input in the process that decodes them, so that less data is sent."""

    def __call__(self, frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """K frames (height, width, 3), RGB, of any size, resized and cropped for the encoder: (K, h, w, 3)."""
        ...


class TitleEncoder(Protocol):
    """A text model, loaded once in each process that encodes."""

    def __call__(self, titles: list[str]) -> dict[ContentField, NDArray[np.float32]]:
        """Vectors of titles, none of them blank: text (n, H), and where asked for text_layers (n, S, H), sequence
        (n, K, H) of K segments, visual (n, H) their mean, visual_layers (n, S, H)."""
        ...
