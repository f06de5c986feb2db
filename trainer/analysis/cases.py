"""Single users, in titles: where the model was sure and wrong, where it hit against the odds, and who is near whom."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.contract import SequenceModel
from trainer.analysis.record import Case, Near, Neighbours
from trainer.analysis.scores import Ints, K, Shown
from trainer.data.format.dataset import Dataset
from trainer.evaluation.run_ranks import RunRanks

_CASES, _USERS, _NEAR = 8, 6, 5
_HISTORY, _SHOWN = 4, 3


class Names:
    """Titles of items and ids of users; an item without a title is called by its id."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._titles, self._ids = dataset.item_titles(), dataset.item_ids()
        self._users = dataset.user_ids()

    def item(self, row: int) -> str:
        """The title of an item row."""
        return self._titles[row - 1] or self._ids[row - 1]

    def user(self, row: int) -> str:
        """The raw id of a user row."""
        return self._users[row]

    def history(self, row: int, most: int = _HISTORY) -> tuple[str, ...]:
        """Titles of the last items before the test target, oldest first."""
        start, stop = self._dataset.offsets[row], self._dataset.offsets[row + 1] - 1
        return tuple(self.item(int(item)) for item in self._dataset.items[max(start, stop - most) : stop])

    def target(self, row: int) -> int:
        """The item row of the test target."""
        return int(self._dataset.items[self._dataset.offsets[row + 1] - 1])


def cases(shown: Shown, ranks: RunRanks, names: Names, counts: Ints) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(confident misses, lucky hits): users without a hit whose scores promised one most, and users with a hit whose
    scores promised it least. counts: (I,) training occurrences of item rows."""
    rank = ranks.rank[shown.users]
    hit = (rank >= 1) & (rank <= K)
    surest = np.argsort(-shown.expected, kind="stable")
    misses = surest[~hit[surest]][:_CASES]
    hits = surest[::-1][hit[surest[::-1]]][:_CASES]

    def case(place: int) -> Case:
        user = int(shown.users[place])
        target = names.target(user)
        return Case(
            user=names.user(user), history=names.history(user), target=names.item(target), rank=int(rank[place]),
            expected=float(shown.expected[place]), target_count=int(counts[target]),
            shown=tuple(names.item(int(item)) for item in shown.items[place, :_SHOWN]),
        )  # fmt: skip

    return tuple(map(case, misses.tolist())), tuple(map(case, hits.tolist()))


@torch.no_grad()
def neighbours(model: SequenceModel, vectors_ND: Tensor, shown: Shown, names: Names) -> tuple[Neighbours, ...]:
    """The nearest items and users of a few users spread over the sample. vectors_ND: of `shown.users`, of length 1."""
    items_ID = torch.nn.functional.normalize(model.item_vectors().float().cpu(), dim=1)
    found = []
    for place in np.linspace(0, len(shown.users) - 1, min(_USERS, len(shown.users))).astype(int).tolist():
        user, vector = int(shown.users[place]), vectors_ND[place]
        near = [
            Near(name=names.item(item), similarity=float(items_ID[item] @ vector))
            for item in shown.items[place, :_NEAR].tolist()
        ]
        cosine = vectors_ND @ vector
        cosine[place] = -torch.inf
        best, others = cosine.topk(min(_NEAR, len(cosine) - 1))
        users = [
            Near(name=names.history(int(shown.users[other]), 1)[0], similarity=float(value))
            for value, other in zip(best, others.tolist(), strict=True)
        ]
        target = names.item(names.target(user))
        found.append(
            Neighbours(user=names.user(user), history=names.history(user), target=target, items=tuple(near),
                       users=tuple(users))
        )  # fmt: skip
    return tuple(found)
