"""Metrics of the lists that all users are shown; they do not depend on the targets."""

from __future__ import annotations

import numpy as np

from retrieval.metrics.base import Exposure, ListMetric


class Coverage(ListMetric):
    """Coverage@k: the share of the catalogue that is in the top k of at least one user; 0 to 1.

    Source: catalogue coverage of Ge, Delgado-Battenfeld and Jannach, RecSys 2010, over one list per user.
    """

    def value(self, exposure: Exposure) -> float:
        return float((exposure.shown[1:] > 0).mean())


class Novelty(ListMetric):
    """Novelty@k: mean over the recommended items of -log2 p(item), in bits; p is the item's share of interactions.

    The share is taken among the training interactions. An item that has none counts as if it had one: it is as novel
    as the rarest item that was seen, and the metric stays finite. An empty training set, or empty lists, give 0.
    Source: self-information of Zhou et al., PNAS 107(10), 2010, as the popularity-based novelty of Castells, Vargas
    and Wang 2011, with equal weights for all ranks.
    """

    def value(self, exposure: Exposure) -> float:
        shown, trained = exposure.shown[1:], exposure.trained[1:]
        bits = np.log2(max(1, trained.sum())) - np.log2(np.maximum(trained, 1))
        return float(shown @ bits / max(1, shown.sum()))
