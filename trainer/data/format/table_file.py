"""The item table on disk: `table/FIELD.npy` and `table/FIELD.present.npy`, written row by row: the vectors as given, in
float16, zeros for an item that has none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NpyWriter:
    """Appends rows to a .npy file of known shape. Not a memory map: its written pages would count as memory in use."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._stream = path.open("wb")
        self._dtype = np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows (cast to the dtype of the file)."""
        self._stream.write(np.ascontiguousarray(rows, dtype=self._dtype).data.cast("B") if rows.size else b"")

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()


class TableWriter:
    """Writes `table/FIELD.npy` and `table/FIELD.present.npy`, padding row first; a context manager."""

    def __init__(self, root: Path, n_items: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        (root / "table").mkdir(exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._writers: dict[str, NpyWriter] = {}
        for field, shape in shapes.items():
            for name, entry, dtype in ((field, shape, "<f2"), (f"{field}_present", (), "|b1")):
                path = root / "table" / f"{name.replace('_present', '.present')}.npy"
                writer = self._stack.enter_context(NpyWriter(path, (n_items + 1, *entry), dtype))
                writer.append(np.zeros((1, *entry), dtype))
                self._writers[name] = writer

    def append(self, block: Mapping[str, NDArray[Any]]) -> None:
        """Append the fields of an item block."""
        for name, writer in self._writers.items():
            writer.append(block[name])

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()
