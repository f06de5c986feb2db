"""The contract that every system must keep, and the same commands from training to recommendation for every system."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models.nn.layout
from models.contract import Baseline, Batch, SequenceModel
from models.systems import SYSTEMS, options_class
from tests.helpers.model_fixtures import HISTORIES, context_for, make_batch, make_system, wake
from tests.helpers.tiny_runs import MODELS, OPTIONS, RUN
from trainer.cli import main
from trainer.data.synthetic.generate import generate

TRAINED = [name for name in SYSTEMS if options_class(name).trained]
BASELINES = [name for name in SYSTEMS if name not in TRAINED]


def built(name: str) -> SequenceModel:
    torch.manual_seed(0)
    model = make_system(name, {}, context_for(name))
    assert isinstance(model, SequenceModel)
    return model


def vectors(model: SequenceModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.user_vectors(batch)


@pytest.mark.parametrize("name", TRAINED)
def test_a_user_is_encoded_the_same_alone_in_company_and_again(name: str) -> None:
    model, batch = built(name).eval(), make_batch(HISTORIES)
    for way in model.inference_choices:
        model.inference = way
        together = vectors(model, batch)
        alone = torch.cat([vectors(model, batch[row : row + 1]) for row in range(len(batch))])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together, vectors(model, batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_scores_a_user_the_same_alone_and_in_company(name: str) -> None:
    model, batch = make_system(name, {}, context_for(name)), make_batch(HISTORIES)
    assert isinstance(model, Baseline)
    alone = torch.cat([model.scores(batch[row : row + 1]) for row in range(len(batch))])
    torch.testing.assert_close(model.scores(batch), alone)


@pytest.mark.parametrize("spare", [None, 0, 3], ids=["all padding", "none", "some"])
@pytest.mark.parametrize("name", TRAINED)
def test_rows_with_padding_as_on_a_gpu_give_what_packed_rows_give(
    name: str, spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = built(name).eval(), make_batch(HISTORIES)
    packed, losses = vectors(model, batch), model(batch)
    of = models.nn.layout.Layout.of
    monkeypatch.setattr(models.nn.layout.Layout, "of", staticmethod(lambda batch: of(batch, False)))
    if spare is not None:
        batch = replace(batch, tokens=int(batch.length.sum()) + spare)
    torch.testing.assert_close(vectors(model, batch), packed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(batch), losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_somebody_unknown_is_encoded_by_history_alone(name: str) -> None:
    model, batch = built(name).eval(), make_batch([[3], [1, 2, 5]])
    unknown = vectors(model, replace(batch, user=torch.full_like(batch.user, -1)))
    assert torch.isfinite(unknown).all()
    assert not torch.equal(unknown[0], unknown[1])


@pytest.mark.parametrize("name", TRAINED)
def test_the_target_is_not_read_when_a_user_is_encoded(name: str) -> None:
    model, batch = built(name).eval(), make_batch(HISTORIES)
    other = replace(batch, target=torch.zeros_like(batch.target))
    torch.testing.assert_close(vectors(model, other), vectors(model, batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_in_bf16_every_parameter_learns_something_finite(name: str) -> None:
    model = built(name)
    wake(model)
    learned = dict.fromkeys((name for name, _ in model.named_parameters()), False)
    for first_key in range(0, 3000, 100):  # parts that are chosen at random are all chosen at some time
        with torch.autocast("cpu", torch.bfloat16):
            terms = model(make_batch(HISTORIES, first_key=first_key))
        model.zero_grad(set_to_none=True)
        weighted = [model.loss_weights[term] * value for term, value in terms.items() if term in model.loss_weights]
        torch.stack([value.float() for value in weighted]).sum().backward()
        for parameter, tensor in model.named_parameters():
            if tensor.grad is not None:
                assert torch.isfinite(tensor.grad).all(), parameter
                learned[parameter] |= bool((tensor.grad != 0).any())
        if all(learned.values()):
            return
    assert not [parameter for parameter, does in learned.items() if not does]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world with all content and behaviours that any system needs."""
    out = tmp_path_factory.mktemp("every") / "data"
    generate(out, replace(OPTIONS, layers=3, text_width=OPTIONS.width, behaviours=True))
    return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_commands_for_every_system(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for setting in (*MODELS.get(name, []), *RUN, "train.epochs=1") for part in ("--set", setting)]
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert (
        main(["train", "--recipe", "demo", "--data", str(data), "--model", name, "--name", "r", *runs, *settings]) == 0
    )
    report = json.loads((tmp_path / "runs/r/test.json").read_text())
    assert main(["evaluate", "--run", "r", *runs, "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert {key: value for key, value in again.items() if "@" in key} == pytest.approx(
        {key: value for key, value in report.items() if "@" in key}
    )
    assert main(["export", "--run", "r", *runs, "--out", str(tmp_path / "model")]) == 0
    capsys.readouterr()
    ask = ["recommend", "--model", str(tmp_path / "model"), "--history", "i3 i7 i4", "--k", "5", "--json"]
    assert main(ask) == 0
    (answer,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(answer["recommendations"]) == 5
    indexed = main(["index", "--model", str(tmp_path / "model"), "--kind", "flat"])
    if name in TRAINED:
        assert indexed == 0
    else:
        assert indexed == 2
        assert "ranks without vectors" in capsys.readouterr().err
