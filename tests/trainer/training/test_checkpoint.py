"""A checkpoint is complete or absent, whichever operation fails and whenever the writer is killed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from retrieval.files import DISK, FileSystem
from tests.helpers.checkpoints import assert_consistent, content
from trainer.training.checkpoint import CheckpointStore


class Recorder(FileSystem):
    """Executes every operation, except that the one with index `fail_at` fails."""

    def __init__(self, fail_at: int = -1, code: int = errno.EIO) -> None:
        self.operations: list[str] = []
        self.fail_at, self.code = fail_at, code

    def _step(self, name: str) -> bool:
        self.operations.append(name)
        return len(self.operations) - 1 == self.fail_at

    def _run(self, name: str, operation: Callable[[], Any], partly: Callable[[], Any] = lambda: None) -> Any:
        if self._step(name):
            partly()
            raise OSError(self.code, os.strerror(self.code), name)
        return operation()

    def mkdir(self, path: Path) -> None:
        self._run(f"mkdir {path.name[:5]}", lambda: super(Recorder, self).mkdir(path))

    def open(self, path: Path) -> int:
        return int(self._run(f"open {path.name}", lambda: super(Recorder, self).open(path)))

    def open_folder(self, path: Path) -> int:
        return int(self._run(f"open_folder {path.name[:5]}", lambda: super(Recorder, self).open_folder(path)))

    def write(self, descriptor: int, data: memoryview) -> int:
        half = data[: len(data) // 2]  # every write is short; a write that fails writes half of the data
        part = half if len(half) else data
        write = super().write
        return int(self._run("write", lambda: write(descriptor, part), lambda: write(descriptor, half)))

    def fsync(self, descriptor: int) -> None:
        self._run("fsync", lambda: super(Recorder, self).fsync(descriptor))

    def rename(self, old: Path, new: Path) -> None:
        self._run(f"rename {old.name[:5]} {new.name[:5]}", lambda: super(Recorder, self).rename(old, new))

    def remove_tree(self, path: Path) -> None:
        def partly() -> None:
            next(file for file in path.iterdir() if file.is_file()).unlink()

        self._run(f"remove {path.name[:5]}", lambda: super(Recorder, self).remove_tree(path), partly)


def commit_first(store: CheckpointStore) -> None:
    store.commit(2, *content(2))


def commit_next(store: CheckpointStore) -> None:
    store.commit(2, *content(2), keep=())


def commit_same(store: CheckpointStore) -> None:
    store.commit(1, *content(1, seed=1), keep=())


#: the error, the tested commit, whether there is a checkpoint before it, and which (step, seed) may be the latest after
#: a failure; a full disk only changes the message, so one scenario is enough
SCENARIOS = [
    pytest.param(errno.EIO, commit_first, False, {None, (2, 0)}, id="first"),
    pytest.param(errno.EIO, commit_next, True, {(1, 0), (2, 0)}, id="next"),
    pytest.param(errno.ENOSPC, commit_next, True, {(1, 0), (2, 0)}, id="next, full disk"),
    pytest.param(errno.EIO, commit_same, True, {(1, 0), (1, 1)}, id="same step again"),
]


@pytest.mark.parametrize(("code", "commit", "has_first", "allowed"), SCENARIOS)
def test_any_failing_operation_leaves_a_whole_checkpoint(
    tmp_path: Path,
    code: int,
    commit: Callable[[CheckpointStore], None],
    has_first: bool,
    allowed: set[tuple[int, int] | None],
) -> None:
    recorder = Recorder()

    def store(name: str, files: FileSystem = DISK) -> CheckpointStore:
        if has_first:
            CheckpointStore(tmp_path / name).commit(1, *content(1))
        return CheckpointStore(tmp_path / name, files)

    commit(store("dry", recorder))
    assert len(recorder.operations) > 30
    outcomes = set()
    for index, operation in enumerate(recorder.operations):
        faulty = store(str(index), Recorder(index, code))
        with pytest.raises(UserError if code == errno.ENOSPC else OSError) as caught:
            commit(faulty)
        if code == errno.ENOSPC:
            assert str(faulty.root) in str(caught.value)
            assert "it needs 0.0 MB" in str(caught.value)
        after = CheckpointStore(faulty.root)
        latest = after.latest()
        outcomes.add(None if latest is None else assert_consistent(latest))
        assert outcomes <= allowed, operation
        commit(after)  # repeat the commit without the fault
        after.prune(after.steps()[-1:])
        assert [path.name for path in after.root.iterdir()] == [f"step-{after.steps()[-1]:09d}"], operation
        assert assert_consistent(after.latest()) == max(pair for pair in allowed if pair)
    assert outcomes == allowed  # some faults happened before the new checkpoint was in place, some after


def test_everything_is_synced_before_the_rename_and_the_parent_after(tmp_path: Path) -> None:
    recorder = Recorder()
    CheckpointStore(tmp_path, recorder).commit(1, *content(1))
    operations = recorder.operations
    rename = operations.index("rename .tmp- step-")
    opened = [op for op in operations[:rename] if op.startswith("open")]
    assert operations[:rename].count("fsync") == len(opened) == 5  # state, model, optimizer, manifest, folder
    assert opened[-2:] == ["open manifest.json", "open_folder .tmp-"]
    assert operations[rename + 1 :] == [f"open_folder {tmp_path.name[:5]}", "fsync"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_to_any_byte_is_seen_and_the_one_before_is_used(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        store.commit(1, *content(1))
        newest = store.commit(2, *content(2))
        files = sorted(newest.iterdir())
        victim = data.draw(st.sampled_from(files))
        raw = bytearray(victim.read_bytes())
        where = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "grow", "remove"]))
        if kind == "flip":
            raw[where] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[where:]
        elif kind == "grow":
            raw += b"x"
        victim.unlink() if kind == "remove" else victim.write_bytes(raw)
        step, _ = assert_consistent(store.latest())
        # a flipped bit in white space of the manifest changes nothing; any other damage must be noticed
        assert step == 1 or victim.name == "manifest.json"


def test_damage_is_reported_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    assert CheckpointStore(tmp_path / "absent").latest() is None
    store.commit(1, *content(1))
    weights = store.commit(2, *content(2)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert assert_consistent(store.latest()) == (1, 0)
    assert f"warning: checkpoint of step 2 is damaged and not used: {weights}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"step 2: .*model.safetensors has .* bytes.* Steps in .*: 1, 2"):
        store.load(2)
    with pytest.raises(UserError, match=r"step 7: .*step-000000007 does not exist"):
        store.load(7)
    assert assert_consistent(store.load(1)) == (1, 0)
    # training goes on from step 1 and commits step 2 again, over the damaged one
    store.commit(2, *content(2))
    assert assert_consistent(store.latest()) == (2, 0)


MANIFESTS = {
    "not JSON": b"\xff{",
    "no object": b"[]",
    "other schema": json.dumps({"schema_version": 99, "step": 1, "files": {}}).encode(),
    "no files": json.dumps({"schema_version": 1, "step": 1}).encode(),
    "outside": json.dumps(
        {"schema_version": 1, "step": 1, "files": {"../../x.safetensors": {}, "state.json": {}}}
    ).encode(),
    "entry": json.dumps({"schema_version": 1, "step": 1, "files": {"state.json": 3}}).encode(),
    "deep": b"[" * 200_000,
}


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, manifest: bytes) -> None:
    store = CheckpointStore(tmp_path)
    (store.commit(1, *content(1)) / "manifest.json").write_bytes(manifest)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole.*\n.*step-000000001/(manifest|state)\.json"):
        store.latest()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_file_with_a_true_hash_but_other_content_is_refused(tmp_path: Path, name: str) -> None:
    import hashlib

    store = CheckpointStore(tmp_path)
    folder = store.commit(1, *content(1))
    (folder / name).write_bytes(b"rubbish")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 7, "sha256": hashlib.sha256(b"rubbish").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=name):
        store.load(1)


def test_dtypes_scalars_and_empty_tensors_come_back(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(3, 2).bfloat16().T,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 4),
    }
    store = CheckpointStore(tmp_path)
    store.commit(0, {"model": tensors, "empty-group": {}}, {})
    loaded = store.load(0)
    assert loaded.tensors["empty-group"] == {}
    for name, value in tensors.items():
        assert loaded.tensors["model"][name].dtype == value.dtype
        assert torch.equal(loaded.tensors["model"][name], value)


def test_prune_keeps_what_is_asked_and_removes_left_overs(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(5):
        store.commit(step, *content(step))
    for kind in ("tmp", "trash"):
        (tmp_path / f".{kind}-{'0123456789abcdef' * 2}").mkdir()
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / ".tmp-mine").mkdir()
    store.prune([1, 4])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".tmp-mine", "notes.txt", "step-000000001", "step-000000004",
    ]  # fmt: skip
    assert store.steps() == [1, 4]


@pytest.mark.parametrize(("step", "group"), [(-1, "model"), (0, "../model"), (0, "")])
def test_bad_names_are_refused_before_anything_is_written(tmp_path: Path, step: int, group: str) -> None:
    with pytest.raises(ValueError, match="bad step"):
        CheckpointStore(tmp_path).commit(step, {group: {}}, {})
    with pytest.raises(TypeError):
        CheckpointStore(tmp_path).commit(0, {}, {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_behind_a_link_that_leads_nowhere_is_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / "step-000000009").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"(?s)no checkpoint .* is whole.*step-000000009"):
        store.latest()
    store.commit(3, *content(3))
    latest = store.latest()
    assert latest is not None
    assert latest.step == 3


@pytest.mark.parametrize("kind", ["link to nowhere", "link to a folder", "file"])
def test_what_is_no_folder_under_the_name_of_a_checkpoint_is_removed_alone(tmp_path: Path, kind: str) -> None:
    store, foreign = CheckpointStore(tmp_path / "checkpoints"), tmp_path / "foreign"
    store.commit(1, *content(1))
    place = tmp_path / "checkpoints/step-000000009"
    if kind == "file":
        place.write_text("no checkpoint")
    else:
        place.symlink_to(foreign)
    if kind == "link to a folder":
        foreign.mkdir()
        (foreign / "kept").touch()
    store.commit(2, *content(2), keep=[1])
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000000001", "step-000000002"]
    assert (foreign / "kept").exists() == (kind == "link to a folder")
