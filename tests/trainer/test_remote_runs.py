"""Runs on object storage: whole or absent, gone on with on another machine, and what cannot be reached is named.

The storage is a folder at a file:// URL, or, where the packages moto and s3fs are installed, a local S3 server.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from models.errors import UserError
from tests.helpers.tiny_runs import make_config, make_dataset
from tests.helpers.training_runs import SETTINGS, assert_same_end
from trainer import remote_runs
from trainer.cli import main
from trainer.remote_runs import OutOfReachError, RunStorage, runs_dir, storage_of
from trainer.training.engine import TorchEngine
from trainer.training.worker import train_worker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("remote") / "data")


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote_runs, "_DELAYS", (0.01, 0.01))
    if request.param == "file":
        yield f"file://{tmp_path}/bucket/runs"
        return
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"bucket-{secrets.token_hex(4)}"  # moto keeps buckets in this process, beyond the end of a server
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}/runs"
    server.stop()


def machine(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the runs at `url` on a machine with this home."""
    monkeypatch.setenv("HOME", str(home))
    return runs_dir(url)


def train(data: Path, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    config = make_config(data, "sasrec", *SETTINGS)
    train_worker({"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"})


def small(url: str, home: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> RunStorage:
    """A run of one file, not stored yet."""
    folder = machine(url, home, monkeypatch) / "a"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    storage = storage_of(folder)
    assert storage is not None
    return storage


def test_a_run_whose_machine_is_lost_goes_on_on_another_one_with_the_same_result(
    data: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path / "whole")
    first, step, done = machine(url, tmp_path / "one", monkeypatch), TorchEngine.step, [0]

    def lost(self: TorchEngine, *args: Any) -> Any:
        done[0] += 1
        if done[0] == 14:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", lost)
        with pytest.raises(KeyboardInterrupt):
            train(data, first / "a")
    second = machine(url, tmp_path / "two", monkeypatch)
    storage = storage_of(second / "a")
    assert storage is not None
    storage.begin(resume=True)
    train(data, second / "a")
    assert "going on from step 11 " in capsys.readouterr().out
    assert_same_end(tmp_path / "whole", second / "a")
    machine(url, tmp_path / "three", monkeypatch)  # other verbs bring what they need
    assert main(["evaluate", "--run", "a", "--runs-dir", url]) == 0
    assert main(["export", "--run", "a", "--runs-dir", url, "--out", str(tmp_path / "export")]) == 0
    machine(url, tmp_path / "four", monkeypatch)
    assert main(["compare", "--runs-dir", url]) == 0
    assert (
        main(["train", "--data", str(data), "--recipe", "demo", "--model", "sasrec", "--name", "a", "--runs-dir", url])
        == 2
    )
    assert f"exists in {url}" in capsys.readouterr().err


def test_whatever_operation_fails_readers_have_the_state_before_or_the_new_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = small(url, tmp_path / "one", monkeypatch, "0")
    storage.push()
    calls, failing, client = 0, 0, storage._files

    def counted(name: str) -> Any:
        original = getattr(client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if failing and calls >= failing:
                raise OSError("the storage does not answer")
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("pipe_file", "cat_file", "rm_file", "ls"):
            patch.setattr(client, name, counted(name))
        for number in range(1, 5):
            (storage.run_dir / "config.yaml").write_text(f"{number}")
            calls, failing = 0, number
            with pytest.raises(OutOfReachError, match=r"tried 3 times without success .*does not answer"):
                storage.push()
            calls, failing = 0, 0
            reader = machine(url, tmp_path / f"reader-{number}", monkeypatch) / "a"
            brought = storage_of(reader)
            assert brought is not None
            assert brought.fetch()
            assert (reader / "config.yaml").read_text() == "0"
    storage.push()
    assert len(storage._files.ls(f"{storage.url}/files", detail=False)) <= 2


def test_an_outage_is_overcome_and_one_that_lasts_is_a_warning_until_the_end(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, left = small(url, tmp_path / "one", monkeypatch, "0"), [2]
    client = storage._files
    original = client.cat_file

    def fails(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("no route")
        return original(*args, **kwargs)

    monkeypatch.setattr(client, "cat_file", fails)
    storage.push()
    left[0] = 100
    remote_runs.store_checkpoint(storage)
    assert "on this machine's disk only" in capsys.readouterr().err
    with pytest.raises(OutOfReachError, match="no route"):
        storage.push()


def test_of_two_machines_the_one_that_is_behind_stops(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(url, tmp_path / "one", monkeypatch, "0")
    first.push()
    folder = machine(url, tmp_path / "two", monkeypatch) / "a"
    second = storage_of(folder)
    assert second is not None
    assert second.fetch()
    (folder / "config.yaml").write_text("1")
    second.push()
    with pytest.raises(UserError, match="another process has gone on with the run"):
        first.push()
    assert first.fetch()
    assert (first.run_dir / "config.yaml").read_text() == "1"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", ".lock", "a/../b"])
def test_a_manifest_that_leads_out_of_the_folder_and_damage_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(remote_runs, "_DELAYS", (0.01,))
    url = f"file://{tmp_path}/bucket"
    small(url, tmp_path / "one", monkeypatch, "0").push()
    (content,) = (tmp_path / "bucket" / "a" / "files").iterdir()
    fresh = storage_of(machine(url, tmp_path / "two", monkeypatch) / "a")
    assert fresh is not None
    content.write_text("damaged")
    with pytest.raises(UserError, match="its content is not what was stored"):
        fresh.fetch()
    path = tmp_path / "bucket" / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: manifest["files"]["config.yaml"]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the manifest of a run"):
        fresh.fetch()


def test_urls_that_cannot_hold_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Exception, match="kept in a local folder, or at an s3:// or gs:// URL"):
        runs_dir("ftp://host/runs")

    def missing(_scheme: str) -> Any:
        raise ImportError("no s3fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(Exception, match=r"needs the package s3fs; install it with pip install 'mealrec\[s3\]'"):
        runs_dir("s3://b/runs")
    assert not list(tmp_path.iterdir())
