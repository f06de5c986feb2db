"""The section `eval` of a run's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.errors import UserError
from models.registry import nearest
from retrieval.files import digest
from retrieval.index.base import RECALL_K, RECALL_TARGET, IndexKind
from retrieval.index.kinds import KINDS, cheapest, parse_options
from retrieval.metrics.registry import DEFAULT, MetricChoice

#: the key in reports of an index's recall
RECALL = f"recall@{RECALL_K}"
#: decides when training stops, which epoch and which run are kept, and how users are encoded, whatever is reported
CRITERION = "NDCG@10"


class EvalConfig(BaseModel):
    """How a run is evaluated. Early stopping always uses NDCG@10, whatever is reported.

    metrics: metrics to report: HR, NDCG, MRR, Recall; of lists, and at the end only, Coverage and Novelty
    ks: lengths of list at which each metric is reported
    batch_size: users who are ranked at once
    index: what ranks the catalogue: exact, a kind of FAISS index (flat, ivf, ivfpq, hnsw), whose recall is reported, or
        auto: exact where that is less work or an index finds too little, else ivf
    index_options: options of that kind, such as [nprobe=8]
    recall: share of the exact first 20 that an index finds, where no option says how widely it searches
    sharded: with several workers, each has an index of its share of the items, instead of one of all items
    depth: number of items that an index returns for a user
    recall_sample: number of users for whom the recall of an index is measured
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = DEFAULT.names
    ks: tuple[int, ...] = DEFAULT.ks
    batch_size: int = Field(default=2048, ge=1)
    index: str = "auto"
    index_options: tuple[str, ...] = ()
    recall: float = Field(default=RECALL_TARGET, gt=0, le=1)
    sharded: bool = False
    depth: int = Field(default=100, ge=20)
    recall_sample: int = Field(default=1000, ge=1)

    @property
    def choice(self) -> MetricChoice:
        """The metrics and list lengths to report."""
        return MetricChoice(self.metrics, self.ks)

    def ranking(self, items: int, users: int) -> tuple[str, str]:
        """What ranks so many items for so many users: "exact" or a kind of index; and why, empty where it was named."""
        return cheapest(items, users, min(users, self.recall_sample)) if self.index == "auto" else (self.index, "")

    @property
    def options(self) -> IndexKind:
        """The options of the named kind of index; of ivf for auto."""
        return parse_options("ivf" if self.index == "auto" else self.index, _by_name(self.index_options))

    def fingerprint(self, items: int, users: int) -> str:
        """sha256 of what chooses the best epoch: what ranks the catalogue. NDCG@10 of it decides, whatever is shown."""
        exact = self.ranking(items, users)[0] == "exact"
        return _fingerprint("exact") if exact else self._of_index()

    def may_be(self, fingerprint: str) -> bool:
        """Whether `fingerprint` is of this evaluation, of some number of items and users."""
        return fingerprint in {"exact": {_fingerprint("exact")}, "auto": {_fingerprint("exact"), self._of_index()}}.get(
            self.index, {self._of_index()}
        )

    def _of_index(self) -> str:
        sharded = ("sharded",) if self.sharded else ()
        return _fingerprint(self.index, self.depth, self.recall, *sharded, *sorted(self.index_options))

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return MetricChoice(names=names).names

    @field_validator("ks")
    @classmethod
    def _distinct_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return MetricChoice(ks=ks).ks

    @field_validator("index")
    @classmethod
    def _known_index(cls, name: str) -> str:
        if name not in ("auto", "exact") and name not in KINDS:
            raise ValueError(f"unknown index: {nearest(name, ['auto', 'exact', *KINDS])}")
        return name

    @model_validator(mode="after")
    def _deep_enough(self) -> EvalConfig:
        if self.depth < max(self.ks):
            raise ValueError(f"depth is {self.depth}, below the largest of ks; set eval.depth={max(self.ks)} or more")
        return self

    @model_validator(mode="after")
    def _known_options(self) -> EvalConfig:
        if self.index == "exact" and self.index_options:
            raise ValueError("exact ranking has no index_options; name a kind of index with eval.index")
        if self.index != "exact":
            _ = self.options
        return self


def _by_name(options: Iterable[str]) -> dict[str, str]:
    """Raises UserError for an option without a value."""
    pairs = [option.partition("=")[::2] for option in options]
    if without := [name for name, value in pairs if not value]:
        raise UserError(f"index_options: {without[0]!r} has no value; write [nprobe=8], say")
    return dict(pairs)


def _fingerprint(*parts: object) -> str:
    return digest(json.dumps(parts))
