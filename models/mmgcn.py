"""MMGCN: one graph convolution per modality over users and items (Wei et al. 2019), from facts of its released code.

One correction (docs/fidelity.md): preferences and ID embeddings are trained (`train_nodes`); the released code never
registers them. The N = U + I nodes are stored as users and items separately. Row 0 of the items is padding and has no
neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, SequenceModel, TrainingInteractions
from models.nn.cache import Caching
from models.nn.content import ContentInput
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32
from models.nn.sparse import SparseMap, interaction_users, row_normalised, user_item_counts
from models.options.base import ContentField
from models.options.mmgcn import MODALITIES, MMGCNOptions

#: number of draws per negative item; the first drawn item that the user has not seen is the negative
_DRAWS = 16


class GraphLayer(nn.Module):
    """x -> leaky(G [h ; leaky(A x) + id]), h = leaky(W mean of x over the neighbours); W keeps the width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.neighbours = nn.Linear(width, width, bias=False)
        self.own = nn.Linear(width, hidden)
        self.out = nn.Linear(width + hidden, hidden)

    def forward(self, x_NW: Tensor, mean_NW: Tensor, id_ND: Tensor) -> Tensor:
        """(N, W) own states, (N, W) means over neighbours (0 for none), (N, D) ID embeddings -> (N, D)."""
        h_NW = F.leaky_relu(self.neighbours(mean_NW))
        own_ND = F.leaky_relu(self.own(x_NW)) + id_ND
        return F.leaky_relu(self.out(torch.cat([h_NW, own_ND], dim=1)))


class NeighbourMeans(nn.Module):
    """Means over neighbours in the graph of users and items, weighted by the number of interactions."""

    def __init__(self, interactions: TrainingInteractions, n_items: int) -> None:
        super().__init__()
        counts_UI = user_item_counts(interactions, n_items)
        self.of_users = SparseMap(row_normalised(counts_UI))
        self.of_items = SparseMap(row_normalised(counts_UI.t()))

    def forward(self, user_UW: Tensor, item_IW: Tensor) -> tuple[Tensor, Tensor]:
        """(U, W) and (I, W) states -> means over the neighbours of the users and of the items."""
        return self.of_users(item_IW), self.of_items(user_UW)


class ModalityGraph(nn.Module):
    """The graph convolutions of one modality, with a free preference vector per user."""

    def __init__(self, users: int, width: int, hidden: int, layers: int, train_nodes: bool) -> None:
        super().__init__()
        self.train_nodes = train_nodes
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.empty(users, width)))
        self.layers = nn.ModuleList(GraphLayer(width if n == 0 else hidden, hidden) for n in range(layers))

    def forward(
        self, content_IW: Tensor, ids: tuple[Tensor, Tensor], neighbours: NeighbourMeans | None
    ) -> tuple[Tensor, list[Tensor]]:
        """(I, W) content and ID embeddings of users and items -> final states of users (U, D), and the states of items
        before the first layer and after each layer."""
        preference_UW = _nodes(self.preference, self.train_nodes)
        user, item = F.normalize(preference_UW, dim=1), F.normalize(at_least_float32(content_IW), dim=1)
        states = [item]
        for layer in self.layers:
            of_user, of_item = neighbours(user, item) if neighbours is not None else (user, item)
            user, item = layer(user, of_user, ids[0]), layer(item, of_item, ids[1])
            states.append(item)
        return user, states

    def newcomers(self, batch: Batch, states: list[Tensor], id_D: Tensor, graph: bool) -> Tensor:
        """(B, D) vectors of users who are not in the graph: the average user, with the history as neighbours."""
        average_W = F.normalize(self.preference, dim=1).mean(dim=0)
        user = average_W.expand(batch.user.shape[0], -1)
        for layer, state in zip(self.layers, states, strict=False):
            mean = _history_mean(batch, state) if graph else user
            user = layer(user, mean, id_D.expand(batch.user.shape[0], -1))
        return user


class Propagated(NamedTuple):
    """Final vectors of users (U, D) and items (I, D), and for each modality the states of items before every layer."""

    user: Tensor
    item: Tensor
    states: list[list[Tensor]]


class Unseen(nn.Module):
    """Draws items that a user has no training interaction with."""

    seen: Tensor

    def __init__(self, interactions: TrainingInteractions, n_items: int, seed: int) -> None:
        super().__init__()
        self.n_items, self.noise = n_items, KeyedNoise(seed)
        # one sorted number per pair, because a table of users by items would not fit into memory
        pairs = torch.unique(interaction_users(interactions) * n_items + interactions.items)
        self.register_buffer("seen", pairs, persistent=False)

    def forward(self, user_B: Tensor, key_B: Tensor, draws: int = 0) -> Tensor:
        """(B,) item rows, uniform over the items that the user has not seen; a seen item if all draws were seen.

        draws: 0 or 1, for two independent negatives of a row.
        """
        # keys count rows and epochs, so their highest bits are free: they hold the number of the draw
        draw = (draws * _DRAWS + torch.arange(_DRAWS, device=key_B.device)) << 56
        item_BR = self.noise.integers(key_B[:, None] ^ draw, 1, self.n_items - 1, Stream.NEGATIVES)
        pair_BR = user_B[:, None] * self.n_items + item_BR
        place_BR = torch.searchsorted(self.seen, pair_BR).clamp(max=len(self.seen) - 1)
        first_B1 = (self.seen[place_BR] != pair_BR).int().argmax(dim=1, keepdim=True)
        return item_BR.gather(1, first_B1).squeeze(1)


class MMGCN(Caching, SequenceModel):
    """The vector of a user or item is the mean of its final states over modalities; dot product; BPR loss.

    A known user's vector comes from the graph and not from the history; only an unknown user's history is read. Every
    edge is a positive: a row has that to its target, and the row of a user's second item also that to the first.
    """

    # without content, tables of their own take its place
    item_rows = ("item_embedding.weight", *(f"content.{n}.weight" for n in range(len(MODALITIES))))
    user_rows = ("user_embedding.weight", ".preference")
    first: Tensor

    def __init__(self, options: MMGCNOptions, context: ModelContext) -> None:
        super().__init__()
        self.loss_weights = {"ranking": 1.0, "regularisation": options.lambda_regularisation}
        users, items = len(context.interactions.offsets) - 1, context.table.n_items
        self.train_nodes = options.train_nodes
        self.user_embedding = nn.Embedding(users, options.hidden)
        self.item_embedding = nn.Embedding(items, options.hidden)
        self.content, self.graphs = nn.ModuleList(), nn.ModuleList()
        for field in MODALITIES:
            content, width = _item_input(field, options, context)
            self.content.append(content)
            self.graphs.append(ModalityGraph(users, width, options.hidden, options.layers, options.train_nodes))
        self.neighbours = NeighbourMeans(context.interactions, items) if options.graph else None
        self.unseen = Unseen(context.interactions, items, context.seed)
        self.register_buffer("first", _first_items(context.interactions), persistent=False)
        lengths = context.interactions.offsets.diff()
        rows = int((lengths - 1).clamp(min=0).sum())
        #: rows per edge: the mean of a row's sum over edges, times this, is a mean over edges
        self._edge_share = rows / (rows + int((lengths > 1).sum()))
        self.apply(_init_weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        user_UD, item_ID, _ = self._propagate()
        negative_B, other_B = (self.unseen(batch.user, batch.key, draws) for draws in (0, 1))
        user_BD, first_B = user_UD[batch.user], self.first[batch.user]

        def loss(positive_B: Tensor, negative_B: Tensor) -> Tensor:
            return -F.logsigmoid((user_BD * (item_ID[positive_B] - item_ID[negative_B])).sum(dim=1))

        begins_B = (batch.length == 1) & (batch.history[:, 0] == first_B)
        loss_B = loss(batch.target, negative_B) + begins_B * loss(first_B, other_B)
        drawn = [self.user_embedding(batch.user), self.item_embedding(batch.target), self.item_embedding(negative_B)]
        # the released code regularises the preferences of the visual modality alone
        regularisation = torch.cat(drawn).square().mean() + self._modalities()[0].preference.square().mean()
        return {"ranking": loss_B.mean() * self._edge_share, "regularisation": regularisation}

    def user_vectors(self, batch: Batch) -> Tensor:
        propagated = self.cached(self._propagate)
        known_B = batch.user >= 0
        user_BD = propagated.user[batch.user.clamp(min=0)]
        if not torch.compiler.is_exporting() and bool(known_B.all()):
            return user_BD
        newcomer_BD = self._newcomers(batch, propagated.states)
        return torch.where(known_B[:, None], user_BD, newcomer_BD)

    def item_vectors(self) -> Tensor:
        return self.cached(self._propagate).item

    def _propagate(self) -> Propagated:
        rows_I = torch.arange(self.item_embedding.num_embeddings, device=self.item_embedding.weight.device)
        ids = (
            _nodes(self.user_embedding.weight, self.train_nodes), _nodes(self.item_embedding.weight, self.train_nodes)
        )  # fmt: skip
        users, states = [], []
        for content, graph in zip(self.content, self.graphs, strict=True):
            user, state = graph(content(rows_I), ids, self.neighbours)
            users.append(at_least_float32(user))
            states.append(state)
        item_ID = torch.stack([at_least_float32(state.pop()) for state in states]).mean(dim=0)
        return Propagated(torch.stack(users).mean(dim=0), item_ID, states)

    def _modalities(self) -> list[ModalityGraph]:
        return [graph for graph in self.graphs if isinstance(graph, ModalityGraph)]

    def _newcomers(self, batch: Batch, states: list[list[Tensor]]) -> Tensor:
        id_D, graph = self.user_embedding.weight.mean(dim=0), self.neighbours is not None
        vectors = [
            at_least_float32(modality.newcomers(batch, state, id_D, graph))
            for modality, state in zip(self._modalities(), states, strict=True)
        ]
        return torch.stack(vectors).mean(dim=0)


def _nodes(vectors: Tensor, trained: bool) -> Tensor:
    """Without a gradient where they are not trained. They are parameters all the same, so a checkpoint has them."""
    return vectors if trained else vectors.detach()


def _first_items(interactions: TrainingInteractions) -> Tensor:
    """(U,) the oldest item of each user; 0 for a user without training interactions."""
    starts = interactions.offsets[:-1]
    known = interactions.offsets.diff() > 0
    place = starts.clamp(max=max(len(interactions.items) - 1, 0))
    return torch.where(known, interactions.items[place], torch.zeros_like(place))


def _item_input(field: ContentField, options: MMGCNOptions, context: ModelContext) -> tuple[nn.Module, int]:
    """A module (I,) item rows -> (I, width), and the width. It projects visual content, and leaves text unchanged."""
    if not options.content:
        width = options.visual_width if field == "visual" else options.hidden
        return nn.Embedding(context.table.n_items, width), width
    content = ContentInput(context.table, field, options.scale)
    if field == "text":
        return content, content.width[0]
    return nn.Sequential(content, nn.Linear(content.width[0], options.visual_width)), options.visual_width


def _history_mean(batch: Batch, state_IW: Tensor) -> Tensor:
    """(B, W) mean state of the items of each history."""
    total_BW = F.embedding_bag(batch.history, at_least_float32(state_IW), mode="sum", padding_idx=0)
    return total_BW / batch.length[:, None]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
