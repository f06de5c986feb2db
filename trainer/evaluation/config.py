"""The section `eval` of a run's configuration."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.registry import nearest
from retrieval.files import digest
from retrieval.index.kinds import KINDS
from retrieval.metrics.registry import DEFAULT, MetricChoice

#: the first k of which an index's recall is measured, and the key of that recall in reports
RECALL_K = 20
RECALL = f"recall@{RECALL_K}"
#: decides when training stops, which epoch and which run are kept, and how users are encoded, whatever is reported
CRITERION = "NDCG@10"


class EvalConfig(BaseModel):
    """How a run is evaluated. Early stopping always uses NDCG@10, whatever is reported.

    metrics: metrics to report: HR, NDCG, MRR, Recall; of lists, and at the end only, Coverage and Novelty
    ks: lengths of list at which each metric is reported
    batch_size: users who are ranked at once
    index: what ranks the catalogue: exact, or a kind of FAISS index (flat, hnsw, ivf), whose recall is reported
    depth: number of items that an index returns for a user
    recall_sample: number of users for whom the recall of an index is measured
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = DEFAULT.names
    ks: tuple[int, ...] = DEFAULT.ks
    batch_size: int = Field(default=2048, ge=1)
    index: str = "exact"
    depth: int = Field(default=100, ge=20)
    recall_sample: int = Field(default=1000, ge=1)

    @property
    def choice(self) -> MetricChoice:
        """The metrics and list lengths to report."""
        return MetricChoice(self.metrics, self.ks)

    def fingerprint(self) -> str:
        """sha256 of what chooses the best epoch: what ranks the catalogue. NDCG@10 of it decides, whatever is shown."""
        return digest(json.dumps([self.index] if self.index == "exact" else [self.index, self.depth]))

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
        if name != "exact" and name not in KINDS:
            raise ValueError(f"unknown index: {nearest(name, ['exact', *KINDS])}")
        return name

    @model_validator(mode="after")
    def _deep_enough(self) -> EvalConfig:
        if self.depth < max(self.ks):
            raise ValueError(f"depth is {self.depth}, below the largest of ks; set eval.depth={max(self.ks)} or more")
        return self
