"""IISAN (Fu et al. 2024): side adapters over the layer states of two frozen encoders; and its asymmetric form, Versa.

Written from the facts of the released code (cached form); docs/fidelity.md has choices and deviations. Each intra-modal
tower reads the states of one encoder; the inter-modal tower reads pairs of states of both encoders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.content_model import ContentModel, xavier
from models.contract import ModelContext
from models.nn.content import ContentInput
from models.options.iisan import IISANOptions, IISANVersaOptions

_GATE_TEMPERATURE = 0.1
_ADAPTER_STD = 0.01


def adapter_states(states: int, every: int) -> list[int]:
    """The states of an encoder that get an adapter: that of the embedding layer (0), the last, and each `every`-th
    before the last.

    For the 13 states of BERT-base and every = 2, these are 0, 2, 4 ... 12, as published.
    """
    return [0, *sorted(range(states - 1, 0, -every))]


def group_size(states: int, groups: int) -> int:
    """Layers per group for at most `groups` groups; 6 groups give 2 for BERT-base and 6 for Llama-7B, as published."""
    return max(2, -(-(states - 1) // groups))


class Adapter(nn.Module):
    """x + Up(ReLU(Down(x)))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=_ADAPTER_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x_nW: Tensor) -> Tensor:
        return x_nW + self.up(F.relu(self.down(x_nW)))  # type: ignore[no-any-return]


class IntraTower(nn.Module):
    """Adapters along the states H_j of one encoder: s = A_j(g_j H_j + (1 - g_j) s), from s = 0."""

    def __init__(self, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(depth))
        self.adapters = nn.ModuleList(Adapter(width, inner) for _ in range(depth))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """(n, W) per adapter -> (n, W)."""
        gate = torch.sigmoid(self.gate / _GATE_TEMPERATURE)
        state_nW = torch.zeros_like(states[0])
        for j, (adapter, read_nW) in enumerate(zip(self.adapters, states, strict=True)):
            state_nW = adapter(gate[j] * read_nW + (1 - gate[j]) * state_nW)
        return state_nW


class InterTower(nn.Module):
    """Adapters along pairs of states: s = A_j(s + g_j V_j + (1 - g_j) T_j), from s = 0, in the smaller width.

    A linear layer per pair projects the states of the wider encoder; equal widths need no projection.
    """

    def __init__(self, visual: int, text: int, inner: int, depth: int) -> None:
        super().__init__()
        width = min(visual, text)
        self.gate = nn.Parameter(torch.zeros(depth))
        self.adapters = nn.ModuleList(Adapter(width, inner) for _ in range(depth))
        self.visual, self.text = (
            nn.ModuleList(nn.Linear(wide, width) if wide > width else nn.Identity() for _ in range(depth))
            for wide in (visual, text)
        )

    def forward(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """((n, V), (n, H)) per adapter -> (n, min(V, H))."""
        gate = torch.sigmoid(self.gate / _GATE_TEMPERATURE)
        parts = zip(self.adapters, self.visual, self.text, pairs, strict=True)
        state_nW: Tensor | None = None
        for j, (adapter, align_visual, align_text, (visual_nV, text_nH)) in enumerate(parts):
            read_nW = gate[j] * align_visual(visual_nV) + (1 - gate[j]) * align_text(text_nH)
            state_nW = adapter(read_nW if state_nW is None else state_nW + read_nW)
        assert state_nW is not None, "every encoder has at least one state"
        return state_nW


@dataclass(frozen=True)
class Sizes:
    """The sizes of a side network. *_states: the states that its towers read. *adapter: inner widths of adapters."""

    visual_states: Sequence[int]
    text_states: Sequence[int]
    visual_adapter: int
    adapter: int
    hidden: int


class SideNetwork(nn.Module):
    """Two intra towers and one inter tower over layer states, each with a head; a linear layer fuses their outputs.

    If one encoder has more adapters, its first states go to its own tower only, and the others form the pairs.
    """

    def __init__(self, visual: ContentInput, text: ContentInput, sizes: Sizes, narrow_heads: bool) -> None:
        """narrow_heads: whether the heads of the intra towers reduce the width to D in their first layer (Versa), or
        else in their second."""
        super().__init__()
        self.visual, self.text, self.sizes = visual, text, sizes
        widths, hidden = (visual.width[1], text.width[1]), sizes.hidden
        inner = min(widths)
        depth = min(len(sizes.visual_states), len(sizes.text_states))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, middle), nn.Linear(middle, hidden))
            for width, middle in [*((w, hidden if narrow_heads else w) for w in widths), (inner, inner)]
        )
        self.fuse = nn.Linear(3 * hidden, hidden)
        self.apply(xavier)  # the adapters are made below, because they have another distribution
        self.visual_tower = IntraTower(widths[0], sizes.visual_adapter, len(sizes.visual_states))
        self.text_tower = IntraTower(widths[1], sizes.adapter, len(sizes.text_states))
        self.inter_tower = InterTower(*widths, sizes.adapter, depth)
        self.inter_tower.visual.apply(xavier)
        self.inter_tower.text.apply(xavier)

    def forward(self, row_n: Tensor) -> Tensor:
        """(n,) item rows -> (n, D)."""
        visual_nSV, text_nSH = self.visual(row_n), self.text(row_n)
        visual = [visual_nSV[:, s] for s in self.sizes.visual_states]
        text = [text_nSH[:, s] for s in self.sizes.text_states]
        depth = min(len(visual), len(text))
        towers = (
            self.visual_tower(visual),
            self.text_tower(text),
            self.inter_tower(zip(visual[-depth:], text[-depth:], strict=True)),
        )
        joined = [head(state) for head, state in zip(self.heads, towers, strict=True)]
        return self.fuse(torch.cat(joined, dim=1))  # type: ignore[no-any-return]


class _Adapted(ContentModel):
    """Base of both forms: a side network over the layer states of both encoders makes the item vectors."""

    items: SideNetwork

    def encode_items(self, row_n: Tensor) -> Tensor:
        return self.items(row_n)  # type: ignore[no-any-return]


class IISAN(_Adapted):
    """The symmetric form: both encoders have equally many states of equal width."""

    def __init__(self, options: IISANOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden, options.layers, options.heads, options.dropout)
        visual, text = (ContentInput(context.table, field, options.scale) for field in options.needs)
        states = adapter_states(visual.width[0], options.every)
        sizes = Sizes(states, states, options.adapter, options.adapter, options.hidden)
        self.items = SideNetwork(visual, text, sizes, narrow_heads=False)


class IISANVersa(_Adapted):
    """The asymmetric form: encoders of any depth and width."""

    def __init__(self, options: IISANVersaOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden, options.layers, options.heads, options.dropout)
        visual, text = (ContentInput(context.table, field, options.scale) for field in options.needs)
        visual_states, text_states = (
            adapter_states(content.width[0], group_size(content.width[0], options.groups)) for content in (visual, text)
        )
        sizes = Sizes(visual_states, text_states, options.visual_adapter, options.adapter, options.hidden)
        self.items = SideNetwork(visual, text, sizes, narrow_heads=True)
