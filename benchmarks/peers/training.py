"""Trains a peer to its own early stop, resumes after any epoch, and ranks every user by our strict rule."""

from __future__ import annotations

import copy
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics, Peer
from reference_clock import Clock, mean_times
from reference_ranks import RankRecorder, metrics
from reference_rows import TARGET_FROM_END

LAST = "last.pt"


def train(peer: Peer, job: Job, out: Path, epochs: int) -> dict[str, Any]:
    """Train for at most `epochs` epochs in all, and return what is known of them. The best weights are then loaded."""
    state = _resume(peer, out)
    while len(state["epochs"]) < epochs and state["stale"] < peer.patience:
        number, clock = len(state["epochs"]), Clock.now()
        peer.model.train()
        record: dict[str, Any] = {"epoch": number, "loss": peer.train_epoch(number), "train": clock.elapsed()}
        if (number + 1) % peer.every == 0 or number + 1 == epochs:
            clock = Clock.now()
            found = validate(peer, job)
            record |= {"valid_result": found, "valid": clock.elapsed()}
            _judge(peer, state, found, number)
        state["epochs"].append(record)
        logging.info("%s", json.dumps(record))
        _save(peer, out, state)
    if state["weights"] is not None:
        peer.model.load_state_dict(state["weights"])
    timed = [each["valid"] for each in state["epochs"] if "valid" in each]
    return {
        "epochs_run": len(state["epochs"]),
        "best_epoch": state["best_epoch"],
        "stopped_early": state["stale"] >= peer.patience,
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "mean_epoch": mean_times([each["train"] for each in state["epochs"]]),
        "mean_validation": mean_times(timed),
        "epochs": state["epochs"],
    }


def _judge(peer: Peer, state: dict[str, Any], found: dict[str, Metrics], epoch: int) -> None:
    if peer.better(found, state["best"]):
        weights = copy.deepcopy(peer.model.state_dict())
        state |= {"best": found, "best_epoch": epoch, "stale": 0, "weights": weights}
    else:
        state["stale"] += 1


def rank(peer: Peer, job: Job, split: str) -> RankRecorder:
    """The ranks of the users' targets, in order, without and with the user's own history."""
    recorder = RankRecorder(job.sequences, split, np.arange(job.sequences.manifest["items"] + 1))
    targets = job.sequences.items[job.sequences.offsets[1:] - TARGET_FROM_END[split]]
    peer.model.eval()
    with torch.no_grad():
        for scores in peer.scores(split):
            done = len(recorder.unmasked)
            recorder.add(scores.float().cpu(), torch.from_numpy(targets[done : done + len(scores)].astype(np.int64)))
    assert len(recorder.unmasked) == len(targets), "the peer scored another number of users"
    return recorder


def validate(peer: Peer, job: Job) -> dict[str, Metrics]:
    """Metrics of the validation targets, by which the peer stops."""
    ranks = rank(peer, job, "valid")
    pairs = (("unmasked", ranks.unmasked), ("masked", ranks.masked))
    return {name: metrics(np.array(values), peer.cutoffs) for name, values in pairs}


def report(peer: Peer, job: Job, out: Path) -> dict[str, Any]:
    """Rank both splits, write `ranks-valid.npz` and `ranks-test.npz` as our runs do, and return the metrics."""
    trained, found = job.sequences.trained_items(), {}
    for split in ("valid", "test"):
        ranks = rank(peer, job, split)
        targets = job.sequences.items[job.sequences.offsets[1:] - TARGET_FROM_END[split]]
        cold = ~trained[targets]
        arrays = {"rank": np.array(ranks.unmasked), "rank_masked": np.array(ranks.masked)}
        np.savez_compressed(
            out / f"ranks-{split}.npz", user=np.arange(len(targets)), target=targets, cold=cold, **arrays
        )
        found[split] = {
            f"{name}{part}": metrics(values[chosen])
            for name, values in (("unmasked", arrays["rank"]), ("masked", arrays["rank_masked"]))
            for part, chosen in (("", slice(None)), ("_warm", ~cold), ("_cold", cold))
        }
    return found


def _save(peer: Peer, out: Path, state: dict[str, Any]) -> None:
    generators = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    parts = {"model": peer.model.state_dict(), "optimizer": peer.optimizer.state_dict(), "generators": generators}
    if peer.scheduler is not None:
        parts["scheduler"] = peer.scheduler.state_dict()
    torch.save({**parts, "state": state, "memory": peer.remember()}, out / f"{LAST}.partial")
    (out / f"{LAST}.partial").replace(out / LAST)


def _resume(peer: Peer, out: Path) -> dict[str, Any]:
    """Continue after the last epoch in `out`, bit for bit on a CPU; the state of a start where there is none."""
    if not (out / LAST).exists():
        return {"epochs": [], "best": None, "best_epoch": -1, "stale": 0, "weights": None}
    saved = torch.load(out / LAST, weights_only=False)  # written by `_save`, holds states of Python's generator
    peer.model.load_state_dict(saved["model"])
    peer.optimizer.load_state_dict(saved["optimizer"])
    if peer.scheduler is not None:
        peer.scheduler.load_state_dict(saved["scheduler"])
    peer.recall(saved["memory"])
    generators = saved["generators"]
    torch.set_rng_state(generators["torch"])
    np.random.set_state(generators["numpy"])  # noqa: NPY002
    random.setstate(generators["python"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    state: dict[str, Any] = saved["state"]
    logging.info("goes on after epoch %d", len(state["epochs"]) - 1)
    return state
