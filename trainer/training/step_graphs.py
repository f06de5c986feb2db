"""Training steps as CUDA graphs: one launch replays all kernels of a step, which the host would launch one by one.

A step of MealRec is about 1,700 kernels, and launching one takes longer than most of them run. A graph repeats what was
recorded, with the same addresses: so the rows of a step are copied to where the recorded step read its rows, and what
the host decided while it was recorded stays as it was. Therefore a step is not recorded if the host reads from the
device in it, or if the model reads its clock.

The kernels are those of an eager step, in the same order, and torch's generator gives them the same numbers: losses and
weights are equal bit for bit (`benchmarks/gpu.py --only graphs`).
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from models.contract import Batch, Clock, SequenceModel
from models.errors import UserError

Batches = Sequence[tuple[Batch, float]]
Step = Callable[[Batches], dict[str, Tensor]]


class Recorder(Protocol):
    """What a device offers to record steps; `CudaRecorder` is the real one."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `run`, without its effects. Returns what repeats it, and the tensor that each repetition writes to."""

    def waits(self) -> Any:
        """A context manager; as a list: the places in the code where the host waits for the device in its block."""


class CudaRecorder:
    """Records CUDA graphs. They share their memory, because one at a time runs and its result is copied at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See Recorder. Memory that eager steps have freed is given back first: the graph takes as much of its own."""
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        return graph.replay, result

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        """See Recorder. Other warnings of the block are shown as always."""
        places: list[str] = []
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            shown = warnings.showwarning

            def show(
                message: Warning | str, category: type[Warning], filename: str, lineno: int,
                file: TextIO | None = None, line: str | None = None,
            ) -> None:  # fmt: skip
                if "called a synchronizing" in str(message):
                    places.append(_place(filename, lineno))
                elif "ynchroniz" not in str(message):  # torch announces that the mode is a prototype
                    shown(message, category, filename, lineno, file, line)

            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode(mode)


def _place(file: str, line: int) -> str:
    """FILE:LINE of the innermost caller that is not in torch; `file` and `line` if there is none."""
    torch_files = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((torch_files, warnings.__file__, __file__)):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{Path(file).name}:{line}"


class _WatchedClock:
    """A clock that remembers whether it was read."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.read = clock, False

    def __getattr__(self, name: str) -> Any:
        self.read = True
        return getattr(self._clock, name)


@dataclass(frozen=True)
class _Recorded:
    """A recorded step: the rows it reads, what repeats it, and where its terms are."""

    batches: Batches
    replay: Callable[[], None]
    names: tuple[str, ...]
    terms: Tensor

    def __call__(self, batches: Batches) -> dict[str, Tensor]:
        for (own, _), (batch, _) in zip(self.batches, batches, strict=True):
            for into, given in zip(own.tensors(), batch.tensors(), strict=True):
                into.copy_(given)
        self.replay()
        return dict(zip(self.names, self.terms.clone().unbind(), strict=True))


class StepGraphs:
    """Takes steps by `step`, and from the third on by recordings of it, one for each shape of the micro-batches.

    The first step makes what is made only once (the optimizer's state, constants on the device). In the second, it is
    seen whether a step can be recorded; if it cannot, `unfit` says why, and all steps are taken by `step` itself.
    `step` must leave no gradient behind.
    """

    def __init__(self, model: SequenceModel, step: Step, recorder: Recorder) -> None:
        self.unfit: str | None = None
        self._model, self._step, self._recorder = model, step, recorder
        self._taken = 0
        self._recorded: dict[tuple[tuple[int, int, float], ...], _Recorded] = {}

    def __call__(self, batches: Batches) -> dict[str, Tensor]:
        """As `step`. Raises UserError if recording fails for another reason than memory."""
        self._taken += 1
        if self._taken == 1 or self.unfit is not None:
            return self._step(batches)
        if self._taken == 2:
            return self._watched(batches)
        shape = tuple((len(batch), batch.tokens, weight) for batch, weight in batches)
        if shape not in self._recorded:
            recorded = self._record(batches)
            if recorded is None:
                return self._step(batches)
            self._recorded[shape] = recorded
        return self._recorded[shape](batches)

    def forget(self) -> None:
        """Begin anew: the state of the optimizer was replaced, and recordings would still write to the old one."""
        self._taken = 0
        self._recorded.clear()

    def _watched(self, batches: Batches) -> dict[str, Tensor]:
        clock = self._model.clock
        watched = _WatchedClock(clock)
        self._model.clock = watched  # type: ignore[assignment]
        try:
            with self._recorder.waits() as places:
                terms = self._step(batches)
        finally:
            self._model.clock = clock
        if places:
            self.unfit = f"the host waits for the device in each of them ({', '.join(dict.fromkeys(places))})"
        elif watched.read:
            self.unfit = "what they compute depends on how far the training is"
        return terms

    def _record(self, batches: Batches) -> _Recorded | None:
        own = [(batch.each(Tensor.clone), weight) for batch, weight in batches]
        names: list[str] = []

        def run() -> Tensor:
            terms = self._step(own)
            names.extend(terms)
            return torch.stack(list(terms.values()))

        try:
            replay, terms = self._recorder.record(run)
        except torch.OutOfMemoryError:  # of a graph's own memory; what eager steps need is there
            self.unfit = "there is no memory for them"
            return None
        except RuntimeError as error:  # the state of torch's generator is lost, so going on would not be safe
            raise UserError(
                f"a step of this system cannot be recorded as a CUDA graph ({str(error).splitlines()[0][:200]}); "
                "use engine.cuda_graphs=never"
            ) from error
        return _Recorded(own, replay, tuple(names), terms)
