"""DiQDiff by its authors' code."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics, Peer
from torch import Tensor, nn
from torch.nn import functional as F

#: defaults of its main.py, and of its README's command for Amazon Beauty
PUBLISHED: dict[str, Any] = {
    "num_cluster": 32, "num_iter": 20, "batch_size": 1024, "hidden_size": 128, "dropout": 0.1, "emb_dropout": 0.3,
    "hidden_act": "gelu", "num_blocks": 4, "decay_step": 100, "gamma": 0.1, "optimizer": "Adam", "lr": 0.001,
    "weight_decay": 0.0, "momentum": None, "schedule_sampler_name": "lossaware", "diffusion_steps": 32,
    "lambda_intent": 0.4, "lambda_history": 0.6, "lambda_contra": 1.0, "noise_schedule": "trunc_lin",
    "rescale_timesteps": True,
}  # fmt: skip


class DiQDiff(Peer):
    """Trained by the steps of its `model_train`; any of six metrics that is better than ever resets its patience."""

    repository = "maowenyu-11/DiQDiff"
    commit = "f5d7cf95711c2c46ef772799f59c5619b87a8a26"
    patience = 10
    every = 2
    epochs = 300

    def __init__(self, job: Job) -> None:
        job.open_code("src")
        sys.modules["faiss"] = types.ModuleType("faiss")  # imported, and not used
        vars(np)["int"] = int  # removed from numpy 1.24
        from codiffu import CoDiffu  # type: ignore[import-not-found]
        from utils import Data_Test, Data_Train, Data_Val  # type: ignore[import-not-found]

        from trainer import optimizers  # type: ignore[import-not-found]

        items = job.sequences.manifest["items"]
        self.settings = job.settings(PUBLISHED, "max_len")
        args = argparse.Namespace(**self.settings, item_num=items, device=job.device.type)
        job.seed_generators()
        rows = [each.tolist() for each in job.training_items()]
        last = job.sequences.offsets[1:]
        valid, test = ([[int(job.sequences.items[at - back])] for at in last] for back in (2, 1))
        train_rows, users = dict(enumerate(rows)), range(len(rows))
        answers = dict(zip(users, valid, strict=True)), dict(zip(users, test, strict=True))
        self._train = Data_Train(train_rows, args).get_pytorch_dataloaders()
        assert len(self._train.dataset) == job.sequences.manifest["train_rows"], "it trains on other rows"
        self._evaluated = {
            "valid": Data_Val(train_rows, answers[0], args).get_pytorch_dataloaders(),
            "test": Data_Test(train_rows, *answers, args).get_pytorch_dataloaders(),
        }
        self._device, self._contrast = job.device, args.lambda_contra
        self.model: Any = CoDiffu(args).to(job.device)
        self.model.contra_loss = contrast  # the released form makes a tensor of (batch, batch, width)
        self.optimizer = optimizers(self.model, args)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=args.decay_step, gamma=args.gamma)
        self._highest: dict[str, float] = {}

    def train_epoch(self, epoch: int) -> float:  # noqa: ARG002
        total = 0.0
        for history, target in self._train:
            history, target = history.to(self._device), target.to(self._device)
            self.optimizer.zero_grad()
            estimate, _ = self.model(history, target, train_flag=True)
            ranking, contrast_loss = self.model.loss_diffu_ce(estimate, target)
            loss = ranking + self._contrast * contrast_loss
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        self.scheduler.step()
        return total / len(self._train)

    def scores(self, split: str) -> Iterator[Tensor]:
        for history, target in self._evaluated[split]:
            estimate, _ = self.model(history.to(self._device), target.to(self._device), train_flag=False)
            found = self.model.diffu_rep_pre(estimate)
            found[:, 0] = -torch.inf
            yield found

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:  # noqa: ARG002
        """One of HR and NDCG at 5, 10 and 20 is higher than ever."""
        values = {key: round(100 * value, 4) for key, value in now["unmasked"].items() if key != "users"}
        higher = {key: value for key, value in values.items() if value > self._highest.get(key, 0.0)}
        self._highest |= higher
        return bool(higher)

    def remember(self) -> dict[str, float]:
        return self._highest

    def recall(self, memory: dict[str, float]) -> None:
        self._highest = memory


def contrast(estimate: Tensor) -> Tensor:
    """The released loss: cosines over .07 of each row with itself, as its positive, and with all others."""
    unit = F.normalize(estimate, dim=1)
    cosine = unit @ unit.T / 0.07
    return nn.functional.cross_entropy(cosine, torch.arange(len(estimate), device=estimate.device))
