"""The transformer encoder of SASRec, in RecBole's variant (post-LN), which most systems use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.dropout import Dropout, attention
from models.nn.layout import Group, Layout
from models.nn.row_exchange import SharedEmbedding

LAYER_NORM_EPS = 1e-12
_STD = 0.02


def init_weights(module: nn.Module) -> None:
    """Linear and Embedding weights N(0, .02), biases 0, LayerNorm 1 and 0; use with `module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
    elif isinstance(module, SharedEmbedding):
        module.draw(_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def zero_weights(layer: nn.Linear) -> None:
    """Weights and biases 0: a layer whose output is added to something, and which is to change nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class SelfAttention(nn.Module):
    """Multi-head attention over the tokens of each row, with residual and LayerNorm (Eq. 5).

    causal: whether a token attends only to itself and older tokens, or else to all real tokens of its row. norm_first:
    whether the norm is before the attention (pre-LN), or else after the residual (post-LN).
    """

    def __init__(
        self, hidden: int, heads: int, attention_dropout: float, hidden_dropout: float,
        *, causal: bool = True, norm_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal = causal
        self.norm_first = norm_first
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.attention_dropout = attention_dropout
        self.dropout = Dropout(hidden_dropout)

    def forward(self, x_ND: Tensor, layout: Layout, last_only: bool) -> Tensor:
        """(N, D) -> (N, D), or (B, D) for the last token of each row alone."""
        read = self.norm(x_ND) if self.norm_first else x_ND
        source, asking = ((y.index_select(0, layout.last) if last_only else y) for y in (x_ND, read))
        query, key_value = self.query(asking), self.key_value(read)
        context = [self._attend(query, key_value, group, last_only) for group in layout.groups]
        joined = torch.cat(context) if len(context) > 1 else context[0]
        if last_only and len(context) > 1:  # groups have another order of rows than the batch
            joined = joined.index_select(0, torch.cat([group.row for group in layout.groups]).argsort())
        mixed = source + self.dropout(self.out(joined))
        return mixed if self.norm_first else self.norm(mixed)  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, key_value: Tensor, group: Group, last_only: bool) -> Tensor:
        """(n, D) for the tokens of `group`, or (G, D) for its rows' last tokens."""
        key, value = group.pad(key_value[group.tokens]).chunk(2, dim=-1)
        # the last token sees every real token: the mask's last row is "key is real"
        mask = group.mask_G1MM if self.causal and not last_only else group.mask_G1MM[:, :, -1:, :]
        asked = query.index_select(0, group.row)[:, None] if last_only else group.pad(query[group.tokens])
        rate = self.attention_dropout if self.training else 0.0
        context = attention(self._split(asked), self._split(key), self._split(value), mask, rate)
        context = context.transpose(1, 2).flatten(2)
        return context.squeeze(1) if last_only else group.flatten(context)

    def _split(self, x_GMD: Tensor) -> Tensor:
        return x_GMD.view(*x_GMD.shape[:2], self.heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention, then a GELU feed-forward layer, each with residual and LayerNorm. Options as in SelfAttention.

    inner_dropout: share of the feed-forward layer's inner values that a training step sets to 0.
    """

    def __init__(
        self, hidden: int, inner: int, heads: int, attention_dropout: float, hidden_dropout: float,
        *, causal: bool = True, norm_first: bool = False, inner_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(
            hidden, heads, attention_dropout, hidden_dropout, causal=causal, norm_first=norm_first
        )
        self.inner = nn.Linear(hidden, inner)
        self.outer = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.dropout, self.inner_dropout = Dropout(hidden_dropout), Dropout(inner_dropout)

    def forward(self, x_ND: Tensor, layout: Layout, last_only: bool) -> Tensor:
        """(N, D) -> (N, D), or (B, D) for the last token of each row alone."""
        x = self.attention(x_ND, layout, last_only)
        read = self.norm(x) if self.norm_first else x
        mixed = x + self.dropout(self.outer(self.inner_dropout(F.gelu(self.inner(read)))))
        return mixed if self.norm_first else self.norm(mixed)  # type: ignore[no-any-return]


class CausalEncoder(nn.Module):
    """Turns token embeddings into one vector per row: position embeddings, LayerNorm, dropout, layers, last real token.

    Position 0 is the oldest item. The last layer is computed for the last token alone, which changes no result,
    because nothing reads the other outputs.
    """

    def __init__(
        self, length: int, hidden: int, inner: int, layers: int, heads: int,
        attention_dropout: float, hidden_dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.position = nn.Embedding(length, hidden)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(hidden_dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(hidden, inner, heads, attention_dropout, hidden_dropout) for _ in range(layers)
        )

    def forward(self, token_ND: Tensor, layout: Layout) -> Tensor:
        """(N, D) embeddings of the kept tokens -> (B, D) state at each row's last real token."""
        return self.contextualise(self.embed(token_ND, layout), layout)

    def embed(self, token_ND: Tensor, layout: Layout) -> Tensor:
        """(N, D) -> (N, D) input of the layers: position embeddings added, LayerNorm, dropout."""
        return self.dropout(self.norm(token_ND + self.position(layout.position())))  # type: ignore[no-any-return]

    def contextualise(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """(N, D) output of `embed` -> (B, D): the layers alone, for systems that change their input in between."""
        for layer in self.layers:
            x_ND = layer(x_ND, layout, last_only=layer is self.layers[-1])
        return x_ND
