"""IISAN-Versa by its authors' code, on the layer states of the dataset."""

from __future__ import annotations

import argparse
import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics, Peer
from torch import Tensor, nn

#: its script for MicroLens; `layers` is the number of evenly spaced layers that have an adapter
PUBLISHED: dict[str, Any] = {
    "batch_size": 512, "lr": 2e-4, "adapter_cv_lr": 1e-4, "adapter_bert_lr": 1e-4, "fine_tune_lr_image": 1e-4,
    "fine_tune_lr_text": 5e-5, "embedding_dim": 64, "drop_rate": 0.1, "num_attention_heads": 2,
    "transformer_block": 2, "bert_adapter_down_size": 64, "cv_adapter_down_size": 512, "adapter_dropout_rate": 0.1,
    "adapter_activation": "RELU", "fusion_method": "gated", "modality": "intra_inter", "remove_first": "None",
    "l2_weight": 0, "layers": 6,
}  # fmt: skip
#: of encoders that the adapters replace
UNUSED: dict[str, Any] = {
    "num_words_title": 1, "num_words_abstract": 0, "num_words_body": 0, "news_attributes": ["title"],
    "word_embedding_dim": 1,
}  # fmt: skip


class IISANVersa(Peer):
    """A row is a user, whose last L + 1 training items are trained at every position."""

    repository = "GAIR-Lab/IISAN"
    commit = "67f5c1faf12a1f9fc3258922bb05684561532d1d"
    patience = 11  # it stops when its counter exceeds 10
    epochs = 200

    def __init__(self, job: Job) -> None:
        sys.path.insert(0, str(job.code / "Code_Cached_Asym"))
        _leave_transformers_out()
        from model import ModelMM  # type: ignore[import-not-found]
        from model.model import IISANAdaptedMModel  # type: ignore[import-not-found]

        items, length = job.sequences.manifest["items"], job.sequences.max_length
        text, video = (torch.from_numpy(job.content(name)) for name in ("text_layers", "visual_layers"))
        self.settings = PUBLISHED | {"max_seq_len": length} | dict(job.options)
        lists = {
            f"side_adapter_{name}_list": _spaced(len(states[0]) - 1, self.settings["layers"])
            for name, states in (("bert", text), ("vit", video))
        }
        widths = {"text_embedding_dim": text.shape[2], "image_embedding_dim": video.shape[2]}
        args = argparse.Namespace(**self.settings, **UNUSED, **lists, **widths)
        for seed in (random.seed, torch.manual_seed, np.random.seed):
            seed(job.seed)
        self._rows = [each[-(length + 1) :] for each in job.training_items() if len(each) > 1]
        counts = np.bincount(np.concatenate(self._rows), minlength=items + 1)[1:]
        share = np.append([1], counts / counts.sum())
        self.model: Any = ModelMM(args, items, True, None, None, share)
        self.model.mm_encoder = IISANAdaptedMModel(self.model.mm_encoder, args)
        self.model.to(job.device)
        self.optimizer = torch.optim.Adam(_groups(self.model, args))
        self._content, self._job, self._batch = (video.to(job.device), text.to(job.device)), job, args.batch_size

    def train_epoch(self, epoch: int) -> float:  # noqa: ARG002
        total, device = 0.0, self._job.device
        order = torch.randperm(len(self._rows)).split(self._batch)
        for chosen in order:
            rows = [self._rows[row] for row in chosen.tolist()]
            history = _left_padded(rows, self._job.sequences.max_length + 1).to(device)
            video, text = (states[history] for states in self._content)
            mask = (history[:, :-1] > 0).float()
            self.optimizer.zero_grad()
            loss = self.model(history.flatten(), video, text, mask, device)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / len(order)

    def scores(self, split: str) -> Iterator[Tensor]:
        sequences, device = self._job.sequences, self._job.device
        parts = [self._encode(rows) for rows in torch.arange(len(self._content[0]), device=device).split(1024)]
        vectors = torch.cat(parts)
        rows = [sequences.history(user, position) for user, position in sequences.positions(split)]
        for first in range(0, len(rows), 1024):
            history = _left_padded(rows[first : first + 1024], sequences.max_length).to(device)
            user = self.model.user_encoder(vectors[history], (history > 0).float(), device)[:, -1]
            found = user @ vectors.T
            found[:, 0] = -torch.inf
            yield found

    def _encode(self, rows: Tensor) -> Tensor:
        """(n, width) vectors of items."""
        video, (text, both) = self.model.mm_encoder(*(states[rows] for states in self._content))
        return self.model.com_dense(torch.cat([video, text, both], dim=1))  # type: ignore[no-any-return]

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Hit@10 with the history masked."""
        return best is None or now["masked"]["HR@10"] > best["masked"]["HR@10"]


def _leave_transformers_out() -> None:
    """Stand-ins for names of transformers that the model's files import and do not use."""
    for module, name in (("modeling_outputs", "BaseModelOutput"), ("activations", "get_activation")):
        stand_in = types.ModuleType(f"transformers.{module}")
        setattr(stand_in, name, None)
        sys.modules |= {"transformers": types.ModuleType("transformers"), f"transformers.{module}": stand_in}


def _spaced(layers: int, wanted: int) -> str:
    """Evenly spaced layers up to the last, counted from 0, as its scripts write them: "1,3,5,7,9,11" for 12 and 6."""
    number = min(layers, wanted)
    return ",".join(str(round((n + 1) * layers / number) - 1) for n in range(number))


def _left_padded(rows: list[np.ndarray], length: int) -> Tensor:
    history = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, items in zip(history, rows, strict=True):
        row[length - len(items) :] = torch.from_numpy(items.astype(np.int64))
    return history


def _groups(model: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The released learning rates, which it chooses by the names of parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate, adapter = args.lr, "adapter" in name
        own_layer = "fc" in name and "fc_" not in name
        if "cv" in name and not own_layer:
            rate = args.adapter_cv_lr if adapter else args.fine_tune_lr_image
        elif "cv" not in name and "bert" in name and not own_layer:
            rate = args.adapter_bert_lr if adapter else args.fine_tune_lr_text
        elif "mm_adapter" in name:
            rate = args.adapter_cv_lr
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
