"""A FAISS index of any kind. The only file that imports faiss.

Indices rank by inner product; for cosine, the caller normalises all vectors first (`exact.for_similarity`).
Item row 0 (padding) is never in an index, so every id that comes out is an item row >= 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.exact import check_finite
from retrieval.files import digest_file
from retrieval.folders import whole_folder
from retrieval.index.base import Parameters, Vectors
from retrieval.index.tune import rescored
from retrieval.records import Record

Device = Literal["auto", "cpu", "gpu"]
Ids = NDArray[np.int64]

_MOST_THREADS = 4096
_GPU_MAX = 2048  # FAISS on a GPU selects at most this many results, and probes at most this many lists


class Index(Protocol):
    """Finds the items with the highest inner product with a query, exactly or approximately."""

    @property
    def kind(self) -> str:
        """Its name in KINDS."""

    @property
    def description(self) -> str:
        """Kind, parameters and device, in words."""

    @property
    def limit(self) -> int:
        """The most items that one search can return: all that are indexed, on a GPU at most 2,048."""

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Scores (B, k), best first, and item rows (B, k) for queries (B, D); k is at most `limit`.

        If the index finds fewer than k items, the row ends with score -inf and item 0 (`search.index_topk` fills it).
        """


class Tuned(Record):
    """How widely the index searches was found, not given: `recall` of the exact first 20 of so many `queries` is what
    that gives, `target` was asked for, and `enough` says whether this index can give that."""

    target: float
    recall: float
    enough: bool
    queries: int


class IndexRecord(Record):
    """The content of `index.json`. checksum: that of the indexed model. file_sha256: that of `index.faiss`. tuned: None
    where the options said how widely to search."""

    kind: str
    parameters: Parameters
    width: int
    count: int
    checksum: str
    file_sha256: str
    faiss: str
    tuned: Tuned | None = None


class Packed(NamedTuple):
    """A FAISS index in bytes, and what it is."""

    data: bytes
    record: IndexRecord


class FaissIndex:
    """An `Index` made by `build_index` or `load_index`."""

    def __init__(
        self, index: Any, record: IndexRecord, device: Device, *, vectors: Vectors, gpu_form: bool, gpu: int = 0
    ) -> None:
        """index: a FAISS index in host memory, without padding. vectors: (I, D) float32, row 0 padding, of which it is
        made; only kinds that are `rescored` read them. gpu_form: see IndexKind. device, gpu: see `build_index`."""
        self.record = record
        self._vectors, self._candidates = vectors, int(record.parameters.get("rescore", 1))
        self._cpu_index = index
        self._index, self.device, note = _on_device(index, record.kind, device, gpu_form, gpu)
        number = f" {gpu}" if self.device == "gpu" else ""
        parameters = "".join(f" {name}={value}" for name, value in record.parameters.items())
        self._description = (
            f"{record.kind}{parameters} on {self.device}{number}{note}, {record.count:,} items of width {record.width}"
        )

    @property
    def kind(self) -> str:
        """See `Index.kind`."""
        return self.record.kind

    @property
    def description(self) -> str:
        """Kind, parameters and device, in words."""
        return self._description

    @property
    def limit(self) -> int:
        """See `Index.limit`."""
        return min(self.record.count, _GPU_MAX) if self.device == "gpu" else self.record.count

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """See `Index.search`. Raises UserError if a query is not finite, or if k is not in 1..limit; ValueError
        if the queries have another width than the index."""
        if queries.ndim != 2 or queries.shape[1] != self.record.width:
            raise ValueError(f"queries have shape {queries.shape}, the index has width {self.record.width}")
        check_finite(torch.from_numpy(queries), "user vector")
        if not 1 <= k <= self.limit:
            raise UserError(f"the index on {self.device} can return 1 to {self.limit:,} items, not {k:,}")
        if not len(queries):
            return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, ids = self._index.search(queries, min(k * self._candidates, self.limit))
        ids = ids.astype(np.int64) + 1  # FAISS counts from 0, and gives -1 where it found no item
        if self._candidates > 1:
            return rescored(queries, self._vectors, ids, k)
        scores[ids == 0] = -np.inf
        return scores, ids

    def packed(self) -> Packed:
        """The index in bytes, for another process; `unpack` makes an index of it again."""
        return Packed(load_faiss().serialize_index(self._cpu_index).tobytes(), self.record)

    def save(self, folder: Path) -> None:
        """Write `index.faiss` and `index.json` into `folder`, which is replaced as a whole."""
        with whole_folder(folder, replace=True) as new:
            load_faiss().write_index(self._cpu_index, str(new / "index.faiss"))
            record = self.record.model_copy(update={"file_sha256": digest_file(new / "index.faiss").sha256})
            (new / "index.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def device_of(device: torch.device) -> tuple[Device, int]:
    """Where an index for a model on `device` is searched, as `build_index` takes it: on the CPU, or on that very GPU
    where FAISS can use GPUs. (Of several workers on a machine, each has a GPU of its own.)"""
    if device.type != "cuda":
        return "cpu", 0
    return "auto", torch.cuda.current_device() if device.index is None else device.index


def load_faiss(threads: int | None = None) -> Any:
    """The faiss module. threads: number of its threads in this process, 1 to 4,096.

    Raises UserError if it is not installed, or for another number of threads.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise UserError(f"FAISS was given {threads} threads; give 1 to {_MOST_THREADS:,}")
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


def read_index(file: Path) -> Any:
    """The FAISS index in `file`, in host memory.

    Raises UserError: the file is damaged. Memory is bounded by its size, whatever it claims to hold.
    """
    faiss, size = load_faiss(), file.stat().st_size
    faiss.set_deserialization_vector_byte_limit(size)
    faiss.set_deserialization_loop_limit(size)
    try:
        # the tables are for distances, not for inner products
        return faiss.read_index(str(file), faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines()[0].rpartition("Error: ")[2][:200]
        raise UserError(f"{file} is damaged ({reason}); build it again with `mealrec index`") from None


def _on_device(
    index: Any, kind: str, device: Device, gpu_form: bool, gpu: int
) -> tuple[Any, Literal["cpu", "gpu"], str]:
    """The index on the chosen device, the device, and a note for the description that tells why a CPU was chosen."""
    faiss = load_faiss()
    gpus = faiss.get_num_gpus()
    if device == "cpu" or (device == "auto" and not gpus):
        return index, "cpu", ""
    if not gpu_form:
        if device == "gpu":
            raise UserError(f"FAISS has no {kind} index on a GPU; use --device cpu, or a kind that has a GPU form")
        return index, "cpu", f" ({kind} has no GPU form)"
    if not gpus:
        raise UserError(
            "a GPU index was asked for, but FAISS sees no GPU; use --device cpu, or install faiss-gpu "
            "in place of faiss-cpu on a machine that has one"
        )
    if gpu >= gpus:
        raise UserError(f"FAISS sees {gpus} GPU(s), numbered from 0, and GPU {gpu} was asked for; use --device cpu")
    if (probes := getattr(index, "nprobe", 0)) > _GPU_MAX:
        raise UserError(f"FAISS on a GPU searches at most {_GPU_MAX:,} lists, but nprobe is {probes:,}; lower --nprobe")
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index), "gpu", ""
