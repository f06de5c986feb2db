"""Which tracker a run takes, how addresses are written, and that passwords stay where they belong."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from models.errors import UserError
from trainer.config.schema import parse
from trainer.tracking.address import (
    credentials,
    on_shared_storage,
    redacted,
    runs_page,
    sqlite_path,
    sqlite_uri,
    tracker,
)


def test_the_configuration_goes_before_the_environment_and_that_before_the_default(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    environment = {"MLFLOW_TRACKING_URI": "http://there:5000", "MLFLOW_EXPERIMENT_NAME": "shelf"}
    chosen = tracker(run_dir, "http://here:1", "mine", environment)
    assert (chosen.uri, chosen.experiment) == ("http://here:1", "mine")
    chosen = tracker(run_dir, "", "", environment)
    assert (chosen.uri, chosen.experiment) == ("http://there:5000", "shelf")
    chosen = tracker(run_dir, "", "", {})
    assert (chosen.uri, chosen.experiment) == (f"sqlite:///{tmp_path / 'mlflow.db'}", "mealrec")


@pytest.mark.parametrize("name", ["plain", "100 %", "50%25", "what?", "it's", "a#b", "ü @ b"])
def test_a_sqlite_address_names_the_same_file_to_the_database(tmp_path: Path, name: str) -> None:
    from sqlalchemy import create_engine, text  # comes with MLflow

    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    assert redacted(uri) == uri
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create table here (x)"))
    engine.dispose()
    with sqlite3.connect(path) as direct:
        assert direct.execute("select name from sqlite_master").fetchall() == [("here",)]
    assert [entry.name for entry in path.parent.parent.iterdir()] == [name]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:s3cret@host:5000/x", "http://host:5000/x"),
        ("http://ann:s3/c@ret@host:5000", "http://host:5000"),
        ("postgresql+psycopg://ann:s3cret@host/db", "postgresql+psycopg://host/db"),
        ("postgresql://host/db?user=ann&password=s3cret&x=1", "postgresql://host/db?user=***&password=***&x=1"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_credentials_of_a_server_become_mlflows_variables() -> None:
    plain, secrets = credentials("https://ann:s%40cret@host:5000/x")
    assert plain == "https://host:5000/x"
    assert secrets == {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s@cret"}
    assert credentials("http://host:5000") == ("http://host:5000", {})
    database = "postgresql://ann:s3cret@host/db"  # takes them from the address alone
    assert credentials(database) == (database, {})


def test_a_password_in_the_configuration_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        parse({"model": {"name": "sasrec"}, "tracking": {"uri": "http://ann:s3cret@host"}})
    assert "s3cret" not in str(refused.value)


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/me/fast xfs rw 0 0
server:/b /with\\040space fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/mlflow.db", "nfs4"),
        ("/home/me/fast/mlflow.db", ""),
        ("/homely/mlflow.db", ""),
        ("/with space/mlflow.db", "fuse.sshfs"),
    ],
)
def test_shared_storage_is_known_by_its_mount(path: str, kind: str) -> None:
    assert on_shared_storage(sqlite_uri(Path(path)), MOUNTS) == kind
    assert on_shared_storage("http://host", MOUNTS) == ""


def test_the_page_of_the_runs_is_not_mlflows_first_page() -> None:
    page = "#/experiments/7/runs?workflowType=machine_learning"
    table, charts = runs_page("http://ann:s3cret@host:5000/", "7").splitlines()
    assert table.split()[-1] == f"http://host:5000/{page}"
    assert charts.split()[-1].startswith(f"http://host:5000/{page}&compareRunsMode=CHART&")
    local = runs_page("sqlite:////a b/mlflow.db", "7")
    assert "--backend-store-uri 'sqlite:////a b/mlflow.db'" in local
    assert f"http://127.0.0.1:5000/{page}" in local
