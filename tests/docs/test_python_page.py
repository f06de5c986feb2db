"""The examples of docs/python.md run, one after the other, as a reader would paste them."""

import re
from pathlib import Path

import pytest

from retrieval import Recommender
from retrieval.export import index_folder
from retrieval.index.build import build_index
from tests.helpers.exported import N_ITEMS, export_model
from tests.helpers.paths import ROOT


def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "export/demo"
    model.parent.mkdir()
    export_model(model, ids=[f"i{row}" for row in range(1, N_ITEMS)])
    made = Recommender.load(model)
    index = build_index(made.item_vectors.numpy(), "flat", checksum=made.card.checksum, device="cpu")
    index.save(index_folder(model, "flat"))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 5
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    best = made.recommend(["i8", "i19", "i7"], 1).recommendations[0]
    assert capsys.readouterr().out.splitlines()[0] == f"{best.item} {best.title} {best.score}"
