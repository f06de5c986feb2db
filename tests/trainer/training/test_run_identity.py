"""What makes it the same run: another configuration, evaluation, dataset or writer is refused, and changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import UserError
from retrieval.files import sole_writer
from tests.helpers.tiny_runs import OPTIONS, fork_server, make_config
from tests.helpers.training_runs import SETTINGS, assert_same_end, lines, train, write_config
from trainer.cli import main
from trainer.config.schema import RunConfig
from trainer.data.synthetic.generate import generate
from trainer.training.checkpoint import CheckpointStore
from trainer.training.runs import open_run


def test_another_configuration_is_refused_with_the_difference(data: Path, whole: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    changed = make_config(data, "sasrec", *SETTINGS, "train.learning_rate=0.5", "model.hidden=16")
    with pytest.raises(UserError) as error:
        train(changed, again)
    assert "train.learning_rate was 0.002, is 0.5" in str(error.value)
    assert "model.hidden was 8, is 16" in str(error.value)
    assert_same_end(whole, again)


def test_other_data_is_refused(whole: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", replace(OPTIONS, seed=4))
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    with pytest.raises(UserError, match="was trained on other data"):
        train(make_config(tmp_path / "other", "sasrec", *SETTINGS), again)
    assert_same_end(whole, again)


def test_another_evaluation_and_another_manifest_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    """What ranks the catalogue chooses the best epoch; a manifest may differ although no file does."""
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    with pytest.raises(UserError, match=r"was chosen by another evaluation.*eval\.index was 'auto', is 'flat'"):
        train(make_config(data, "sasrec", *SETTINGS, "eval.index=flat"), again)
    manifest = json.loads((copy / "manifest.json").read_text())
    text = json.dumps({**manifest, "provenance": {**manifest["provenance"], "time": "2030-01-01"}})
    (copy / "manifest.json").write_text(text)
    moved = make_config(copy, "sasrec", *SETTINGS, "eval.metrics=[HR]", "eval.batch_size=7")
    train(moved, again)  # prepared another day, and other figures shown: the same run
    (copy / "manifest.json").write_text(json.dumps({**manifest, "max_length": manifest["max_length"] - 1}))
    with pytest.raises(UserError, match=r"copy/manifest\.json has changed since .* its files have not"):
        train(moved, again)
    assert_same_end_but_for_figures(whole, again)


def assert_same_end_but_for_figures(a: Path, b: Path) -> None:
    one, two = CheckpointStore(a / "checkpoints").latest(), CheckpointStore(b / "checkpoints").latest()
    assert one is not None
    assert two is not None
    assert (one.step, one.state) == (two.step, two.state)


def test_a_run_of_before_and_one_of_other_versions_go_on(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that notes less, as earlier versions wrote it, and one that was made with another torch."""
    config = make_config(data, "sasrec", *SETTINGS)
    for name, change in (("old", {"evaluation", "manifest", "versions"}), ("other", {"torch": "1.0"})):
        run_dir = Path(shutil.copytree(whole, tmp_path / name))
        store = CheckpointStore(run_dir / "checkpoints")
        for step in store.steps():
            checkpoint = store.load(step)
            state = checkpoint.state
            if isinstance(change, set):
                state = {key: value for key, value in state.items() if key not in change}
            else:
                state = {**state, "versions": {**state["versions"], **change}}
            store.commit(step, checkpoint.tensors, state)
        capsys.readouterr()
        train(config, run_dir)
        assert ("warning: the run was begun with torch 1.0" in capsys.readouterr().err) == (name == "other")
        assert open_run(run_dir).epoch > 0
        assert ("warning: other was trained with torch 1.0" in capsys.readouterr().err) == (name == "other")
        assert lines(run_dir) == lines(whole)


def test_a_refused_writer_changes_nothing(data: Path, tmp_path: Path) -> None:
    """Before its first checkpoint a run has no more than its lock: a second start with another width is refused."""
    run_dir = tmp_path / "run"
    config = write_config(make_config(data, "sasrec", *SETTINGS), run_dir)
    before = (run_dir / "config.yaml").read_bytes()
    with sole_writer(run_dir):
        other = make_config(data, "sasrec", *SETTINGS, "model.hidden=16")
        process = fork_server().Process(target=_train_impatiently, args=(other, run_dir))
        process.start()
        process.join(60)
        assert process.exitcode == 2
        assert (run_dir / "config.yaml").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "config.yaml"]
    train(config, run_dir)


def _train_impatiently(config: RunConfig, run_dir: Path) -> None:
    settings = [f"--set={key}" for key in ("model.inner=8", "cluster.launcher=inline", "tracking.mlflow=false")]
    sole_writer.__wrapped__.__defaults__ = (0.1,)  # the product waits a minute
    command = ["train", "--recipe", str(run_dir / "config.yaml"), "--resume", "--name", run_dir.name,
               "--runs-dir", str(run_dir.parent), f"--set=model.hidden={config.model.options.hidden}"]  # fmt: skip
    sys.exit(main([*command, *settings]))


def test_damaged_data_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    path = copy / "sequences/items.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"items\.npy"):
        train(make_config(copy), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
