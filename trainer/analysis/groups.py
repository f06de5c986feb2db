"""Metrics of users apart by what their history and target are like, from saved ranks: no model is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import ItemTable
from models.options.base import ContentField
from retrieval.metrics.base import Values
from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.summary import per_user
from trainer.analysis.record import Group, Grouping
from trainer.batches.loader import Loaded
from trainer.data.format.splits import target_positions
from trainer.evaluation.run_ranks import RunRanks

Ints = NDArray[np.integer[Any]]
#: of the normal distribution, for intervals of 95 %
_Z = 1.96
_QUANTILES = 5
_AT_ONCE = 8192
_FIELDS: tuple[ContentField, ...] = ("visual", "text")


class Users:
    """Metrics of the test users by key, (U,) each, and those of another run on the same users."""

    def __init__(self, ranks: RunRanks, choice: MetricChoice, against: RunRanks | None) -> None:
        self.count = len(ranks.user)
        self._values = per_user(ranks.rank, choice)
        self._against = per_user(against.rank, choice) if against is not None else {}

    def group(self, label: str, chosen: NDArray[np.bool_]) -> Group:
        """The users of whom `chosen` (U,) is true; there must be one."""
        values = {key: each[chosen] for key, each in self._values.items()}
        n = int(chosen.sum())
        return Group(
            label=label, users=n, share=n / self.count, metrics=_means(values),
            interval={key: _half_interval(each) for key, each in values.items()},
            against=_means({key: each[chosen] for key, each in self._against.items()}),
        )  # fmt: skip

    def grouping(self, name: str, title: str, about: str, labels: Sequence[str], of: Ints) -> Grouping:
        """The users apart by `of` (U,), a place in `labels`; a place below 0 is none. Groups without users are left
        out."""
        places = [place for place in range(len(labels)) if (of == place).any()]
        groups = tuple(self.group(labels[place], of == place) for place in places)
        return Grouping(name=name, title=title, about=about, groups=groups)


def groupings(users: Users, loaded: Loaded, ranks: RunRanks) -> Iterator[Grouping]:
    """All groupings that the data allows."""
    dataset = loaded.dataset
    position = target_positions(np.asarray(dataset.offsets), "test")
    target, last = dataset.items[position], dataset.items[position - 1]
    length = position - dataset.offsets[:-1]
    yield users.grouping(
        "history", "Length of the history", "Interactions of the user before the target.", *doubling(length)
    )
    trained = dataset.train_counts()[target]
    yield users.grouping(
        "popularity", "Popularity of the target", "How often the target is in training histories.", *doubling(trained)
    )
    about = "Warm targets are in training histories, cold ones are not."
    yield users.grouping("cold", "Warm and cold targets", about, ["warm", "cold"], ranks.cold.astype(np.int64))
    seen = _seen_before(dataset.offsets, dataset.items, target)
    if seen.any():
        about = "Whether the target is in the user's own history."
        yield users.grouping("repeat", "New and repeated items", about, ["new", "seen before"], seen.astype(np.int64))
    for field in _FIELDS:
        if field in loaded.table.widths:
            similarity = content_similarity(loaded.table, field, last, target)
            about = (
                f"Cosine of the {field} content of the target and of the last item, less the mean of training rows: "
                "fifths of the users, the least similar first."
            )
            title = f"Similarity of the target to the last item ({field})"
            yield users.grouping(f"similarity-{field}", title, about, *_quantiles(similarity))


def doubling(values: Ints) -> tuple[list[str], Ints]:
    """Labels 0, 1, 2, 3-4, 5-8, ... and the place of each value (U,), a whole number from 0, among them."""
    places = np.where(values > 0, np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64) + 1, 0)
    highest = int(places.max())
    ranges = [f"{2 ** (power - 1) + 1:,}\N{EN DASH}{2**power:,}" for power in range(2, highest + 1)]
    return ["0", "1", "2", *ranges], places


def content_similarity(table: ItemTable, field: ContentField, one: Ints, other: Ints) -> Values:
    """(U,) cosine of the field's vectors of two items each, less the mean over training rows; NaN without content."""
    mean = table.moments(field).mean
    parts = []
    for start in range(0, len(one), _AT_ONCE):
        rows = [torch.from_numpy(each[start : start + _AT_ONCE].astype(np.int64)) for each in (one, other)]
        first, second = (table.gather(field, each) - mean for each in rows)
        there = table.present(field, rows[0]) & table.present(field, rows[1])
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
        parts.append(torch.where(there, cosine, torch.nan).double().cpu().numpy())
    return np.concatenate(parts)


def _quantiles(values: Values) -> tuple[list[str], Ints]:
    """Fifths of the values that are known, of equal size as far as ties allow."""
    known = np.isfinite(values)
    if not known.any():
        return [], np.full(len(values), -1)
    edges = np.quantile(values[known], np.linspace(0, 1, _QUANTILES + 1))
    places = np.searchsorted(edges[1:-1], values, side="right")
    labels = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    return labels, np.where(known, places, -1)


def _seen_before(offsets: Ints, items: Ints, target: Ints) -> NDArray[np.bool_]:
    """(U,) whether the test target is among the user's earlier items."""
    length = np.diff(offsets)
    same = items == np.repeat(target, length)
    return np.add.reduceat(same, offsets[:-1]) > 1


def _means(values: Mapping[str, Values]) -> dict[str, float]:
    return {key: float(each.mean()) for key, each in values.items()}


def _half_interval(values: Values) -> float:
    return _Z * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
