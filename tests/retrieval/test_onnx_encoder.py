"""The user encoder as ONNX gives the vectors of torch, for any number of histories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from retrieval import Recommender, onnx_encoder
from retrieval.onnx_encoder import TOLERANCE, write_encoder
from tests.helpers.exported import MAX_LENGTH, export_model

runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    export_model(folder)
    assert write_encoder(folder) <= TOLERANCE
    return folder


def test_it_encodes_and_ranks_as_the_recommender(model: Path) -> None:
    recommender = Recommender.load(model)
    session = runtime.InferenceSession(str(model / "onnx/user_encoder.onnx"), providers=["CPUExecutionProvider"])
    histories = [[3], [1, 2, 5], [9, 9, 4, 30, 11], [7, 8], [59]]
    padded = np.array([row + [0] * (MAX_LENGTH - len(row)) for row in histories])
    for count in (1, 5):
        lengths = np.array([len(row) for row in histories[:count]])
        (users,) = session.run(None, {"history": padded[:count], "length": lengths})
        np.testing.assert_allclose(users, recommender.encode(histories[:count]).numpy(), atol=1e-5)
    about = json.loads((model / "onnx/encoder.json").read_text())
    assert about["checksum"] == recommender.card.checksum
    assert about["max_length"] == MAX_LENGTH


def test_one_that_differs_is_not_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (model / "onnx/encoder.json").read_bytes()
    made = (model / "onnx/user_encoder.onnx").read_bytes()  # exporting takes seconds
    monkeypatch.setattr(onnx_encoder, "_write", lambda _encoder, _questions, path, _system: path.write_bytes(made))
    monkeypatch.setattr(onnx_encoder, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from torch"):
        write_encoder(model)
    assert (model / "onnx/encoder.json").read_bytes() == before


def test_a_baseline_has_none(tmp_path: Path) -> None:
    export_model(tmp_path / "model", "transition-knn")
    with pytest.raises(UserError, match="has no encoder of histories"):
        write_encoder(tmp_path / "model")


def test_one_that_does_not_run_is_not_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (model / "onnx/encoder.json").read_bytes()
    monkeypatch.setattr(
        onnx_encoder, "_write", lambda _encoder, _questions, path, _system: path.write_bytes(b"no ONNX")
    )
    with pytest.raises(UserError, match="ONNX form of sasrec does not run"):
        write_encoder(model)
    assert (model / "onnx/encoder.json").read_bytes() == before
