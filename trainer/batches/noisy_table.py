"""An item table whose videos are disturbed by Gaussian noise, to see how much of it a system bears (D30)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.contract import ItemTable, Moments
from models.nn.noise import KeyedNoise, Stream
from models.options.base import ContentField

_STREAMS: Mapping[str, Stream] = {
    "sequence": Stream.DISTURBED_SEQUENCE, "visual": Stream.DISTURBED_VISUAL,
    "visual_layers": Stream.DISTURBED_LAYERS,
}  # fmt: skip


class NoisyTable:
    """`clean` with noise on the fields of the videos; titles stay as they are. It is an `ItemTable`.

    sigma: deviation of the noise, in deviations of each dimension (`moments`). seed: of the noise. An item has the same
    noise in every gather, in training and evaluation, as if it had been added to the stored features once. The moments
    are those of the clean content, and an item without content gets no noise.
    """

    def __init__(self, clean: ItemTable, sigma: float, seed: int) -> None:
        self._clean, self._sigma, self._noise = clean, sigma, KeyedNoise(seed)
        self._deviations: dict[tuple[ContentField, torch.device], Tensor] = {}  # a GPU must not wait for it each time

    @property
    def n_items(self) -> int:
        """See `ItemTable.n_items`."""
        return self._clean.n_items

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """See `ItemTable.widths`."""
        return self._clean.widths

    @property
    def kinds(self) -> Mapping[str, str]:
        """See `ItemTable.kinds`."""
        return self._clean.kinds

    def moments(self, field: ContentField) -> Moments:
        """See `ItemTable.moments`: of the clean content."""
        return self._clean.moments(field)

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """See `ItemTable.present`."""
        return self._clean.present(field, rows)

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape, *widths[field]) float32 on the device of `rows`."""
        values = self._clean.gather(field, rows)
        if field not in _STREAMS:
            return values
        width = self.widths[field]
        noise = self._noise.normal(rows.reshape(-1), width, _STREAMS[field]).view_as(values)
        there = self.present(field, rows).view(*rows.shape, *(1,) * len(width))
        return values + self._sigma * self._deviation(field, values.device) * noise * there

    def _deviation(self, field: ContentField, device: torch.device) -> Tensor:
        if (field, device) not in self._deviations:
            self._deviations[field, device] = self.moments(field).deviation.to(device)
        return self._deviations[field, device]
