"""Users/s and recall of FAISS indices beside the exact top-k, on the vectors of a shortly trained SASRec."""

from __future__ import annotations

import time

import torch
from bench_common import Result, Settings, choose_device, installed, rate, repeated
from bench_models import Training, prepare

from retrieval.exact import exact_topk, for_similarity
from retrieval.index.build import build_index, recall_against_exact
from retrieval.index.faiss_index import Device
from retrieval.index.kinds import KINDS

_K = 20
_MAX_USERS = 8192
_BATCH = 2048


def retrieval(settings: Settings) -> Result:
    """Per way of ranking: users/s of a top 20, seconds to build, recall@20 against exact."""
    device = choose_device(settings.device)
    training = prepare(settings, "sasrec")
    started, steps = time.perf_counter(), 0
    while steps < training.plan.steps and time.perf_counter() - started < settings.seconds:
        training.run(1)
        steps += 1
    users_BD, items_ID = _vectors(training)
    exact = repeated(lambda: exact_topk(users_BD, items_ID, _K), settings, device)
    result: Result = {
        "k": _K, "users": len(users_BD), "items": len(items_ID) - 1, "width": items_ID.shape[1], "trained_steps": steps,
        "exact": {"users_per_s": rate(len(users_BD), exact["wall_s"]), "recall@20": 1.0, "device": device.type},
    }  # fmt: skip
    for kind in KINDS:
        result[kind] = _index(kind, users_BD, items_ID, settings) if installed("faiss") else _NOT_INSTALLED
    return result


_NOT_INSTALLED: Result = {"missing": "faiss not installed"}


def _vectors(training: Training) -> tuple[torch.Tensor, torch.Tensor]:
    with training.engine.whole() as model:
        users, _ = training.loaded.dataset.eval_rows("validation")
        batches = training.loaded.evaluation_batches("validation", users[:_MAX_USERS], _BATCH)
        queries = torch.cat([for_similarity(model.user_vectors(batch), model.similarity) for batch in batches])
        return queries, for_similarity(model.item_vectors().detach(), model.similarity)


def _index(kind: str, users_BD: torch.Tensor, items_ID: torch.Tensor, settings: Settings) -> Result:
    queries, items = users_BD.cpu().numpy(), items_ID.cpu().numpy()
    wanted: Device = "cpu" if settings.device == "cpu" else "auto"
    started = time.perf_counter()
    index = build_index(
        items, kind, checksum="benchmark", device=wanted, threads=settings.threads, queries=queries[::2]
    )
    built = time.perf_counter() - started
    times = repeated(lambda: index.search(queries, _K), settings, torch.device("cpu"))
    return {
        "users_per_s": rate(len(queries), times["wall_s"]), "build_s": built,
        "recall@20": recall_against_exact(index, queries, items, _K), "device": index.device,
        "description": index.description,
    }  # fmt: skip
