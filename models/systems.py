"""All systems by name. To add one, add an entry to SYSTEMS: its name, its two classes, what it is."""

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

    A class given by name is imported when it is first needed. `model(options, context)` makes the model. what: the
    system in one line. source: its paper, empty if it has none. `mealrec systems` shows both.
    """

    options: type[SystemOptions] | str
    model: type[SequenceModel] | type[Baseline] | str
    what: str = ""
    source: str = ""


SYSTEMS: Registry[Entry] = Registry("model", {
    "popularity": Entry(
        "models.options.baselines:PopularityOptions", "models.baselines:Popularity",
        "what most users watched, the same list for all",
    ),
    "transition-knn": Entry(
        "models.options.baselines:TransitionOptions", "models.baselines:TransitionKNN",
        "what others watched after the items of the history",
    ),
    "tfidf-knn": Entry(
        "models.options.baselines:TitleOptions", "models.baselines:TitleKNN",
        "items whose titles share rare words with those of the history",
    ),
    "content-knn": Entry(
        "models.options.baselines:ContentOptions", "models.baselines:ContentKNN",
        "items whose content vectors are near those of the history",
    ),
    "sasrec": Entry(
        "models.options.sasrec:SASRecOptions", "models.sasrec:SASRec",
        "self-attention over the ids of the history", "Kang and McAuley, ICDM 2018",
    ),
    "cl4srec": Entry(
        "models.options.cl4srec:CL4SRecOptions", "models.cl4srec:CL4SRec",
        "SASRec that also learns to recognise a changed view of a history", "Xie et al., ICDE 2022",
    ),
    "diqdiff": Entry(
        "models.options.diqdiff:DiQDiffOptions", "models.diqdiff:DiQDiff",
        "diffusion of the next item, guided by quantised histories", "Mao et al., WWW 2025",
    ),
    "ssdrec": Entry(
        "models.options.ssdrec:SSDRecOptions", "models.ssdrec.model:SSDRec",
        "drops noise from histories, by graphs of relations", "Zhang et al., ICDE 2024",
    ),
    "tedrec": Entry(
        "models.options.tedrec:TedRecOptions", "models.tedrec:TedRec",
        "fuses titles with ids in the frequency domain, then self-attention", "Xu et al., CIKM 2024",
    ),
    "morec": Entry(
        "models.options.morec:MoRecOptions", "models.morec:MoRec",
        "self-attention over frozen content vectors in place of ids", "Yuan et al., SIGIR 2023",
    ),
    "iisan": Entry(
        "models.options.iisan:IISANOptions", "models.iisan:IISAN",
        "adapters over the layers of two frozen encoders, in place of ids", "Fu et al., SIGIR 2024",
    ),
    "iisan-versa": Entry(
        "models.options.iisan:IISANVersaOptions", "models.iisan:IISANVersa",
        "IISAN for two encoders of different size", "Fu et al., TKDE 2025",
    ),
    "mealrec": Entry(
        "models.options.mealrec:MealRecOptions", "models.mealrec.model:MealRec",
        "diffusions of the last video's content and of the preference, over a backbone",
        "Dong et al., arXiv 2603.01926",
    ),
    "m3bsr": Entry(
        "models.options.m3bsr:M3BSROptions", "models.m3bsr.model:M3BSR",
        "diffusions of content and behaviours, and experts for each behaviour", "Cui et al., SIGIR 2025",
    ),
    "dmmd4sr": Entry(
        "models.options.dmmd4sr:DMMD4SROptions", "models.dmmd4sr.model:DMMD4SR",
        "diffusion cleans text and video at four levels before they join the ids", "Lu and Yin, ACM MM 2025",
    ),
    "mmgcn": Entry(
        "models.options.mmgcn:MMGCNOptions", "models.mmgcn:MMGCN",
        "a graph convolution over users and items for each modality", "Wei et al., ACM MM 2019",
    ),
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
