"""All systems by name. To add one, add a line to SYSTEMS: its name, its options class and its model class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from models.options.base import SystemOptions
from models.options.content import require_content
from models.options.plain import from_plain
from models.registry import Registry

if TYPE_CHECKING:  # torch is imported when a model is built, not when a command is checked
    from models.contract import Baseline, ModelContext, SequenceModel


@dataclass(frozen=True)
class Entry:
    """The options class and the model class of a system; each is the class itself, or its name as "module:Class".

    A class given by name is imported when it is first needed. `model(options, context)` makes the model.
    """

    options: type[SystemOptions] | str
    model: type[SequenceModel] | type[Baseline] | str


SYSTEMS: Registry[Entry] = Registry("model", {
    "popularity": Entry("models.options.baselines:PopularityOptions", "models.baselines:Popularity"),
    "transition-knn": Entry("models.options.baselines:TransitionOptions", "models.baselines:TransitionKNN"),
    "tfidf-knn": Entry("models.options.baselines:TitleOptions", "models.baselines:TitleKNN"),
    "content-knn": Entry("models.options.baselines:ContentOptions", "models.baselines:ContentKNN"),
    "sasrec": Entry("models.options.sasrec:SASRecOptions", "models.sasrec:SASRec"),
    "cl4srec": Entry("models.options.cl4srec:CL4SRecOptions", "models.cl4srec:CL4SRec"),
    "diqdiff": Entry("models.options.diqdiff:DiQDiffOptions", "models.diqdiff:DiQDiff"),
    "ssdrec": Entry("models.options.ssdrec:SSDRecOptions", "models.ssdrec.model:SSDRec"),
    "tedrec": Entry("models.options.tedrec:TedRecOptions", "models.tedrec:TedRec"),
    "morec": Entry("models.options.morec:MoRecOptions", "models.morec:MoRec"),
    "iisan": Entry("models.options.iisan:IISANOptions", "models.iisan:IISAN"),
    "iisan-versa": Entry("models.options.iisan:IISANVersaOptions", "models.iisan:IISANVersa"),
    "mealrec": Entry("models.options.mealrec:MealRecOptions", "models.mealrec.model:MealRec"),
    "m3bsr": Entry("models.options.m3bsr:M3BSROptions", "models.m3bsr.model:M3BSR"),
    "dmmd4sr": Entry("models.options.dmmd4sr:DMMD4SROptions", "models.dmmd4sr.model:DMMD4SR"),
    "mmgcn": Entry("models.options.mmgcn:MMGCNOptions", "models.mmgcn:MMGCN"),
})  # fmt: skip


def options_class(name: str) -> type[SystemOptions]:
    """The options dataclass of system `name`. Raises UserError, with the nearest name, if there is no such system."""
    return cast(type[SystemOptions], _resolve(SYSTEMS[name].options))


def options_of(name: str, values: Mapping[Any, object]) -> SystemOptions:
    """The options of system `name` from plain values (YAML, JSON), complete and checked.

    Raises UserError for an unknown system or option (with the nearest name), or a value of wrong type or out of bounds.
    """
    return from_plain(options_class(name), values)


def check_content(name: str, options: SystemOptions, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError if system `name` cannot work with content of these shapes (of one item, by field)."""
    require_content(name, shapes, options.needs)
    options.check_content(shapes)


def build(name: str, options: SystemOptions, context: ModelContext) -> SequenceModel | Baseline:
    """The system `name` with `options` over the data of `context`.

    Raises UserError for an unknown system, or if the dataset lacks content that the system needs.
    """
    entry = SYSTEMS[name]
    check_content(name, options, context.table.widths)
    return cast("SequenceModel | Baseline", _resolve(entry.model)(options, context))


def _resolve(place: type[Any] | str) -> type[Any]:
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return cast(type[Any], getattr(importlib.import_module(module), name))
