"""What a finished run keeps: the weights of its last and its best checkpoint. A kill meanwhile loses nothing needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import UserError
from trainer.training import checkpoint_reading, weights_only
from trainer.training.checkpoint import CheckpointStore
from trainer.training.checkpoint_files import read_progress, surplus
from trainer.training.weights_only import keep_weights_only


def filled(root: Path) -> CheckpointStore:
    """Checkpoints of the steps 2, 4 (the best) and 6, and what a killed commit left."""
    store = CheckpointStore(root)
    for step in (2, 4, 6):
        tensors = {"model": {"w": torch.full((64,), float(step))}, "optimizer": {"w/exp_avg": torch.ones(128)}}
        state = {"stopping": {"best_step": 4, "since": 1}, "position": {"epoch": step // 2 + 1}}
        store.commit(step, tensors, state)
    (root / f".tmp-{'0' * 32}").mkdir()
    (root / f".tmp-{'0' * 32}" / "model.safetensors").write_bytes(b"half")
    return store


def assert_weights_are_there(store: CheckpointStore) -> None:
    latest, best = store.latest_and_best() or (None, None)
    assert latest is not None
    assert best is not None
    assert (latest.step, best.step) == (6, 4)
    assert torch.equal(latest.tensors["model"]["w"], torch.full((64,), 6.0))
    assert torch.equal(best.tensors["model"]["w"], torch.full((64,), 4.0))


def on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and path.name != "manifest.json")


def test_a_checkpoint_that_was_being_replaced_keeps_its_weights_too(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "step-000000006").rename(tmp_path / ".replaced-000000006")  # killed between two renames of a commit
    assert keep_weights_only(store) > 0
    assert_weights_are_there(store)
    assert list(tmp_path.rglob("optimizer.safetensors")) == []
    assert surplus(tmp_path, {4, 6}).bytes == 0


def test_the_weights_of_the_last_and_the_best_stay(tmp_path: Path) -> None:
    store, before = filled(tmp_path), on_disk(tmp_path)
    manifest = (tmp_path / "step-000000002/manifest.json").stat().st_size
    foreseen = surplus(tmp_path, {4, 6})
    freed = keep_weights_only(store)
    assert freed == foreseen.bytes == before - on_disk(tmp_path) + manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000006"]
    assert [file.name for file in (tmp_path / "step-000000006").glob("*.safetensors")] == ["model.safetensors"]
    assert_weights_are_there(store)
    assert keep_weights_only(store) == 0
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.step, progress.best_step, progress.can_go_on) == (6, 4, False)


@pytest.mark.parametrize("stop", ["prune", "write_json", "unlink"])
def test_a_kill_in_the_middle_loses_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    store = filled(tmp_path)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = {"prune": CheckpointStore, "write_json": weights_only, "unlink": Path}[stop]
        patch.setattr(target, stop, die)
        with pytest.raises(KeyboardInterrupt):
            keep_weights_only(store)
    assert_weights_are_there(store)
    keep_weights_only(store)
    assert_weights_are_there(store)
    assert not list(tmp_path.rglob("optimizer*")), "what the kill left goes as well"


def test_a_damaged_checkpoint_is_not_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = filled(tmp_path)
    for step in (4, 6):
        (tmp_path / f"step-00000000{step}/model.safetensors").write_bytes(b"damaged")
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        keep_weights_only(store)
    assert sorted(tmp_path.rglob("*")) == files
    assert "damaged" not in capsys.readouterr().err


def test_a_run_without_a_validation_keeps_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = {"stopping": {"best_step": -1, "since": 0}, "position": {"epoch": 1}}
    store.commit(3, {"model": {}, "optimizer": {}}, state)
    with pytest.raises(UserError, match=r"no checkpoint of a validated epoch yet"):
        keep_weights_only(store)
    assert (tmp_path / "step-000000003/optimizer.safetensors").exists()


def test_who_reads_while_optimizer_states_go_sees_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, read, cleaned = filled(tmp_path), checkpoint_reading._read_verified, list[int]()

    def late(folder: Path, name: str, entry: object) -> bytes:
        if name.startswith("optimizer") and not cleaned:
            cleaned.append(1)
            keep_weights_only(CheckpointStore(tmp_path))
        return read(folder, name, entry)

    monkeypatch.setattr(checkpoint_reading, "_read_verified", late)
    assert_weights_are_there(store)
    assert cleaned
    assert capsys.readouterr().err == ""
