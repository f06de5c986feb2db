"""TCD's parts against loops and against PyTorch's own convolution and group norm, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.mealrec.tcd import (
    ContentDenoiser,
    ContentUNet,
    CrossAttention,
    ResBlock,
    StepConv,
    StepNorm,
    TemporalAttention,
    recency_context,
)
from models.nn.diffusion import Diffusion, timestep_embedding
from models.nn.layout import Layout
from models.options.mealrec import TCDOptions
from tests.helpers.model_fixtures import HISTORIES, VISUAL, assert_same, attend, layer_norm, make_batch, randomise

OPTIONS = TCDOptions(channels=(16, 24), dropout=0.0)


@pytest.mark.parametrize(("steps", "width"), [(1, 12), (2, 0), (5, 12)])
def test_temporal_attention_equals_loops_over_steps_and_heads(steps: int, width: int) -> None:
    options = TCDOptions(attention_heads=4, attention_width=width, dropout=0.0)
    module = TemporalAttention(steps, 8, options).double()
    assert module.query_key_value.out_features == 3 * (width or 8)
    randomise(module)
    sequence = torch.randn(3, steps, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = (module.query_key_value.weight.chunk(3), module.query_key_value.bias.chunk(3))
    rows = []
    for row in sequence:
        tokens = [x + p for x, p in zip(row, module.position, strict=True)]
        query, key, value = ([w @ x + b for x in tokens] for w, b in zip(weight, bias, strict=True))
        read = [module.out.weight @ attend(q, key, value, 4) + module.out.bias for q in query]
        rows.append(torch.stack([layer_norm(x + r, None, None, 1e-5) for x, r in zip(tokens, read, strict=True)]))
    assert_same(module(sequence), torch.stack(rows), [sequence, *module.parameters()], 1e-9)


def test_clean_content_has_unit_scale_whatever_the_weights() -> None:
    """Shrinking z_0 cannot reduce L_T, because no parameter follows the last normalisation."""
    module = TemporalAttention(5, 8, TCDOptions(dropout=0.0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1e-3)
    z = module(torch.randn(4, 5, 8))
    torch.testing.assert_close(z.mean(-1), torch.zeros(4, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(-1, unbiased=False), torch.ones(4, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("decay", [0.9, 0.1, 0.0])
def test_recency_context_is_eq_7_over_real_positions(pack: bool, decay: float) -> None:
    batch = make_batch(HISTORIES)
    layout = Layout.of(batch, pack)
    visual = torch.randn(*batch.history.shape, VISUAL, dtype=torch.float64, requires_grad=True)
    expected = []
    for b, history in enumerate(HISTORIES):
        last = len(history)
        weight = [math.exp(-decay * (last - k)) for k in range(1, last + 1)]
        expected.append(torch.stack([w / sum(weight) * visual[b, k] for k, w in enumerate(weight)]).sum(0))
    actual = recency_context(layout.flatten(visual), layout, batch.length, decay)
    assert_same(actual, torch.stack(expected), [visual], 1e-6)  # weights are float32


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_step_conv_is_conv1d(stride: int, steps: int) -> None:
    """Impulses give the kernel, so the test does not depend on the layout of the module's weight."""
    conv = StepConv(3, 4, stride).double()
    randomise(conv)
    kernel = torch.zeros(4, 3, 3, dtype=torch.float64)
    for channel in range(3):
        for tap in range(3):
            impulse = torch.zeros(1, 7, 3, dtype=torch.float64)
            impulse[0, stride + tap - 1, channel] = 1
            kernel[:, channel, tap] = (conv(impulse) - conv(torch.zeros_like(impulse)))[0, 1].detach()
    x = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv1d(x.transpose(1, 2), kernel, conv.bias, stride=stride, padding=1).transpose(1, 2)
    assert expected.shape[1] == math.ceil(steps / stride)
    assert_same(conv(x), expected, [x, conv.bias], 1e-9)


def test_step_conv_gradcheck() -> None:
    conv = StepConv(2, 3, 2).double()
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*conv.named_parameters(), strict=True)

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, weights, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, (x, *values))


def test_step_conv_starts_as_conv1d_does() -> None:
    torch.manual_seed(0)
    conv, reference = StepConv(64, 128), nn.Conv1d(64, 128, 3)
    assert conv.weight.numel() == reference.weight.numel()
    assert conv.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.02)
    assert conv.weight.abs().max() <= 1 / math.sqrt(3 * 64)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (6, 2)])
def test_step_norm_is_group_norm_over_steps_and_channels(channels: int, groups: int) -> None:
    norm = StepNorm(channels).double()
    randomise(norm)
    x = torch.randn(3, 5, channels, dtype=torch.float64, requires_grad=True)
    expected = F.group_norm(x.transpose(1, 2), groups, norm.weight, norm.bias).transpose(1, 2)
    assert_same(norm(x), expected, [x, *norm.parameters()])


@pytest.mark.parametrize("null_token", [True, False])
def test_cross_attention_equals_a_gate_per_step(null_token: bool) -> None:
    """With two keys the softmax is a sigmoid of the difference of their scores; with one key it is 1."""
    module = CrossAttention(8, 6, null_token).double()
    randomise(module)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    normed, rows = module.norm(x), []
    for b in range(2):
        key, value = (module.key_value.weight @ context[b] + module.key_value.bias).chunk(2)
        for k in range(5):
            read = value
            if module.null is not None:
                query = module.query.weight @ normed[b, k] + module.query.bias
                gate = torch.sigmoid(query @ (key - module.null[:8]) / math.sqrt(8))
                read = gate * value + (1 - gate) * module.null[8:]
            rows.append(x[b, k] + module.out.weight @ read + module.out.bias)
    assert (module.null is not None) == null_token
    expected = torch.stack(rows).view(2, 5, 8)
    assert_same(module(x, context), expected, [x, context, *module.parameters()], 1e-9)


def test_without_the_null_token_every_step_gets_the_same_vector() -> None:
    x, context = torch.randn(2, 5, 8), torch.randn(2, 6)
    for null_token in (False, True):
        module = CrossAttention(8, 6, null_token)
        randomise(module)
        added = module(x, context) - x
        spread = (added - added[:, :1]).abs().max().item()
        assert (spread > 1e-2) if null_token else (spread < 1e-5)


def test_timestep_embedding_tells_steps_apart() -> None:
    embedding = timestep_embedding(torch.arange(1, 26), 16)
    frequency = [10_000 ** (-i / 8) for i in range(8)]
    by_hand = [[f(t * w) for f in (math.cos, math.sin) for w in frequency] for t in range(1, 26)]
    torch.testing.assert_close(embedding, torch.tensor(by_hand), atol=1e-5, rtol=0)
    assert torch.pdist(embedding).min() > 0.1
    assert timestep_embedding(torch.arange(3), 7).shape == (3, 7)


def _conv(module: StepConv, x: Tensor) -> Tensor:
    """`module` on (B, C, K): checked against conv1d above."""
    return module(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


def _block(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    """A residual block on (B, C, K) from PyTorch's functions."""
    h = F.silu(F.group_norm(x, 8, block.norm_in.weight, block.norm_in.bias))
    h = _conv(block.conv_in, h) + F.linear(time, block.time.weight, block.time.bias)[:, :, None]
    h = _conv(block.conv_out, F.silu(F.group_norm(h, 8, block.norm_out.weight, block.norm_out.bias)))
    skip = block.skip
    return h + (F.conv1d(x, skip.weight[:, :, None], skip.bias) if isinstance(skip, nn.Linear) else x)


def _reference_unet(net: ContentUNet, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The U-Net of D7 in the (B, C, K) layout, up-sampling by F.interpolate to the stored length."""
    time = net.time(timestep_embedding(t, OPTIONS.channels[0]))
    skip = _block(net.down, net.read(z).transpose(1, 2), time)
    x = _block(net.inner, _conv(net.stride, skip), time)
    x = _block(net.middle_in, x, time)
    x = net.attention(x.transpose(1, 2), context).transpose(1, 2)
    x = F.interpolate(_block(net.middle_out, x, time), size=skip.shape[2], mode="nearest")
    x = _block(net.up, torch.cat([x, skip], dim=1), time)
    x = F.silu(F.group_norm(x, 8, net.norm.weight, net.norm.bias))
    return net.write(x.transpose(1, 2))  # type: ignore[no-any-return]


def _unet() -> ContentUNet:
    net = ContentUNet(10, VISUAL, OPTIONS).eval()
    randomise(net, 0.2)
    return net


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_unet_equals_its_reference_for_any_number_of_steps(steps: int) -> None:
    net = _unet()
    z, context = torch.randn(3, steps, 10, requires_grad=True), torch.randn(3, VISUAL, requires_grad=True)
    t = torch.tensor([1, 13, 25])
    actual = net(z, t, context)
    assert actual.shape == z.shape
    assert_same(actual, _reference_unet(net, z, t, context), [z, context, *net.parameters()], 2e-3)


def test_unet_reads_the_step_the_context_and_every_frame() -> None:
    net, z, context = _unet(), torch.randn(2, 5, 10, requires_grad=True), torch.randn(2, VISUAL)
    t = torch.tensor([3, 3])
    base = net(z, t, context)
    assert (net(z, t + 10, context) - base).abs().max() > 1e-3
    assert (net(z, t, context + 1) - base).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(base[0, 0].sum(), z)
    assert (gradient[0].abs().sum(1) > 1e-6).all()
    assert not gradient[1].any(), "rows of a batch are independent"


def test_the_denoiser_starts_as_the_nearest_multiple_of_its_input() -> None:
    """And the linear part grows with the noise, so that a clean sequence is left as it is."""
    diffusion, z, context = Diffusion("linear", 25), torch.randn(3, 5, 10), torch.randn(3, VISUAL)
    net, t = ContentDenoiser(10, VISUAL, diffusion, OPTIONS).eval(), torch.tensor([1, 13, 25])
    level = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 25, dtype=torch.float64), 0)[t - 1].float().sqrt()
    torch.testing.assert_close(net(z, t, context), level[:, None, None] * z)
    with torch.no_grad():
        net.state.weight.normal_()
        net.context.weight.normal_()
    added = (net(z, t, context) - level[:, None, None] * z) / (1 - level[:, None, None] ** 2).sqrt()
    expected = z @ net.state.weight.T + (context @ net.context.weight.T)[:, None]
    torch.testing.assert_close(added, expected, atol=1e-3, rtol=1e-3)
