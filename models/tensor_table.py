"""An item table (`models.contract.ItemTable`) that holds each field in one tensor on the model's device."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.contract import Moments
from models.options.base import ContentField


class TensorTable:
    """Item content held in memory. fields: per field (I, ...) of any float type, row 0 padding; present: (I,) bool.
    moments: per field, if a system standardises it.

    Rows may be on another device than the table; results are on the device of the rows.
    """

    def __init__(
        self,
        n_items: int,
        fields: Mapping[ContentField, Tensor],
        present: Mapping[ContentField, Tensor],
        kinds: Mapping[str, str],
        moments: Mapping[ContentField, Moments] | None = None,
    ) -> None:
        assert set(fields) == set(present)
        assert all(len(tensor) == n_items for tensor in (*fields.values(), *present.values()))
        self._n_items, self._fields, self._present, self._kinds = n_items, dict(fields), dict(present), dict(kinds)
        self._moments = dict(moments or {})

    @property
    def n_items(self) -> int:
        """Rows of every field, padding row 0 included (I)."""
        return self._n_items

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one item's entry per field."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self._fields.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """A word per field that says what it contains; see `ItemTable.kinds`."""
        return self._kinds

    def moments(self, field: ContentField) -> Moments:
        """See `ItemTable.moments`. Raises KeyError if the table was made without them."""
        return self._moments[field]

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape, *widths[field]) float32 on the device of `rows`."""
        return _take(self._fields[field], rows).float()

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape,) bool on the device of `rows`."""
        return _take(self._present[field], rows)


def _take(table: Tensor, rows: Tensor) -> Tensor:
    picked = table.index_select(0, rows.reshape(-1).to(table.device))
    return picked.reshape((*rows.shape, *table.shape[1:])).to(rows.device)
