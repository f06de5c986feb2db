"""Options of SSDRec."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class SSDRecOptions(SystemOptions):
    """hidden, inner, layers, heads, attention_dropout, hidden_dropout: options of the SASRec encoder. dropout: that of
    the stages before it.

    augment, denoise: whether there are the second and third stages; without both this is SASRec. strong: a pair of
    items must occur more often than this to be an edge of the graphs. neighbours: the most edges of a node per graph,
    the strongest. tau: initial temperature of the straight-through gradients; it falls to `tau_least`. It changes only
    gradients, and no choice of items.
    """

    needs_interactions = True

    hidden: int = 100
    inner: int = 100
    layers: int = 2
    heads: int = 2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    dropout: float = 0.5
    augment: bool = True
    denoise: bool = True
    strong: int = 10
    neighbours: int = 50
    tau: float = 0.5
    tau_least: float = 0.001

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "neighbours")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "attention_dropout", "hidden_dropout", "dropout")
        require(self.strong >= 0, "strong", self.strong, "it must be 0 or more")
        require(self.tau_least > 0, "tau_least", self.tau_least, "it must be above 0")
        require(self.tau >= self.tau_least, "tau", self.tau, f"it must be at least tau_least ({self.tau_least})")
