"""An extraction without a model or videos: an item's source decides its vector, or makes it or its process fail."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from models.errors import UserError
from models.options.base import ContentField
from trainer.extract.pipeline import units as jobs
from trainer.extract.pipeline.execute import Limits, Outcome, Where, extract
from trainer.extract.pipeline.protocols import TITLE_KINDS, Unusable
from trainer.extract.pipeline.units import Arrays, Encode, Unit

WIDTH = 3
GATED = 60


@dataclass(frozen=True)
class NumberJob:
    """Text of an item: its number, three times. Sources: "7" is item 7; "bad ..." is unusable with this reason; "nan"
    and "huge" give such vectors; "zero" gives zeros; "die" and "die later" kill the process that loads or encodes them;
    "boom" and "boom later" raise a bug there, "mistake" a user's mistake. log: a file that lists the loaded items.
    gate: a file without which items from number GATED on are not loaded."""

    log: Path | None = None
    gate: Path | None = None
    zero_rows_are_mean: bool = False
    kinds: ClassVar[dict[ContentField, str]] = TITLE_KINDS

    @property
    def encoder(self) -> str:
        return "numbers"

    @property
    def settings(self) -> dict[str, Any]:
        return {"zero": self.zero_rows_are_mean}

    def item_bytes(self) -> int:
        return 100

    def load(self, unit: Unit) -> bytes:
        return jobs.load_unit(unit, self._one)

    def _one(self, source: str) -> Arrays:
        while self.gate and int(source) >= GATED and not self.gate.exists():
            time.sleep(0.05)
        if self.log:
            with self.log.open("a") as log:
                log.write(source + "\n")
        if source.startswith("bad"):
            raise Unusable(source)
        if source == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if source == "boom":
            raise KeyError(source)
        if source == "mistake":
            raise UserError("what to do")
        return {"titles": np.asarray(source)}

    def make_encoder(self, device: str, threads: int | None) -> Encode:
        assert (device, threads) in (("cpu", 1), ("cpu", None))
        return jobs.encoding(lambda loaded: {"text": _vectors(loaded["titles"].tolist())}, device)


def _vectors(sources: list[str]) -> np.ndarray:
    special = {"nan": np.nan, "huge": 1e6, "zero": 0.0}
    if "die later" in sources:
        os.kill(os.getpid(), signal.SIGKILL)
    if "boom later" in sources:
        raise KeyError("boom later")
    numbers = [special[source] if source in special else float(source) for source in sources]
    return np.repeat(np.array(numbers, np.float32)[:, None], WIDTH, axis=1)


def items_of(sources: list[str]) -> pl.DataFrame:
    """A list of items i0, i1 ... with these sources; every second one has a title."""
    numbers = range(len(sources))
    return pl.DataFrame(
        {
            "item": [f"i{n}" for n in numbers],
            "title": [f"title {n}" if n % 2 == 0 else None for n in numbers],
            "source": sources,
        },
        schema={"item": pl.String, "title": pl.String, "source": pl.String},
    )


def run(out: Path, sources: list[str], job: NumberJob | None = None, **options: Any) -> Outcome:
    """Extract in units of 4, in this process unless `options` of Limits and Where say otherwise."""
    limits = {name: options.pop(name) for name in ("unit", "failures", "again") if name in options}
    return extract(
        job or NumberJob(),
        lambda: items_of(sources),
        out,
        limits=Limits(**{"unit": 4, **limits}),
        where=Where(**{"launcher": "inline", **options}),
        command="test",
        sources={},
    )


if __name__ == "__main__":  # OUT LOG GATE N LAUNCHER: extract N numbers
    out, log, gate, count, launcher = sys.argv[1:]
    job = NumberJob(Path(log), Path(gate))
    run(Path(out), [str(n) for n in range(int(count))], job, launcher=launcher, loaders=1, encoders=1)
