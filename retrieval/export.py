"""The exported model: one folder of safetensors and JSON, enough to encode a history and rank the catalogue.

```
model.json                what this is: system, options, content, metrics, provenance, sha256 of every other file
weights.safetensors       the model's state
item_vectors.safetensors  "vectors" (I, D) float32, row 0 padding
items.arrow               id, title and train_count, entry n is item row n + 1; and where the hash of an id is found
content.safetensors       FIELD float16 and FIELD.present bool, if the model needs content to encode a history
interactions.safetensors  "offsets" and "items" of the training interactions, if the model needs them to rank
index/KIND/               FAISS indices (`mealrec index`)
```
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import Moments, TrainingInteractions
from models.errors import UserError
from models.options.base import ContentField, Similarity
from retrieval.files import digest, digest_file
from retrieval.folders import whole_folder
from retrieval.items import Items, read_items, write_items
from retrieval.records import Record, check_file, read_record

_WEIGHTS, _VECTORS, _ITEMS, _CONTENT, _INTERACTIONS = (
    "weights.safetensors",
    "item_vectors.safetensors",
    "items.arrow",
    "content.safetensors",
    "interactions.safetensors",
)
#: until 2 content was stored standardised, until 3 items were JSON
_VERSION: Literal[4] = 4
_NO_INTERACTIONS = TrainingInteractions(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
_REMEDY = "export the model again with `mealrec export`"


class ContentSpec(Record):
    """Shape of one item's content, and a word that says what the content is ("segments", "title"); mean and standard
    deviation of the field, for systems that standardise it."""

    shape: list[int]
    kind: str
    mean: list[float]
    deviation: list[float]


class ModelCard(Record):
    """The content of `model.json`. seed: the ModelContext's, which keys the noise. files: SHA-256 by file name."""

    schema_version: Literal[4] = _VERSION
    system: str
    options: dict[str, object]
    similarity: Similarity
    max_length: int
    inference: str
    seed: int
    content: dict[ContentField, ContentSpec]
    metrics: dict[str, object]
    provenance: dict[str, object]
    behaviours: list[str]
    files: dict[str, str]

    @property
    def checksum(self) -> str:
        """Identifies what an index depends on: the vectors of items and users, and how they are compared."""
        parts = [self.similarity, self.inference, self.files[_WEIGHTS], self.files[_VECTORS]]
        return digest("\n".join(parts))


@dataclass(frozen=True)
class Export:
    """An exported system in host memory. item_vectors: (I, D) float32; content, present: (I, ...) by field.

    A baseline has no vectors: D is 0. interactions: the training interactions, empty unless the system needs them.
    """

    card: ModelCard
    weights: Mapping[str, Tensor]
    item_vectors: Tensor
    items: Items
    content: Mapping[ContentField, Tensor]
    present: Mapping[ContentField, Tensor]
    interactions: TrainingInteractions


def write_export(
    out: Path,
    *,
    system: str,
    options: Mapping[str, object],
    similarity: Similarity,
    max_length: int,
    inference: str,
    seed: int,
    weights: Mapping[str, Tensor],
    item_vectors: Tensor,
    item_ids: Sequence[str],
    titles: Sequence[str | None],
    train_counts: Sequence[int],
    content: Mapping[ContentField, Tensor] | None = None,
    present: Mapping[ContentField, Tensor] | None = None,
    content_kinds: Mapping[ContentField, str] | None = None,
    moments: Mapping[ContentField, Moments] | None = None,
    interactions: TrainingInteractions | None = None,
    behaviours: Sequence[str] = (),
    metrics: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> ModelCard:
    """Write the model folder `out`, whole or not at all.

    options: plain values, as `models.systems.options_of` takes them. seed: that of the ModelContext, which keys the
    noise. item_vectors: (I, D). item_ids, titles, train_counts: I - 1 entries, from row 1. content: (I, ...) per field,
    stored as float16. present: (I,) bool per field. content_kinds, moments: per field, see ContentSpec.
    interactions: only for systems that need them to rank. Raises UserError if `out` exists and is not an empty folder,
    ValueError if the arguments disagree on the number of items or on the fields.
    """
    content, present, kinds, moments = content or {}, present or {}, content_kinds or {}, moments or {}
    _require_agreement(len(item_vectors) - 1, (item_ids, titles, train_counts), (content, present, kinds, moments))
    with whole_folder(out) as new:
        _save(weights, new / _WEIGHTS)
        _save({"vectors": item_vectors.float()}, new / _VECTORS)
        write_items(new / _ITEMS, item_ids, titles, train_counts)
        if content:
            _save_content(content, present, new / _CONTENT)
        if interactions is not None:
            _save({"offsets": interactions.offsets, "items": interactions.items}, new / _INTERACTIONS)
        card = ModelCard(
            system=system, options=dict(options), similarity=similarity, max_length=max_length, inference=inference,
            seed=seed, content={field: _spec(x, kinds[field], moments[field]) for field, x in content.items()},
            metrics=dict(metrics or {}), provenance=dict(provenance or {}), behaviours=list(behaviours),
            files={path.name: digest_file(path).sha256 for path in sorted(new.iterdir())},
        )  # fmt: skip
        (new / "model.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def _require_agreement(
    items: int, columns: Sequence[Sequence[object]], by_field: Sequence[Mapping[ContentField, object]]
) -> None:
    """columns: ids, titles and training counts, an entry for each item. by_field: mappings of the same fields."""
    if {*map(len, columns)} != {items}:
        ids, titles, counts = map(len, columns)
        raise ValueError(f"{items} items have vectors, {ids} ids, {titles} titles, {counts} counts")
    if any(each.keys() != by_field[0].keys() for each in by_field):
        raise ValueError("content, present, content_kinds and moments name different fields")


def _save_content(content: Mapping[ContentField, Tensor], present: Mapping[ContentField, Tensor], path: Path) -> None:
    halves = {field: x.half() for field, x in content.items()}
    flags = {f"{field}.present": x.bool() for field, x in present.items()}
    _save(halves | flags, path)


def _spec(content: Tensor, kind: str, moments: Moments) -> ContentSpec:
    return ContentSpec(
        shape=list(content.shape[1:]), kind=kind, mean=moments.mean.tolist(), deviation=moments.deviation.tolist()
    )


def load_export(path: Path) -> Export:
    """The exported model in folder `path`, every file checked against its sha256.

    Raises UserError when a file is absent, damaged, or does not fit the others.
    """
    _require_export(path)
    _refuse_other_version(path / "model.json")
    card = cast(ModelCard, read_record(path / "model.json", ModelCard, _REMEDY))
    expected = {_WEIGHTS, _VECTORS, _ITEMS, *([_CONTENT] if card.content else [])}
    # only these names are accepted: another path in the file could lead out of the folder
    if card.files.keys() - {_INTERACTIONS} != expected:
        raise UserError(f"{path}/model.json lists the files {sorted(card.files)}, not {sorted(expected)}; {_REMEDY}")
    for name, recorded in card.files.items():
        check_file(path / name, recorded, _REMEDY)
    items = read_items(path / _ITEMS, _REMEDY)
    try:
        weights = load_file(path / _WEIGHTS)
        vectors = load_file(path / _VECTORS)["vectors"]
        stored = load_file(path / _CONTENT) if card.content else {}
        content = {field: stored[field] for field in card.content}
        present = {field: stored[f"{field}.present"] for field in card.content}
        interactions = _interactions(path) if _INTERACTIONS in card.files else _NO_INTERACTIONS
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; {_REMEDY}") from None
    counts = {len(vectors) - 1, len(items)}
    counts |= {len(x) - 1 for x in content.values()}
    if len(counts) != 1:
        raise UserError(f"{path}: vectors, items and content disagree on the number of items; {_REMEDY}")
    return Export(card, weights, vectors, items, content, present, interactions)


def index_folder(model_dir: Path, kind: str) -> Path:
    """The folder of the index of `kind` for the model in `model_dir`."""
    return model_dir / "index" / kind


def _require_export(path: Path) -> None:
    if (path / "model.json").exists():
        return
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: name one that `mealrec export` wrote")
    if (path / "config.yaml").exists() and (path / "checkpoints").exists():
        make = shlex.join(["mealrec", "export", "--run", str(path), "--out", f"export/{path.name}"])
        raise UserError(f"{path} is a run, not an exported model; this makes one of it: {make}")
    raise UserError(f"{path} holds no exported model (no model.json): name a folder that `mealrec export` wrote")


def _refuse_other_version(path: Path) -> None:
    try:
        version = json.loads(path.read_bytes())["schema_version"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # `read_record` says what is wrong
    if version != _VERSION:
        raise UserError(
            f"{path} has schema version {version!r}, this program reads {_VERSION}: another version exported it; "
            "use that one, or prepare the data, train and export again with this one"
        )


def _interactions(path: Path) -> TrainingInteractions:
    stored = load_file(path / _INTERACTIONS)
    return TrainingInteractions(stored["offsets"], stored["items"])


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode  # as the user's umask has it; safetensors makes files that nobody else can read
    # copies: safetensors refuses tensors that share memory, as tied weights do
    stored = {name: x.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    save_file(stored, path)
    path.chmod(mode)
