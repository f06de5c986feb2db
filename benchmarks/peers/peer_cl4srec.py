"""CL4SRec by RecBole-DA, a fork of RecBole 0.2."""

from __future__ import annotations

from typing import Any

import numpy as np
from peer import Job
from peer_recbole import RecBolePeer, rows_of
from reference_rows import NAME, SPLITS
from torch import Tensor

ALIASES = {"bool": bool, "int": int, "float": float, "object": object}


class CL4SRec(RecBolePeer):
    """Stops on MRR@10 in RecBole-DA; here on NDCG@10, which ranks epochs alike and is what our runs stop on."""

    repository = "RUCAIBox/RecBole-DA"
    commit = "f7f83b42afe09a6c6db8437855022c8cb4db9c1e"
    epochs = 50

    def __init__(self, job: Job) -> None:
        job.open_code()
        vars(np).update(ALIASES)  # removed from numpy 1.24
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender.cl4srec import CL4SRec as Released
        from recbole.trainer import Trainer

        _write(job)
        self.settings = {
            "train_batch_size": 256, "learning_rate": 1e-3, "lmd": 0.1, "tau": 1.0, "sim": "dot", "seed": job.seed,
            "MAX_ITEM_LIST_LENGTH": job.sequences.max_length, "use_gpu": job.device.type == "cuda", **job.options,
        }  # fmt: skip
        fixed = {
            "data_path": str(job.scratch), "checkpoint_dir": str(job.scratch / "saved"), "log_dir": str(job.scratch),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp", "ITEM_LIST_LENGTH_FIELD": "item_length",
            "training_neg_sample_num": 0, "eval_setting": "TO_LS,full", "eval_batch_size": 1024,
        }  # fmt: skip
        job.seed_generators()
        config = Config(model="CL4SRec", dataset=NAME, config_dict=self.settings | fixed)
        dataset = create_dataset(config)
        loaders = dict(zip(SPLITS, data_preparation(config, dataset), strict=True))
        to_row = rows_of(dataset)
        to_user = np.array([-1, *map(int, dataset.field2id_token["user_id"][1:])])
        for split, loader in loaders.items():
            _check(job, split, loader, to_row, to_user)
        self.model = Released(config, loaders["train"].dataset).to(job.device)
        self.hold(Trainer(config, self.model), loaders, to_row)

    def remember(self) -> dict[str, Tensor]:
        """The training rows: the fork shuffles them in place, and its masks and shuffles of views stay in them."""
        return dict(self._loaders["train"].pre_processed_data.interaction)

    def recall(self, memory: dict[str, Tensor]) -> None:
        self._loaders["train"].pre_processed_data.interaction = memory


def _write(job: Job) -> None:
    """All interactions in one atomic file; a place in the history is the time."""
    (job.scratch / NAME).mkdir()
    offsets, items = job.sequences.offsets, job.sequences.items
    with (job.scratch / NAME / f"{NAME}.inter").open("w", encoding="utf-8") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(len(offsets) - 1):
            for place, item in enumerate(items[offsets[user] : offsets[user + 1]].tolist()):
                out.write(f"{user}\t{item}\t{place}\n")


def _check(job: Job, split: str, loader: Any, to_row: np.ndarray, to_user: np.ndarray) -> None:
    """The loader holds our rows of the split, in our order."""
    rows = loader.pre_processed_data
    expected = list(job.sequences.positions(split))
    users, targets = to_user[rows["user_id"].numpy()], to_row[rows["item_id"].numpy()]
    histories, lengths = to_row[rows["item_id_list"].numpy()], rows["item_length"].tolist()
    assert len(expected) == len(users), f"{split}: {len(users)} rows in RecBole-DA, {len(expected)} in ours"
    for row, (user, position) in enumerate(expected):
        history = job.sequences.history(user, position)
        assert (users[row], targets[row]) == (user, job.sequences.items[position]), f"{split} row {row}: another row"
        assert np.array_equal(histories[row, : lengths[row]], history), f"{split} row {row}: another history"
