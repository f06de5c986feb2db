"""The item table of a dataset: resident on the device, in host memory that it reads, or memory-mapped on disk."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ItemTable, Moments
from models.options.base import ContentField
from models.tensor_table import TensorTable
from trainer.batches.pinned import pinned
from trainer.data.format.dataset import Dataset, map_array
from trainer.data.format.manifest import Manifest


def load_table(dataset: Dataset, device: torch.device, where: Literal["resident", "pinned", "mmap"]) -> ItemTable:
    """The item table of `dataset`: in memory of `device`, in host memory that it reads, or memory-mapped.

    Raises UserError: a table file that is missing or does not fit the manifest.
    """
    n_items = dataset.manifest.items + 1
    fields: dict[ContentField, NDArray[np.float16]] = {}
    present: dict[ContentField, NDArray[np.bool_]] = {}
    for name, info in dataset.manifest.content.items():
        fields[name] = map_array(dataset.root / f"table/{name}.npy", "<f2", (n_items, *info.shape))
        present[name] = map_array(dataset.root / f"table/{name}.present.npy", "|b1", (n_items,))
    kinds: dict[str, str] = {name: info.kind for name, info in dataset.manifest.content.items()}

    moments: dict[ContentField, Moments] = {
        name: Moments(torch.tensor(info.mean), torch.tensor(info.std))
        for name, info in dataset.manifest.content.items()
    }

    def place(array: NDArray[Any]) -> Tensor:
        if where == "resident":
            return torch.from_numpy(np.array(array)).to(device)
        if where == "pinned":
            return pinned(array, device)
        return torch.from_numpy(array)  # a gather reads only the pages of its rows, and sends float16 to their device

    return TensorTable(
        n_items,
        {name: place(array) for name, array in fields.items()},
        {name: place(array) for name, array in present.items()},
        kinds,
        moments,
    )


def table_bytes(manifest: Manifest) -> int:
    """Memory that a table of this dataset takes where it is not memory-mapped."""
    return sum((manifest.items + 1) * (2 * int(np.prod(c.shape)) + 1) for c in manifest.content.values())
