"""SSDRec by its authors' code over SASRec, written for RecBole 1.0.1 and run on RecBole 1.2.1."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics
from peer_recbole import RecBolePeer, rows_of
from recbole.data.dataset import SequentialDataset
from reference_rows import NAME
from torch import Tensor, nn

#: its run_SSDRec.py for SASRec, and its config/text.yml
PUBLISHED: dict[str, Any] = {
    "sub_model": "SASRec", "loss_type": "BPR", "n_layers": 2, "n_heads": 2, "hidden_size": 100, "inner_size": 100,
    "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "initializer_range": 0.02, "our_att_drop_out": 0.2, "our_ae_drop_out": 0.3, "num_layers": 1, "dropout_prob": 0.3,
    "gumbel_temperature": 0.5, "is_gumbel_tau_anneal": True, "learning_rate": 1e-3, "weight_decay": 0,
    "train_batch_size": 256, "eval_batch_size": 4096, "clip_grad_norm": {"max_norm": 5.0, "norm_type": 2},
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 5},
}  # fmt: skip


class SSDRec(RecBolePeer):
    """A batch of its loader has 51 rows, each five times with another negative (256 // 5, as in RecBole 1.0.1)."""

    repository = "zc-97/SSDRec"
    commit = "299421e7d0a56f37ae2eb7768d3a4910fb295099"
    epochs = 300

    def __init__(self, job: Job) -> None:
        job.open_code()
        from model.hsd import HSD  # type: ignore[import-not-found]
        from Triainer.HsdTrainer import HsdTrainer  # type: ignore[import-not-found]

        self.settings = {**PUBLISHED, **job.options}
        config, dataset, loaders = self.load(job, (HSD, SequentialDataset))
        config["graphs"] = _graphs(job, config, dataset)
        self.model = HSD(config, loaders["train"]._dataset).to(job.device)
        for mixer in (self.model.dna.i_concatenation_w, self.model.dna.u_concatenation_w):
            nn.init.xavier_uniform_(mixer)  # the released code leaves what memory held
        self.hold(HsdTrainer(config, self.model), loaders, rows_of(dataset))

    def scores(self, split: str) -> Iterator[Tensor]:
        for interaction, *_ in self._loaders[split]:
            found, _ = self.model.full_sort_predict_ssd(interaction.to(self._device), True)
            found[:, 0] = -torch.inf
            yield found[:, self._to_id.to(found.device)]

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Its Hit@20 of 4 decimals is not lower, as RecBole counts."""
        return best is None or round(now["unmasked"]["HR@20"], 4) >= round(best["unmasked"]["HR@20"], 4)

    def remember(self) -> dict[str, Any]:
        """The order of training rows, and the temperature with the number of batches that lowers it."""
        trainer = self._trainer
        return {
            "order": super().remember(),
            "trainer": {"tau": trainer.tau, "global_train_batches": trainer.global_train_batches},
            "model": {"tau": self.model.tau},
        }

    def recall(self, memory: dict[str, Any]) -> None:
        super().recall(memory["order"])
        vars(self._trainer).update(memory["trainer"])
        self.model.tau = memory["model"]["tau"]


def _graphs(job: Job, config: Any, dataset: SequentialDataset) -> Any:
    """Its graphs of training items; as released they hold the items of validation too."""
    from graph_data.data_process0706 import GraphData  # type: ignore[import-not-found]

    length, to_id = job.sequences.max_length, np.argsort(rows_of(dataset))
    users = torch.from_numpy(dataset.token2id("user_id", [str(user) for user in range(dataset.user_num - 1)]))
    histories, lengths = torch.zeros(len(users), length, dtype=torch.int64), []
    for history, items in zip(histories, job.training_items(), strict=True):
        newest = to_id[items[-length:]]
        history[: len(newest)] = torch.from_numpy(newest)
        lengths.append(len(newest))
    rows = {"user_id": users, "item_id_list": histories, "item_length": torch.tensor(lengths)}
    stand_in = SimpleNamespace(
        user_num=dataset.user_num, item_num=dataset.item_num, inter_feat=SimpleNamespace(interaction=rows)
    )
    (job.scratch / "graph_data" / NAME).mkdir(parents=True)  # it writes its graphs where it stands
    return GraphData(config, SimpleNamespace(dataset=stand_in), NAME).graphs
