"""What TCD does to the frames of the last video, and what each frame is worth to the user vector."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Batch
from models.mealrec.model import MealRec
from trainer.analysis.cases import Names
from trainer.analysis.record import FrameExample, Frames, FrameTruth
from trainer.analysis.scores import Ints
from trainer.batches.loader import Loaded
from trainer.data.format.dataset import map_array

_BATCH, _EXAMPLES = 512, 6


@torch.no_grad()
def frames(model: MealRec, loaded: Loaded, users: Ints, names: Names) -> Frames:
    """Change and influence of the frames of the last item of `users`, in their test."""
    parts: dict[str, list[Tensor]] = {}
    last = []
    for batch in loaded.evaluation_batches("test", users, _BATCH):
        for name, values in (("influence", _influence(model, batch)), ("change", model.frame_changes(batch))):
            if values is not None:
                parts.setdefault(name, []).append(values.cpu())
        last.append(batch.history.gather(1, batch.length[:, None] - 1)[:, 0].cpu())
    items = torch.cat(last).numpy()
    measures = {name: torch.cat(each).numpy() for name, each in parts.items()}  # (N, K) each
    on_topic = _on_topic(loaded, items)

    def of(name: str, place: int | None = None) -> tuple[float, ...]:
        """One user's values, or the mean over users; empty where nothing is measured."""
        if name not in measures:
            return ()
        values_NK = measures[name]
        return tuple((values_NK.mean(0) if place is None else values_NK[place]).tolist())

    return Frames(
        kind=loaded.table.kinds["sequence"],
        users=len(users),
        change=of("change"),
        influence=of("influence"),
        truth={} if on_topic is None else {name: _truth(values, on_topic) for name, values in measures.items()},
        examples=tuple(
            FrameExample(
                title=names.item(int(items[place])),
                change=of("change", place),
                influence=of("influence", place),
                on_topic=() if on_topic is None else tuple(on_topic[place].tolist()),
            )
            for place in range(min(_EXAMPLES, len(users)))
        ),
    )


def _influence(model: MealRec, batch: Batch) -> Tensor:
    """(B, K) 1 - cosine of the user vector, and of the one where this frame is the mean frame of the batch."""
    sequence_BKV = model.last_sequence(batch)
    whole_BD = model.user_vectors_with(batch, sequence_BKV)
    mean_V = sequence_BKV.flatten(0, 1).mean(0)
    found = []
    for frame in range(sequence_BKV.shape[1]):
        without_BKV = sequence_BKV.clone()
        without_BKV[:, frame] = mean_V
        without_BD = model.user_vectors_with(batch, without_BKV)
        found.append(1 - torch.nn.functional.cosine_similarity(whole_BD, without_BD, dim=1))
    return torch.stack(found, dim=1)


def _on_topic(loaded: Loaded, items: Ints) -> NDArray[np.bool_] | None:
    """(N, K) which frames show their item's topic; None where nobody knows, as outside synthetic worlds."""
    path = loaded.dataset.root / "truth/frame_on_topic.npy"
    if not path.exists():
        return None
    steps = loaded.table.widths["sequence"][0]
    planted: NDArray[np.bool_] = map_array(path, "|b1", (loaded.table.n_items, steps))[items]
    return planted


def _truth(values_NK: NDArray[np.floating], on_topic: NDArray[np.bool_]) -> FrameTruth:
    """Means over frames on topic and filler, and how often the first has the larger value within an item."""
    pairs = on_topic[:, :, None] & ~on_topic[:, None, :]
    larger = (values_NK[:, :, None] > values_NK[:, None, :]) + 0.5 * (values_NK[:, :, None] == values_NK[:, None, :])
    mixed = pairs.any()
    return FrameTruth(
        on=float(values_NK[on_topic].mean()) if on_topic.any() else 0.0,
        off=float(values_NK[~on_topic].mean()) if (~on_topic).any() else 0.0,
        separation=float(larger[pairs].mean()) if mixed else 0.5,
    )
