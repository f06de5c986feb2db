"""Build and load indices of any registered kind, and measure their recall against exact ranking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from models.errors import UserError
from retrieval.exact import check_finite
from retrieval.folders import present
from retrieval.index.base import RECALL_K, RECALL_TARGET, IndexKind, Parameters, Vectors
from retrieval.index.faiss_index import (
    Device,
    FaissIndex,
    Ids,
    Index,
    IndexRecord,
    Packed,
    Tuned,
    load_faiss,
    read_index,
)
from retrieval.index.kinds import KINDS
from retrieval.index.tune import Exact, find_candidates, find_effort, sample
from retrieval.records import check_file, read_record

#: what a user does about an index that cannot be read
REMEDY = "build it again with `mealrec index`"


def build_index(
    item_vectors: Vectors,
    kind: str,
    options: IndexKind | None = None,
    *,
    checksum: str,
    device: Device = "auto",
    gpu: int = 0,
    threads: int | None = None,
    queries: Vectors | None = None,
    recall: float = RECALL_TARGET,
    searches: int | None = None,
) -> FaissIndex:
    """Index item vectors (I, D) float32, row 0 padding, by `kind` of KINDS.

    options: options of that kind; None takes its defaults. checksum: that of the model; `load_index` compares it.
    device "auto" uses a GPU if FAISS reports one and the kind has a GPU form. gpu: its number among those that this
    process sees, as in torch. threads: number of FAISS threads in this process. queries: (U, D) user vectors; where the
    options leave open how widely a search looks, it is as widely as finds `recall` of the exact first 20 of a sample of
    these (item vectors will not do: their neighbours are easier to find). searches: how many the index is for, None for
    as many as will come; so it is divided as finely as is repaid. Raises UserError if the kind is unknown,
    faiss is not installed, a vector is not finite, there is no item, or the options do not fit the items; ValueError if
    the options are those of another kind, or there are no queries and the options need them.
    """
    made = options if options is not None else KINDS[kind]()
    if not isinstance(made, KINDS[kind]):
        raise ValueError(f"{type(made).__name__} are not the options of {kind}")
    if not made.effort_given and (queries is None or not len(queries)):
        raise ValueError(f"{kind} needs queries, by which it finds how widely to search")
    faiss = load_faiss(threads)
    check_finite(torch.from_numpy(item_vectors), "item vector")
    if len(item_vectors) < 2:
        raise UserError("there is no item to index; the model was exported without items")
    if made.effort_given or queries is None:
        built = _built(faiss, made, item_vectors)
    else:
        built = _best(faiss, made, item_vectors, sample(queries), recall, searches)
    record = IndexRecord(
        kind=kind, parameters=built.parameters, width=item_vectors.shape[1], count=len(item_vectors) - 1,
        checksum=checksum, file_sha256="", faiss=faiss.__version__, tuned=built.tuned,
    )  # fmt: skip
    return FaissIndex(built.index, record, device, vectors=item_vectors, gpu_form=made.gpu_form, gpu=gpu)


@dataclass(frozen=True)
class _Built:
    """A FAISS index with its items. tuned: None where the options say how widely to search."""

    index: Any
    parameters: Parameters
    tuned: Tuned | None = None


def _built(faiss: Any, options: IndexKind, item_vectors: Vectors) -> _Built:
    real = np.ascontiguousarray(item_vectors[1:], dtype=np.float32)
    index, parameters = options.build(faiss, real)
    index.add(real)
    return _Built(index, parameters)


def _best(
    faiss: Any, options: IndexKind, item_vectors: Vectors, queries: Vectors, recall: float, searches: int | None
) -> _Built:
    """The index whose searches are the least work of those that reach the recall, and of finer and finer ones."""
    exact = Exact.of(queries, item_vectors, RECALL_K)
    best = _tuned(faiss, options, item_vectors, exact, recall)
    work = options.work(best.index, queries)
    while (other := options.finer(best.index, work, searches)) is not None:
        finer = _tuned(faiss, other, item_vectors, exact, recall)
        less = other.work(finer.index, queries)
        if less >= work or _enough(finer) < _enough(best):
            break
        best, work = finer, less
    return best


def _enough(built: _Built) -> bool:
    return built.tuned is not None and built.tuned.enough


def _tuned(faiss: Any, options: IndexKind, item_vectors: Vectors, exact: Exact, recall: float) -> _Built:
    built = _built(faiss, options, item_vectors)
    assert options.effort is not None
    parameters = dict(built.parameters)
    if options.rescored and parameters["rescore"] == 0:
        found, parameters["rescore"] = find_candidates(faiss, built.index, options, exact, recall)
    else:
        found = find_effort(faiss, built.index, options, exact, recall, int(parameters.get("rescore", 1)))
    parameters[options.effort.parameter] = found.effort
    tuned = Tuned(target=recall, recall=found.recall, enough=found.enough, queries=len(exact.users))
    return _Built(built.index, parameters, tuned)


def load_index(
    folder: Path,
    checksum: str,
    item_vectors: Vectors,
    *,
    device: Device = "auto",
    gpu: int = 0,
    threads: int | None = None,
) -> FaissIndex:
    """Load the index in `folder`, built for the model with `checksum`, whose vectors are `item_vectors` (I, D).

    device, gpu, threads: see `build_index`. Raises UserError if the index is absent, damaged, of a kind that is not
    registered, or not of this model.
    """
    load_faiss(threads)
    folder = present(folder)
    if not folder.is_dir():
        raise UserError(f"there is no index {folder.name} in {folder.parent}: make it with `mealrec index`")
    record = cast(IndexRecord, read_record(folder / "index.json", IndexRecord, REMEDY))
    if record.checksum != checksum:
        raise UserError(f"{folder} was built for another model than the one in use; {REMEDY}")
    kind = KINDS[record.kind]
    check_file(folder / "index.faiss", record.file_sha256, REMEDY)
    index = read_index(folder / "index.faiss")
    if (index.ntotal, index.d) != (record.count, record.width):
        raise UserError(f"{folder} is damaged: its two files are not of one index; {REMEDY}")
    if (record.count + 1, record.width) != item_vectors.shape:
        raise UserError(f"{folder} does not hold the items of the model; {REMEDY}")
    return FaissIndex(index, record, device, vectors=item_vectors, gpu_form=kind.gpu_form, gpu=gpu)


def unpack(packed: Packed, item_vectors: Vectors, *, device: Device = "auto", gpu: int = 0) -> FaissIndex:
    """The index of `item_vectors` that another process of this program has packed. device, gpu: see `build_index`."""
    faiss = load_faiss()
    faiss.set_deserialization_vector_byte_limit(max(1, len(packed.data)))  # as `read_index` left it
    faiss.set_deserialization_loop_limit(max(1, len(packed.data)))
    index = faiss.deserialize_index(np.frombuffer(packed.data, np.uint8), faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    return FaissIndex(
        index, packed.record, device, vectors=item_vectors, gpu_form=KINDS[packed.record.kind].gpu_form, gpu=gpu
    )


def recall_against_exact(
    index: Index, users: Vectors, item_vectors: Vectors, k: int, size: int = 1000, seed: int = 0
) -> float:
    """Share of the exact top-k that `index` finds, over at most `size` random users; 0 to 1.

    users: (U, D), item_vectors: (I, D) as indexed. An item that ties with the k-th exact score counts as found.
    """
    users = sample(users, size, seed)
    k = min(k, len(item_vectors) - 1)
    return recall_of(index.search(users, k)[1], users, item_vectors)


def recall_of(ids: Ids, users: Vectors, item_vectors: Vectors) -> float:
    """Share of the exact top-k that are in `ids`; 0 to 1. Ties with the k-th exact score count as found.

    ids: (U, k) item rows that an index found, 0 where it found none; users: (U, D), item_vectors: (I, D) as indexed.
    """
    return float(Exact.of(users, item_vectors, ids.shape[1]).found(ids).mean())
