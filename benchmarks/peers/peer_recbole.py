"""The peers that RecBole or a fork of it trains: their epochs, their ranking and RecBole's early stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics, Peer
from reference_rows import NAME, SPLITS, check_rows, write_atomic_files
from torch import Tensor

#: RecBole 1.2.1 on the files that `write_atomic_files` makes, every item ranked
ON_OUR_ROWS: dict[str, Any] = {
    "benchmark_filename": list(SPLITS), "alias_of_item_id": ["item_id_list"], "USER_ID_FIELD": "user_id",
    "load_col": {"inter": ["user_id", "item_id_list", "item_id"]}, "ITEM_ID_FIELD": "item_id",
    "ITEM_LIST_LENGTH_FIELD": "item_length", "worker": 0, "show_progress": False, "metrics": ["Hit", "NDCG"],
    "topk": [10, 20], "valid_metric": "NDCG@10",
    "eval_args": {"mode": "full", "order": "TO", "group_by": "user", "split": {"LS": "valid_and_test"}},
}  # fmt: skip


class RecBolePeer(Peer):
    """Trained by RecBole's trainer, epoch by epoch.

    A subclass calls `load` (RecBole 1.2.1), makes `model`, and then calls `hold`.
    """

    patience = 11  # RecBole stops when its counter exceeds 10
    model: Any

    def load(
        self, job: Job, kinds: tuple[type, type], files: tuple[str, ...] = (), text: np.ndarray | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        """RecBole's configuration, dataset and loaders of our rows, each row compared. It reads `self.settings`.

        kinds: the classes of the model and of its dataset. files: the peer's files of settings. text: (I + 1, width)
        vectors that the dataset reads.
        """
        from recbole.config import Config
        from recbole.data import data_preparation
        from recbole.utils import init_seed

        write_atomic_files(job.sequences, job.scratch / NAME)
        if text is not None:
            text.tofile(job.scratch / NAME / f"{NAME}.feat1CLS")
        self.settings |= {
            "MAX_ITEM_LIST_LENGTH": job.sequences.max_length,
            "seed": job.seed,
            "use_gpu": job.device.type == "cuda",
        }
        folders = {"data_path": str(job.scratch), "checkpoint_dir": str(job.scratch / "saved")}
        options = ON_OUR_ROWS | self.settings | folders
        paths = [str(job.code / name) for name in files]
        config = Config(kinds[0], NAME, config_file_list=paths, config_dict=options)
        init_seed(config["seed"], config["reproducibility"])
        dataset = kinds[1](config)
        loaders = dict(zip(SPLITS, data_preparation(config, dataset), strict=True))
        check_rows(job.sequences, loaders, rows_of(dataset))
        torch.autograd.set_detect_anomaly(False)  # one of RecBole's models turns it on for the whole process
        return config, dataset, loaders

    def hold(self, trainer: Any, loaders: Mapping[str, Any], to_row: np.ndarray) -> None:
        """Keep RecBole's trainer and its loaders by split. to_row: as of `rows_of`."""
        self._trainer, self._loaders = trainer, loaders
        self._to_id = torch.from_numpy(np.argsort(to_row))
        self.optimizer = trainer.optimizer
        self._device = next(self.model.parameters()).device

    def train_epoch(self, epoch: int) -> float:
        total = self._trainer._train_epoch(self._loaders["train"], epoch)
        if isinstance(total, tuple):  # forks sum other things beside the loss
            total = total[0]
        return float(total) / len(self._loaders["train"])

    def scores(self, split: str) -> Iterator[Tensor]:
        for interaction, *_ in self._loaders[split]:
            found = self.model.full_sort_predict(interaction.to(self._device))
            found[:, 0] = -torch.inf
            yield found[:, self._to_id.to(found.device)]

    def remember(self) -> Any:
        """The state of the generator that orders RecBole's training rows."""
        return self._loaders["train"].generator.get_state()

    def recall(self, memory: Any) -> None:
        self._loaders["train"].generator.set_state(memory)

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Its NDCG@10 of 4 decimals is not lower, as RecBole counts."""
        value = round(now["unmasked"]["NDCG@10"], 4)
        return best is None or value >= round(best["unmasked"]["NDCG@10"], 4)


def rows_of(dataset: Any) -> np.ndarray:
    """(I + 1,) our item row of each of RecBole's item ids."""
    return np.array([0, *map(int, dataset.field2id_token["item_id"][1:])])
