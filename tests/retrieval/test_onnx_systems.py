"""The encoders of systems as ONNX, in several ways of sampling: the vectors of torch, for any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.contract import SequenceModel
from models.systems import SYSTEMS, options_class
from retrieval.onnx_encoder import TOLERANCE, _difference, _Encoder, _questions, _write
from tests.helpers.model_fixtures import ITEMS, LENGTH, context_for, make_system, wake

runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

#: fewer layers and steps than the defaults: the exporter's time grows with them
SMALL: dict[str, dict[str, object]] = {
    "diqdiff": {"steps": 3, "layers": 2},
    "m3bsr": {"layers": 1, "evaluation_step": 4},
    "mealrec": {"backbone": "sasrec", "steps": 3},
}
#: the systems whose sampling is a choice; what exports differently from the rest runs in every suite
WAYS = {
    "diqdiff": ("direct", "chain"),
    "dmmd4sr": ("draw", "mean"),
    "m3bsr": ("none", "estimate", "chain"),
    "mealrec": ("tcd=direct npd=direct", "tcd=direct npd=chain", "tcd=chain npd=direct"),
}
QUICK = {("mmgcn", "default"), ("ssdrec", "default"), ("diqdiff", "chain")}
CASES = [
    pytest.param(name, way, marks=[] if (name, way) in QUICK else [pytest.mark.long], id=f"{name} {way}")
    for name in SYSTEMS
    if options_class(name).trained
    for way in WAYS.get(name, ("default",))
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_system_gives_the_vectors_of_torch(name: str, way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_system(name, SMALL.get(name, {}), context_for(name))
    assert isinstance(model, SequenceModel)
    wake(model)
    model.inference = way
    encoder, questions = _Encoder(model).eval(), _questions(ITEMS, LENGTH)
    with torch.no_grad():
        wanted = encoder(**questions).numpy()
    assert wanted.std(axis=0).max() > 1e-3, "users differ"
    _write(encoder, questions, tmp_path / "encoder.onnx", name)
    for count in (1, 2, len(wanted)):
        some = {field: values[:count] for field, values in questions.items()}
        assert _difference(wanted[:count], some, tmp_path / "encoder.onnx", runtime) <= TOLERANCE
