"""TedRec by its authors' code, over RecBole 1.2.1, on raw title vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from peer import Job
from peer_recbole import RecBolePeer, rows_of
from recbole.trainer import Trainer
from torch import Tensor


class TedRec(RecBolePeer):
    """Stops as RecBole does. Option zero_padding: padded places are zero before the transform, as in ours."""

    repository = "RUCAIBox/TedRec"
    commit = "e6b3cb9e93b7cd70f96e0a6e772b1104bf01deb7"
    epochs = 300

    def __init__(self, job: Job) -> None:
        job.open_code()
        from data.dataset import TedRecDataset  # type: ignore[import-not-found]
        from tedrec import TedRec as Released  # type: ignore[import-not-found]

        text = job.content("text")
        hidden = int(job.options.get("hidden_size", 300))
        self.settings = {
            "plm_size": text.shape[1], "adaptor_layers": [text.shape[1], hidden], "train_batch_size": 2048,
            "eval_batch_size": 2048, "learning_rate": 1e-3, **job.options, "hidden_size": hidden,
        }  # fmt: skip
        files = ("props/TedRec.yaml", "props/overall.yaml")
        config, dataset, loaders = self.load(job, (Released, TedRecDataset), files, text)
        kind = _zero_padded(Released) if config["zero_padding"] else Released
        self.model = kind(config, loaders["train"]._dataset).to(job.device)
        _check_content(self.model.plm_embedding.weight, text, rows_of(dataset))
        self.hold(Trainer(config, self.model), loaders, rows_of(dataset))


def _zero_padded(released: Any) -> Any:
    """The released model, but for the places of padding, which influence all others through the transform."""

    class ZeroPadded(released):  # type: ignore[misc]
        def forward(self, item_seq: Tensor, item_emb: Tensor, item_seq_len: Tensor) -> Tensor:
            self._real = (item_seq > 0)[:, :, None]
            return super().forward(item_seq, item_emb, item_seq_len)

        def contextual_convolution(self, item_emb: Tensor, feature_emb: Tensor) -> Tensor:
            return super().contextual_convolution(item_emb * self._real, feature_emb * self._real)

    return ZeroPadded


def _check_content(held: Tensor, text: np.ndarray, to_row: np.ndarray) -> None:
    assert np.array_equal(held.detach().cpu().numpy()[1:], text[to_row[1:]]), "the model holds other content"
    assert not held[0].any(), "padding has content"
