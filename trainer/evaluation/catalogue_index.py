"""The index that ranks the catalogue in evaluations: chosen and built by one worker, and searched by each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from models.errors import UserError
from retrieval.files import digest
from retrieval.index.base import Vectors
from retrieval.index.build import build_index, unpack
from retrieval.index.faiss_index import FaissIndex, Packed, device_of, load_faiss
from retrieval.index.shards import cuts, with_padding
from trainer.evaluation.config import EvalConfig
from trainer.process import world

_CHECKSUM = "evaluation"
#: an index that has to look into more than this share of its lists is no faster than exact ranking by much
_MOST_LISTS = 0.5


@dataclass(frozen=True)
class Choice:
    """What ranks: an index, or None for exact ranking; and why that, empty where the configuration names it.

    first: where the index is a shard, of this worker's share of the items, the row of its first item; else 1.
    """

    index: FaissIndex | None
    why: str
    first: int = 1


@dataclass(frozen=True)
class Task:
    """What is to be ranked. users: of all workers together. device: of this worker. queries: encodes some users, (Q, D)
    float32, by which an index finds how widely to search; called on rank 0 alone."""

    users: int
    device: torch.device
    queries: Callable[[], Vectors]


@dataclass(frozen=True)
class _Told:
    """What a worker tells the others. kept: the index of the last time is still right. exact: ranking is to be exact.
    error: a user's mistake."""

    packed: Packed | None = None
    why: str = ""
    kept: bool = False
    exact: bool = False
    error: str = ""


class CatalogueIndex:
    """Holds the index over the item vectors of one model, so that evaluations of the same vectors share it."""

    def __init__(self) -> None:
        self._key, self._choice = "", Choice(None, "")

    def of(self, vectors: Vectors, config: EvalConfig, task: Task) -> Choice:
        """An index of `vectors`, (I, D) with row 0 padding, or why they are to be ranked exactly. Collective.

        Rank 0 builds it with all its threads, finds how widely to search, and sends it to the others, each of which
        puts it on its own device. With `eval.sharded` each rank builds the shard of its share of the items. If the
        vectors are those of the last call, nothing is built. Raises UserError, on every rank.
        """
        kind, why = config.ranking(len(vectors) - 1, task.users)
        if kind == "exact":
            return Choice(None, why)
        rank, size = world()
        if config.sharded and size > 1:
            return self._of_share(vectors, kind, why, config, task)
        told: list[_Told | None] = [None]
        if rank == 0:
            told = [self._make(vectors, _key(vectors, config), kind, why, config, task, pack=size > 1)]
        if size > 1:
            dist.broadcast_object_list(told, src=0)
        (news,) = told
        assert news is not None
        if news.error:
            raise UserError(news.error)
        if rank > 0 and not news.kept:
            device, gpu = device_of(task.device)
            index = unpack(news.packed, vectors, device=device, gpu=gpu) if news.packed else None
            self._choice = Choice(index, news.why)
        return self._choice

    def _of_share(self, vectors: Vectors, kind: str, why: str, config: EvalConfig, task: Task) -> Choice:
        """The shard of this worker, by queries that rank 0 encodes. Collective; raises UserError on every rank, too."""
        rank, size = world()
        rows = cuts(len(vectors) - 1, size)[rank]
        asked: list[Vectors | UserError | None] = [None]
        if rank == 0 and not config.options.effort_given:
            asked = [_queries_or_error(task)]
        dist.broadcast_object_list(asked, src=0)
        if isinstance(asked[0], UserError):
            raise asked[0]
        shard = replace(task, queries=lambda: cast(Vectors, asked[0]))
        mine = self._make(with_padding(vectors, rows), _key(vectors, config), kind, why, config, shard, pack=False)
        news: list[Any] = [None] * size
        dist.all_gather_object(news, mine)
        if errors := [told.error for told in news if told.error]:
            self._key = ""
            raise UserError(errors[0])
        self._choice = replace(self._choice, first=rows.start)
        if exact := [told.why for told in news if not told.kept and told.exact]:  # a part of an index helps nobody
            self._choice = Choice(None, exact[0])
        return self._choice

    def _make(
        self, vectors: Vectors, key: str, kind: str, why: str, config: EvalConfig, task: Task, *, pack: bool
    ) -> _Told:
        """Set the choice, on a rank that builds, and say what the others need to know of it."""
        if key == self._key:
            return _Told(kept=True)
        self._key, self._choice = "", Choice(None, "")  # the memory of the last one, before the next one is built
        try:
            self._choice = _auto(vectors, why, config, task) if why else Choice(_built(vectors, kind, config, task), "")
        except UserError as error:
            return _Told(error=str(error))
        self._key = key
        index = self._choice.index
        return _Told(index.packed() if index is not None and pack else None, self._choice.why, exact=index is None)


def _key(vectors: Vectors, config: EvalConfig) -> str:
    """Tells whether an index is still right."""
    return digest(repr(config)) + digest(np.ascontiguousarray(vectors).data)


def _queries_or_error(task: Task) -> Vectors | UserError:
    try:
        return task.queries()
    except UserError as error:
        return error


def _auto(vectors: Vectors, why: str, config: EvalConfig, task: Task) -> Choice:
    """By an index, unless there is a reason against it."""
    try:
        faiss = load_faiss()
    except UserError:
        return Choice(None, "FAISS is not installed")
    if task.device.type == "cuda" and not faiss.get_num_gpus():
        return Choice(None, "the model is on a GPU, and the FAISS that is installed uses none")
    index = _built(vectors, "ivf", config, task)
    probes, lists = int(index.record.parameters["nprobe"]), int(index.record.parameters["nlist"])
    if probes > _MOST_LISTS * lists:
        return Choice(None, f"for a recall of {config.recall:g} an index searches {probes:,} of its {lists:,} lists")
    return Choice(index, why)


def _built(vectors: Vectors, kind: str, config: EvalConfig, task: Task) -> FaissIndex:
    device, gpu = device_of(task.device)
    options = config.options
    return build_index(
        vectors, kind, options, checksum=_CHECKSUM, device=device, gpu=gpu, recall=config.recall,
        searches=task.users,
        queries=None if options.effort_given else task.queries(),
    )  # fmt: skip
