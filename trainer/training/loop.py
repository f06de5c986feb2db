"""The training loop: epochs over the plan, validation, early stopping, checkpoints, and resuming after a crash.

docs/reliability.md lists what it guarantees. The random state of a step is a function of (seed, step, rank). So a
checkpoint needs no generator state, and a resumed run draws the same numbers as an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.console import Verbosity
from cluster.failures import Stopped
from models.contract import Clock
from models.errors import UserError
from retrieval.files import write_json
from trainer.batches.loader import Loaded
from trainer.batches.plan import Plan
from trainer.config.identity import identity
from trainer.config.schema import RunConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.report import how_ranked
from trainer.process import GrowthLimit, usage, world
from trainer.tracking import MetricsLog
from trainer.training.checkpoint import CheckpointStore
from trainer.training.checkpoint_files import OPTIMIZER
from trainer.training.checkpoint_reading import Checkpoint
from trainer.training.engine import Engine, NonFiniteError
from trainer.training.reporting import EpochReporter
from trainer.training.row_parts import RowParts
from trainer.training.saving import Saver
from trainer.training.shared_notice import SharedNotice
from trainer.training.stopping import EarlyStopping, Plateaus

#: called on each rank after every epoch, when its checkpoint is on the disk: the epoch, and the validation's NDCG@10
EpochDone = Callable[[int, float], None]


@dataclass
class Position:
    """How far a run has come. A checkpoint holds this besides the tensors.

    epoch: the current epoch, from 1. step: the steps of this epoch that are done. total_steps: the steps of the whole
    run that are done. sums: this rank's share of the loss terms, summed over the epoch so far; a resumed run needs
    them to report the same mean of the epoch.
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class Loop:
    """One run on one worker. Rank 0 writes; every rank computes. epoch_done may end the run, by an exception."""

    def __init__(
        self,
        config: RunConfig,
        loaded: Loaded,
        engine: Engine,
        run_dir: Path,
        reporter: EpochReporter,
        epoch_done: EpochDone | None = None,
    ) -> None:
        self.config, self.loaded, self.engine, self.run_dir = config, loaded, engine, run_dir
        self.rank, self.size = world()
        self.plan = Plan(loaded.training_rows.count, config.step_rows)
        self.store = CheckpointStore(run_dir / "checkpoints", share=engine.model.share)
        self.stopping = EarlyStopping(config.train.patience)
        self.plateaus = Plateaus(config.train.schedule.epochs)
        self.reporter = reporter
        self.position = Position()
        self.log: MetricsLog | None = None
        self._epoch_done = epoch_done
        self._notice = SharedNotice(self.size)
        self._growth = GrowthLimit(engine.device)
        self._ranked_by: str | None = None  # what the user was told
        # the state of a GPU is copied from it, that of a CPU is what the next step changes; parts come while they are
        # written
        beside = engine.device.type == "cuda" and engine.model.share is None
        self._saver = Saver(background=beside, run_dir=run_dir)
        self._saving_s = 0.0  # spent on checkpoints since the last line of the log
        self._identity = identity(config, loaded.dataset.manifest) if self.rank == 0 else {}
        #: steps of the last checkpoint and of the best one then: kept until the next but one is in place
        self._before: tuple[int, ...] = ()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, whose weights are already in the model. Collective."""
        # without the group `check_resumable` has made sure that there is nothing left to train; an empty one is that of
        # a run that begins with the weights of another
        if checkpoint.tensors.get(OPTIMIZER):
            self.engine.load_optimizer(checkpoint.tensors[OPTIMIZER])
        state = checkpoint.state
        self.stopping.restore(state["stopping"])
        self.plateaus.restore(state.get("plateaus", {}))  # earlier versions had no schedule that depends on it
        position = dict(state["position"])
        sums = position.pop("sums")
        self.position = Position(**position, sums=sums if self.rank == 0 else dict.fromkeys(sums, 0.0))
        self._before = (checkpoint.step, self.stopping.best_step)

    def run(self) -> None:
        """Train until the last epoch or the early stop. Raises NonFiniteError if a loss or gradient is not finite."""
        if self.rank == 0:
            self.log = MetricsLog(self.run_dir / "metrics.jsonl")
        try:
            while self.position.epoch <= self.config.train.epochs and not self.stopping.stop:
                self._epoch()
            self._stop_if_asked({}, last=True)
            self._settle(self._saver.finish)
        finally:
            self._saver.close()

    def _epoch(self) -> None:
        position, train = self.position, self.config.train
        self.reporter.start_epoch()
        # float64 adds float32 losses without rounding, so the order of the sum, which a resume changes, does not matter
        start = torch.tensor(list(position.sums.values()), dtype=torch.float64, device=self.engine.device)
        sums = dict(zip(position.sums, start, strict=True))
        first, started = position.step, time.perf_counter()
        for step in range(first, self.plan.steps):
            self._stop_if_asked(sums)
            self._step(step, sums)
            position.step, position.total_steps = step + 1, position.total_steps + 1
            if self.reporter.due():
                self._show(first, sums)
            if train.checkpoint_every and position.step % train.checkpoint_every == 0 and step + 1 < self.plan.steps:
                self._commit(sums)
        self._stop_if_asked(sums)
        self._check(self.plan.steps - 1)
        losses = {name: value / self.plan.steps for name, value in self._totals(sums).items()}
        seconds = time.perf_counter() - started
        self._validate(losses, max(0, self.plan.rows - first * self.plan.batch_size), seconds)

    def _step(self, step: int, sums: dict[str, Tensor]) -> None:
        torch.manual_seed(_step_seed(self.config.seed, self.position.total_steps, self.rank))
        self.engine.model.clock = Clock(self.position.epoch, self.position.total_steps)
        rate = self.config.train.rate(self.position.total_steps, self.plan.steps, self.plateaus.met)
        self.engine.set_learning_rate(rate)
        shares = self.plan.share(step, self.rank, self.size, self.config.train.accumulation)
        try:
            terms = self.engine.step(
                [(self.loaded.training_rows.batch(self.position.epoch, rows), weight) for rows, weight in shares]
            )
        except NonFiniteError:
            self._report_non_finite(step)
            raise
        while self.engine.remarks:
            self.reporter.say(f"note: {self.engine.remarks.pop(0)}")
        for name, value in terms.items():
            sums[name] = sums[name] + value if name in sums else value.to(torch.float64, copy=True)
        self._growth.step_done()

    def _show(self, first: int, sums: dict[str, Tensor]) -> None:
        done = self.position.step
        self._check(done - 1)
        mean = {name: self.size * float(value) / done for name, value in sums.items()}
        rows = (done - first) * self.plan.batch_size
        self.reporter.step(self.position.epoch, done, self.plan.steps, rows, mean)

    def _check(self, step: int) -> None:
        """Stop at a bad step. A GPU skips its update itself, so this is called only where the host waits anyway."""
        try:
            self.engine.check()
        except NonFiniteError:
            self._report_non_finite(step)
            raise

    def _report_non_finite(self, step: int) -> None:
        if self.rank == 0:
            epoch, position = self.position.epoch, self.plan.positions(step)
            rows = self.loaded.training_rows.row_ids(epoch, position)
            write_json(self.run_dir / "nonfinite.json", {"epoch": epoch, "step": step, "training_rows": rows.tolist()})

    def _totals(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Loss terms summed over ranks. Each step adds its mean over the global batch."""
        values = torch.stack([sums[name] for name in sorted(sums)])
        if self.size > 1:
            dist.all_reduce(values)
        return dict(zip(sorted(sums), values.tolist(), strict=True))

    def _validate(self, losses: dict[str, float], rows: int, seconds: float) -> None:
        position = self.position
        with self.engine.whole() as model:
            evaluation = evaluate(model, self.loaded, "validation", self.config.eval)
        metrics, index = evaluation.metrics(), evaluation.index or {}
        if index.get("kind") != self._ranked_by:
            self._ranked_by = index.get("kind")
            self.reporter.say(f"validation: {how_ranked(index)}")
        best = self.stopping.update(evaluation.criterion, position.epoch, position.total_steps)
        rate = rows / max(seconds, 1e-9)
        weighted = self.engine.model.loss_weights
        self.plateaus.update(sum(weight * losses.get(name, 0.0) for name, weight in weighted.items()))
        record = {
            "loss": {name: value for name, value in losses.items() if name in weighted},
            "valid": metrics, "rows_per_second": rate, "train_seconds": seconds, "valid_seconds": evaluation.seconds,
            "checkpoint_seconds": self._saving_s,
            **{name: value for name, value in losses.items() if name not in weighted}, "process": usage(),
            **({} if index.get("kind", "exact") == "exact" else {"index": dict(index)}),
        }  # fmt: skip
        self._saving_s = 0.0
        if self.log is not None:
            self.log.append("epoch", position.epoch, position.total_steps, record)
        shown = " ".join(f"{name} {value:.4f}" for name, value in metrics.items()) + (" (best)" if best else "")
        eta = (seconds + evaluation.seconds) * (self.config.train.epochs - position.epoch)
        self.reporter.epoch(position.epoch, losses, rate, shown, eta)
        self.position = Position(epoch=position.epoch + 1, total_steps=position.total_steps)
        self._commit({})
        self.reporter.say(
            f"  training {seconds:.2f} s, validation {evaluation.seconds:.2f} s, checkpoint {self._saving_s:.2f} s",
            at=Verbosity.VERBOSE,
        )
        if self._epoch_done is not None:
            self._settle(self._saver.finish)
            self._epoch_done(position.epoch, evaluation.criterion)

    def _commit(self, sums: dict[str, Tensor]) -> None:
        """Commit a checkpoint. Collective: every rank contributes, and rank 0 writes.

        It is on the disk when this returns, or (on a GPU) when the next commit begins; `_settle` waits for it.
        """
        started = time.perf_counter()
        self._check(self.position.step - 1)  # a checkpoint must not count a step that a GPU skipped
        tensors, parts = self.engine.state(), self.engine.parts()
        position = {**vars(self.position), "sums": self._totals(sums) if sums else {}}
        course = {"stopping": self.stopping.state(), "plateaus": self.plateaus.state()}
        state = {"position": position, **course, **self._identity}
        write = partial(
            self.store.commit, self.position.total_steps, tensors, state,
            keep=[self.stopping.best_step, *self._before], parts=parts,
        )  # fmt: skip
        self._settle(partial(self._saver.save, write), parts)
        self._before = (self.position.total_steps, self.stopping.best_step)
        self._saving_s += time.perf_counter() - started

    def _settle(self, save: Callable[[], None], parts: RowParts | None = None) -> None:
        """Do `save` on rank 0, to which the others send `parts`. Raises its UserError (a full disk) on every rank.
        Collective."""
        failed: list[str | None] = [None]
        if self.rank == 0:
            try:
                save()
            except UserError as error:
                failed[0] = str(error)
        if parts is not None:
            parts.send()
        if self.size > 1:
            dist.broadcast_object_list(failed)
        if failed[0] is not None:
            raise UserError(failed[0])

    def _stop_if_asked(self, sums: dict[str, Tensor], *, last: bool = False) -> None:
        """Raise Stopped on every rank, after a checkpoint, when one of them was told to stop. Collective."""
        if not self._notice.given(wait=last):
            return
        done = self.position.total_steps
        if done and done != (*self._before, None)[0]:
            self._commit(sums)
        self._settle(self._saver.finish)
        saved = f"the checkpoint of step {done} is on the disk" if done else "nothing was done yet"
        told = f"stopped by SIGTERM in epoch {self.position.epoch}, {saved}: the same command with --resume goes on"
        self.reporter.say(f"SIGTERM: {saved}", at=Verbosity.BRIEF)  # at once: the mirror may take seconds to end
        raise Stopped(told)

    def best(self) -> Checkpoint:
        """The checkpoint with the best validation NDCG@10."""
        return self.store.load(self.stopping.best_step)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
