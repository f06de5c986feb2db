"""Options of SSDRec."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class SSDRecOptions(SystemOptions):
    """hidden, inner, layers, heads and the last two dropouts: of the SASRec encoder. dropout: of the stages before it.

    augment, denoise: the second stage and the third; without both this is SASRec. strong: a pair of items must be met
    more often to be an edge of the graphs. neighbours: edges of a node per graph, the strongest. tau: temperature of
    the straight-through gradients at the start; it falls to `tau_least`. No choice depends on it, gradients alone do.
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
        require(self.strong >= 0, "strong", self.strong, "it is 0 or more")
        require(self.tau_least > 0, "tau_least", self.tau_least, "it is above 0")
        require(self.tau >= self.tau_least, "tau", self.tau, f"it is at least tau_least ({self.tau_least})")
