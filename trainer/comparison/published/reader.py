"""Read Tables 2 and 3 of the paper, and tell whether a prepared dataset is one of the paper's."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from models.errors import UserError
from models.registry import nearest
from trainer.data.format.manifest import Frozen, Manifest
from trainer.text_files import read_yaml

_FOLDER = Path(__file__).parent
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class PaperDataset(Frozen):
    """A row of Table 1. source: of `mealrec prepare`, which reads logs of its platform."""

    printed: str
    source: str
    users: int
    items: int
    interactions: int

    @property
    def size(self) -> str:
        """The counts in words."""
        return f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions"


class Contradiction(Frozen):
    """What cannot be right, or is not said. name: of docs/fidelity.md. datasets: where it counts; empty: in all."""

    name: str
    datasets: tuple[str, ...] = ()
    says: str


class _Row(Frozen):
    system: str
    printed: str
    figures: dict[str, tuple[_Positive, ...]]
    starred: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class _Table(Frozen):
    metrics: tuple[str, ...]
    rows: tuple[_Row, ...]
    gains: dict[str, tuple[_Positive, ...]] = Field(default_factory=dict)
    contradictions: tuple[Contradiction, ...]


@dataclass(frozen=True)
class PublishedRow:
    """figures: by metric, as printed. system: its name here. printed: its name there. starred: with an asterisk."""

    system: str
    printed: str
    figures: dict[str, float]
    starred: frozenset[str]


@dataclass(frozen=True)
class Published:
    """A table of the paper for one dataset. gains: the row "Rel. Imp." in %, by metric; empty in Table 3.

    Metrics of Table 2 are named as here ("NDCG@10"); those of Table 3 are HR@20, train_seconds (of an epoch),
    evaluation_seconds, memory_mb, on one A100.
    """

    table: int
    dataset: PaperDataset
    metrics: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    gains: dict[str, float]
    contradictions: tuple[Contradiction, ...]

    def __getitem__(self, system: str) -> PublishedRow:
        """The row of a system, by its name here. Raises UserError if the table has none."""
        for row in self.rows:
            if row.system == system:
                return row
        raise UserError(f"Table {self.table} has no {system!r}: {nearest(system, [row.system for row in self.rows])}")


@functools.cache
def datasets() -> dict[str, PaperDataset]:
    """The datasets of the paper by name."""
    read = TypeAdapter(dict[str, PaperDataset])
    return read.validate_python(read_yaml(_FOLDER / "datasets.yaml"))


def published(table: int, dataset: str) -> Published:
    """Table 2 or 3 for one dataset. Raises UserError for another table, or a dataset that is not in it."""
    if table not in (2, 3):
        raise UserError(f"Table {table} of the paper is not kept: tables 2 (metrics) and 3 (cost) are")
    whole = _read(table)
    known = whole.rows[0].figures
    if dataset not in known:
        raise UserError(f"Table {table} has no dataset {dataset!r}: {nearest(dataset, known)}")
    rows = tuple(
        PublishedRow(
            row.system, row.printed, dict(zip(whole.metrics, row.figures[dataset], strict=True)),
            frozenset(row.starred.get(dataset, ())),
        )
        for row in whole.rows
    )  # fmt: skip
    gains = dict(zip(whole.metrics, whole.gains[dataset], strict=True)) if whole.gains else {}
    counting = tuple(each for each in whole.contradictions if not each.datasets or dataset in each.datasets)
    return Published(table, datasets()[dataset], whole.metrics, rows, gains, counting)


@functools.cache
def _read(table: int) -> _Table:
    return _Table.model_validate(read_yaml(_FOLDER / f"table{table}.yaml"))


def paper_dataset(manifest: Manifest) -> str | None:
    """The name of the paper's dataset that has the users, items and interactions of this one; None if none has."""
    sizes = (manifest.users, manifest.items, manifest.interactions)
    return next(
        (name for name, each in datasets().items() if (each.users, each.items, each.interactions) == sizes), None
    )


def why_not(manifest: Manifest) -> str:
    """Why a dataset that is none of the paper's cannot be compared with the published figures, in words."""
    words = manifest.provenance.command.split()
    source = words[words.index("prepare") + 1] if "prepare" in words[:-1] else None
    own = f"{manifest.users:,} users, {manifest.items:,} items, {manifest.interactions:,} interactions"
    if source == "synthetic":
        return f"a generated world ({own}), and none of the paper's datasets"
    theirs = [f"{each.printed} has {each.size}" for each in datasets().values() if each.source == source]
    if not theirs:
        return f"none of the paper's datasets ({own})"
    sampled = any(word.startswith("--sample-users") for word in words)
    return f"{'a sample' if sampled else 'another selection'} ({own}), and not comparable: {'; '.join(theirs)}"
