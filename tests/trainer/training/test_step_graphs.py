"""Steps as recordings: equal to steps one by one, for every shape, and not where a recording would be wrong.

A recorder of our own stands for CUDA's: what it repeats reads and writes the same tensors each time, as a graph does,
and ignores what the caller passes. That kernels do so, too, is shown on a GPU by `benchmarks/gpu.py --only graphs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from models.contract import Batch, Clock, ModelContext, SequenceModel, TrainingInteractions
from models.errors import UserError
from models.nn.sparse import _rows, _rows_added
from models.options.sasrec import SASRecOptions
from models.systems import build
from models.tensor_table import TensorTable
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.training.engine import NonFiniteError, TorchEngine, _record_rates, _same_bits
from trainer.training.step_graphs import StepGraphs

ITEMS, LENGTH = 12, 4
CPU = torch.device("cpu")


class Tape:
    """Records on a CPU. fails: what recording raises. places: where the host is said to wait for the device."""

    def __init__(self, engine: TorchEngine, fails: Exception | None = None, places: tuple[str, ...] = ()) -> None:
        self.engine, self.fails, self.places, self.records = engine, fails, places, 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.fails is not None:
            raise self.fails
        self.records += 1
        before = copy.deepcopy([self.engine.state(), torch.get_rng_state()])
        result = run()
        with torch.no_grad():  # recording has no effect
            for name, parameter in self.engine.model.named_parameters():
                parameter.copy_(before[0]["model"][name])
                for key, value in self.engine._adam.state[parameter].items():
                    value.copy_(before[0]["optimizer"][f"{name}/{key}"])
        torch.set_rng_state(before[1])
        return lambda: result.copy_(run()) and None, result

    @contextmanager
    def waits(self) -> Iterator[list[str]]:
        found: list[str] = []
        yield found
        found += self.places


def engine(**settings: object) -> TorchEngine:
    torch.manual_seed(3)
    seen = TrainingInteractions(torch.tensor([0, 3]), torch.tensor([1, 2, 3]))
    model = build("sasrec", SASRecOptions(hidden=8), ModelContext(TensorTable(ITEMS, {}, {}, {}), seen, LENGTH, 1))
    assert isinstance(model, SequenceModel)
    return TorchEngine(model, TrainConfig(clip_norm=0.1), EngineConfig.model_validate(settings), CPU)


def recorded(tape: type[Tape] = Tape, **options: object) -> tuple[TorchEngine, Tape]:
    own = engine()
    recorder = tape(own, **options)  # type: ignore[arg-type]
    own._graphs = StepGraphs(own.model, own._update, recorder)
    return own, recorder


def batch(rows: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(1, LENGTH + 1, (rows,), generator=draw)
    history = torch.randint(1, ITEMS, (rows, LENGTH), generator=draw) * (torch.arange(LENGTH) < length[:, None])
    target = torch.randint(1, ITEMS, (rows,), generator=draw)
    key = torch.arange(rows) + 100 * seed
    return Batch(key, history, length, target, key, torch.zeros(rows, LENGTH, dtype=torch.uint8))


def take(own: TorchEngine, first: int, steps: int) -> list[dict[str, Tensor]]:
    """Steps of two micro-batches; every third step is smaller, as the last of an epoch."""
    terms = []
    for step in range(first, first + steps):
        torch.manual_seed(step)  # dropout
        own.model.clock = Clock(1, step)
        rows = (2, 1) if step % 3 == 2 else (4, 4)
        parts = [(batch(n, 2 * step + i), n / sum(rows)) for i, n in enumerate(rows)]
        terms.append(own.step(parts))
    return terms


def same(a: TorchEngine, b: TorchEngine) -> bool:
    one, two = a.state(), b.state()
    return all(torch.equal(value, two[group][name]) for group in one for name, value in one[group].items())


def test_recorded_steps_equal_steps_one_by_one_and_each_shape_is_recorded_once() -> None:
    (own, tape), plain = recorded(), engine()
    assert take(own, 0, 8) == take(plain, 0, 8)
    assert tape.records == 2
    assert same(own, plain)
    assert not own.remarks


def test_terms_of_a_step_stay_when_the_next_is_taken() -> None:
    own, _ = recorded()
    take(own, 0, 3)
    (before,) = take(own, 3, 1)
    kept = {name: float(value) for name, value in before.items()}
    take(own, 4, 1)
    assert {name: float(value) for name, value in before.items()} == kept


def test_a_loaded_state_is_what_later_steps_change() -> None:
    (own, tape), plain = recorded(), engine()
    take(own, 0, 4)
    take(plain, 0, 4)
    moments = plain.state()["optimizer"]
    for each in (own, plain):
        each.load_optimizer(moments)
        take(each, 4, 5)
    assert same(own, plain)
    assert tape.records == 4, "of two shapes, before and after"


def test_where_the_host_waits_nothing_is_recorded_and_the_place_is_told() -> None:
    (own, tape), plain = recorded(places=("in_batch.py:55", "in_batch.py:55")), engine()
    assert take(own, 0, 4) == take(plain, 0, 4)
    assert tape.records == 0
    assert own.remarks == ["steps are not CUDA graphs: the host waits for the device in each of them (in_batch.py:55)"]


def test_a_model_that_reads_its_clock_is_not_recorded() -> None:
    own, tape = recorded()
    forward = own.model.forward
    seen: list[int] = []

    def with_clock(rows: Batch) -> dict[str, Tensor]:
        seen.append(own.model.clock.step)
        return forward(rows)

    own.model.forward = with_clock  # type: ignore[method-assign]
    take(own, 0, 4)
    assert tape.records == 0
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    assert own.remarks == ["steps are not CUDA graphs: what they compute depends on how far the training is"]


def test_without_memory_for_a_recording_training_goes_on() -> None:
    (own, _), plain = recorded(fails=torch.OutOfMemoryError("no memory")), engine()
    assert take(own, 0, 5) == take(plain, 0, 5)
    assert own.remarks == ["steps are not CUDA graphs: there is no memory for them"]


def test_another_failure_is_told_with_the_setting_that_helps() -> None:
    own, _ = recorded(fails=RuntimeError("operation not permitted when stream is capturing\nmore"))
    with pytest.raises(UserError, match=r"operation not permitted.*\); use engine.cuda_graphs=never"):
        take(own, 0, 3)


def test_always_refuses_what_cannot_be() -> None:
    with pytest.raises(UserError, match="cuda_graphs=always needs one worker on a GPU"):
        engine(cuda_graphs="always")
    with pytest.raises(UserError, match="not of deepspeed"):
        EngineConfig(name="deepspeed", cuda_graphs="always").choose(1)
    assert EngineConfig(cuda_graphs="always").choose(2) == "torch"
    own, _ = recorded(places=("x.py:1",))
    own._must = True
    with pytest.raises(UserError, match=r"steps cannot be CUDA graphs: the host waits .*x.py:1"):
        take(own, 0, 2)


def test_a_bad_step_is_marked_where_a_recording_reads_it() -> None:
    own = engine()
    mark = own._guard._bad
    own._guard.note(torch.tensor(float("nan")))
    assert own._guard._bad is mark
    with pytest.raises(NonFiniteError):
        own.check()


def test_a_learning_rate_is_changed_where_a_recording_reads_it() -> None:
    own, plain = engine(), engine()
    _record_rates(own._adam, CPU)
    (group,) = own._adam.param_groups
    rate = group["lr"]
    for step in range(3):
        for each in (own, plain):
            each.set_learning_rate(0.5**step)
            take(each, step, 1)
    assert group["lr"] is rate
    assert same(own, plain)


def test_equal_bits_are_asked_for_only_within_a_step_and_what_cannot_give_them_is_a_users_mistake() -> None:
    with _same_bits(True):
        assert torch.get_deterministic_debug_mode() == 2
    told = r"^op does not have a deterministic implementation; engine.deterministic=false"
    with pytest.raises(UserError, match=told), _same_bits(True):
        raise RuntimeError("op does not have a deterministic implementation, but you set 'torch.use'. You can")
    with _same_bits(False):
        assert torch.get_deterministic_debug_mode() == 0


def test_the_sparse_product_of_a_gpu_is_the_product() -> None:
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(7, 5, generator=draw, dtype=torch.float64) * (torch.rand(7, 5, generator=draw) < 0.4)
    dense[3] = 0
    x = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(_rows_added(_rows(dense.to_sparse()), x), dense @ x)
