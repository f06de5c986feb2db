"""SASRec by RecBole 1.2.1, with the options of benchmarks/recbole_reference.py."""

from __future__ import annotations

from peer import Job
from peer_recbole import RecBolePeer, rows_of


class SASRec(RecBolePeer):
    """Width 64, two blocks, two heads; stops as RecBole does."""

    repository = "RUCAIBox/RecBole"
    commit = "7b02be5ec80a88310f2d04a27a82adfcbb5dc211"
    epochs = 300

    def __init__(self, job: Job) -> None:
        job.open_code()
        from recbole.data.dataset import SequentialDataset
        from recbole.model.sequential_recommender.sasrec import SASRec as Released
        from recbole.trainer import Trainer
        from recbole_reference import OPTIONS

        self.settings = {**OPTIONS, **job.options}
        config, dataset, loaders = self.load(job, (Released, SequentialDataset))
        self.model = Released(config, loaders["train"]._dataset).to(job.device)
        self.hold(Trainer(config, self.model), loaders, rows_of(dataset))
