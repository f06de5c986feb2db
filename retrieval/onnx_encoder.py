"""The user encoder of an export as ONNX: histories to user vectors, for programs without torch.

`onnx/user_encoder.onnx` in the export takes `history` (B, L) int64, item rows with the oldest first, padded with 0 on
the right, and `length` (B,) int64, the number of items, at least 1; and gives `user` (B, D) float32. Scores are inner
products with `item_vectors.safetensors`, whose rows are divided by their length where model.json says "cosine" (the
user vectors are already). `onnx/encoder.json` says which weights it was made of, and how close it comes to torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.contract import Batch, SequenceModel
from models.errors import UserError
from retrieval.exact import for_similarity
from retrieval.export import load_export
from retrieval.files import write_json
from retrieval.folders import whole_folder
from retrieval.rebuild import rebuild

#: the largest difference from torch, of vectors of length 1; longer ones may differ by as much more
TOLERANCE = 1e-5
_CHECKED = 256


class _Encoder(nn.Module):
    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        zero = torch.zeros_like(length)  # nobody that the model knows, and the key of noise that answers have
        behaviours = torch.zeros_like(history, dtype=torch.uint8)
        batch = Batch(user=zero - 1, history=history, length=length, target=zero, key=zero, behaviours=behaviours)
        return for_similarity(self.model.user_vectors(batch), self.model.similarity)


def write_encoder(model_dir: Path) -> float:
    """Write the folder `onnx` of the export in `model_dir`; return its largest difference from torch, see TOLERANCE.

    Raises UserError: the extra `onnx` is not installed, the system has no encoder of histories or one that ONNX cannot
    hold, or what was made differs from torch.
    """
    runtime = _runtime()
    export = load_export(model_dir)
    model = rebuild(export, torch.device("cpu"), model_dir)
    if not isinstance(model, SequenceModel):
        raise UserError(f"{export.card.system} has no encoder of histories, so there is nothing to write as ONNX")
    encoder, card = _Encoder(model).eval(), export.card
    questions = _questions(len(export.item_vectors), card.max_length)
    with torch.no_grad():  # before it is exported, when what a model keeps for later would have no values
        wanted = cast(Tensor, encoder(**questions)).numpy()
    with whole_folder(model_dir / "onnx", replace=True) as new:
        _write(encoder, questions, new / "user_encoder.onnx", card.system)
        try:
            difference = _difference(wanted, questions, new / "user_encoder.onnx", runtime)
        except Exception as error:  # whatever onnxruntime finds wrong, such as a size that was taken for a constant
            first = str(error).strip().partition("\n")[0][:300]
            raise UserError(f"the ONNX form of {card.system} does not run ({first}); it is not written") from error
        if not difference <= TOLERANCE:
            raise UserError(f"the ONNX form of {card.system} differs from torch by {difference:.2g}; it is not written")
        about = {"checksum": card.checksum, "max_length": card.max_length, "similarity": card.similarity}
        write_json(new / "encoder.json", {**about, "inference": card.inference, "difference": difference})
    return difference


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError(f"ONNX needs more packages ({error}): pip install 'mealrec[onnx]'") from None
    return onnxruntime


def _questions(items: int, length: int) -> dict[str, Tensor]:
    """Histories of every length, of items drawn by a fixed seed."""
    draw = np.random.default_rng(0)
    lengths = 1 + np.arange(_CHECKED) % length
    history = draw.integers(1, items, (_CHECKED, length)) * (np.arange(length) < lengths[:, None])
    return {"history": torch.from_numpy(history), "length": torch.from_numpy(lengths)}


def _write(encoder: _Encoder, questions: Mapping[str, Tensor], path: Path, system: str) -> None:
    rows = torch.export.Dim("batch")
    # it warns of each operator of torchvision, which we do not use
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    some = tuple(value[:3] for value in questions.values())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder, some, dynamo=True, dynamic_shapes=({0: rows}, {0: rows}), verbose=False,
                input_names=list(questions), output_names=["user"],
            )  # fmt: skip
        assert program is not None
        program.save(path)
    except Exception as error:  # the exporter raises what it meets: operators and shapes that it has no form for
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = str(cause).strip().partition("\n")[0][:300]
        raise UserError(f"torch.onnx cannot export {system} ({type(cause).__name__}: {first})") from error


def _difference(wanted: NDArray[Any], questions: Mapping[str, Tensor], path: Path, runtime: Any) -> float:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in questions.items()})[0]
    return float((np.abs(found - wanted) / np.maximum(1, np.linalg.norm(wanted, axis=1, keepdims=True))).max())
