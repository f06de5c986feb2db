"""Noise on the videos' features: the same at every gather, of the deviation asked for, and nowhere else."""

from __future__ import annotations

import torch

from models.contract import Moments
from models.tensor_table import TensorTable
from trainer.batches.noisy_table import NoisyTable

ITEMS, STEPS, WIDTH, SIGMA = 4001, 2, 8, 0.3


def _clean() -> TensorTable:
    generator = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.1, 4.0, WIDTH)
    sequence = torch.randn(ITEMS, STEPS, WIDTH, generator=generator) * scale
    visual, text = torch.randn(ITEMS, WIDTH, generator=generator) * scale, torch.randn(ITEMS, 3, generator=generator)
    there = torch.ones(ITEMS, dtype=torch.bool)
    there[[0, 7]] = False
    for values in (sequence, visual, text):
        values[~there] = 0
    moments = Moments(torch.zeros(WIDTH), scale)
    return TensorTable(
        ITEMS,
        {"sequence": sequence, "visual": visual, "text": text},
        dict.fromkeys(("sequence", "visual", "text"), there),
        {"sequence": "frames", "visual": "video", "text": "title"},
        {"sequence": moments, "visual": moments, "text": Moments(torch.zeros(3), torch.ones(3))},
    )


def _noise(field: str, seed: int = 5) -> torch.Tensor:
    clean, rows = _clean(), torch.arange(ITEMS)
    return NoisyTable(clean, SIGMA, seed).gather(field, rows) - clean.gather(field, rows)  # type: ignore[arg-type]


def test_an_item_has_the_same_noise_in_every_gather() -> None:
    noisy = NoisyTable(_clean(), SIGMA, 5)
    whole = noisy.gather("sequence", torch.arange(ITEMS))
    rows = torch.tensor([[3, 900], [17, 3]])
    assert torch.equal(noisy.gather("sequence", rows), whole[rows])


def test_its_deviation_is_a_share_of_that_of_each_dimension() -> None:
    measured = _noise("sequence").reshape(-1, WIDTH).std(0) / torch.linspace(0.1, 4.0, WIDTH)
    # 8,000 draws a dimension: the deviation is known to a standard error of .8 %
    torch.testing.assert_close(measured, torch.full((WIDTH,), SIGMA), rtol=0.04, atol=0)
    frames, video = _noise("sequence")[:, 0], _noise("visual")
    assert abs(float(torch.corrcoef(torch.stack([frames.flatten(), video.flatten()]))[0, 1])) < 0.05


def test_titles_padding_and_items_without_a_video_have_none() -> None:
    assert not _noise("text").any()
    assert not _noise("sequence")[[0, 7]].any()
    assert _noise("sequence")[1:7].any()


def test_the_seed_decides_it() -> None:
    assert torch.equal(_noise("visual"), _noise("visual"))
    assert not torch.equal(_noise("visual"), _noise("visual", seed=6))
