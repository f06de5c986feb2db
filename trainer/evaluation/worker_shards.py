"""An index of which each worker has a shard: the one of its share of the items. All workers search together."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from models.errors import UserError
from models.nn.gather import Gather
from retrieval.index.base import Vectors
from retrieval.index.faiss_index import FaissIndex, Ids
from retrieval.index.shards import merged
from trainer.process import world


class WorkerShards:
    """An `Index` for one evaluation. A search is a round, in which the queries of all workers go through all shards.

    Workers may have different numbers of searches, as each ranks its share of the users. So whoever has no more calls
    `finish`, which takes part in the rounds of the others until nobody has a query.
    """

    def __init__(self, shard: FaissIndex, first: int, device: torch.device) -> None:
        """shard: of this worker; its first item is row `first` of the catalogue. device: of what workers exchange.

        Collective.
        """
        self._shard, self._before, self._device = shard, first - 1, device
        whole, limit = shard.record.count, shard.limit
        counts = self._each(torch.tensor([whole, limit if limit < whole else 0]))
        every = int(counts[:, 0].sum())
        self._limit: int = min([every, *(int(limit) for limit in counts[:, 1] if limit)])

    @property
    def kind(self) -> str:
        """See `Index.kind`."""
        return self._shard.kind

    @property
    def description(self) -> str:
        """See `Index.description`."""
        return f"{world()[1]} shards, one for each worker, such as {self._shard.description}"

    @property
    def limit(self) -> int:
        """See `Index.limit`."""
        return self._limit

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """See `Index.search`. Collective, with the searches or `finish` of the others. Raises UserError if k is not in
        1..limit, and as `FaissIndex.search`."""
        if not 1 <= k <= self.limit:
            raise UserError(f"the index can return 1 to {self.limit:,} items, not {k:,}")
        return merged(self._round(queries, k), k)

    def finish(self) -> None:
        """Take part in the searches of the other workers until they have finished, too. Collective."""
        nothing = np.zeros((0, self._shard.record.width), dtype=np.float32)
        while self._round(nothing, 0):
            pass

    def _round(self, queries: Vectors, k: int) -> list[tuple[Vectors, Ids]]:
        """What each shard found for the queries of this worker, as deep as the deepest search of the round; empty when
        no worker has a query."""
        gather = Gather.of(len(queries), self._device)
        if not sum(gather.counts):
            return []
        depth = int(self._each(torch.tensor([k])).max())
        everybody = gather(torch.from_numpy(queries).to(self._device)).cpu().numpy()
        scores = torch.full((len(everybody), depth), -torch.inf)
        ids = torch.zeros((len(everybody), depth), dtype=torch.int64)
        within = min(depth, self._shard.limit)
        found, rows = self._shard.search(everybody, within)
        scores[:, :within] = torch.from_numpy(found)
        ids[:, :within] = torch.from_numpy(np.where(rows > 0, rows + self._before, 0))
        own = slice(gather.start, gather.start + len(queries))
        columns = (self._each(x)[:, own].cpu().numpy() for x in (scores, ids))
        return list(zip(*columns, strict=True))

    def _each(self, x: torch.Tensor) -> torch.Tensor:
        """(workers, *x.shape): `x` of each worker, in the order of ranks; of one shape everywhere."""
        x = x.to(self._device)
        parts = [torch.empty_like(x) for _ in range(world()[1])]
        dist.all_gather(parts, x)
        return torch.stack(parts)
