"""Rows of a dataset that are rows of an earlier one, too: users and items keep their raw ids, but not their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import Manifest

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class KnownRows:
    """For each row of a dataset, the row of the same raw id in an earlier one; -1 where it had none.

    items: (I,), row 0 is padding in both. users: (U,).
    """

    items: Ints
    users: Ints

    @classmethod
    def between(cls, earlier: Dataset, dataset: Dataset) -> KnownRows:
        """The rows of `dataset` in `earlier`. Raises UserError for a damaged dataset."""
        items = 1 + _places(earlier.item_ids(), dataset.item_ids())
        items[items == 0] = -1
        return cls(np.concatenate([[0], items]), _places(earlier.user_ids(), dataset.user_ids()))

    def counts(self) -> dict[str, int]:
        """How many items and users are known from before, and how many are new."""
        items, users = self.items[1:] >= 0, self.users >= 0
        return {
            "known_items": int(items.sum()), "new_items": int((~items).sum()),
            "known_users": int(users.sum()), "new_users": int((~users).sum()),
        }  # fmt: skip


def _places(earlier: Sequence[str], ids: Sequence[str]) -> Ints:
    place = {each: row for row, each in enumerate(earlier)}
    return np.array([place.get(each, -1) for each in ids], dtype=np.int64)


def require_alike(earlier: Manifest, manifest: Manifest, where: str) -> None:
    """Raise UserError unless a model of the earlier data can be trained on with the data at `where`."""
    before, now = _form(earlier), _form(manifest)
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{where} has {name} {now.get(name)}, and the run was trained with {before.get(name)}; prepare the new "
                "data with the same options, features and encoders (`mealrec prepare` chooses the length of histories "
                f"by the log: give --max-length {earlier.max_length})"
            )


def _form(manifest: Manifest) -> dict[str, object]:
    content = {f"content {name}": (info.shape, info.kind, info.encoder) for name, info in manifest.content.items()}
    return {"histories of at most": manifest.max_length, "behaviours": list(manifest.behaviours), **content}
