"""engine.precision: what a step runs in, and what an evaluation runs in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.contract import ModelContext, SequenceModel, TrainingInteractions
from models.options.sasrec import SASRecOptions
from models.systems import build
from models.tensor_table import TensorTable
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.training.engine import TorchEngine


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def engine(precision: str) -> TorchEngine:
    seen = TrainingInteractions(torch.tensor([0, 2]), torch.tensor([1, 2]))
    model = build("sasrec", SASRecOptions(hidden=8), ModelContext(TensorTable(4, {}, {}, {}), seen, 3, 1))
    assert isinstance(model, SequenceModel)
    config = EngineConfig.model_validate({"precision": precision})
    return TorchEngine(model, TrainConfig(), config, torch.device("cpu"))


def test_tf32_is_for_steps_and_not_for_evaluations() -> None:
    tf32 = engine("tf32")
    assert torch.get_float32_matmul_precision() == "high"
    with tf32.whole():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_leave_float32_products_whole_whatever_ran_before(precision: str) -> None:
    engine("tf32")
    engine(precision)
    assert torch.get_float32_matmul_precision() == "highest"
