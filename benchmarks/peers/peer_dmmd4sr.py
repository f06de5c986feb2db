"""DMMD4SR by a public fork of its authors' model file, on raw title and video vectors."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from peer import Job, Metrics, Peer
from torch import Tensor, nn

#: defaults of the fork's main.py
PUBLISHED: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5, "initializer_range": 0.02, "n_clusters": 32,
    "lambda_history": 0.6, "lambda_intent": 0.4, "num_experts": 4, "diff_loss": 0.01, "icl_loss": 0.001,
    "rec_weight": 1.0, "is_use_mm": True, "lr": 0.001, "batch_size": 256, "weight_decay": 0.0,
}  # fmt: skip


class DMMD4SR(Peer):
    """Every position of a history is trained. Stops on NDCG@10 of the whole catalogue (the fork: among 101 items)."""

    repository = "ziexni/DMMD4SR"
    commit = "8922632c2c0c7ecc09b635d6f1ecb9d591587569"
    patience = 30
    epochs = 200

    def __init__(self, job: Job) -> None:
        job.open_code()
        from datasets import RecWithContrastiveLearningDataset as Rows  # type: ignore[import-not-found]

        from models import SASRecModel as Released  # type: ignore[import-not-found]

        items, length = job.sequences.manifest["items"], job.sequences.max_length
        text, video = job.content("text"), job.content("visual")
        self.settings = job.settings(PUBLISHED, "max_seq_length")
        self._whole = [job.sequences.items[a:b].tolist() for a, b in pairwise(job.sequences.offsets.tolist())]
        args = argparse.Namespace(
            **self.settings, item_size=items + 2, mask_id=items + 1, text_feat=text, image_feat=video,
            pretrain_text_dim=text.shape[1], pretrain_img_dim=video.shape[1], user_train={}, user_valid={},
            user_test={},
        )  # fmt: skip
        job.seed_generators()
        # a user with 3 items has no training row; the fork would train a row of padding alone
        rows = Rows(args, [each for each in self._whole if len(each) > 3], data_type="train")
        self._train = torch.utils.data.DataLoader(rows, batch_size=args.batch_size, shuffle=True)
        self._args, self._device, self._items, self._length = args, job.device, items, length
        self.model: Any = Released(args).to(job.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        self._loss = nn.CrossEntropyLoss(ignore_index=0)

    def train_epoch(self, epoch: int) -> float:  # noqa: ARG002
        """The steps of the fork's `ICLRecTrainer`."""
        total, args = 0.0, self._args
        for _, history, target, _ in self._train:
            history, target = history.to(self._device), target.to(self._device)
            states, text, video, diffusion = self.model(history, is_train=True)
            logits = states @ self.model.item_embeddings.weight.T
            ranking = self._loss(logits.flatten(0, 1), target.flatten())
            loss = args.rec_weight * ranking + args.icl_loss * (text + video) + args.diff_loss * diffusion
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            total += loss.item()
        return total / len(self._train)

    def scores(self, split: str) -> Iterator[Tensor]:
        """Histories end with their newest item, as in training; the fork appends a [MASK] that was never trained."""
        back = {"valid": 2, "test": 1}[split]
        histories = torch.zeros(len(self._whole), self._length, dtype=torch.int64)
        for row, items in zip(histories, self._whole, strict=True):
            seen = torch.tensor(items[:-back][-self._length :])
            row[-len(seen) :] = seen
        for history in histories.split(self._args.batch_size):
            states = self.model(history.to(self._device), is_train=False)[0][:, -1]
            found = states @ self.model.item_embeddings.weight[: self._items + 1].T
            found[:, 0] = -torch.inf
            yield found

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        return best is None or now["unmasked"]["NDCG@10"] > best["unmasked"]["NDCG@10"]
