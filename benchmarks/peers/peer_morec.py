"""MoRec by its authors' code: user encoder and in-batch loss of one form, over frozen titles as in the other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peer import Job
from peer_content import ContentPeer
from torch import Tensor, nn

#: its script for titles, end to end, and the number of layers of its script in two stages
PUBLISHED: dict[str, Any] = {
    "batch_size": 128, "lr": 1e-4, "l2_weight": 0.01, "embedding_dim": 512, "drop_rate": 0.1,
    "num_attention_heads": 2, "transformer_block": 2, "dnn_layer": 8,
}  # fmt: skip


class MoRec(ContentPeer):
    """Titles alone. The network over a frozen vector takes the place of the language model."""

    repository = "westlake-repl/IDvs.MoRec"
    commit = "ce372cfc523c52458fa0267c9834d1be488e026a"
    epochs = 300

    def __init__(self, job: Job) -> None:
        encoders = _package("inbatch", job.code / "inbatch_sasrec_e2e_text" / "model")
        stages = _package("stages", job.code / "bce_text" / "main-2stage(SASRec)" / "model")
        self._text = torch.from_numpy(job.content("text")).to(job.device)
        args = self.prepare(job, PUBLISHED)
        # `use_modal` false makes a table of ids, which goes; true needs a language model
        self.model = encoders.model.Model(args, job.sequences.manifest["items"], False, None, self.share)
        del self.model.id_embedding
        width = args.embedding_dim
        self.model.bert_encoder = stages.encoders.MLP_Layers(
            self._text.shape[1], width, [width] * (args.dnn_layer + 1), args.drop_rate
        )
        self.model.use_modal = True
        self.model.to(job.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, weight_decay=args.l2_weight)

    def loss(self, history: Tensor, mask: Tensor) -> Tensor:
        rows = history.flatten()
        return self.model(rows, self._text[rows], mask, history.device)  # type: ignore[no-any-return]

    def encode(self, rows: Tensor) -> Tensor:
        network: nn.Module = self.model.bert_encoder
        return network(self._text[rows])  # type: ignore[no-any-return]


def _package(name: str, folder: Path) -> ModuleType:
    """The package in `folder` under another name: both forms call theirs `model`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package
