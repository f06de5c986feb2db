"""The base class of backbones: the sequence encoder under MealRec (paper, section 3.2; decision D1)."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, SequenceModel
from models.losses.sampled import SampledItems
from models.losses.softmax import (
    cosine_full_softmax_cross_entropy,
    full_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)
from models.nn.noise import KeyedNoise
from models.nn.row_exchange import item_embedding
from models.options.ranking import RankingOptions
from models.ranking import Candidates, shortened


class Backbone(SequenceModel):
    """A sequence encoder with an item embedding table and its own rule for scoring.

    Alone it is a recommender. Under MealRec it computes x_0 (Eq. 12) and ranks the denoised preference by its own rule.
    ranking: how it learns to rank, see `models/ranking.py`; None is the published form.
    """

    hidden: int
    temperature: float = 1.0

    def __init__(self, context: ModelContext, hidden: int, ranking: RankingOptions | None = None) -> None:
        super().__init__()
        self.hidden = hidden
        self.share = context.share
        self.item_embedding = item_embedding(context.table.n_items, hidden, context.share)
        ranking = ranking or RankingOptions()
        self.candidates = Candidates(ranking, context, hidden)
        self._shorten, self._shorten_noise = ranking.shorten, KeyedNoise(context.seed)

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """(B, D) preference x_0 of each row's history (Eq. 12)."""

    def auxiliary_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of this backbone besides the ranking loss; weights are in `loss_weights`."""
        del batch
        return {}

    def ranking_loss(self, user_BD: Tensor, batch: Batch) -> Tensor:
        """Softmax cross-entropy of each row's target under this backbone's similarity, mean over rows (Eq. 15).

        user_BD: (B, D) vectors of the rows of `batch`. Over all items, or with `ranking.negatives` over a sample;
        then it is collective.
        """
        if self.candidates.sampler is not None:
            return self._sampled_loss(user_BD, self.candidates.sampler(batch))
        item_ID, target_B = self.candidates.trained(self.candidates(self.item_embedding.weight), batch.target)
        if self.similarity == "cosine":
            return cosine_full_softmax_cross_entropy(user_BD, item_ID, target_B, self.temperature)
        return full_softmax_cross_entropy(user_BD, item_ID, target_B)

    def _sampled_loss(self, user_BD: Tensor, sample: SampledItems) -> Tensor:
        item_CD, scale = self.candidates.rows(self.item_embedding.weight, sample.item_C, sample.key), 1.0
        if self.similarity == "cosine":
            user_BD, item_CD, scale = F.normalize(user_BD, dim=-1), F.normalize(item_CD, dim=-1), 1 / self.temperature
        return sampled_softmax_cross_entropy(user_BD, item_CD, sample.own_B, sample, scale)

    def training_rows(self, batch: Batch) -> Batch:
        """The rows that a training step learns from: `batch`, with the set share of histories shortened."""
        return shortened(batch, self._shorten, self._shorten_noise)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.training_rows(batch)
        return {"ranking": self.ranking_loss(self.encode(batch), batch), **self.auxiliary_losses(batch)}

    def sparse_tables(self) -> list[Tensor]:
        own = self.candidates.own
        if self.candidates.sampler is None:
            return []
        if isinstance(self.item_embedding, nn.Embedding):  # a share has sparse gradients as it is
            self.item_embedding.sparse = self.candidates.sparse = True
        return [self.item_embedding.weight, *([] if own is None else [own])]

    def user_vectors(self, batch: Batch) -> Tensor:
        return self.encode(batch).float()

    def item_vectors(self) -> Tensor:
        return self.candidates(self.item_embedding.weight).float()  # type: ignore[no-any-return]
