"""Recommend items for histories of raw item ids, with an exported model.

Nothing is silently less than what was asked for: `Answer` names ids that are unknown and says why a list is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models import systems
from models.contract import Baseline, Batch, ModelContext, Moments, SequenceModel
from models.errors import UserError
from models.options.base import SystemOptions
from models.tensor_table import TensorTable
from retrieval.exact import Histories, exact_topk, for_similarity, score_topk
from retrieval.export import Export, ModelCard, load_export
from retrieval.index.build import load_index
from retrieval.index.faiss_index import Device, FaissIndex, Index
from retrieval.index.kinds import KINDS
from retrieval.index.search import index_topk

_BATCH = 256
# The key of diffusion noise. It is constant, so that a history gets the same answer in every request and batch.
_NOISE_KEY = 0
_POPULAR = "popular items, because the history holds no item that the model knows"
#: unknown ids that are named in remarks
_SHOWN = 10


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: raw id, title (None if unknown), and the model's score (higher is better).

    A popular item in place of a ranked one has no score (None).
    """

    item: str
    title: str | None
    score: float | None


@dataclass(frozen=True)
class Answer:
    """The answer to one history: recommendations, best first, and ids of the history that the model does not know.

    note: why the recommendations are fewer than were asked for, or are popular items; "" if neither is so.
    """

    recommendations: list[Recommendation]
    unknown: list[str]
    note: str = ""

    @property
    def remarks(self) -> str:
        """All that a reader of the recommendations should know, in words; "" if there is nothing."""
        shown = ", ".join(map(repr, self.unknown[:_SHOWN]))
        more = f" and {len(self.unknown) - _SHOWN:,} more" if len(self.unknown) > _SHOWN else ""
        ignored = f"ignored, because the model does not know them: {shown}{more}" if self.unknown else ""
        return "; ".join(filter(None, (ignored, self.note)))


class Recommender:
    """An exported model, ready to answer; made by `Recommender.load`."""

    def __init__(
        self, export: Export, model: SequenceModel | Baseline, device: torch.device, index: Index | None
    ) -> None:
        """index: an index of the vectors in `item_vectors`, or None to rank exactly."""
        self.card = export.card
        self.items = export.items
        self.index = index
        self._model = model
        self._device = device
        self._rows = {item: row for row, item in enumerate(export.items.ids, start=1)}
        #: (I, D) float32 on `device`, of length 1 if the similarity is cosine
        self.item_vectors = for_similarity(export.item_vectors.to(device), self.card.similarity)

    @classmethod
    def load(
        cls,
        model_dir: Path,
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
        export = load_export(model_dir)
        place = torch.device(device)
        ranker: FaissIndex | None = None
        if index != "exact":
            ranker = load_index(
                index_folder(model_dir, index), export.card.checksum, device=index_device, threads=threads
            )
            if (ranker.record.count + 1, ranker.record.width) != tuple(export.item_vectors.shape):
                raise UserError(f"the index {index} in {model_dir} does not hold its items; build it again")
        return cls(export, _rebuild(export, place, model_dir), place, ranker)

    @property
    def description(self) -> str:
        """How items are ranked, in words: exactly or by an index, and on which device."""
        return self.index.description if self.index else f"exact on {self._device}, {len(self.items.ids):,} items"

    @torch.no_grad()
    def encode(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """(B, D) float32 user vectors for histories of item rows (oldest first, at least one); of length 1 for cosine.

        Raises UserError for a system without vectors (a baseline).
        """
        model = self._model
        if isinstance(model, Baseline):
            raise UserError(f"{self.card.system} ranks without vectors, so it cannot have an index; use it without")
        vectors = torch.cat([model.user_vectors(batch) for batch in self._batches(histories)])
        return for_similarity(vectors, self.card.similarity)

    def _batches(self, histories: Sequence[Sequence[int]]) -> Iterator[Batch]:
        length = self.card.max_length
        for start in range(0, len(histories), _BATCH):
            recent = [list(history[-length:]) for history in histories[start : start + _BATCH]]
            padded = torch.tensor([row + [0] * (length - len(row)) for row in recent], dtype=torch.int64)
            zeros = torch.zeros(len(recent), dtype=torch.int64)
            batch = Batch(
                user=zeros - 1,
                history=padded,
                length=torch.tensor([len(row) for row in recent]),
                target=zeros,
                key=torch.full_like(zeros, _NOISE_KEY),
                behaviours=torch.zeros_like(padded, dtype=torch.uint8),
            )
            yield batch.to(self._device)

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int, exclude_history: bool = True, *, popular_instead: bool = False
    ) -> list[Answer]:
        """The k best items for each history of raw item ids, oldest first; fewer, with a note, if no more are left.

        Unknown ids are left out of the history and reported in the answer; the whole history is excluded from the
        answer unless `exclude_history` is False. popular_instead: a history without a known id gets the most popular
        items of the training data, and a note. Otherwise raises UserError for it; and if k < 1.
        """
        if k < 1:
            raise UserError(f"{k} recommendations were asked for; ask for at least 1")
        known = [[self._rows[item] for item in history if item in self._rows] for history in histories]
        if not popular_instead:
            self._require_known(histories, known)
        usable = [rows for rows in known if rows]
        ranked = iter(self._ranked(usable, usable if exclude_history else [[] for _ in usable], k))
        answers = []
        for history, rows in zip(histories, known, strict=True):
            found = next(ranked) if rows else self._popular(k)
            unknown = [item for item in history if item not in self._rows]
            left_out = len(set(rows)) if exclude_history else 0
            notes = ("" if rows else _POPULAR, self._shortfall(k, len(found), left_out))
            answers.append(Answer(found, unknown, "; ".join(filter(None, notes))))
        return answers

    def _require_known(self, histories: Sequence[Sequence[str]], known: Sequence[Sequence[int]]) -> None:
        for number, (history, rows) in enumerate(zip(histories, known, strict=True), start=1):
            if not rows:
                example = ", ".join(self.items.ids[:3])
                raise UserError(
                    f"history {number} ({', '.join(history) or 'empty'}) holds no item that the model knows; "
                    f"give raw item ids as in the training data, such as {example}"
                )

    def _ranked(self, known: list[list[int]], excluded: list[list[int]], k: int) -> list[list[Recommendation]]:
        if not known:
            return []
        scores, ids = self._rank(known, excluded, min(k, len(self.items.ids)))
        return [
            [self._named(i, s) for i, s in zip(row, values, strict=True) if i > 0]
            for row, values in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    def _popular(self, k: int) -> list[Recommendation]:
        return [self._named(row, None) for row in self._by_popularity[:k]]

    @cached_property
    def _by_popularity(self) -> list[int]:
        counts = self.items.train_counts
        return sorted(range(1, len(counts) + 1), key=lambda row: -counts[row - 1])

    def _shortfall(self, asked: int, found: int, left_out: int) -> str:
        if found == asked:
            return ""
        history = f", and {left_out:,} of the history are left out" if left_out else ""
        return f"{found:,} items, not {asked:,}: the catalogue has {len(self.items.ids):,}{history}"

    @torch.no_grad()
    def _rank(self, known: list[list[int]], excluded: list[list[int]], k: int) -> tuple[Tensor, Tensor]:
        if isinstance(self._model, Baseline):
            parts = [
                score_topk(self._model.scores(batch), k, Histories.of(excluded[start : start + _BATCH]))
                for start, batch in zip(range(0, len(known), _BATCH), self._batches(known), strict=True)
            ]
            return torch.cat([scores for scores, _ in parts]), torch.cat([ids for _, ids in parts])
        users = self.encode(known)
        if self.index is None:
            return exact_topk(users, self.item_vectors, k, Histories.of(excluded))
        return index_topk(self.index, users, self.item_vectors, k, Histories.of(excluded))

    def _named(self, row: int, score: float | None) -> Recommendation:
        return Recommendation(self.items.ids[row - 1], self.items.titles[row - 1], score)


def index_folder(model_dir: Path, kind: str) -> Path:
    """The folder of the index of `kind` for the model in `model_dir`."""
    return model_dir / "index" / kind


def _options(card: ModelCard, model_dir: Path) -> SystemOptions:
    try:
        return systems.options_of(card.system, card.options)
    except UserError as error:  # the checksums agreed, so the files are as written, and the code has changed
        raise UserError(
            f"the options in {model_dir} do not fit this version of MealRec:\n{error}\n"
            "If an earlier version exported it, use it with that version, or train and export again with this one"
        ) from None


def _rebuild(export: Export, device: torch.device, model_dir: Path) -> SequenceModel | Baseline:
    card = export.card
    table = TensorTable(
        fields={field: x.to(device) for field, x in export.content.items()},
        present={field: x.to(device) for field, x in export.present.items()},
        kinds={field: spec.kind for field, spec in card.content.items()},
        n_items=len(export.item_vectors),
        moments={
            name: Moments(torch.tensor(spec.mean), torch.tensor(spec.deviation)) for name, spec in card.content.items()
        },
    )
    context = ModelContext(
        table, export.interactions, card.max_length, card.seed, tuple(card.behaviours), export.items.titles
    )
    model = systems.build(card.system, _options(card, model_dir), context)
    if isinstance(model, Baseline):
        return model
    try:
        model.load_state_dict(dict(export.weights))
    except RuntimeError as error:  # names or shapes differ; the checksums agreed, so the code has changed
        first = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the weights in {model_dir} do not fit this version of {card.system} ({first}); "
            "export the run again with this version"
        ) from None
    if card.inference not in model.inference_choices:
        raise UserError(
            f"{model_dir} was exported with inference {card.inference!r}, but this version of {card.system} has only "
            f"{', '.join(model.inference_choices)}; export the run again with this version"
        )
    model.inference = card.inference
    return model.to(device).eval()
