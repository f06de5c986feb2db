"""NPD's denoiser: it does not know the timestep, and equals a whole attention block read at its first token."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from models.mealrec.npd import PreferenceDenoiser
from models.options.mealrec import NPDOptions
from tests.helpers.model_fixtures import assert_same, attend, gelu, layer_norm, randomise

HIDDEN, STEPS, VISUAL, TEXT = 8, 5, 6, 7


def _denoiser(heads: int = 2, steps: int = STEPS) -> PreferenceDenoiser:
    module = PreferenceDenoiser(HIDDEN, steps, VISUAL, TEXT, NPDOptions(heads=heads, dropout=0.0)).double()
    randomise(module)
    return module


def _inputs(rows: int = 3, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((rows, HIDDEN), (rows, steps, VISUAL), (rows, TEXT))
    x, z, h = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return x, z, h


def _norm(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
    return layer_norm(x, module.weight, module.bias, 1e-5)


def _linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias


def _whole_block(m: PreferenceDenoiser, x: Tensor, z: Tensor, h: Tensor) -> Tensor:
    """The pre-LN block computed for all K + 2 tokens of one row, then read at the preference token."""
    tokens = [_linear(m.preference, x) + m.kind[0]]
    tokens += [_linear(m.visual, frame) + m.kind[1] + m.frame[k] for k, frame in enumerate(z)]
    tokens += [_linear(m.text, h) + m.kind[2]]
    normed = [_norm(token, m.norm_attention) for token in tokens]
    keys, values = zip(*(_linear(m.key_value, n).chunk(2) for n in normed), strict=True)
    mixed = [
        token + _linear(m.attention_out, attend(_linear(m.query, n), keys, values, m.heads))
        for token, n in zip(tokens, normed, strict=True)
    ]
    done = [token + _linear(m.outer, gelu(_linear(m.inner, _norm(token, m.norm_inner)))) for token in mixed]
    return m.linear.weight @ x + _linear(m.out, done[0])


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 5])
def test_reading_one_token_equals_the_whole_block(heads: int, steps: int) -> None:
    module, (x, z, h) = _denoiser(heads, steps), _inputs(steps=steps)
    expected = torch.stack([_whole_block(module, *row) for row in zip(x, z, h, strict=True)])
    assert_same(module(x, z, h), expected, [x, z, h, *module.parameters()], 1e-9)


def test_no_timestep_reaches_the_denoiser() -> None:
    """Section 4.4: g has no access to t. Its only inputs are the preference, the content sequence and the text."""
    assert list(inspect.signature(PreferenceDenoiser.forward).parameters) == ["self", "x_BD", "z_BKV", "text_BH"]
    names = " ".join(name for name, _ in _denoiser().named_modules())
    assert "time" not in names


def test_every_input_and_the_order_of_frames_matter() -> None:
    module, (x, z, h) = _denoiser(), _inputs()
    base = module(x, z, h)
    others = (module(x + 1, z, h), module(x, z + 1, h), module(x, z, h + 1), module(x, z.flip(1), h))
    assert all((other - base).abs().max() > 1e-4 for other in others)
    rolled = module(x.roll(1, 0), z.roll(1, 0), h.roll(1, 0))
    torch.testing.assert_close(rolled, base.roll(1, 0))


def test_dropout_works_in_training_only() -> None:
    module = PreferenceDenoiser(HIDDEN, STEPS, VISUAL, TEXT, NPDOptions(dropout=0.5)).double()
    inputs = _inputs()
    assert not torch.equal(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))
