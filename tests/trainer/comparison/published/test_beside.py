"""`mealrec compare --published`: the paper's figures beside ours on its own dataset, and a reason on any other."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.helpers.finished_runs import hits, write_run
from trainer.cli import main
from trainer.data.format.manifest import SCHEMA_VERSION, Core, Manifest, Provenance, SplitInfo, Splits, Statistics

SMALL = (8694, 8265, 50838)


def dataset(folder: Path, size: tuple[int, int, int], command: str) -> Manifest:
    """The manifest of a dataset, whose files are not there."""
    users, items, interactions = size
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, users=users, items=items, interactions=interactions, train_rows=9, max_length=10,
        core=Core(k=4, on="both"), content={}, behaviours=(), dropped={}, shards={}, files={},
        statistics=Statistics(
            users=users, items=items, interactions=interactions, average_length=interactions / users,
            sparsity=1 - interactions / users / items,
        ),
        splits=Splits(validation=SplitInfo(cold_targets=0), test=SplitInfo(cold_targets=0)),
        provenance=Provenance(command=command, sources={}, version="1", git_revision=None, time="now"),
    )  # fmt: skip
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.dumps())
    return manifest


def runs(root: Path, size: tuple[int, int, int], command: str) -> None:
    manifest = dataset(root / "data", size, command)
    noted = {"manifest": manifest.whole_fingerprint, "data": manifest.fingerprint}
    path = f"data.path={root / 'data'}"
    for seed, found in ((1, 4), (2, 6)):
        write_run(root / f"runs/mine-s{seed}", "tedrec", path, seed=seed, rank=hits(found), **noted)
    write_run(root / "runs/other", "tedrec", "model.hidden=8", path, rank=hits(2), **noted)
    folder = write_run(root / "runs/floor", "popularity", path, rank=hits(1), **noted)
    line = {"event": "epoch", "epoch": 1, "step": 1, "time": 0, "metrics": {"train_seconds": 3.0}}
    for name in ("mine-s1", "mine-s2"):
        (folder.with_name(name) / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def compare(root: Path, *arguments: str) -> int:
    return main(["compare", "--runs-dir", str(root / "runs"), "--published", *arguments])


def rows(text: str, title: str) -> list[list[str]]:
    lines = text.split(title + "\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [line.split() for line in [lines[0], *lines[2:]]]


def test_on_the_papers_dataset_its_figures_stand_beside_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path, SMALL, "mealrec prepare microlens --pairs p.csv")
    assert compare(tmp_path, "--ks", "10,20", "--metrics", "HR,MRR") == 0
    text = capsys.readouterr().out
    header, first, *others = rows(text, "metrics, Table 2, Microlens-small")
    assert header == ["paper", "run", "HR@10", "ours", "HR@20", "ours"], "MRR is not in the paper"
    assert first == ["SASRec", "-", "0.0781", "-", "0.1000", "-"]
    assert [row for row in others if row[1] != "-"] == [
        ["TedRec", "mine", "0.0837", "0.6250", "0.1056", "0.6250"],
        ["TedRec", "other", "0.0837", "0.2500", "0.1056", "0.2500"],
    ]
    costs = rows(text, "cost on one A100, Table 3, Microlens-small")
    assert costs[0] == ["paper", "run", "s/epoch", "ours", "s/validation", "ours", "MB", "ours"]
    assert costs[1] == ["TedRec", "mine", "1.23", "3.00", "1.47", "-", "2,716", "-"]
    assert "- the paper, I8: NDCG@20 of IISAN-Versa, 0.0536, is impossible" in text
    assert "I2" not in text, "that is about another dataset"

    compare(tmp_path, "--ks", "10", "--format", "json")
    tables = json.loads(capsys.readouterr().out)["published"]
    assert [(each["table"], each["metrics"]) for each in tables] == [
        (2, ["HR@10", "NDCG@10"]), (3, ["train_seconds", "evaluation_seconds", "memory_mb"])
    ]  # fmt: skip
    compare(tmp_path, "--ks", "10", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    printed = {(row["run"], row["metric"], row["value"], row["against"]) for row in lines if row["table"] == "Table 2"}
    assert {("TedRec", "HR@10", "0.0837", "mine"), ("MealRec", "NDCG@10", "0.0498", "")} <= printed
    for form in ("markdown", "latex"):
        compare(tmp_path, "--ks", "10", "--format", form)
        assert "Table 3, Microlens-small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "command", "says"),
    [
        ((8542, 6458, 54237), "mealrec prepare microlens --pairs p --sample-users 10750",
         "a sample (8,542 users, 6,458 items, 54,237 interactions), and not comparable: Microlens-small has "),
        ((8694, 8265, 50839), "mealrec prepare microlens --pairs p", "another selection (8,694 users"),
        ((60, 80, 500), "mealrec prepare synthetic --users 60", "a generated world (60 users"),
        ((60, 80, 500), "mealrec prepare parquet --log p", "none of the paper's datasets (60 users"),
    ],
)  # fmt: skip
def test_on_other_data_there_is_a_reason_and_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int, int], command: str, says: str
) -> None:
    runs(tmp_path, size, command)
    assert compare(tmp_path, "--ks", "10") == 0
    text = capsys.readouterr().out
    assert f"- no published figures: {tmp_path}/data is {says}" in text
    assert "Table 2" not in text
    assert "the paper, I" not in text


def test_a_dataset_that_is_gone_or_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path, SMALL, "mealrec prepare microlens --pairs p")
    manifest = tmp_path / "data/manifest.json"
    manifest.write_text(manifest.read_text().replace('"train_rows": 9', '"train_rows": 8'))
    assert compare(tmp_path) == 2
    assert "has changed since floor was trained, its files have not; bring it back" in capsys.readouterr().err
    manifest.unlink()
    assert compare(tmp_path) == 2
    assert "--published reads which dataset the runs are on from its manifest: cannot open" in capsys.readouterr().err
