"""Every system by name. Registering one is one line in SYSTEMS: name, options class, model class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from models.baselines import (
    ContentKNN,
    ContentOptions,
    Popularity,
    PopularityOptions,
    RecencyOptions,
    TitleKNN,
    TransitionKNN,
    TransitionOptions,
)
from models.cl4srec import CL4SRec, CL4SRecOptions
from models.contract import ContentField, Floor, ModelContext, SequenceModel, System
from models.diqdiff import DiQDiff, DiQDiffOptions
from models.dmmd4sr.model import DMMD4SR, DMMD4SROptions
from models.errors import UserError
from models.iisan import IISAN, IISANOptions, IISANVersa, IISANVersaOptions
from models.m3bsr.model import M3BSR, M3BSROptions
from models.mealrec.model import MealRec, MealRecOptions
from models.mmgcn import MMGCN, MMGCNOptions
from models.morec import MoRec, MoRecOptions
from models.registry import Registry, nearest
from models.sasrec import SASRec, SASRecOptions
from models.ssdrec.model import SSDRec, SSDRecOptions
from models.tedrec import TedRec, TedRecOptions

SYSTEMS: Registry[tuple[type[Any], type[Any]]] = Registry("model", {
    "popularity": (PopularityOptions, Popularity),
    "transition-knn": (TransitionOptions, TransitionKNN),
    "tfidf-knn": (RecencyOptions, TitleKNN),
    "content-knn": (ContentOptions, ContentKNN),
    "sasrec": (SASRecOptions, SASRec),
    "cl4srec": (CL4SRecOptions, CL4SRec),
    "diqdiff": (DiQDiffOptions, DiQDiff),
    "ssdrec": (SSDRecOptions, SSDRec),
    "tedrec": (TedRecOptions, TedRec),
    "morec": (MoRecOptions, MoRec),
    "iisan": (IISANOptions, IISAN),
    "iisan-versa": (IISANVersaOptions, IISANVersa),
    "mealrec": (MealRecOptions, MealRec),
    "m3bsr": (M3BSROptions, M3BSR),
    "dmmd4sr": (DMMD4SROptions, DMMD4SR),
    "mmgcn": (MMGCNOptions, MMGCN),
})  # fmt: skip


def options_class(name: str) -> type[Any]:
    """The options dataclass of system `name`; UserError names the nearest system when there is none."""
    return SYSTEMS[name][0]


def parse_options(cls: type[Any], values: Mapping[str, object], where: str = "model") -> Any:
    """An options dataclass from plain values, nested dataclasses from nested mappings; unknown keys are refused."""
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown option {where}.{key}: {nearest(key, list(known))}")
    parsed = {}
    for key, value in values.items():
        default = getattr(cls(), key)
        if is_dataclass(default) and isinstance(value, Mapping):
            value = parse_options(type(default), value, f"{where}.{key}")
        parsed[key] = value
    return cls(**parsed)


def system_class(name: str) -> type[System]:
    """The class of system `name`, to ask what it needs before it is built."""
    options_class(name)
    return SYSTEMS[name][1]


def needs(name: str, options: Mapping[str, object]) -> tuple[ContentField, ...]:
    """Content without which system `name` with `options` cannot be built; options may know more than the class."""
    fields: tuple[ContentField, ...] = getattr(
        parse_options(options_class(name), options), "needs", system_class(name).needs
    )
    return fields


def build(name: str, options: Mapping[str, object], context: ModelContext) -> SequenceModel | Floor:
    """The system `name` with `options` over the data of `context`.

    Raises UserError for an unknown system or option, and where the dataset lacks content that the system needs.
    """
    cls = options_class(name)
    parsed = parse_options(cls, options)
    model: SequenceModel | Floor = SYSTEMS[name][1](parsed, context)
    return model
