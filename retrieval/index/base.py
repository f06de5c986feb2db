"""FAISS behind one small protocol. The only file that imports faiss.

Indices rank by inner product; for cosine, vectors are normalised before (`exact.for_similarity`).
Item row 0 (padding) is never in an index, so every id that comes out is an item row >= 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.exact import check_finite, exact_topk
from retrieval.files import Record, check_file, read_record, sha256, whole_folder

Kind = Literal["flat", "ivf", "hnsw"]
Device = Literal["auto", "cpu", "gpu"]
Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

KINDS: tuple[Kind, ...] = get_args(Kind)
_REMEDY = "build it again with `mealrec index`"
_HNSW_NEIGHBOURS = 32
_GPU_MAX = 2048  # FAISS on a GPU selects at most this many results, and probes at most this many lists
_TRAINING_POINTS = 39  # per list: below this FAISS warns that its k-means is poorly fitted


class Index(Protocol):
    """Items by similarity to a query, exactly or nearly."""

    @property
    def description(self) -> str:
        """Kind, parameters and device, in words."""

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Scores (B, k), best first, and item rows (B, k) for queries (B, D).

        Where the index found fewer than k items, the row ends with score -inf and item 0.
        """

    def save(self, folder: Path) -> None:
        """Write the index into `folder`, which is replaced as a whole."""


class IndexRecord(Record):
    """`index.json`. checksum: of the model whose item vectors are indexed; file_sha256: of `index.faiss`."""

    kind: Kind
    parameters: dict[str, int]
    width: int
    count: int
    checksum: str
    file_sha256: str
    faiss: str


class FaissIndex:
    """An `Index` made by `build_index` or `load_index`."""

    def __init__(self, index: Any, record: IndexRecord, device: Device) -> None:
        """index: a FAISS index in host memory, without padding. See `_on_device` for `device`."""
        self.record = record
        self._cpu_index = index
        self._index, self.device, note = _on_device(index, record.kind, device)
        parameters = "".join(f" {name}={value}" for name, value in record.parameters.items())
        self._description = (
            f"{record.kind}{parameters} on {self.device}{note}, {record.count:,} items of width {record.width}"
        )

    @property
    def description(self) -> str:
        """Kind, parameters and device, in words."""
        return self._description

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """See `Index.search`. Raises UserError on a query that is not finite, or k above 2,048 on a GPU."""
        if queries.ndim != 2 or queries.shape[1] != self.record.width:
            raise ValueError(f"queries have shape {queries.shape}, the index has width {self.record.width}")
        check_finite(torch.from_numpy(queries), "user vector")
        if self.device == "gpu" and k > _GPU_MAX:
            raise UserError(f"FAISS on a GPU returns at most {_GPU_MAX:,} items, {k:,} were asked; use --device cpu")
        if not len(queries):
            return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        ids = ids.astype(np.int64) + 1  # FAISS counts from 0 and says -1 for nothing
        scores[ids == 0] = -np.inf
        return scores, ids

    def save(self, folder: Path) -> None:
        """See `Index.save`: `index.faiss` and `index.json`, whole or absent."""
        with whole_folder(folder) as new:
            _faiss().write_index(self._cpu_index, str(new / "index.faiss"))
            record = self.record.model_copy(update={"file_sha256": sha256(new / "index.faiss")})
            (new / "index.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def build_index(
    item_vectors: Vectors,
    kind: Kind,
    *,
    checksum: str,
    nprobe: int | None = None,
    ef_search: int = 128,
    device: Device = "auto",
    threads: int | None = None,
) -> FaissIndex:
    """Index item vectors (I, D) float32, row 0 padding.

    kind "flat" is exact; "ivf" searches `nprobe` of about 4 sqrt(I) lists (an eighth of them unless given);
    "hnsw" is a graph of 32 neighbours searched `ef_search` wide. checksum: of the model, required again at loading.
    device "auto" takes a GPU where FAISS reports one ("hnsw" stays on the CPU). threads: of FAISS, process-wide.
    Raises UserError where faiss is not installed, on vectors that are not finite, or on parameters out of range.
    """
    faiss = _faiss(threads)
    if kind not in KINDS:
        raise UserError(f"unknown index {kind!r}; choose one of {', '.join(KINDS)}")
    check_finite(torch.from_numpy(item_vectors), "item vector")
    real = np.ascontiguousarray(item_vectors[1:], dtype=np.float32)
    count, width = real.shape
    if not count:
        raise UserError("there is no item to index; the model was exported without items")
    if kind == "ivf":
        index, parameters = _ivf(faiss, real, nprobe)
    elif kind == "hnsw":
        index, parameters = _hnsw(faiss, width, ef_search)
    else:
        index, parameters = faiss.IndexFlatIP(width), {}
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
    return FaissIndex(index, record, device)


def _ivf(faiss: Any, real: Vectors, nprobe: int | None) -> tuple[Any, dict[str, int]]:
    count, width = real.shape
    nlist = max(1, min(int(4 * math.sqrt(count)), count // _TRAINING_POINTS))
    probes = max(1, nlist // 8) if nprobe is None else nprobe
    if not 1 <= probes <= nlist:
        raise UserError(f"nprobe is {probes}, but {count:,} items make {nlist} lists; choose 1 to {nlist}")
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, nlist, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = probes
    index.train(real)
    return index, {"nlist": nlist, "nprobe": probes}


def _hnsw(faiss: Any, width: int, ef_search: int) -> tuple[Any, dict[str, int]]:
    if ef_search < 1:
        raise UserError(f"ef_search is {ef_search}; choose 1 or more (more is slower and finds more)")
    index = faiss.IndexHNSWFlat(width, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = ef_search
    return index, {"M": _HNSW_NEIGHBOURS, "efSearch": ef_search}


def load_index(folder: Path, checksum: str, *, device: Device = "auto", threads: int | None = None) -> FaissIndex:
    """The index in `folder`, made for the model of `checksum`.

    Raises UserError when it is absent, damaged, or was built for another model.
    """
    faiss = _faiss(threads)
    record = cast(IndexRecord, read_record(folder / "index.json", IndexRecord, _REMEDY))
    if record.checksum != checksum:
        raise UserError(f"{folder} was built for another model than the one in use; {_REMEDY}")
    check_file(folder / "index.faiss", record.file_sha256, _REMEDY)
    return FaissIndex(faiss.read_index(str(folder / "index.faiss")), record, device)


def recall_against_exact(
    index: Index, users: Vectors, item_vectors: Vectors, k: int, sample: int = 1000, seed: int = 0
) -> float:
    """Share of the exact top-k that `index` finds, over at most `sample` of the users; 0 to 1.

    users: (U, D), item_vectors: (I, D) as indexed. An item that ties with the k-th exact score counts as found.
    """
    if len(users) > sample:
        users = users[np.random.default_rng(seed).choice(len(users), sample, replace=False)]
    k = min(k, len(item_vectors) - 1)
    exact_scores, exact_ids = (
        x.numpy() for x in exact_topk(torch.from_numpy(users), torch.from_numpy(item_vectors), k)
    )
    _, ids = index.search(users, k)
    same = (ids[:, :, None] == exact_ids[:, None, :]).any(axis=2)
    scores = np.einsum("bd,bkd->bk", users, item_vectors[ids])
    last = exact_scores[:, -1:]
    tied = scores >= last - 1e-6 * np.abs(last)
    return float(((same | tied) & (ids > 0)).mean())


def _faiss(threads: int | None = None) -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "FAISS is not installed; run `pip install 'faiss-cpu>=1.15,<2'` (on a GPU machine 'faiss-gpu>=1.15,<2', "
            "never both), or rank exactly"
        ) from None
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    return faiss


def _on_device(index: Any, kind: Kind, device: Device) -> tuple[Any, Literal["cpu", "gpu"], str]:
    """The index on the chosen device, the device, and a note for the description. Never falls back silently."""
    faiss = _faiss()
    gpus = faiss.get_num_gpus()
    if device == "cpu" or (device == "auto" and not gpus):
        return index, "cpu", ""
    if kind == "hnsw":
        if device == "gpu":
            raise UserError("FAISS has no HNSW index on a GPU; use --device cpu, or --kind flat or ivf")
        return index, "cpu", " (hnsw has no GPU form)"
    if not gpus:
        raise UserError(
            "a GPU index was asked for, but FAISS sees no GPU; use --device cpu, or install faiss-gpu "
            "in place of faiss-cpu on a machine that has one"
        )
    if kind == "ivf" and index.nprobe > _GPU_MAX:
        raise UserError(f"FAISS on a GPU probes at most {_GPU_MAX:,} lists, nprobe is {index.nprobe:,}; lower --nprobe")
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index), "gpu", ""
