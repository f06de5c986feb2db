"""The model of an export, built again by this version's code and filled with the exported weights."""

from __future__ import annotations

from pathlib import Path

import torch

from models import systems
from models.contract import Baseline, ModelContext, Moments, SequenceModel
from models.errors import UserError
from models.options.base import SystemOptions
from models.tensor_table import TensorTable
from retrieval.export import Export, ModelCard


def _options(card: ModelCard, model_dir: Path) -> SystemOptions:
    try:
        return systems.options_of(card.system, card.options)
    except UserError as error:  # the checksums agreed, so the files are as written, and the code has changed
        raise UserError(
            f"the options in {model_dir} do not fit this version of MealRec:\n{error}\n"
            "If an earlier version exported it, use it with that version, or train and export again with this one"
        ) from None


def rebuild(export: Export, device: torch.device, model_dir: Path) -> SequenceModel | Baseline:
    """The model on `device`, ready to answer. Raises UserError if it does not fit this version, naming `model_dir`."""
    card = export.card
    table = TensorTable(
        fields={field: x.to(device) for field, x in export.content.items()},
        present={field: x.to(device) for field, x in export.present.items()},
        kinds={field: spec.kind for field, spec in card.content.items()},
        n_items=len(export.item_vectors),
        moments={
            name: Moments(torch.tensor(spec.mean), torch.tensor(spec.deviation)) for name, spec in card.content.items()
        },
    )
    context = ModelContext(
        table, export.interactions, card.max_length, card.seed, tuple(card.behaviours), export.items.titles
    )
    model = systems.build(card.system, _options(card, model_dir), context)
    if isinstance(model, Baseline):
        return model
    try:
        model.load_state_dict(dict(export.weights))
    except RuntimeError as error:  # names or shapes differ; the checksums agreed, so the code has changed
        first = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the weights in {model_dir} do not fit this version of {card.system} ({first}); "
            "export the run again with this version"
        ) from None
    if card.inference not in model.inference_choices:
        raise UserError(
            f"{model_dir} was exported with inference {card.inference!r}, but this version of {card.system} has only "
            f"{', '.join(model.inference_choices)}; export the run again with this version"
        )
    model.inference = card.inference
    return model.to(device).eval()
