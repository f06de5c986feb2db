"""Baselines: recommenders that are counted, not trained. A trained system that does not beat them is not worth its GPU.

All but popularity score an item by its relation to each item of the history, summed with weights that fall with age.
Fitting takes seconds; nothing of size (I, I) is dense, and one batch takes a (B, I) matrix of scores.
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
from models.nn.sparse import SparseMap, interaction_users, sparse_matrix
from models.options.baselines import ContentOptions, PopularityOptions, TitleOptions, TransitionOptions

# runs of word characters; scripts written without spaces (ideographs, kana) count each character as a word
_UNSPACED = "぀-ヿ㐀-䶿一-鿿豈-﫿"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


class _Baseline(Baseline):
    """Tensors of a baseline follow the batches to their device; the padding column is minus infinity."""

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
    """Items by how often they occur in the training interactions, for everybody the same."""

    def __init__(self, options: PopularityOptions, context: ModelContext) -> None:
        del options
        self._counts_I = _counts(context)

    def _scores(self, batch: Batch) -> Tensor:
        return self._counts_I.repeat(len(batch), 1)


class TransitionKNN(_Baseline):
    """What followed the items of the history in training sequences; popularity orders what followed none of them.

    Transition counts are divided by the square root of the source's total times that of the destination.
    """

    def __init__(self, options: TransitionOptions, context: ModelContext) -> None:
        self._recency = options.recency
        counts = transitions(context.interactions, context.table.n_items, options.window, options.distance)
        (source, destination), value = counts.indices(), counts.values()
        size = context.table.n_items
        value = value / (_sums(value, source, size)[source] * _sums(value, destination, size)[destination]).sqrt()
        self._value, self._destination = value.float(), destination
        # of item i, entries start[i] to start[i + 1]
        self._start = torch.searchsorted(source, torch.arange(size + 1))
        counts_I = _counts(context)
        # 0 or less, where every score by a transition is above 0
        self._rest_I = counts_I / counts_I.max().clamp(min=1) - 1

    def _scores(self, batch: Batch) -> Tensor:
        weight_BL, size = recency_weights(batch, self._recency), len(self._rest_I)
        scores = weight_BL.new_zeros(len(batch) * size)
        for item_B, weight_B in zip(batch.history.unbind(1), weight_BL.unbind(1), strict=True):
            # one place of the history at a time: no score is added to twice, so the order of sums is fixed everywhere
            start_B = self._start[item_B]
            count_B = self._start[item_B + 1] - start_B
            row = torch.repeat_interleave(count_B)
            entry = torch.arange(len(row), device=row.device) + (start_B - count_B.cumsum(0) + count_B)[row]
            scores.index_add_(0, row * size + self._destination[entry], self._value[entry] * weight_B[row])
        scores_BI = scores.view(-1, size)
        return torch.where(scores_BI > 0, scores_BI, self._rest_I)


class TitleKNN(_Baseline):
    """Cosine of the TF-IDF vectors of titles, with the weighted mean over the history."""

    def __init__(self, options: TitleOptions, context: ModelContext) -> None:
        self._recency = options.recency
        self._vectors = SparseMap(title_vectors(context.titles, context.table.n_items))

    def _scores(self, batch: Batch) -> Tensor:
        history_IB = _history_matrix(batch, self._recency, self._vectors.matrix.shape[0])
        words_WB = self._vectors.transposed @ history_IB
        scores_IB: Tensor = self._vectors(words_WB)
        return scores_IB.T.contiguous()


class ContentKNN(_Baseline):
    """Cosine of standardised content vectors, with the weighted mean over the history; missing content is zeros."""

    def __init__(self, options: ContentOptions, context: ModelContext) -> None:
        self._recency = options.recency
        self._content_IV = F.normalize(context.table.gather(options.field, torch.arange(context.table.n_items)), dim=1)

    def _scores(self, batch: Batch) -> Tensor:
        weight_BL = recency_weights(batch, self._recency)
        profile_BV = F.embedding_bag(batch.history, self._content_IV, per_sample_weights=weight_BL, mode="sum")
        return profile_BV @ self._content_IV.T


def recency_weights(batch: Batch, exponent: float) -> Tensor:
    """(B, L) float32: k ** -exponent for the k-th newest item, over their sum; 0 for padding."""
    age_BL = batch.length[:, None] - torch.arange(batch.history.shape[1], device=batch.history.device)
    weight_BL = age_BL.clamp(min=1).float() ** -exponent * (age_BL > 0)
    return weight_BL / weight_BL.sum(1, keepdim=True)


def transitions(interactions: TrainingInteractions, n_items: int, window: int, distance: float) -> Tensor:
    """(I, I) sparse float64: sums of n ** -distance over each time that an item came n <= window later."""
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
    """(I, W) sparse float32: unit TF-IDF vector of each item's title, zeros where it has none.

    Weights are (1 + ln tf) (1 + ln((1 + n) / (1 + df))) over the n titles that have a word, as in scikit-learn.
    Raises UserError where no title has a word.
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
