"""Exports, indices and answers: `from retrieval import Recommender`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrieval.answers import Answer, Frame, Influence, Recommendation

if TYPE_CHECKING:
    from retrieval.recommender import Recommender

__all__ = ["Answer", "Frame", "Influence", "Recommendation", "Recommender"]


def __getattr__(name: str) -> Any:
    """`Recommender` when it is first asked for, because it imports torch; most modules in here do not."""
    if name != "Recommender":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retrieval.recommender import Recommender

    return Recommender
