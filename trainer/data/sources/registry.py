"""The sources that `mealrec prepare` knows by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from models.registry import Registry
from trainer.data.sources.base import Source
from trainer.data.sources.microlens import MicroLens
from trainer.data.sources.recbole import RECBOLE
from trainer.data.sources.shortvideo import SHORTVIDEO
from trainer.data.sources.table import Table

SOURCES: Registry[Source] = Registry(
    "source",
    {
        "microlens": MicroLens(),
        "shortvideo": SHORTVIDEO,
        "recbole": RECBOLE,
        "table": Table(),
    },
)
