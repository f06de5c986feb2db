"""TedRec by its authors' code, over RecBole 1.2.1, on raw title vectors."""

from __future__ import annotations

import numpy as np
import torch
from peer import Job
from peer_recbole import RecBolePeer
from recbole.config import Config
from recbole.data import data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed
from reference_rows import NAME, SPLITS, check_rows, write_atomic_files
from torch import Tensor


class TedRec(RecBolePeer):
    """Trained by RecBole's trainer, epoch by epoch; stops as RecBole does."""

    repository = "RUCAIBox/TedRec"
    commit = "e6b3cb9e93b7cd70f96e0a6e772b1104bf01deb7"
    epochs = 300

    def __init__(self, job: Job) -> None:
        job.open_code()
        from data.dataset import TedRecDataset  # type: ignore[import-not-found]
        from tedrec import TedRec as Released  # type: ignore[import-not-found]

        text = job.content("text")
        write_atomic_files(job.sequences, job.scratch / NAME)
        text.tofile(job.scratch / NAME / f"{NAME}.feat1CLS")
        hidden = int(job.options.get("hidden_size", 300))
        self.settings = {
            "plm_size": text.shape[1], "adaptor_layers": [text.shape[1], hidden], "train_batch_size": 2048,
            "learning_rate": 1e-3, "MAX_ITEM_LIST_LENGTH": job.sequences.max_length, "metrics": ["Hit", "NDCG"],
            "seed": job.seed, "use_gpu": job.device.type == "cuda", **job.options, "hidden_size": hidden,
        }  # fmt: skip
        folders = {"data_path": str(job.scratch), "checkpoint_dir": str(job.scratch / "saved")}
        fixed = {
            "benchmark_filename": list(SPLITS), "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id",
            "ITEM_LIST_LENGTH_FIELD": "item_length", "worker": 0,
        }  # fmt: skip
        files = [str(job.code / "props" / name) for name in ("TedRec.yaml", "overall.yaml")]
        config = Config(Released, NAME, config_file_list=files, config_dict=self.settings | folders | fixed)
        init_seed(config["seed"], config["reproducibility"])
        dataset = TedRecDataset(config)
        loaders = dict(zip(SPLITS, data_preparation(config, dataset), strict=True))
        torch.autograd.set_detect_anomaly(False)  # one of RecBole's models turns it on for the whole process
        to_row = np.array([0, *map(int, dataset.field2id_token["item_id"][1:])])
        check_rows(job.sequences, loaders, to_row)
        self.model = Released(config, loaders["train"]._dataset).to(job.device)
        _check_content(self.model.plm_embedding.weight, text, to_row)
        self.hold(Trainer(config, self.model), loaders, to_row)

    def remember(self) -> Tensor:
        """The state of the generator that orders RecBole's training rows."""
        return self._loaders["train"].generator.get_state()  # type: ignore[no-any-return]

    def recall(self, memory: Tensor) -> None:
        self._loaders["train"].generator.set_state(memory)


def _check_content(held: Tensor, text: np.ndarray, to_row: np.ndarray) -> None:
    assert np.array_equal(held.detach().cpu().numpy()[1:], text[to_row[1:]]), "the model holds other content"
    assert not held[0].any(), "padding has content"
