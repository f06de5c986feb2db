"""Settings of several sections that do not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config.schema import RunConfig


def check_together(config: RunConfig) -> None:
    """Raise ValueError, which says what to change, if settings of `config` do not fit together."""
    if config.train.lazy_adam and config.engine.name != "torch":
        raise ValueError("train.lazy_adam=true needs the plain engine: add engine.name=torch")
    if config.train.lazy_adam and config.train.weight_decay:
        raise ValueError(
            "train.weight_decay changes every row in each step, and train.lazy_adam=true only those that the step "
            "reads; leave out one of them"
        )
    if 0 < config.cluster.workers_at_least < config.cluster.workers and config.train.batch_per == "worker":
        raise ValueError(
            "with train.batch_per=worker another number of workers is another training: leave cluster.workers_at_least "
            "at 0, or train.batch_per at run"
        )
    if config.engine.item_rows == "sharded":
        _check_sharded(config)


def _check_sharded(config: RunConfig) -> None:
    if not config.train.lazy_adam:
        raise ValueError(
            "engine.item_rows=sharded sends the vectors that a step reads, and a step must not read or update those of "
            "all items: add train.lazy_adam=true, engine.name=torch and ranking.negatives (docs/scale.md)"
        )
    if config.eval.index not in ("auto", "exact") or config.eval.sharded:
        raise ValueError(
            "engine.item_rows=sharded ranks exactly, each worker its share of the items: leave eval.index at auto or "
            "exact, and eval.sharded at false"
        )
