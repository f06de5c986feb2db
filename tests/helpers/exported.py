"""An exported model: a real system of the registry, untrained, on a few items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from models import systems
from models.contract import Baseline, ModelContext, Moments, SequenceModel, TrainingInteractions
from models.options.base import ContentField
from models.tensor_table import TensorTable
from retrieval.export import write_export

N_ITEMS, MAX_LENGTH = 60, 5
IDS = [f"v{row * 7}" for row in range(1, N_ITEMS)]
TITLES = [None if row % 2 else f"title {row}" for row in range(1, N_ITEMS)]


Content = dict[ContentField, torch.Tensor]
MOMENTS: dict[ContentField, Moments] = {
    "text": Moments(torch.arange(6.0), torch.arange(1.0, 7.0)),
    "visual": Moments(torch.arange(4.0), torch.arange(1.0, 5.0)),
    "sequence": Moments(-torch.arange(4.0), torch.arange(2.0, 6.0)),
}
NEEDS: dict[str, tuple[ContentField, ...]] = {
    "sasrec": (),
    "tedrec": ("text", "visual"),
    "mealrec": ("text", "visual", "sequence"),
    "transition-knn": (),
}
WATCHED = TrainingInteractions(torch.tensor([0, 3, 7]), torch.tensor([1, 2, 3, 3, 5, 7, 9]))


def make_model(system: str) -> tuple[SequenceModel | Baseline, Content, Content]:
    """The system in eval mode, its content, and which items have it."""
    torch.manual_seed(0)
    present = torch.rand(N_ITEMS) > 0.2
    present[0] = False
    text = torch.randn(N_ITEMS, 6).half() * present[:, None]
    sequence = torch.randn(N_ITEMS, 3, 4).half() * present[:, None, None]
    every: Content = {"text": text, "visual": sequence.float().mean(1).half(), "sequence": sequence}
    content = {field: every[field] for field in NEEDS[system]}
    kinds, moments = dict.fromkeys(content, "segments"), {field: MOMENTS[field] for field in content}
    table = TensorTable(N_ITEMS, content, dict.fromkeys(content, present), kinds, moments)
    context = ModelContext(table, WATCHED, MAX_LENGTH, seed=3)
    model = systems.build(system, systems.options_of(system, {}), context)
    return model if isinstance(model, Baseline) else model.eval(), content, dict.fromkeys(content, present)


def export_model(
    out: Path,
    system: str = "sasrec",
    ids: Sequence[str] = IDS,
    provenance: Mapping[str, object] | None = None,
    titles: Sequence[str | None] = TITLES,
) -> SequenceModel | Baseline:
    """Export an untrained system with 59 items. Items 1, 2, 3 were watched 1, 2, 3 times, the others never."""
    model, content, present = make_model(system)
    learned = isinstance(model, SequenceModel)
    with torch.no_grad():
        vectors = model.item_vectors() if learned else torch.zeros(N_ITEMS, 0)
    write_export(
        out,
        system=system,
        options={},
        similarity=model.similarity if learned else "dot",
        max_length=MAX_LENGTH,
        inference=model.inference_choices[-1] if learned else "default",
        seed=3,
        weights=model.state_dict() if learned else {},
        item_vectors=vectors,
        item_ids=ids,
        train_counts=[1, 2, 3] + [0] * (N_ITEMS - 4),
        provenance=provenance,
        titles=titles,
        content=content,
        present=present,
        content_kinds=dict.fromkeys(content, "segments"),
        moments={field: MOMENTS[field] for field in content},
        interactions=None if learned else WATCHED,
    )
    if learned:
        model.inference = model.inference_choices[-1]
    return model
