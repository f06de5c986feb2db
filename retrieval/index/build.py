"""Build and load indices of any registered kind, and measure their recall against exact ranking."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch

from models.errors import UserError
from retrieval.exact import check_finite, exact_topk
from retrieval.folders import present
from retrieval.index.base import IndexKind, Vectors
from retrieval.index.faiss_index import Device, FaissIndex, Ids, Index, IndexRecord, load_faiss, read_index
from retrieval.index.kinds import KINDS
from retrieval.records import check_file, read_record

_REMEDY = "build it again with `mealrec index`"


def build_index(
    item_vectors: Vectors,
    kind: str,
    options: IndexKind | None = None,
    *,
    checksum: str,
    device: Device = "auto",
    threads: int | None = None,
) -> FaissIndex:
    """Index item vectors (I, D) float32, row 0 padding, by `kind` of KINDS.

    options: options of that kind; None takes its defaults. checksum: that of the model; `load_index` compares it.
    device "auto" uses a GPU if FAISS reports one and the kind has a GPU form. threads: number of FAISS threads in
    this process. Raises UserError if the kind is unknown, faiss is not installed, a vector is not finite, there is no
    item, or the options do not fit the items; ValueError if the options are those of another kind.
    """
    made = options if options is not None else KINDS[kind]()
    if not isinstance(made, KINDS[kind]):
        raise ValueError(f"{type(made).__name__} are not the options of {kind}")
    faiss = load_faiss(threads)
    check_finite(torch.from_numpy(item_vectors), "item vector")
    real = np.ascontiguousarray(item_vectors[1:], dtype=np.float32)
    count, width = real.shape
    if not count:
        raise UserError("there is no item to index; the model was exported without items")
    index, parameters = made.build(faiss, real)
    index.add(real)
    record = IndexRecord(
        kind=kind,
        parameters=parameters,
        width=width,
        count=count,
        checksum=checksum,
        file_sha256="",
        faiss=faiss.__version__,
    )
    return FaissIndex(index, record, device, gpu_form=made.gpu_form)


def load_index(folder: Path, checksum: str, *, device: Device = "auto", threads: int | None = None) -> FaissIndex:
    """Load the index in `folder`, which was built for the model with `checksum`. device, threads: see `build_index`.

    Raises UserError if the index is absent, damaged, of a kind that is not registered, or built for another model.
    """
    load_faiss(threads)
    folder = present(folder)
    record = cast(IndexRecord, read_record(folder / "index.json", IndexRecord, _REMEDY))
    if record.checksum != checksum:
        raise UserError(f"{folder} was built for another model than the one in use; {_REMEDY}")
    kind = KINDS[record.kind]
    check_file(folder / "index.faiss", record.file_sha256, _REMEDY)
    index = read_index(folder / "index.faiss")
    if (index.ntotal, index.d) != (record.count, record.width):
        raise UserError(f"{folder} is damaged: its two files are not of one index; {_REMEDY}")
    return FaissIndex(index, record, device, gpu_form=kind.gpu_form)


def recall_against_exact(
    index: Index, users: Vectors, item_vectors: Vectors, k: int, sample: int = 1000, seed: int = 0
) -> float:
    """Share of the exact top-k that `index` finds, over at most `sample` random users; 0 to 1.

    users: (U, D), item_vectors: (I, D) as indexed. An item that ties with the k-th exact score counts as found.
    """
    if len(users) > sample:
        users = users[np.random.default_rng(seed).choice(len(users), sample, replace=False)]
    k = min(k, len(item_vectors) - 1)
    return recall_of(index.search(users, k)[1], users, item_vectors)


def recall_of(ids: Ids, users: Vectors, item_vectors: Vectors) -> float:
    """Share of the exact top-k that are in `ids`; 0 to 1. Ties with the k-th exact score count as found.

    ids: (U, k) item rows that an index found, 0 where it found none; users: (U, D), item_vectors: (I, D) as indexed.
    """
    exact_scores, exact_ids = (
        x.numpy() for x in exact_topk(torch.from_numpy(users), torch.from_numpy(item_vectors), ids.shape[1])
    )
    same = (ids[:, :, None] == exact_ids[:, None, :]).any(axis=2)
    scores = np.einsum("bd,bkd->bk", users, item_vectors[ids])
    last = exact_scores[:, -1:]
    tied = scores >= last - 1e-6 * np.abs(last)
    return float(((same | tied) & (ids > 0)).mean())
