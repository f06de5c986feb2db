"""From an imported log to a prepared dataset: order, sample, k-core, content, written in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import console
from models.errors import UserError
from models.options.base import ContentField
from retrieval.disk import told_of_disk
from retrieval.folders import scratch_folder, writable_folder
from trainer.data.format.content import Content
from trainer.data.format.manifest import Core, CoreOn, Manifest, file_info
from trainer.data.format.writer import write_dataset
from trainer.data.provided import Given, feature_content
from trainer.data.selection import codes, k_core, sample_users
from trainer.data.sources.base import Log

#: makes content of titles (None where an item has none); may keep files in a folder that is there as long as needed
TitlesToContent = Callable[[Sequence[str | None], Path], Mapping[ContentField, Content]]


@dataclass(frozen=True)
class PrepareOptions:
    """What is kept of a log, and folders with the vectors of its items. max_length: None chooses it by the log."""

    k_core: int = 4
    core_on: CoreOn = "both"
    sample_users: int | None = None
    seed: int = 0
    max_length: int | None = None
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("k_core", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
        # checked here, before a long import: numpy's generator takes no negative seed
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: give a number of at least 0")


@dataclass(frozen=True)
class _Kept:
    user_ids: list[str]
    item_ids: list[str]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    behaviours: NDArray[np.uint8] | None


def prepare(
    log: Log, out: Path, options: PrepareOptions, command: str, of_titles: TitlesToContent | None = None
) -> Manifest:
    """Write `log` as a prepared dataset to `out` (docs/dataset-format.md).

    Users are sampled first, then the k-core is taken over what is left, so that it holds in the dataset itself.
    of_titles: makes content of the items' titles, beside what `options.features` gives. command: for the manifest.
    Raises UserError: nothing left, content that does not fit, `out` not empty.
    """
    out = writable_folder(out)  # refuses it before minutes of embedding, not after
    with scratch_folder(out) as scratch, told_of_disk(out.parent, scratch):
        kept, lost = _select(log, options)
        given = feature_content(options.features, kept.item_ids, scratch)
        known = {**given.titles, **log.titles}
        titles = [known.get(item) for item in kept.item_ids]
        if of_titles:
            given = replace(given, content=_both(given.content, of_titles(titles, scratch), options.features))
        return _write(log, kept, lost, given, titles, out, options, command)


def _write(
    log: Log,
    kept: _Kept,
    lost: Mapping[str, int],
    given: Given,
    titles: Sequence[str | None],
    out: Path,
    options: PrepareOptions,
    command: str,
) -> Manifest:
    return write_dataset(
        out,
        user_ids=kept.user_ids,
        item_ids=kept.item_ids,
        offsets=kept.offsets,
        items=kept.items,
        content=given.content,
        item_titles=titles,
        times=kept.times,
        behaviours=kept.behaviours,
        behaviour_names=log.behaviour_names,
        max_length=options.max_length or history_length(np.diff(kept.offsets)),
        core=Core(k=0 if options.core_on == "none" else options.k_core, on=options.core_on),
        dropped={**log.dropped, **lost, **given.unused},
        command=command,
        sources=_digests(log.files) | log.digests | given.sources,
    )


def history_length(lengths: NDArray[np.int64]) -> int:
    """How many items a history holds where nothing else is asked for: so many that nine of ten users fit with all that
    precedes their test target, rounded up to tens, and 10 to 50, since time and memory grow with it.

    lengths: (U,) interactions of each user.
    """
    most = float(np.quantile(lengths - 1, 0.9))
    return int(min(50, max(10, 10 * np.ceil(most / 10))))


@dataclass(frozen=True)
class _Rows:
    """The interactions that the k-core is taken of: codes of their users and items, (N,) each."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]

    def counts(self, keep: NDArray[np.bool_]) -> tuple[int, int]:
        """How many users and items the rows of `keep` have."""
        return len(np.unique(self.users[keep])), len(np.unique(self.items[keep]))

    def core(self, k: int, on: CoreOn) -> NDArray[np.bool_]:
        return k_core(self.users, self.items, k, on)


def _warn_of_core(rows: _Rows, kept: tuple[int, int], options: PrepareOptions) -> None:
    """Where the core drops half of the users or items: say so before the long work, and what else would keep."""
    users, items = rows.counts(np.ones(len(rows.users), np.bool_))
    if 2 * kept[0] > users and 2 * kept[1] > items:
        return
    k, on = options.k_core, options.core_on
    others: list[tuple[int, CoreOn]] = [(k - 1, on), (2, on), (k, "users"), (0, "none")]
    lines = []
    for other_k, other_on in dict.fromkeys(other for other in others if other[0] != 1 and other != (k, on)):
        counts = rows.counts(rows.core(other_k, other_on))
        choice = "--core-on none" if other_on == "none" else f"--k-core {other_k} --core-on {other_on}"
        lines.append(f"  {choice:<28} keeps {counts[0]:,} users and {counts[1]:,} items")
    console.warn(
        f"the {_core(options)} keeps only {kept[0]:,} of {users:,} users and {kept[1]:,} of {items:,} items. "
        "To keep more, stop this (Ctrl-C) and add one of:\n" + "\n".join(lines)
    )


def _core(options: PrepareOptions) -> str:
    return f"{options.k_core}-core on {options.core_on}"


def _digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of what was read, by name; by path where two have one name, as parts in several folders may."""
    names = [path.name for path in files]
    return {path.name if names.count(path.name) == 1 else str(path): file_info(path).sha256 for path in files}


def _select(log: Log, options: PrepareOptions) -> tuple[_Kept, dict[str, int]]:
    frame = log.frame
    users, user_names = _dense(frame["user"])
    items, item_names = _dense(frame["item"])
    lost: dict[str, int] = {}
    keep = np.ones(len(users), np.bool_)
    if options.sample_users is not None:
        keep = sample_users(users, len(user_names), options.sample_users, options.seed)
        lost["users not in the sample"] = len(user_names) - options.sample_users
        lost["interactions of users not in the sample"] = int((~keep).sum())
    few = keep & (np.bincount(users, minlength=len(user_names)) < 3)[users]
    lost["users with fewer than 3 interactions"] = len(np.unique(users[few]))
    lost["interactions of users with fewer than 3"] = int(few.sum())
    keep &= ~few
    before = keep.copy()
    rows = _Rows(users[keep], items[keep])
    keep[np.flatnonzero(keep)] = rows.core(options.k_core, options.core_on)
    core = _core(options)
    for name, code in (("users", users), ("items", items)):
        lost[f"{name} outside the {core}"] = len(np.unique(code[before])) - len(np.unique(code[keep]))
    lost[f"interactions outside the {core}"] = int(before.sum()) - int(keep.sum())
    if not keep.any():
        raise UserError(
            f"no interaction is left of {len(users):,}: {_words(lost)}; "
            "lower --k-core, choose another --core-on, or sample more users"
        )
    _warn_of_core(rows, _Rows(users, items).counts(keep), options)
    return _order(frame, users, items, keep, user_names, item_names), lost


def _order(
    frame: pl.DataFrame,
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    keep: NDArray[np.bool_],
    user_names: pl.Series,
    item_names: pl.Series,
) -> _Kept:
    """Kept rows by user and time; rows of equal time stay in the order of the source."""
    user, user_codes = codes(users[keep])
    item, item_codes = codes(items[keep])
    times = frame["time"].to_numpy()[keep]
    order = np.lexsort((times, user))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
    behaviours = frame["behaviours"].to_numpy()[keep][order] if "behaviours" in frame.columns else None
    return _Kept(
        user_ids=user_names[user_codes].to_list(),
        item_ids=item_names[item_codes].to_list(),
        offsets=offsets,
        items=(item[order] + 1).astype(np.int32),
        times=times[order],
        behaviours=behaviours,
    )


def _dense(column: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """Codes in order of first appearance, and the name of each code."""
    names = column.unique(maintain_order=True)
    if column.dtype == pl.Categorical:  # its codes are in any order, and may have gaps
        there, own = (each.to_physical().to_numpy() for each in (names, column))
        place = np.zeros(int(there.max(initial=0)) + 1, np.int64)
        place[there] = np.arange(len(there))
        return place[own], names.cast(pl.String)
    table = pl.DataFrame({"name": names, "code": np.arange(len(names), dtype=np.int64)})
    joined = column.to_frame("name").join(table, on="name", how="left", maintain_order="left")
    return joined["code"].to_numpy(), names


def _both(
    given: Mapping[ContentField, Content], made: Mapping[ContentField, Content], folders: Sequence[str]
) -> dict[ContentField, Content]:
    in_both = sorted(made.keys() & given.keys())
    if in_both:
        raise UserError(
            f"--text and --segments make {', '.join(in_both)}, which {', '.join(folders)} holds as well; choose one"
        )
    return {**given, **made}


def _words(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
