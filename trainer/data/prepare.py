"""From an imported log to a prepared dataset: order, sample, k-core, content, written in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from retrieval.disk import told_of_disk
from retrieval.folders import scratch_folder, writable_folder
from trainer.data.format.content import Content
from trainer.data.format.manifest import Core, CoreOn, Manifest, file_info
from trainer.data.format.writer import write_dataset
from trainer.data.kept import Kept, PrepareOptions, Selected, by_name, dense, lost, nothing_left, warn_of_core
from trainer.data.partitioned.run import Where, select
from trainer.data.provided import feature_content
from trainer.data.selection import MIN_ITEMS, codes, k_core, sample_users
from trainer.data.sources.base import Log
from trainer.data.sources.table import LogInParts

#: makes content of titles (None where an item has none); may keep files in a folder that is there as long as needed
TitlesToContent = Callable[[Sequence[str | None], Path], Mapping[ContentField, Content]]


def prepare(
    log: Log, out: Path, options: PrepareOptions, command: str, of_titles: TitlesToContent | None = None
) -> Manifest:
    """Write `log` as a prepared dataset to `out` (docs/dataset-format.md).

    Users are sampled first, then the k-core is taken over what is left, so that it holds in the dataset itself.
    of_titles: makes content of the items' titles, beside what `options.features` gives. command: for the manifest.
    Raises UserError: nothing left, content that does not fit, `out` not empty.
    """
    return _prepare(lambda _: _select(log, options), out, options, command, of_titles)


def prepare_in_partitions(
    log: LogInParts,
    where: Where,
    out: Path,
    options: PrepareOptions,
    command: str,
    of_titles: TitlesToContent | None = None,
) -> Manifest:
    """`prepare` for a log that is never in memory as a whole: the same dataset. where: what does the work, and in how
    many partitions. Raises UserError as `prepare`, and as reading the log does; and as `cluster.ray_tasks`.
    """
    return _prepare(lambda scratch: select(log, where, options, scratch), out, options, command, of_titles)


def _prepare(
    choose: Callable[[Path], Selected],
    out: Path,
    options: PrepareOptions,
    command: str,
    of_titles: TitlesToContent | None,
) -> Manifest:
    """choose: gives what is kept of the log; may keep files in the folder that it gets."""
    out = writable_folder(out)  # refuses it before minutes of embedding, not after
    with scratch_folder(out) as scratch, told_of_disk(out.parent, scratch):
        selected = choose(scratch)
        kept = selected.kept
        given = feature_content(options.features, kept.item_ids, scratch)
        known = {**given.titles, **selected.titles}
        titles = [known.get(item) for item in kept.item_ids]
        if of_titles:
            given = replace(given, content=_both(given.content, of_titles(titles, scratch), options.features))
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
            behaviour_names=selected.behaviour_names,
            max_length=options.max_length or history_length(np.diff(kept.offsets)),
            core=Core(k=0 if options.core_on == "none" else options.k_core, on=options.core_on),
            dropped={**selected.dropped, **given.unused},
            command=command,
            sources=selected.digests | given.sources,
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

    def all_counts(self) -> tuple[int, int]:
        return self.counts(np.ones(len(self.users), np.bool_))

    def core_counts(self, k: int, on: CoreOn) -> tuple[int, int]:
        return self.counts(self.core(k, on))


def _select(log: Log, options: PrepareOptions) -> Selected:
    frame = log.frame
    users, user_names = dense(frame["user"])
    items, item_names = dense(frame["item"])
    keep, sample = np.ones(len(users), np.bool_), None
    if options.sample_users is not None:
        keep = sample_users(users, len(user_names), options.sample_users, options.seed)
        sample = (len(user_names) - options.sample_users, int((~keep).sum()))
    few = keep & (np.bincount(users, minlength=len(user_names)) < MIN_ITEMS)[users]
    few_counts = (len(np.unique(users[few])), int(few.sum()))
    keep &= ~few
    rows = _Rows(users[keep], items[keep])
    in_core = rows.core(options.k_core, options.core_on)
    before, after = rows.all_counts(), rows.counts(in_core)
    outside = (before[0] - after[0], before[1] - after[1], len(in_core) - int(in_core.sum()))
    dropped = lost(options, sample, few_counts, outside)
    if not in_core.any():
        raise nothing_left(len(users), dropped)
    warn_of_core(rows, after, options)
    keep[np.flatnonzero(keep)] = in_core
    return Selected(
        _order(frame, users, items, keep, user_names, item_names),
        {**log.dropped, **dropped},
        log.titles,
        log.behaviour_names,
        by_name({path: file_info(path).sha256 for path in log.files}) | log.digests,
    )


def _order(
    frame: pl.DataFrame,
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    keep: NDArray[np.bool_],
    user_names: pl.Series,
    item_names: pl.Series,
) -> Kept:
    """Kept rows by user and time; rows of equal time stay in the order of the source."""
    user, user_codes = codes(users[keep])
    item, item_codes = codes(items[keep])
    times = frame["time"].to_numpy()[keep]
    order = np.lexsort((times, user))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
    behaviours = frame["behaviours"].to_numpy()[keep][order] if "behaviours" in frame.columns else None
    return Kept(
        user_ids=user_names[user_codes],
        item_ids=item_names[item_codes].to_list(),
        offsets=offsets,
        items=(item[order] + 1).astype(np.int32),
        times=times[order],
        behaviours=behaviours,
    )


def _both(
    given: Mapping[ContentField, Content], made: Mapping[ContentField, Content], folders: Sequence[str]
) -> dict[ContentField, Content]:
    in_both = sorted(made.keys() & given.keys())
    if in_both:
        raise UserError(
            f"--text and --segments make {', '.join(in_both)}, which {', '.join(folders)} holds as well; choose one"
        )
    return {**given, **made}
