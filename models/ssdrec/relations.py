"""SSDRec's global relation encoder: item and user vectors from their neighbours in every relation graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.dropout import Dropout
from models.nn.sparse import SparseMap
from models.ssdrec.graphs import Relations, SparseRows

_SLOPE = 0.2


class _Join(nn.Module):
    """One vector per node from its neighbours of the other kind, those of its own kind, and itself.

    Own kind, per relation: drop(a * neighbours + b * itself + c), with scalars a, b, c for all nodes (a 1 x 2
    convolution). Result: W3 sigmoid(W2 m), where m is the mean over both relations of W1 [other kind ; own kind].
    W1 is linear, so the code averages the relations first.
    """

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.pair = nn.Parameter(torch.empty(2).uniform_(-0.5, 0.5))
        self.shift = nn.Parameter(torch.zeros(1))  # shape (1,), because ZeRO does not accept scalars
        self.relations = nn.Linear(2 * hidden, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden, bias=False)
        self.outer = nn.Linear(hidden, hidden, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, own: Tensor, together: Tensor, apart: Tensor, other: Tensor) -> Tensor:
        """All (n, D). own: the nodes' vectors. together, apart: neighbours by the relations of nodes that belong
        together, and that do not. other: neighbours of the other kind."""
        same = (self._with(own, together) + self._with(own, apart)) / 2
        joined: Tensor = self.inner(self.relations(torch.cat([other, same], dim=1)))
        return self.outer(joined.sigmoid())  # type: ignore[no-any-return]

    def _with(self, own: Tensor, neighbours: Tensor) -> Tensor:
        return self.dropout(self.pair[0] * neighbours + self.pair[1] * own + self.shift)  # type: ignore[no-any-return]


class ItemRelations(nn.Module):
    """Computes all item vectors (I, D) of the relation encoder."""

    def __init__(self, relations: Relations, hidden: int, dropout: float) -> None:
        super().__init__()
        self.users = SparseMap(relations.item_users)
        self.successors = SparseMap(relations.successors)
        self.predecessors = SparseMap(relations.predecessors)
        self.incompatible = SparseMap(relations.incompatible)
        # if no item follows another often enough, there is nothing to learn gates from
        gates = bool(relations.successors._nnz())
        self.before = nn.Linear(hidden, hidden, bias=False) if gates else None
        self.after = nn.Linear(hidden, hidden, bias=False) if gates else None
        self.join = _Join(hidden, dropout)

    def forward(self, item_ID: Tensor, user_UD: Tensor) -> Tensor:
        """(I, D) item and (U, D) user embedding tables -> (I, D)."""
        # incompatible items need no gates: there is only one such relation, and gates sum to 1
        together, apart = self._transitions(item_ID), self.incompatible(item_ID)
        return self.join(item_ID, together, apart, self.users(user_UD))  # type: ignore[no-any-return]

    def _transitions(self, item_ID: Tensor) -> Tensor:
        """(I, D): predecessors and successors, weighted by a softmax of their agreement with the item."""
        if self.before is None or self.after is None:
            return torch.zeros_like(item_ID)
        before: Tensor = self.predecessors(item_ID)
        after: Tensor = self.successors(item_ID)
        scores = [
            F.leaky_relu(linear(item_ID * x), _SLOPE).sum(dim=1) * item_ID.shape[1] ** -0.5
            for linear, x in ((self.before, before), (self.after, after))
        ]
        gate_I2: Tensor = torch.stack(scores, dim=1).softmax(dim=1)
        return gate_I2[:, :1] * before + gate_I2[:, 1:] * after


class UserRelations(nn.Module):
    """Computes the vectors (B, D) of the relation encoder for some users alone."""

    def __init__(self, relations: Relations, hidden: int, dropout: float) -> None:
        super().__init__()
        self.items = SparseRows(relations.user_items)
        self.similar = SparseRows(relations.similar)
        self.dissimilar = SparseRows(relations.dissimilar)
        self.join = _Join(hidden, dropout)

    def forward(self, user_B: Tensor, user_UD: Tensor, item_ID: Tensor) -> Tensor:
        """(B,) user rows, (U, D) user and (I, D) item embedding tables -> (B, D)."""
        own = F.embedding(user_B, user_UD)
        similar, dissimilar = self.similar(user_B, user_UD), self.dissimilar(user_B, user_UD)
        return self.join(own, similar, dissimilar, self.items(user_B, item_ID))  # type: ignore[no-any-return]
