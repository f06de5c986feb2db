"""The export folder: what was written is read back, and anything else is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.contract import Moments
from models.errors import UserError
from retrieval.export import ModelCard, load_export, write_export


def export(out: Path, **changes: Any) -> ModelCard:
    shared = torch.arange(6.0).reshape(2, 3)
    arguments: dict[str, Any] = {
        "system": "sasrec",
        "options": {"hidden": 8, "nested": {"x": [1, 2.5, "y", None]}},
        "similarity": "cosine",
        "max_length": 10,
        "inference": "default",
        "seed": 7,
        "weights": {"a": shared, "b": shared, "t": shared.T},
        "item_vectors": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        "item_ids": ["x1", "ü", "77"],
        "titles": ["a title", None, "\U0001f600"],
        "train_counts": [3, 0, 1],
        "content": {"text": torch.ones(4, 2) / 3},
        "present": {"text": torch.tensor([False, True, False, True])},
        "content_kinds": {"text": "title"},
        "moments": {"text": Moments(torch.tensor([0.5, -1]), torch.tensor([2.0, 1]))},
        "metrics": {"test": {"HR@10": 0.25}},
        "provenance": {"git": "abc"},
    }
    return write_export(out, **(arguments | changes))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    card = export(tmp_path / "new" / "model")
    loaded = load_export(tmp_path / "new" / "model")
    assert loaded.card == card
    assert card.options == {"hidden": 8, "nested": {"x": [1, 2.5, "y", None]}}
    assert card.content["text"].shape == [2]
    assert (card.content["text"].mean, card.content["text"].deviation) == ([0.5, -1], [2, 1])
    assert torch.equal(loaded.weights["t"], torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(loaded.item_vectors, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert list(loaded.items.ids) == ["x1", "ü", "77"]
    assert list(loaded.items.titles) == ["a title", None, "\U0001f600"]
    assert loaded.items.train_counts.tolist() == [3, 0, 1]
    assert torch.equal(loaded.content["text"], (torch.ones(4, 2) / 3).half())
    assert loaded.present["text"].tolist() == [False, True, False, True]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_a_model_without_content_has_no_content_file(tmp_path: Path) -> None:
    export(tmp_path / "model", **NO_CONTENT)
    assert not (tmp_path / "model" / "content.safetensors").exists()
    assert load_export(tmp_path / "model").content == {}


def test_the_checksum_depends_on_what_an_index_depends_on(tmp_path: Path) -> None:
    first = export(tmp_path / "a").checksum
    assert export(tmp_path / "b", metrics={}).checksum == first
    assert export(tmp_path / "c", similarity="dot").checksum != first
    assert export(tmp_path / "d", item_vectors=torch.ones(4, 3)).checksum != first


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not an empty folder"):
        export(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty")
    assert load_export(tmp_path / "empty").card.system == "sasrec"


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"is full: more than .* MB are needed, .* MB are free; make room"):
        export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "item_vectors.safetensors", "items.arrow", "content.safetensors"]
)
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    export(tmp_path / "model")
    path = tmp_path / "model" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{name} is damaged.*mealrec export"):
        load_export(tmp_path / "model")
    path.unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        load_export(tmp_path / "model")


def edit(model: Path, **changes: object) -> None:
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(card | changes))


def test_a_model_json_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with pytest.raises(UserError, match=r"there is no folder .*model: name one that `mealrec export` wrote"):
        load_export(model)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run holds no exported model \(no model.json\)"):
        load_export(run)
    (run / "config.yaml").touch()
    with pytest.raises(
        UserError, match=r"is a run, not an exported model; .*: mealrec export --run .*run --out export/run"
    ):
        load_export(run)
    card = export(model)
    edit(model, schema_version=2)
    with pytest.raises(UserError, match=r"schema version 2, .* reads 4: .*train and export again"):
        load_export(model)
    edit(model, schema_version=4, surprise=1)
    with pytest.raises(UserError, match="surprise"):
        load_export(model)
    (model / "model.json").write_text("{")
    with pytest.raises(UserError, match="Invalid JSON"):
        load_export(model)
    (model / "model.json").write_text(card.model_dump_json())
    edit(model, files={"../../etc/passwd": "0"})
    with pytest.raises(UserError, match="lists the files"):
        load_export(model)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    card = export(tmp_path / "a")
    names: dict[str, Any] = {"item_ids": ["p", "q"], "titles": [None, None], "train_counts": [0, 0]}
    other = export(tmp_path / "b", item_vectors=torch.ones(3, 3), **names, **NO_CONTENT)
    (tmp_path / "b" / "items.arrow").replace(tmp_path / "a" / "items.arrow")
    edit(tmp_path / "a", files={**card.files, "items.arrow": other.files["items.arrow"]})
    with pytest.raises(UserError, match="disagree on the number of items"):
        load_export(tmp_path / "a")


NO_CONTENT: dict[str, Any] = {"content": None, "present": None, "content_kinds": None, "moments": None}


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    card = export(tmp_path / "model")
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"not tensors")
    digest = hashlib.sha256(b"not tensors").hexdigest()
    edit(tmp_path / "model", files={**card.files, "weights.safetensors": digest})
    with pytest.raises(UserError, match=r"cannot be read.*mealrec export"):
        load_export(tmp_path / "model")


def test_arguments_that_disagree_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 ids"):
        export(tmp_path / "model", item_ids=["a", "b"])
    with pytest.raises(ValueError, match="different fields"):
        export(tmp_path / "model", present={})


def test_everybody_may_read_an_export_as_other_files(tmp_path: Path) -> None:
    export(tmp_path / "model")
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "other").stat().st_mode}
