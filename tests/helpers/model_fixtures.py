"""A tiny catalogue and batches over it; and references for tests of models: gradients, layer norm, attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from models.contract import Baseline, Batch, ModelContext, Moments, SequenceModel, TrainingInteractions
from models.options.base import ContentField
from models.systems import build, options_of
from models.tensor_table import TensorTable

ITEMS, LENGTH, STEPS, VISUAL, TEXT = 12, 4, 5, 6, 7
VISUAL_LAYERS, TEXT_LAYERS = 5, 4
#: an item that has no content of any kind
MISSING = 4


def item_table(
    steps: int = STEPS, fields: Sequence[ContentField] = get_args(ContentField), symmetric: bool = False
) -> TensorTable:
    """Twelve item rows of random content; row 0 (padding) and item `MISSING` have none.

    symmetric: both encoders have layer states of equal number and width, as IISAN needs.
    """
    generator = torch.Generator().manual_seed(5)
    shapes: dict[ContentField, tuple[int, ...]] = {
        "sequence": (steps, VISUAL), "visual": (VISUAL,), "text": (TEXT,),
        "visual_layers": (VISUAL_LAYERS, VISUAL),
        "text_layers": (VISUAL_LAYERS, VISUAL) if symmetric else (TEXT_LAYERS, TEXT),
    }  # fmt: skip
    present = torch.ones(ITEMS, dtype=torch.bool)
    present[[0, MISSING]] = False
    values = {f: torch.randn(ITEMS, *shapes[f], generator=generator) for f in fields}
    for value in values.values():
        value[~present] = 0
    moments = {f: Moments(values[f].flatten(0, -2).mean(0), 1 + torch.arange(shapes[f][-1]) / 10) for f in fields}
    return TensorTable(ITEMS, values, dict.fromkeys(fields, present), {"sequence": "segments"}, moments)


def model_context(steps: int = STEPS, seed: int = 3, table: TensorTable | None = None) -> ModelContext:
    """The context of a model over `item_table`, with histories of at most `LENGTH` items."""
    titles = [f"title {row % 3} of item" for row in range(1, ITEMS)]
    return ModelContext(table or item_table(steps), interactions(), LENGTH, seed, titles=titles)


def context_for(system: str) -> ModelContext:
    """A context from which the system `name` can be built."""
    return model_context(table=item_table(symmetric=system == "iisan"))


def make_system(name: str, options: Mapping[str, object], context: ModelContext) -> SequenceModel | Baseline:
    """The system `name` for `context`, from plain options."""
    return build(name, options_of(name, options), context)


def interactions() -> TrainingInteractions:
    """`HISTORIES` as training interactions, one user per history."""
    length = torch.tensor([len(history) for history in HISTORIES])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    return TrainingInteractions(offsets, torch.tensor([item for history in HISTORIES for item in history]))


def make_batch(histories: Iterable[Sequence[int]], length: int = LENGTH, first_key: int = 100) -> Batch:
    """One row per history, padded on the right; targets and keys are distinct."""
    rows = [list(h) for h in histories]
    padded = torch.tensor([h + [0] * (length - len(h)) for h in rows])
    count = torch.arange(len(rows))
    return Batch(
        user=count, history=padded, length=torch.tensor([len(h) for h in rows]),
        target=1 + (5 * count + 2) % (ITEMS - 1), key=first_key + 7 * count,
        behaviours=torch.zeros_like(padded, dtype=torch.uint8),
    )  # fmt: skip


#: every length from 1 to LENGTH, a repeated item, and the item without content at the end and before it
HISTORIES = [[3], [1, 2, 3, 5], [7, 7], [9, MISSING], [MISSING, 8, 10], [11, 6, 2, 1]]


def assert_same(actual: Tensor, expected: Tensor, leaves: Sequence[Tensor] = (), tolerance: float = 1e-10) -> None:
    """Assert equal values, and equal gradients of a random projection for every tensor of `leaves`."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    if not leaves:
        return
    generator = torch.Generator().manual_seed(9)
    cotangent = torch.randn(actual.shape, generator=generator, dtype=torch.float64).to(actual.dtype)
    gradients = [torch.autograd.grad(y, leaves, cotangent, retain_graph=True, allow_unused=True) for y in
                 (actual, expected)]  # fmt: skip
    for leaf, one, two in zip(leaves, *gradients, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zero if one is None else one, zero if two is None else two, rtol=tolerance, atol=tolerance
        )


def randomise(module: torch.nn.Module, scale: float = 0.5) -> None:
    """Give every parameter random values, so that no term of a formula is hidden by a zero."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def wake(module: torch.nn.Module) -> None:
    """Give linear layers that start at zero other values: until their first step no gradient passes through them."""
    generator = torch.Generator().manual_seed(12)
    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and not part.weight.any():
            with torch.no_grad():
                part.weight.copy_(0.1 * torch.randn(part.weight.shape, generator=generator))


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalisation of one vector, by its definition."""
    centred = x - x.sum() / len(x)
    scaled = centred / torch.sqrt((centred * centred).sum() / len(x) + eps)
    return scaled if weight is None or bias is None else scaled * weight + bias


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int) -> Tensor:
    """The attention output of one query vector over keys and values, head by head."""
    width, parts = len(query) // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        exponents = torch.stack([torch.exp(query[part] @ key[part] / math.sqrt(width)) for key in keys])
        read = [weight * value[part] for weight, value in zip(exponents / exponents.sum(), values, strict=True)]
        parts.append(torch.stack(read).sum(0))
    return torch.cat(parts)
