"""Options of SSDRec."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class SSDRecOptions(SystemOptions):
    """Options of the stages before the SASRec encoder, and of this encoder.

    dropout: share of the values that a training step sets to 0, in the stages before the encoder
    readout_dropout: share of the values that a training step sets to 0, in the item level's reading of a history
    augment: whether there is the second stage, which inserts items; without second and third stage this is SASRec
    denoise: whether there is the third stage, which drops items
    strong: a pair of items is an edge of the graphs if it occurs more often than this
    neighbours: the most edges of a node in each graph, the strongest ones
    tau: first temperature of the straight-through gradients; it changes gradients and no choice of items
    tau_least: temperature to which tau falls
    """

    needs_interactions = True
    reads_catalogue = True

    hidden: int = 100
    inner: int = 100
    layers: int = 2
    heads: int = 2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    dropout: float = 0.3
    readout_dropout: float = 0.2
    augment: bool = True
    denoise: bool = True
    strong: int = 10
    neighbours: int = 50
    tau: float = 0.5
    tau_least: float = 0.001

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "neighbours")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "attention_dropout", "hidden_dropout", "dropout", "readout_dropout")
        require(self.strong >= 0, "strong", self.strong, "it must be 0 or more")
        require(self.tau_least > 0, "tau_least", self.tau_least, "it must be above 0")
        require(self.tau >= self.tau_least, "tau", self.tau, f"it must be at least tau_least ({self.tau_least})")
