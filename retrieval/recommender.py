"""Recommend items for histories of raw item ids, with an exported model.

    from retrieval import Recommender

    recommender = Recommender.load("export/first")
    answer = recommender.recommend(["item", "item"], k=20)

Nothing is silently less than what was asked for: `Answer` names ids that are unknown and says why a list is short.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import UserError
from retrieval.answers import Answer, Frame, Influence, RankedRows, Recommendation, in_words
from retrieval.export import Export, index_folder, load_export
from retrieval.index.faiss_index import Device, device_of
from retrieval.index.kinds import KINDS
from retrieval.index.shards import load as load_index
from retrieval.ranker import Ranker
from retrieval.rebuild import rebuild

_POPULAR = "popular items, because the history holds no item that the model knows"


class Recommender:
    """An exported model, ready to answer; made by `Recommender.load`.

    Nothing in it changes after it was made, so threads may share one.
    """

    def __init__(self, export: Export, ranker: Ranker) -> None:
        """ranker: of the export's model."""
        self.card = export.card
        self.items = export.items
        self._ranker = ranker
        self._has_frames = export.present.get("sequence")
        self._count, self._examples = len(export.items), ", ".join(export.items.ids[:3])

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        index: str = "exact",
        device: str = "cpu",
        index_device: Device = "auto",
        threads: int | None = None,
    ) -> Recommender:
        """Load the model in folder `model_dir` onto a torch `device`.

        index: "exact", or the kind (of KINDS) of an index saved with the model. index_device, threads: see
        `retrieval.index.build.build_index`. Raises UserError if the folder or the index is absent, damaged, or does
        not fit this version.
        """
        if index != "exact":
            _ = KINDS[index]  # an unknown name is refused before it is used as a path
        model_dir = Path(model_dir)
        export = load_export(model_dir)
        place = torch.device(device)
        ranker = Ranker(export.card, rebuild(export, place, model_dir), export.item_vectors.to(place))
        if index != "exact":
            ranker = ranker.by(load_index(
                index_folder(model_dir, index), export.card.checksum, ranker.item_vectors.cpu().numpy(),
                device=index_device, gpu=device_of(place)[1], threads=threads,
            ))  # fmt: skip
        return cls(export, ranker)

    def exactly(self) -> Recommender:
        """The same model, ranking exactly instead of by the index."""
        other = copy.copy(self)
        other._ranker = self._ranker.by(None)
        return other

    @property
    def description(self) -> str:
        """How items are ranked, in words: exactly or by an index, and on which device."""
        return self._ranker.description

    @property
    def by_index(self) -> bool:
        """Whether an index ranks."""
        return self._ranker.index is not None

    @property
    def item_vectors(self) -> Tensor:
        """(I, D) float32 on the model's device, row 0 padding; of length 1 if the similarity is cosine."""
        return self._ranker.item_vectors

    def encode(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """(B, D) float32 user vectors for histories of item rows (oldest first, at least one); of length 1 for cosine.

        Raises UserError for a system without vectors (a baseline).
        """
        return self._ranker.encode(histories)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 20,
        *,
        exclude: Iterable[str] = (),
        among: Iterable[str] | None = None,
        exclude_history: bool = True,
    ) -> Answer:
        """The k best items for one history of raw item ids, oldest first; see `recommend_all`.

        Raises UserError if k < 1, and if the history holds no item that the model knows.
        """
        (answer,) = self.recommend_all(
            [history], k, exclude=exclude, among=among, exclude_history=exclude_history, popular_instead=False
        )
        return answer

    def recommend_all(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 20,
        *,
        exclude: Iterable[str] = (),
        among: Iterable[str] | None = None,
        exclude_history: bool = True,
        popular_instead: bool = True,
    ) -> list[Answer]:
        """The k best items for each history of raw item ids, oldest first; fewer, with a note, if no more are left.

        exclude: ids that nobody gets. among: ids of which everybody gets some, such as the items of one channel; they
        are ranked exactly, without the index. Ids in `exclude` and `among` that the model does not know change nothing.
        exclude_history: leave out all items of the history, too. Unknown ids of a history are ignored, and reported in
        its answer. popular_instead: a history without a known id gets the most popular items of the training data, and
        a note; else it raises UserError. Raises UserError if k < 1, or if `among` holds no item that the model knows.
        """
        ranked = self.rank_all(
            histories, k, exclude=exclude, among=among, exclude_history=exclude_history,
            popular_instead=popular_instead,
        )  # fmt: skip
        named = self._all_named(ranked.rows, ranked.scores, ranked.popular)
        return [Answer(*each) for each in zip(named, ranked.unknown, ranked.notes, strict=True)]

    def rank_all(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 20,
        *,
        exclude: Iterable[str] = (),
        among: Iterable[str] | None = None,
        exclude_history: bool = True,
        popular_instead: bool = True,
    ) -> RankedRows:
        """`recommend_all` as arrays of item rows, for very many histories; entry row - 1 of `items` names a row."""
        if k < 1:
            raise UserError(f"{k} recommendations were asked for; ask for at least 1")
        for history in histories:
            if isinstance(history, str) or not all(isinstance(item, str) for item in history):
                raise UserError(
                    f"a history is a list of ids, each a text, such as ['8245', '1903']; not {history!r:.80}"
                )
        rows = self._rows([item for history in histories for item in history])
        known = [[rows[item] for item in history if item in rows] for history in histories]
        if not popular_instead:
            self._require_known(histories, known)
        excluded = self._known(exclude)
        candidates = None if among is None else self._candidates(among, excluded)
        out = [[*excluded, *(rows if exclude_history else ())] for rows in known]
        usable = np.array([bool(rows) for rows in known], dtype=bool)
        found = np.zeros((len(known), min(k, self._count)), np.int64)
        scores = np.zeros(found.shape, np.float32)
        if usable.any():
            ranked = [rows for rows in known if rows], [left for rows, left in zip(known, out, strict=True) if rows]
            best, ids = self._ranker.topk(*ranked, found.shape[1], candidates)
            scores[usable], found[usable] = best.cpu().numpy(), ids.cpu().numpy()
        for n in np.flatnonzero(~usable).tolist():
            popular = self._popular(found.shape[1], {*out[n]}, candidates)
            found[n, : len(popular)] = popular
        notes = [
            "; ".join(filter(None, ("" if mine else _POPULAR, self._shortfall(k, count, left_out, candidates))))
            for mine, count, left_out in zip(known, (found > 0).sum(1).tolist(), out, strict=True)
        ]
        unknown = [[item for item in history if item not in rows] for history in histories]
        return RankedRows(found, scores, ~usable, unknown, notes)

    def similar(self, item: str, k: int = 20) -> list[Recommendation]:
        """The k items whose vectors are nearest to the item's by the model's similarity, the item left out.

        Raises UserError if the model does not know the item, or ranks without vectors (a baseline); and if k < 1.
        """
        row = self.row(item)
        if k < 1:
            raise UserError(f"{k} similar items were asked for; ask for at least 1")
        scores, ids = self._ranker.nearest(row, min(k, self._count))
        return self._all_named(ids.cpu().numpy(), scores.cpu().numpy(), np.zeros(1, dtype=bool))[0]

    def explain(self, history: Sequence[str], item: str) -> list[Influence]:
        """How much each item of the history adds to the score of `item`: the score falls by that without it.

        One entry for each known item of the history, in its order. The effect is None where nothing else is in the
        history. Only the last items count, as many as the model reads; older ones have the effect 0. Raises UserError
        if the model knows none of the history, or does not know the item.
        """
        return self.explain_all(history, [item])[0]

    def explain_all(self, history: Sequence[str], items: Sequence[str]) -> list[list[Influence]]:
        """`explain` for each of several items; the histories without one item are encoded once for all."""
        targets = [self.row(item) for item in items]
        rows = [row for row in self.items.rows(history) if row is not None]
        self._require_known([history], [rows])
        without = [rows[:n] + rows[n + 1 :] for n in range(len(rows))]
        scores = self._ranker.scores_of([rows, *filter(None, without)], targets)
        columns = (scores[0] - scores[1:]).T.tolist() if len(rows) > 1 else [[None]] * len(targets)
        names = [(self.items.ids[row - 1], self.items.titles[row - 1]) for row in rows]
        return [
            [Influence(name, title, effect) for (name, title), effect in zip(names, effects, strict=True)]
            for effects in columns
        ]

    def frames(self, history: Sequence[str]) -> list[Frame]:
        """Which frames of the last video of the history the model's denoiser keeps (TCD of MealRec), in their order.

        Only that video's content enters the user vector. Empty for a system that denoises no frames, and for a video
        whose frames are not known. Raises UserError if the model knows none of the history.
        """
        rows = [row for row in self.items.rows(history) if row is not None]
        self._require_known([history], [rows])
        if self._has_frames is None or not self._has_frames[rows[-1]]:
            return []
        changes = self._ranker.frame_changes(rows)
        mean = sum(changes) / max(1, len(changes))
        return [Frame(change, change <= mean) for change in changes]

    def row(self, item: str) -> int:
        """The row of an item in `item_vectors`; entry row - 1 of `items` is its name. Raises UserError if unknown."""
        row = self.items.row(item)
        if row is None:
            raise UserError(f"the model does not know the item {item!r}; known ids are {self._examples} and others")
        return row

    def _require_known(self, histories: Sequence[Sequence[str]], known: Sequence[Sequence[int]]) -> None:
        for number, (history, rows) in enumerate(zip(histories, known, strict=True), start=1):
            if not rows:
                raise UserError(
                    f"history {number} ({in_words(history)}) holds no item that the model knows; "
                    f"give raw item ids as in the training data, such as {self._examples}"
                )

    def _known(self, items: Iterable[str]) -> set[int]:
        return {*self._rows(items).values()}

    def _rows(self, items: Iterable[str]) -> dict[str, int]:
        """The rows of those ids that the model knows."""
        distinct = list(dict.fromkeys(items))
        return {item: row for item, row in zip(distinct, self.items.rows(distinct), strict=True) if row is not None}

    def _candidates(self, among: Iterable[str], excluded: set[int]) -> Tensor:
        """(C,) int64 ascending item rows of `among` that are not excluded."""
        rows = self._known(among)
        if not rows:
            raise UserError("among holds no item that the model knows, so nothing can be recommended")
        return torch.tensor(sorted(rows - excluded), dtype=torch.int64, device=self.item_vectors.device)

    def _all_named(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], popular: NDArray[np.bool_]
    ) -> list[list[Recommendation]]:
        """The items of each row of `rows`, up to the first 0; those of popular rows without a score."""
        counts = (rows > 0).sum(1).tolist()
        at = rows[rows > 0] - 1
        names = zip(self.items.ids.taken(at).to_pylist(), self.items.titles.taken(at).to_pylist(), strict=True)
        return [
            [Recommendation(*next(names), None if no_score else score) for score in values[:count]]
            for count, values, no_score in zip(counts, scores.tolist(), popular.tolist(), strict=True)
        ]

    def _popular(self, k: int, left_out: set[int], candidates: Tensor | None) -> list[int]:
        allowed = None if candidates is None else {*candidates.tolist()}
        rows = (
            row for row in map(int, self._by_popularity) if row not in left_out and (allowed is None or row in allowed)
        )
        return [*itertools.islice(rows, k)]

    @cached_property
    def _by_popularity(self) -> NDArray[np.int64]:
        return np.argsort(-self.items.train_counts, kind="stable") + 1

    def _shortfall(self, asked: int, found: int, left_out: Iterable[int], candidates: Tensor | None) -> str:
        if found == asked:
            return ""
        left_out = {*left_out}
        out = f", and {len(left_out):,} that were watched or excluded are left out" if left_out else ""
        given = "" if candidates is None else f", of which {len(candidates):,} may be recommended"
        return f"{found:,} items, not {asked:,}: the catalogue has {self._count:,}{given}{out}"
