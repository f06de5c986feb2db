"""Frames of videos through a vision model. The only part of an extraction that needs the extra `video`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from models.options.base import ContentField
from trainer.extract.pipeline.protocols import VIDEO_KINDS, Arrays, Preparation, Sampling, Unusable
from trainer.extract.pipeline.units import TIMES, Encode, Unit, encoding, load_unit
from trainer.extract.video import decode
from trainer.extract.video import encoders as vision

#: narrower frames are refused: image processors that resize the shorter side would make huge pictures of them
_NARROWEST = 20


@dataclass(frozen=True)
class VideoJob:
    """Frames of videos through a vision model."""

    name: str
    layers: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    kinds: ClassVar[dict[ContentField, str]] = VIDEO_KINDS
    zero_rows_are_mean: ClassVar[bool] = False

    @property
    def encoder(self) -> str:
        return vision.describe(self.name, self.layers)

    @property
    def settings(self) -> dict[str, Any]:
        how = self.sampling
        return {"videos": True, "encoder": self.name, "layers": self.layers, "frames": how.frames, "fps": how.fps}

    def item_bytes(self) -> int:
        blank = np.zeros((32, 32, 3), np.uint8)
        return int(_preparation(self.name)([blank] * self.sampling.frames).nbytes)

    def load(self, unit: Unit) -> bytes:
        prepare = _preparation(self.name)

        def one(source: str) -> Arrays:
            if not source:
                raise Unusable("no file")
            frames, times = decode.sample(source, self.sampling)
            for height, width in {frame.shape[:2] for frame in frames}:
                if max(height, width) > _NARROWEST * min(height, width):
                    raise Unusable(f"frames too narrow: {width} x {height}")
            return {"clips": prepare(frames), TIMES: times.astype(np.float32)}

        return load_unit(unit, one)

    def make_encoder(self, device: str, threads: int | None) -> Encode:
        encode = vision.load(self.name, self.layers, device, threads)
        return encoding(lambda loaded: encode(loaded["clips"]), device)


@functools.cache
def _preparation(name: str) -> Preparation:
    return vision.preparation(name)
