"""`mealrec prepare synthetic`: a world with planted truth, written as a prepared dataset.

Besides the files of docs/dataset-format.md, the folder holds what no model may read, for tests and reports:
`truth/item_topic.npy` (I + 1,) int32, `truth/item_cold.npy` (I + 1,) bool, `truth/frame_on_topic.npy` (I + 1, K) bool,
and `truth/accidental.npy` (N,) bool along `sequences/items.npy`. Row 0 is padding (topic -1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np

from models.options.base import ContentField
from retrieval.folders import whole_folder
from trainer.data.format.content import Content
from trainer.data.format.manifest import MANIFEST, Manifest, file_info
from trainer.data.format.table_file import NpyWriter
from trainer.data.format.writer import write_dataset
from trainer.data.synthetic.users import (
    BEHAVIOUR_NAMES,
    TARGET_SHARE,
    TRUTH_DEPTH,
    best_ranking,
    expected_metrics,
    histories,
)
from trainer.data.synthetic.world import Array, Catalogue, ItemContent, SyntheticOptions, catalogue

__all__ = ["SyntheticOptions", "generate"]

_BLOCK = 8192


def generate(out: Path, options: SyntheticOptions) -> None:
    """Write the world of `options` as a prepared dataset into `out`, atomically; equal options give equal data.

    Memory: some tens of bytes per item and per interaction, and one block of content. The manifest's `truth` holds the
    best possible HR@10, NDCG@10, HR@20 and NDCG@20 (expected, for a ranker that knows all that the generator knows,
    with the user's own history left out), the expected share of targets at ranks 1..100 of that ranking, from which
    other metrics of ranks have their best possible value, the realised shares of accidents and of cold test targets,
    and the options.
    Raises UserError: `out` exists and is not empty; a world too small for its histories.
    """
    with whole_folder(out) as work:  # the dataset and its truth appear together
        places = catalogue(options)
        content = ItemContent(options, places)
        interactions, truth = _interactions(options, places)
        manifest = _write(work, options, content, interactions, truth)
        _write_truth(work, options, places, content, interactions["accidental"], manifest)


def _interactions(options: SyntheticOptions, places: Catalogue) -> tuple[dict[str, Array], dict[str, Any]]:
    """Columns offsets (U + 1,), items, times, accidental, behaviours (N,), and the truth for the manifest."""
    columns: dict[str, list[Array]] = {"length": [], "items": [], "times": [], "accidental": [], "behaviours": []}
    probabilities, share, cold_targets = [], np.zeros(TRUTH_DEPTH), 0
    for part in histories(options, places):
        real = part.items >= 0
        columns["length"].append(part.length)
        columns["items"].append(part.items[real] + 1)
        columns["times"].append(part.times[real])
        columns["accidental"].append(part.accidental[real])
        columns["behaviours"].append(part.behaviours[real])
        probability = best_ranking(options, places, part, TRUTH_DEPTH)[1]
        probabilities.append(probability[:, :20])
        share += probability.sum(axis=0) / options.users
        cold_targets += int(places.cold[part.items[np.arange(len(part.length)), part.length - 1]].sum())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    joined["offsets"] = np.concatenate([[0], np.cumsum(joined.pop("length"))])
    return joined, {
        **expected_metrics(np.concatenate(probabilities)),
        TARGET_SHARE: share.tolist(),
        "accidental_share": float(joined["accidental"].mean()),
        "cold_target_share": cold_targets / options.users,
        "options": asdict(options),
    }


def _write(
    folder: Path, o: SyntheticOptions, content: ItemContent, columns: dict[str, Array], truth: dict[str, Any]
) -> Manifest:
    def whole(read: Callable[[int, int], Array]) -> Callable[[int, int], tuple[Array, Array]]:
        return lambda start, stop: (read(start, stop), np.ones(stop - start, bool))

    flags = " ".join(_flag(name, value) for name, value in asdict(o).items())
    k, v, h, s = o.frames, o.width, o.text_width, o.layers
    fields: dict[ContentField, Content] = {
        "sequence": Content((k, v), whole(content.frames), "frames", "synthetic"),
        "visual": Content((v,), whole(content.visual), "video", "synthetic"),
        "text": Content((h,), whole(content.text), "title", "synthetic"),
    }
    if s:
        fields["visual_layers"] = Content((s, v), whole(content.visual_layers), "video layers", "synthetic")
        fields["text_layers"] = Content((s, h), whole(content.text_layers), "title layers", "synthetic")
    return write_dataset(
        folder,
        user_ids=_Lazy(o.users, lambda start, stop: [f"u{i}" for i in range(start, stop)]),
        item_ids=_Lazy(o.items, lambda start, stop: [f"i{i}" for i in range(start, stop)]),
        item_titles=_Lazy(o.items, content.titles),
        offsets=columns["offsets"],
        items=columns["items"],
        times=columns["times"],
        behaviours=columns["behaviours"] if o.behaviours else None,
        behaviour_names=BEHAVIOUR_NAMES if o.behaviours else (),
        content=fields,
        max_length=o.max_length,
        command=f"mealrec prepare synthetic {flags}",
        truth=truth,
    )


def _flag(name: str, value: float) -> str:
    """An option as the command line takes it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _write_truth(
    folder: Path,
    options: SyntheticOptions,
    places: Catalogue,
    content: ItemContent,
    accidental: Array,
    manifest: Manifest,
) -> None:
    truth = folder / "truth"
    truth.mkdir()
    np.save(truth / "item_topic.npy", np.concatenate([[-1], places.topic]).astype(np.int32))
    np.save(truth / "item_cold.npy", np.concatenate([[False], places.cold]))
    np.save(truth / "accidental.npy", accidental)
    with NpyWriter(truth / "frame_on_topic.npy", (options.items + 1, options.frames), "|b1") as mask:
        mask.append(np.zeros((1, options.frames), bool))
        for start in range(0, options.items, _BLOCK):
            mask.append(content.on_topic(start, min(start + _BLOCK, options.items)))
    files = manifest.files | {f"truth/{path.name}": file_info(path) for path in sorted(truth.iterdir())}
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": files}).dumps(), encoding="utf-8")


class _Lazy(Sequence[str]):
    """A sequence of strings that are made when they are asked for: ids and titles of 10 million items do not fit."""

    def __init__(self, count: int, make: Callable[[int, int], list[str]]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            rows = range(self._count)[index]
            return self._make(rows.start, rows.stop) if rows.step == 1 and rows else [self[row] for row in rows]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count, index % self._count + 1)[0]
