"""The trusted reference: RecBole's SASRec on exactly the rows of a prepared dataset.

Runs in its own environment (benchmarks/README.md says how to make it), so nothing of ours is imported: the dataset
folder is read with numpy and json alone (docs/dataset-format.md). RecBole trains, stops early and scores as it does
by default; we add ranks from its score matrix by the strict rule (an item that ties with the target ranks before it),
with and without the user's own history, and the CPU and wall time of each epoch.

    python benchmarks/recbole_reference.py --data DATASET_DIR --seed 2020 --threads 1 --out reference.json
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import os
import resource
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from reference_clock import Clock, environment, mean_times
from reference_ranks import CUTOFFS, RankRecorder, metrics
from reference_rows import NAME, SPLITS, TARGET_FROM_END, Sequences, check_rows, read_sequences, write_atomic_files

OPTIONS: dict[str, Any] = {
    # RecBole's defaults for SASRec, spelled out where the comparison stands on them
    "hidden_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "inner_size": 256,
    "loss_type": "CE",
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "learning_rate": 1e-3,
    "learner": "adam",
    "train_batch_size": 2048,
    "eval_batch_size": 4096,
    "train_neg_sample_args": None,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Hit", "NDCG"],
    "topk": list(CUTOFFS),
    "valid_metric": "NDCG@10",
    "repeatable": True,
    "benchmark_filename": list(SPLITS),
    "alias_of_item_id": ["item_id_list"],
    "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "use_gpu": False,
    "worker": 0,
    "show_progress": False,
}


class ReferenceTrainer(Trainer):  # type: ignore[misc]
    """RecBole's trainer with a clock, an ear at its score matrix, and the best weights kept in memory.

    In memory, because RecBole's checkpoint is a pickle that torch >= 2.6 refuses to load by default.
    """

    def __init__(self, config: Config, model: SASRec) -> None:
        super().__init__(config, model)
        self.recorder: RankRecorder | None = None
        self.best: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        self.train_times: list[dict[str, float]] = []
        self.valid_times: list[dict[str, float]] = []
        self.valid_results: list[dict[str, float]] = []

    def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
        clock = Clock.now()
        loss = super()._train_epoch(*args, **kwargs)
        self.train_times.append(clock.elapsed())
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        clock = Clock.now()
        score, result = super()._valid_epoch(*args, **kwargs)
        self.valid_times.append(clock.elapsed())
        self.valid_results.append(our_names(result))
        return score, result

    def _save_checkpoint(self, epoch: int, *_: Any, **__: Any) -> None:
        self.best = (epoch, copy.deepcopy(self.model.state_dict()))

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        result = super()._full_sort_batch_eval(batched_data)
        if self.recorder is not None:
            _, scores, _, targets = result
            self.recorder.add(scores, targets)
        return result


def our_names(result: dict[str, float]) -> dict[str, float]:
    """RecBole's metric names (hit@10) in ours (HR@10)."""
    return {name.replace("hit", "HR").replace("ndcg", "NDCG"): float(value) for name, value in result.items()}


def evaluate(trainer: ReferenceTrainer, loader: Any, recorder: RankRecorder) -> dict[str, Any]:
    """RecBole's own metrics of a split, ours by the strict rule, and the ranks behind ours."""
    trainer.recorder = recorder
    theirs = our_names(trainer.evaluate(loader, load_best_model=False, show_progress=False))
    trainer.recorder = None
    sequences = recorder.sequences
    targets = sequences.items[sequences.offsets[1:] - TARGET_FROM_END[recorder.split]]
    warm = sequences.trained_items()[targets]
    result: dict[str, Any] = {"recbole": theirs}
    for history in ("unmasked", "masked"):
        ranks = np.array(getattr(recorder, history))
        result[f"strict_{history}"] = {
            "all": metrics(ranks),
            "warm": metrics(ranks[warm]),
            "cold": metrics(ranks[~warm]),
        }
        result[f"ranks_{history}"] = ranks.tolist()
    result["cold_users"] = np.flatnonzero(~warm).tolist()
    return result


def build(options: dict[str, Any]) -> tuple[Config, SequentialDataset, dict[str, Any]]:
    """Configuration, dataset and loaders by split, in the order in which RecBole's own quick start makes them."""
    arguments, sys.argv = sys.argv, sys.argv[:1]  # RecBole evaluates every --key=value of the command line
    config = Config(model=SASRec, dataset=NAME, config_dict=options)
    sys.argv = arguments
    init_seed(config["seed"], config["reproducibility"])
    dataset = SequentialDataset(config)
    loaders = dict(zip(SPLITS, data_preparation(config, dataset), strict=True))
    return config, dataset, loaders


def new_trainer(config: Config, loaders: dict[str, Any]) -> ReferenceTrainer:
    """A freshly initialised model, and the training order back at its start."""
    init_seed(config["seed"], config["reproducibility"])
    loaders["train"].generator.manual_seed(config["seed"])
    return ReferenceTrainer(config, SASRec(config, loaders["train"]._dataset))


def time_epochs(config: Config, loaders: dict[str, Any], epochs: int) -> list[dict[str, float]]:
    """CPU and wall seconds of training epochs of a throwaway model, after one that does not count."""
    trainer = new_trainer(config, loaders)
    for epoch in range(epochs + 1):
        trainer._train_epoch(loaders["train"], epoch)
    return trainer.train_times[1:]


def train_and_evaluate(
    config: Config, loaders: dict[str, Any], sequences: Sequences, to_row: np.ndarray
) -> dict[str, Any]:
    """Train with early stopping and score the best epoch on both splits."""
    trainer = new_trainer(config, loaders)
    clock = Clock.now()
    trainer.fit(loaders["train"], loaders["valid"], saved=True, show_progress=False)
    total = clock.elapsed()
    best_epoch, weights = trainer.best
    trainer.model.load_state_dict(weights)
    epochs = [
        {"epoch": n, "loss": trainer.train_loss_dict[n], "train": train, "valid": valid, **result}
        for n, (train, valid, result) in enumerate(
            zip(trainer.train_times, trainer.valid_times, trainer.valid_results, strict=True)
        )
    ]
    to_id = np.argsort(to_row)
    scored = {s: evaluate(trainer, loaders[s], RankRecorder(sequences, s, to_id)) for s in ("valid", "test")}
    training = {
        "epochs_run": len(epochs),
        "best_epoch": best_epoch,
        "stopped_early": len(epochs) < config["epochs"],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "total": total,
        "mean_epoch": mean_times(trainer.train_times),
        "mean_validation": mean_times(trainer.valid_times),
        "epochs": epochs,
    }
    return {"training": training, **scored}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder that `mealrec prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--epochs", type=int, default=300, help="at most so many; 0 measures the time only (300)")
    parser.add_argument("--patience", type=int, default=10, help="RecBole's stopping_step (10)")
    parser.add_argument("--timing-epochs", type=int, default=3, help="epochs timed before the training (3)")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything between the arguments and the JSON; RecBole writes its files and logs into `folder`."""
    sequences = read_sequences(args.data)
    write_atomic_files(sequences, folder / NAME)
    options = OPTIONS | {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "seed": args.seed,
        "epochs": max(args.epochs, 1),
        "stopping_step": args.patience,
        "MAX_ITEM_LIST_LENGTH": sequences.max_length,
    }
    config, dataset, loaders = build(options)
    to_row = np.array([0, *map(int, dataset.field2id_token["item_id"][1:])])
    rows = check_rows(sequences, loaders, to_row)
    assert dataset.item_num == sequences.manifest["items"] + 1, "RecBole ranks another catalogue"
    # importing RecBole's models turns this on for the whole process (its sine.py): slow, and nobody's result
    torch.autograd.set_detect_anomaly(False)
    load_before = os.getloadavg()[0]
    timing = time_epochs(config, loaders, args.timing_epochs)
    logging.info("rows %s; per training epoch: %s", rows, timing)
    result: dict[str, Any] = {
        "what": "RecBole SASRec, full ranking; strict_* are our metrics on its scores, ties against the target",
        "data": {
            "manifest_sha256": sequences.manifest_sha256,
            "items": sequences.manifest["items"],
            "rows": rows,
            "users": sequences.manifest["users"],
            "max_length": sequences.max_length,
            "splits": sequences.manifest.get("splits"),
        },
        "options": {k: v for k, v in options.items() if k not in ("data_path", "checkpoint_dir")},
        "timing": {"mean_epoch": mean_times(timing), "epochs": timing, "load_before": load_before},
    }
    if args.epochs:
        result |= train_and_evaluate(config, loaders, sequences, to_row)
    assert not torch.is_anomaly_enabled()
    return result


def main() -> None:
    args = parse_arguments()
    args.data, args.out = args.data.resolve(), args.out.resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="recbole-") as folder:
        os.chdir(folder)  # RecBole also writes TensorBoard logs where it stands
        result = run(args, Path(folder))
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    head = {
        "command": shlex.join(["python", *sys.argv]),
        "started": started,
        "seed": args.seed,
        "threads": args.threads,
        "peak_memory_mb": round(peak),
        "environment": environment(),
    }
    partial = args.out.with_name(args.out.name + ".partial")
    partial.write_text(json.dumps(head | result, indent=1) + "\n", encoding="utf-8")
    partial.replace(args.out)
    summary = {split: result[split]["recbole"] for split in ("valid", "test") if split in result}
    print(json.dumps({"per_epoch": result["timing"]["mean_epoch"], **summary}, indent=1))


if __name__ == "__main__":
    main()
