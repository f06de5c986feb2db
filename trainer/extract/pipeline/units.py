"""What an extraction does to a unit of items, and the bytes that travel between its stages."""

from __future__ import annotations

import functools
import io
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from trainer.data.bounded import read_npz
from trainer.extract.pipeline.protocols import Arrays, Unusable
from trainer.process import peak_memory_mib

Encode = Callable[[bytes], bytes]
#: arrays of an encoded unit that are not vectors
POSITIONS, FAILED, REASONS, TIMES, COST = "positions", "failed", "reasons", "times", "cost"


@dataclass(frozen=True)
class Unit:
    """Items that are loaded, encoded and kept together. positions: in the list of items; sources: what to load."""

    positions: tuple[int, ...]
    sources: tuple[str, ...]


class Job(Protocol):
    """What an extraction computes, whatever executes it; is sent to other processes."""

    kinds: ClassVar[dict[ContentField, str]]

    @property
    def encoder(self) -> str:
        """The encoder in words, for manifests; checks that it can work. Raises UserError."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the vectors depend on: an extraction is only continued with equal settings."""
        ...

    @property
    def zero_rows_are_mean(self) -> bool:
        """Whether a vector of zeros stands for "unknown" and becomes the mean of the others."""
        ...

    def item_bytes(self) -> int:
        """Size of one loaded item."""
        ...

    def load(self, unit: Unit) -> bytes:
        """The items of a unit as the encoder takes them, packed; those that cannot be used, with their reasons."""
        ...

    def make_encoder(self, device: str, threads: int | None) -> Encode:
        """What turns loaded bytes into encoded ones; made once per process."""
        ...


def pack(arrays: Arrays) -> bytes:
    """Arrays as the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(data: bytes) -> Arrays:
    """The arrays of `pack`; raises one of MALFORMED for any other bytes. Never unpickles."""
    return dict(read_npz(io.BytesIO(data)))


def load_unit(unit: Unit, one: Callable[[str], Arrays]) -> bytes:
    """The packed arrays that `one` gives for each source of a unit; where it raises, the reason.

    The reason is the message of Unusable. Any other exception is a bug or a lack of memory; it concerns one item and
    stops nothing, and the reason says what happened where. UserError (a missing package) concerns all and is raised.
    """
    started = time.perf_counter()
    loaded: list[Arrays] = []
    positions: list[int] = []
    failed: dict[int, str] = {}
    for position, source in zip(unit.positions, unit.sources, strict=True):
        try:
            loaded.append(one(source))
            positions.append(position)
        except Unusable as error:  # noqa: PERF203 - each item fails for itself
            failed[position] = str(error)
        except UserError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            failed[position] = f"error: {type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
    arrays = {name: np.stack([each[name] for each in loaded]) for name in (loaded[0] if loaded else ())}
    cost = np.array([time.perf_counter() - started, 0.0, peak_memory_mib(torch.device("cpu")), 0.0])
    return pack({POSITIONS: np.array(positions, np.int64), COST: cost, **_failures(failed), **arrays})


def encoding(vectors: Callable[[Arrays], dict[ContentField, NDArray[np.float32]]], device: str) -> Encode:
    """What turns the packed arrays of `load_unit` into packed vectors in float16, by `vectors` on `device`.

    An item whose vectors are not finite in float16 has failed.
    """
    return functools.partial(_encode, vectors, device)


def _encode(vectors: Callable[[Arrays], dict[ContentField, NDArray[np.float32]]], device: str, data: bytes) -> bytes:
    started = time.perf_counter()
    loaded = unpack(data)
    kept = {name: loaded[name] for name in (POSITIONS, TIMES) if name in loaded}
    failed = dict(zip(loaded[FAILED].tolist(), loaded[REASONS].tolist(), strict=True))
    if len(loaded[POSITIONS]):
        with np.errstate(over="ignore"):  # infinity is found right below
            fields = {str(name): array.astype(np.float16) for name, array in vectors(loaded).items()}
        finite = np.logical_and.reduce([np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in fields.values()])
        failed |= dict.fromkeys(loaded[POSITIONS][~finite].tolist(), "the encoder gave NaN, or more than float16 holds")
        kept = {name: array[finite] for name, array in {**kept, **fields}.items()}
    cost = loaded[COST] + np.array([0.0, time.perf_counter() - started, 0.0, peak_memory_mib(torch.device(device))])
    return pack({**kept, COST: cost, **_failures(failed)})


def _failures(failed: dict[int, str]) -> Arrays:
    reasons = np.array(list(failed.values()), np.str_) if failed else np.zeros(0, "<U1")
    return {FAILED: np.array(list(failed), np.int64), REASONS: reasons}
