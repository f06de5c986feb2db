"""MMGCN by MMRec's port of the authors' code, on raw video and title vectors."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from peer import Job, Metrics, Peer
from torch import Tensor


class MMGCN(Peer):
    """Every training interaction is a positive; the graph is the same. Validation and test mask the history."""

    repository = "enoche/MMRec"
    commit = "e775373b3ab1354a92165b0885ce4ab3dc4d7497"
    patience = 21  # MMRec stops when its counter exceeds 20
    epochs = 1000

    def __init__(self, job: Job) -> None:
        job.open_code("src")
        os.chdir(job.code / "src")  # MMRec reads its configuration files from where it stands
        _leave_images_out()
        from common.trainer import Trainer  # type: ignore[import-not-found]
        from utils.configurator import Config  # type: ignore[import-not-found]
        from utils.dataloader import TrainDataLoader  # type: ignore[import-not-found]
        from utils.dataset import RecDataset  # type: ignore[import-not-found]
        from utils.utils import init_seed  # type: ignore[import-not-found]

        from models.mmgcn import MMGCN as Released  # type: ignore[import-not-found]

        _write(job)
        self.settings = {
            "learning_rate": 5e-4, "reg_weight": 0.1, "train_batch_size": 1024, "seed": job.seed,
            "use_gpu": job.device.type == "cuda", **job.options,
        }  # fmt: skip
        fixed = {
            "data_path": f"{job.scratch}/", "inter_file_name": "microlens.inter", "hyper_parameters": [],
            "USER_ID_FIELD": "userID", "ITEM_ID_FIELD": "itemID", "vision_feature_file": "image_feat.npy",
            "text_feature_file": "text_feat.npy", "field_separator": "\t",
        }  # fmt: skip
        config = Config("MMGCN", "microlens", self.settings | fixed)
        os.chdir(job.scratch)
        init_seed(job.seed)
        data, _, _ = RecDataset(config).split()
        assert len(data) == sum(map(len, job.training_items())), "MMRec holds other training interactions"
        str(data)  # counts its interactions, which its loader reads
        self._loader = TrainDataLoader(config, data, batch_size=config["train_batch_size"], shuffle=True)
        self._loader.pretrain_setup()
        self.model: Any = Released(config, self._loader).to(config["device"])
        assert self.model.n_items == job.sequences.manifest["items"], "MMRec ranks another catalogue"
        self._trainer = Trainer(config, self.model)
        self.optimizer, self.scheduler = self._trainer.optimizer, self._trainer.lr_scheduler

    def train_epoch(self, epoch: int) -> float:
        self._loader.dataset = self._loader.dataset_bk.copy(self._loader.dataset_bk.df)  # MMRec shuffles in place
        total, losses = self._trainer._train_epoch(self._loader, epoch)
        if torch.is_tensor(total):
            sys.exit("MMRec's loss is not a number")
        self.scheduler.step()
        return float(total) / len(losses)

    def scores(self, split: str) -> Iterator[Tensor]:  # noqa: ARG002  # users are nodes, the history is not read
        self.model.forward()  # its `result` is that of the last step, before its update
        for users in torch.arange(self.model.n_users, device=self.model.device).split(2048):
            found = self.model.full_sort_predict([users])
            yield torch.cat([torch.full((len(users), 1), -torch.inf, device=found.device), found], dim=1)

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Recall@20 with the history masked, as in MMRec."""
        return best is None or now["masked"]["HR@20"] > best["masked"]["HR@20"]


def _leave_images_out() -> None:
    """Stand-ins for what MMRec imports to read images: nothing here does."""
    images = types.ModuleType("utils.data_utils")
    for name in ("ImageResize", "ImagePad", "image_to_tensor", "load_decompress_img_from_lmdb_value"):
        setattr(images, name, None)
    sys.modules |= {"utils.data_utils": images, "lmdb": types.ModuleType("lmdb")}


def _write(job: Job) -> None:
    """MMRec's files: items from 0, and the split as a label: 0 training, 1 validation, 2 test."""
    folder = job.scratch / "microlens"
    folder.mkdir()
    lengths = np.diff(job.sequences.offsets)
    label = np.zeros(len(job.sequences.items), dtype=np.int64)
    label[job.sequences.offsets[1:] - 2], label[job.sequences.offsets[1:] - 1] = 1, 2
    users = np.repeat(np.arange(len(lengths)), lengths)
    frame = pd.DataFrame({"userID": users, "itemID": job.sequences.items - 1, "x_label": label})
    frame.to_csv(folder / "microlens.inter", sep="\t", index=False)
    np.save(folder / "image_feat.npy", job.content("visual")[1:])
    np.save(folder / "text_feat.npy", job.content("text")[1:])
