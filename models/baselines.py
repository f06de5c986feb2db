"""Baselines: recommenders that count and are not trained. A trained system is useful only if it ranks better.

All but popularity score an item by its relation to each item of the history; older items of the history have lower
weights. Fitting takes seconds. No (I, I) matrix is dense, and one batch needs a (B, I) matrix of scores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.contract import Baseline, Batch, ModelContext, TrainingInteractions
from models.errors import UserError
from models.nn.content import ScaledContent
from models.nn.sparse import SparseMap, interaction_users, sparse_matrix
from models.options.baselines import ContentOptions, PopularityOptions, TitleOptions, TransitionOptions

# runs of word characters; scripts written without spaces (ideographs, kana) count each character as a word
_UNSPACED = "぀-ヿ㐀-䶿一-鿿豈-﫿"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


class _Baseline(Baseline):
    """Moves the tensors of a baseline to the device of the batches, and sets the padding column to minus infinity."""

    def scores(self, batch: Batch) -> Tensor:
        self._follow(batch.history.device)
        scores_BI = self._scores(batch)
        scores_BI[:, 0] = -torch.inf
        return scores_BI

    def _scores(self, batch: Batch) -> Tensor:
        """(B, I) float32, a tensor that the caller may write to."""
        raise NotImplementedError

    def _follow(self, device: torch.device) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor | SparseMap) and _device(value) != device:
                setattr(self, name, value.to(device))


class Popularity(_Baseline):
    """Ranks items by their number of training interactions, equally for all users."""

    def __init__(self, options: PopularityOptions, context: ModelContext) -> None:
        del options
        self._counts_I = _counts(context)

    def _scores(self, batch: Batch) -> Tensor:
        return self._counts_I.repeat(len(batch), 1)


class TransitionKNN(_Baseline):
    """Ranks items by how often they followed the items of the history in training sequences.

    Items that followed none of them come last, by popularity. A transition count is divided by the square root of the
    source's total times the destination's total.
    """

    def __init__(self, options: TransitionOptions, context: ModelContext) -> None:
        self._recency = options.recency
        counts = transitions(context.interactions, context.table.n_items, options.window, options.distance)
        (source, destination), value = counts.indices(), counts.values()
        size = context.table.n_items
        value = value / (_sums(value, source, size)[source] * _sums(value, destination, size)[destination]).sqrt()
        self._value, self._destination = value.float(), destination
        # item i has the entries start[i] to start[i + 1]
        self._start = torch.searchsorted(source, torch.arange(size + 1))
        counts_I = _counts(context)
        # 0 or less, so below every score from a transition, which is above 0
        self._rest_I = counts_I / counts_I.max().clamp(min=1) - 1

    def _scores(self, batch: Batch) -> Tensor:
        weight_BL, size = recency_weights(batch, self._recency), len(self._rest_I)
        scores = weight_BL.new_zeros(len(batch) * size)
        for item_B, weight_B in zip(batch.history.unbind(1), weight_BL.unbind(1), strict=True):
            # one place of the history per step: a step adds to each score once, so sums have one order on all devices
            start_B = self._start[item_B]
            count_B = self._start[item_B + 1] - start_B
            row = torch.repeat_interleave(count_B)
            entry = torch.arange(len(row), device=row.device) + (start_B - count_B.cumsum(0) + count_B)[row]
            scores.index_add_(0, row * size + self._destination[entry], self._value[entry] * weight_B[row])
        scores_BI = scores.view(-1, size)
        return torch.where(scores_BI > 0, scores_BI, self._rest_I)


class TitleKNN(_Baseline):
    """Ranks items by the cosine of TF-IDF vectors of titles: the weighted mean over the items of the history."""

    def __init__(self, options: TitleOptions, context: ModelContext) -> None:
        self._recency = options.recency
        self._vectors = SparseMap(title_vectors(context.titles, context.table.n_items))

    def _scores(self, batch: Batch) -> Tensor:
        history_IB = _history_matrix(batch, self._recency, self._vectors.matrix.shape[0])
        words_WB = self._vectors.transposed @ history_IB
        scores_IB: Tensor = self._vectors(words_WB)
        return scores_IB.T.contiguous()


class ContentKNN(_Baseline):
    """Ranks items by the cosine of content vectors: the weighted mean over the items of the history.

    An item without content has a zero vector.
    """

    def __init__(self, options: ContentOptions, context: ModelContext) -> None:
        self._recency = options.recency
        content = ScaledContent(context.table, options.field, options.scale)
        self._content_IV = F.normalize(content(torch.arange(context.table.n_items)), dim=1)

    def _scores(self, batch: Batch) -> Tensor:
        weight_BL = recency_weights(batch, self._recency)
        profile_BV = F.embedding_bag(batch.history, self._content_IV, per_sample_weights=weight_BL, mode="sum")
        return profile_BV @ self._content_IV.T


def recency_weights(batch: Batch, exponent: float) -> Tensor:
    """(B, L) float32 weights: k ** -exponent for the k-th newest item, divided by their sum; 0 for padding."""
    age_BL = batch.length[:, None] - torch.arange(batch.history.shape[1], device=batch.history.device)
    weight_BL = age_BL.clamp(min=1).float() ** -exponent * (age_BL > 0)
    return weight_BL / weight_BL.sum(1, keepdim=True)


def transitions(interactions: TrainingInteractions, n_items: int, window: int, distance: float) -> Tensor:
    """(I, I) sparse float64: n ** -distance, summed over all pairs where the column's item came n <= window places
    after the row's item in the sequence of one user."""
    user, item = interaction_users(interactions), interactions.items
    source, destination, value = [], [], []
    for n in range(1, window + 1):
        same = (user[:-n] == user[n:]).nonzero().squeeze(1)
        source.append(item[same])
        destination.append(item[same + n])
        value.append(torch.full((len(same),), float(n) ** -distance, dtype=torch.float64))
    return sparse_matrix(torch.cat(source), torch.cat(destination), torch.cat(value), (n_items, n_items))


def words_of(title: str) -> list[str]:
    """The lower-case words of a title."""
    return _WORD.findall(title.lower())


def title_vectors(titles: Sequence[str | None], n_items: int) -> Tensor:
    """(I, W) sparse float32: unit TF-IDF vector of each item's title, zeros for an item without a title.

    Weights are (1 + ln tf) (1 + ln((1 + n) / (1 + df))) over the n titles that have a word, as in scikit-learn.
    Raises UserError if no title has a word.
    """
    words = [Counter(words_of(title or "")) for title in titles]
    having = Counter(word for counter in words for word in counter)
    if not having:
        raise UserError(
            "tfidf-knn needs titles, and no item of this dataset has one: prepare it from a source with titles "
            "(`mealrec prepare microlens --titles FILE`, or a source with a title column)"
        )
    index = {word: place for place, word in enumerate(having)}
    n = sum(1 for counter in words if counter)
    places = [(row, index[word]) for row, counter in enumerate(words, start=1) for word in counter]
    values = [
        (1 + math.log(count)) * (1 + math.log((1 + n) / (1 + having[word])))
        for counter in words for word, count in counter.items()
    ]  # fmt: skip
    (row, column), value = torch.tensor(places).T, torch.tensor(values, dtype=torch.float64)
    unit = value / _sums(value.square(), row, n_items).sqrt()[row]
    return sparse_matrix(row, column, unit.float(), (n_items, len(index)))


def _history_matrix(batch: Batch, recency: float, n_items: int) -> Tensor:
    """(I, B) dense: the weight of each item in each history."""
    weight_BL = recency_weights(batch, recency)
    return weight_BL.new_zeros(len(batch), n_items).scatter_add_(1, batch.history, weight_BL).T.contiguous()


def _counts(context: ModelContext) -> Tensor:
    """(I,) float32: training interactions of each item."""
    return torch.bincount(context.interactions.items, minlength=context.table.n_items).float()


def _sums(value: Tensor, group: Tensor, groups: int) -> Tensor:
    return value.new_zeros(groups).index_add_(0, group, value)


def _device(value: Tensor | SparseMap) -> torch.device:
    return value.matrix.device if isinstance(value, SparseMap) else value.device
