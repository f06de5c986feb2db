"""Half precision is widened to float32; wider types stay as they are."""

from __future__ import annotations

import pytest
import torch

from models.nn.precision import at_least_float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype) -> None:
    x = torch.tensor([1.5, -2.0], dtype=dtype)
    assert at_least_float32(x).dtype == torch.float32
    assert at_least_float32(x).tolist() == [1.5, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_wide_enough_is_the_same_tensor(dtype: torch.dtype) -> None:
    x = torch.ones(2, dtype=dtype)
    assert at_least_float32(x) is x
