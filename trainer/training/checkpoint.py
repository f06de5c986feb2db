"""Checkpoints that are complete or absent: written under a temporary name, hashed, synced, then renamed into place.

There is one writer at a time (rank 0). `checkpoint_files` lists the files. Nothing here is unpickled: tensors are
safetensors, everything else is JSON.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save as encode_tensors
from torch import Tensor

from cluster import console
from models.errors import UserError
from models.row_share import RowShare
from retrieval.files import DISK, FileSystem, digest, sync_folder, write_new
from trainer.training.checkpoint_files import (
    MANIFEST,
    SCHEMA_VERSION,
    STATE,
    TENSORS,
    left_overs,
    step_folder,
    step_folders,
)
from trainer.training.checkpoint_reading import GROUP, Checkpoint, DamagedError, read
from trainer.training.row_parts import RowParts

_Found = TypeVar("_Found")


class CheckpointStore:
    """The checkpoints of one run, in the folder `root`. The first commit makes the folder.

    share: the rows to read of tables that are in parts, see `row_parts`; None: all.
    """

    def __init__(self, root: Path, files: FileSystem = DISK, share: RowShare | None = None) -> None:
        self.root = root
        self._files, self._share = files, share

    def commit(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: Collection[int] | None = None,
        parts: RowParts | None = None,
    ) -> Path:
        """Write one checkpoint, completely or not at all; return its folder.

        step: at least 0; a checkpoint of the same step is replaced. tensors: by group (one file each) and name; views
        and tensors on other devices are copied. parts: further groups, each in memory while it is written. state: JSON
        values. keep: older steps to keep; if it is given, all
        others are removed once the new checkpoint is in place.
        If a commit fails, the earlier checkpoints can still be loaded. Raises UserError when the disk is full and
        ValueError for a bad step or group name; other errors of the system pass through.
        """
        if step < 0 or any(not GROUP.fullmatch(group) for group in tensors):
            raise ValueError(f"bad step {step} or group name in {sorted(tensors)}")
        encoded_state = json.dumps(dict(state), indent=1).encode()
        needed = len(encoded_state) + sum(t.nbytes for group in tensors.values() for t in group.values())
        needed += parts.bytes if parts is not None else 0
        aside = self.root / f".tmp-{uuid.uuid4().hex}"
        try:
            self._write_folder(aside, step, itertools.chain(tensors.items(), parts or ()), encoded_state)
            self._put_in_place(aside, step)
            if keep is not None:
                self.prune({*keep, step})
        except OSError as error:
            # free the space; the next prune removes what cannot be removed now
            shutil.rmtree(aside, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(self._full(step, needed)) from error
            raise
        return self._folder(step)

    def latest(self) -> Checkpoint | None:
        """The checkpoint of the highest step that is whole; None if there never was one.

        Warns of damaged ones. May be called while another process commits. Raises UserError, naming a file, where
        checkpoints are there and all of them are damaged.
        """
        return self._newest(lambda checkpoint: checkpoint)

    def latest_and_best(self) -> tuple[Checkpoint, Checkpoint | None] | None:
        """As `latest`, with the best checkpoint, which the state of the latest names (`stopping.best_step`).

        The best is None before the first validation. A checkpoint whose best one is gone or damaged is passed over,
        as if it were damaged itself.
        """
        return self._newest(self._with_best)

    def _with_best(self, latest: Checkpoint) -> tuple[Checkpoint, Checkpoint | None]:
        step = int(latest.state["stopping"]["best_step"])
        if step in (-1, latest.step):
            return latest, latest if step == latest.step else None
        return latest, self._read_step(step, every_file=True)

    def _newest(self, complete: Callable[[Checkpoint], _Found]) -> _Found | None:
        """What `complete` makes of the checkpoint of the highest step for which it, too, raises no DamagedError."""
        while True:
            listed, damage = self._listing(), list[str]()
            for step, folder, _ in listed:
                try:
                    found = complete(read(folder, step, self._share, every_file=True))
                except DamagedError as error:
                    if self._listing() != listed:  # a writer replaced or removed what was being read
                        break
                    damage.append(f"checkpoint of step {step} is damaged and not used: {error}")
                    continue
                for line in damage:
                    console.warn(line)
                return found
            else:
                if not damage:
                    return None
                raise UserError(
                    f"no checkpoint in {self.root} is whole, so there is nothing to go on from:\n"
                    + "\n".join(damage)
                    + "\nBring the damaged file back from a copy; or move that folder away, to train from the start"
                )

    def _listing(self) -> list[tuple[int, Path, int]]:
        """`_folders`, with a number that is another one once a writer replaced the folder or its manifest.

        Lists again when a folder was replaced before it was looked at.
        """
        while True:
            folders = self._folders()
            listing = [(step, folder, _inode(folder)) for step, folder in folders]
            if folders == self._folders():
                return listing

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`. Raises UserError if it is missing or damaged, naming the file."""
        try:
            return self._read_step(step, every_file=False)
        except DamagedError as error:
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no usable checkpoint of step {step}: {error}. Steps in {self.root}: {there}.") from None

    def _read_step(self, step: int, *, every_file: bool) -> Checkpoint:
        damage = DamagedError(f"{self._folder(step)} does not exist")
        for found, folder in self._folders():
            if found == step:
                try:
                    return read(folder, step, self._share, every_file=every_file)
                except DamagedError as error:
                    damage = error
        raise damage

    def steps(self) -> list[int]:
        """Steps that have a folder, in ascending order, including damaged ones."""
        return sorted({step for step, _ in self._folders()})

    def prune(self, keep: Collection[int]) -> None:
        """Remove all steps except `keep`, and folders that interrupted commits and removals left behind."""
        folders = self._folders()
        for step, folder in folders:
            superseded = folder != self._folder(step) and (step, self._folder(step)) in folders
            if step not in keep or superseded:
                self._trash(folder)
        for path in left_overs(self.root):
            self._files.remove_tree(path)

    def _write_folder(
        self, folder: Path, step: int, groups: Iterable[tuple[str, Mapping[str, Tensor]]], encoded_state: bytes
    ) -> None:
        if not self.root.exists():
            self._files.mkdir(self.root)
            sync_folder(self.root.parent, self._files)
        self._files.mkdir(folder)
        entries = {STATE: self._write(folder / STATE, encoded_state)}
        for group, named in groups:
            # copy each one: safetensors refuses tensors that share storage, such as views of a flat buffer
            own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in named.items()}
            entries[group + TENSORS] = self._write(folder / (group + TENSORS), encode_tensors(own))
        manifest = {"schema_version": SCHEMA_VERSION, "step": step, "files": entries}
        self._write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(folder, self._files)

    def _write(self, path: Path, data: bytes) -> dict[str, Any]:
        write_new(path, data, self._files)
        return {"bytes": len(data), "sha256": digest(data)}

    def _put_in_place(self, aside: Path, step: int) -> None:
        final, former = self._folder(step), self.root / f".replaced-{step:09d}"
        if final.exists():
            if former.exists():
                self._trash(former)
            self._files.rename(final, former)
        self._files.rename(aside, final)
        sync_folder(self.root, self._files)
        if former.exists():
            self._trash(former)

    def _trash(self, folder: Path) -> None:
        # rename first: a kill during the removal must not leave half a checkpoint under a name that is read
        trash = self.root / f".trash-{uuid.uuid4().hex}"
        self._files.rename(folder, trash)
        self._files.remove_tree(trash)

    def _folder(self, step: int) -> Path:
        return step_folder(self.root, step)

    def _folders(self) -> list[tuple[int, Path]]:
        return step_folders(self.root)

    def _full(self, step: int, needed: int) -> str:
        present = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(present).free
        return (
            f"no space left for the checkpoint of step {step}: it needs {needed / 1e6:.1f} MB in {self.root}, "
            f"{free / 1e6:.1f} MB are free. Earlier checkpoints are untouched: free some space, "
            "then continue with --resume."
        )


def _inode(folder: Path) -> int:
    """Of the manifest, or of the folder if it has none; 0 if there is neither, as behind a link that leads nowhere."""
    for path in (folder / MANIFEST, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_ino
    return 0
