"""Titles through a text model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.options.base import ContentField
from trainer.extract.pipeline.protocols import TITLE_KINDS, Arrays, Unusable
from trainer.extract.pipeline.units import Encode, Unit, encoding, load_unit
from trainer.extract.titles import encoders as titles


@dataclass(frozen=True)
class TitleJob:
    """Titles through a text model."""

    name: str
    segments: int | None = None
    layers: bool = False
    kinds: ClassVar[dict[ContentField, str]] = TITLE_KINDS

    @property
    def encoder(self) -> str:
        return titles.describe(self.name, self.layers)

    @property
    def settings(self) -> dict[str, Any]:
        return {"titles": True, "encoder": self.name, "layers": self.layers, "segments": self.segments}

    @property
    def zero_rows_are_mean(self) -> bool:
        return titles.zero_rows_are_mean(self.name)

    def item_bytes(self) -> int:
        return 4096  # of text: nothing beside what frames take

    def load(self, unit: Unit) -> bytes:
        def one(source: str) -> Arrays:
            if not source.strip():
                raise Unusable("no title")
            return {"titles": np.asarray(source)}

        return load_unit(unit, one)

    def make_encoder(self, device: str, threads: int | None) -> Encode:
        encode = titles.load(self.name, self.segments, self.layers, device, threads)
        return encoding(lambda loaded: encode(loaded["titles"].tolist()), device)
