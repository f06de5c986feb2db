"""The item table of a dataset: resident on the device, or memory-mapped on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ContentField, ItemTable
from models.table import TensorTable
from trainer.data.dataset import Dataset, map_array
from trainer.data.manifest import Manifest


class MemmapTable:
    """Item content memory-mapped on disk: `models.contract.ItemTable` for catalogues larger than memory."""

    def __init__(
        self,
        n_items: int,
        fields: Mapping[ContentField, NDArray[np.float16]],
        present: Mapping[ContentField, NDArray[np.bool_]],
        kinds: Mapping[str, str],
    ) -> None:
        self._n_items, self._fields, self._present, self._kinds = n_items, dict(fields), dict(present), dict(kinds)

    @property
    def n_items(self) -> int:
        """Rows of every field, padding row 0 included (I)."""
        return self._n_items

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one item's entry per field."""
        return {name: tuple(array.shape[1:]) for name, array in self._fields.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """What each field holds, in words."""
        return self._kinds

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape, *widths[field]) float32 on the device of `rows`; reads only the pages of these rows."""
        # float16 travels to the device, float32 is made there
        return torch.from_numpy(_take(self._fields[field], rows)).to(rows.device, non_blocking=True).float()

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape,) bool on the device of `rows`."""
        return torch.from_numpy(_take(self._present[field], rows)).to(rows.device, non_blocking=True)


def load_table(dataset: Dataset, device: torch.device, resident: bool) -> ItemTable:
    """The item table of `dataset`: in memory of `device`, or (not resident) memory-mapped from its folder.

    Raises UserError: a table file that is missing or does not fit the manifest.
    """
    n_items = dataset.manifest.items + 1
    fields: dict[ContentField, NDArray[np.float16]] = {}
    present: dict[ContentField, NDArray[np.bool_]] = {}
    for name, info in dataset.manifest.content.items():
        fields[name] = map_array(dataset.root / f"table/{name}.npy", "<f2", (n_items, *info.shape))
        present[name] = map_array(dataset.root / f"table/{name}.present.npy", "|b1", (n_items,))
    kinds: dict[str, str] = {name: info.kind for name, info in dataset.manifest.content.items()}
    if not resident:
        return MemmapTable(n_items, fields, present, kinds)
    return TensorTable(
        n_items,
        {name: torch.from_numpy(np.array(array)).to(device) for name, array in fields.items()},
        {name: torch.from_numpy(np.array(array)).to(device) for name, array in present.items()},
        kinds,
    )


def table_bytes(manifest: Manifest) -> int:
    """Memory that a resident table of this dataset takes."""
    return sum((manifest.items + 1) * (2 * int(np.prod(c.shape)) + 1) for c in manifest.content.values())


def _take(array: NDArray[Any], rows: Tensor) -> NDArray[Any]:
    return np.asarray(array[rows.detach().cpu().numpy()])
