"""The system in docs/extending.md, taken from the page: register it, train it; it must beat popularity."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import UserError
from models.systems import SYSTEMS, Entry
from tests.helpers.learning import make_world, train
from tests.helpers.model_fixtures import HISTORIES, make_batch, make_system, model_context, randomise
from tests.helpers.pages import section
from tests.helpers.paths import ROOT
from trainer.config.schema import parse

PAGE = section("A system")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the page's Python block, registered with the page's line."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "recent.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("models.recent", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "models.recent", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    ((name, options, model),) = re.findall(
        r'^    "(\w+)": Entry\("([\w.:]+)", "([\w.:]+)"\),$', PAGE, flags=re.MULTILINE
    )
    SYSTEMS.register(name, Entry(options, model))
    yield module
    SYSTEMS.unregister(name)


def test_the_example_is_short() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    code = [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith(('"""', "import", "from"))
    ]
    assert len(code) <= 40


def test_files_and_names_on_the_page_exist() -> None:
    for path in re.findall(r"`((?:models|tests|trainer|docs)/[\w/.-]+\.(?:py|md))`", PAGE):
        assert (ROOT / path).exists() or path == "models/recent.py", path


def test_a_program_registers_the_classes_themselves(example: Any) -> None:
    SYSTEMS.register("mine", Entry(example.RecentOptions, example.Recent))
    try:
        assert isinstance(make_system("mine", {"hidden": "6"}, model_context()), example.Recent)
        assert parse({"model": {"name": "mine"}}).model.options == example.RecentOptions()
    finally:
        SYSTEMS.unregister("mine")


@pytest.mark.usefixtures("example")
def test_the_example_keeps_the_contract() -> None:
    model: Any = make_system("recent", {"hidden": 6}, model_context())
    randomise(model)
    batch = make_batch(HISTORIES)
    loss = model(batch)["ranking"]
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    vectors = model.eval().user_vectors(replace(batch, user=torch.full_like(batch.user, -1), target=batch.target * 0))
    for row, history in enumerate(HISTORIES):
        weight = torch.softmax(torch.stack([model.age[len(history) - 1 - p] for p in range(len(history))]), 0)
        expected = sum(w * model.seen.weight[item] for w, item in zip(weight, history, strict=True))
        torch.testing.assert_close(vectors[row], expected)
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        make_system("recent", {"hiden": 8}, model_context())


@pytest.mark.usefixtures("example")
def test_the_example_trains_and_beats_popularity(tmp_path: Path) -> None:
    data = make_world(tmp_path / "world")
    popularity = train(data, tmp_path / "popularity", "popularity")
    recent = train(data, tmp_path / "recent", "recent", "train.epochs=8", "model.hidden=32")
    assert recent["HR@10"] > 2 * popularity["HR@10"]
