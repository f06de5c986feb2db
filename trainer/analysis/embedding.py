"""A map of users, the items they watched next, and frames: t-SNE of vectors of length 1 (paper, Fig. 7)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor

from models.contract import SequenceModel
from models.mealrec.model import MealRec
from trainer.analysis.cases import Names
from trainer.analysis.record import Embedding, Point
from trainer.analysis.scores import Ints, vectors_of
from trainer.batches.loader import Loaded

#: users on the map, and those of them whose points are shown together
USERS, FOCUS = 400, 8
_PERPLEXITY = 30.0


@torch.no_grad()
def embedding(model: SequenceModel, loaded: Loaded, users: Ints, names: Names, seed: int) -> Embedding:
    """The map of at most USERS of `users`. Fewer than 4 have none: raises ValueError."""
    users = users[np.linspace(0, len(users) - 1, min(USERS, len(users))).astype(np.int64)]
    targets = [names.target(user) for user in users.tolist()]
    items_ID = torch.nn.functional.normalize(model.item_vectors().float().cpu(), dim=1)
    user_ND, target_ND = vectors_of(model, loaded, users), items_ID[targets]
    focus = users[:FOCUS]
    frames_FKD = _frames(model, loaded, focus)
    steps = frames_FKD.shape[1]
    every = torch.cat([user_ND, target_ND, frames_FKD.flatten(0, 1)])
    perplexity = min(_PERPLEXITY, (len(every) - 1) / 3)
    places = TSNE(
        2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed
    ).fit_transform(every.numpy()).tolist()  # fmt: skip
    n = len(users)
    crowd = [number if number < FOCUS else -1 for number in range(n)]
    after = [names.history(user, 1)[0] for user in users.tolist()]
    points = [
        *(Point(kind="user", x=x, y=y, title=f"after {after[number]}", focus=crowd[number])
          for number, (x, y) in enumerate(places[:n])),
        *(Point(kind="target", x=x, y=y, title=names.item(targets[number]), focus=crowd[number])
          for number, (x, y) in enumerate(places[n : 2 * n])),
        *(Point(kind="frame", x=x, y=y, title=after[number // steps], focus=number // steps, frame=number % steps + 1)
          for number, (x, y) in enumerate(places[2 * n :])),
    ]  # fmt: skip
    return Embedding(
        users=n, perplexity=perplexity, seed=seed, distance=_distance(user_ND, target_ND), points=tuple(points)
    )


def _frames(model: SequenceModel, loaded: Loaded, users: Ints) -> Tensor:
    """(F, K, D) refined frames of the last items as NPD reads them, of length 1; K is 0 for other systems."""
    if not isinstance(model, MealRec):
        return torch.zeros(len(users), 0, model.item_vectors().shape[1])
    (batch,) = loaded.evaluation_batches("test", users, len(users))
    read = model.preference.visual(model.refined(batch)[1])
    return torch.nn.functional.normalize(read.float().cpu(), dim=2)


def _distance(user_ND: Tensor, target_ND: Tensor) -> float:
    """Mean distance of users to their own targets, as a share of that to the targets of all others."""
    distances = torch.cdist(user_ND, target_ND)
    own = distances.diagonal().mean()
    n = len(distances)
    others = (distances.sum() - distances.diagonal().sum()) / max(1, n * (n - 1))
    return float(own / others) if others > 0 else 1.0
