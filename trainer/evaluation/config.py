"""The section `eval` of a run's configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.registry import nearest
from retrieval.index.kinds import KINDS


class EvalConfig(BaseModel):
    """index: what ranks the catalogue; exact is the truth, a FAISS index reports its recall against it.
    depth: how many items an index returns per user. recall_sample: users whose exact top-k it is compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=2048, ge=1)
    index: str = "exact"
    depth: int = Field(default=100, ge=20)
    recall_sample: int = Field(default=1000, ge=1)

    @field_validator("index")
    @classmethod
    def _known_index(cls, name: str) -> str:
        if name != "exact" and name not in KINDS:
            raise ValueError(f"unknown index: {nearest(name, ['exact', *KINDS])}")
        return name
