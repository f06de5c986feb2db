"""What scores promise: the temperature, expected hit rates, and their bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.contract import Batch
from tests.helpers.tiny_runs import make_dataset
from trainer.analysis.scores import calibration, fit_temperature, sample_users, shown_to
from trainer.batches.loader import Loaded, load
from trainer.data.format.dataset import Dataset
from trainer.evaluation.run_ranks import RunRanks


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    data = make_dataset(tmp_path_factory.mktemp("data") / "demo")
    return load(Dataset.open(data), torch.device("cpu"), seed=0)


def test_a_sample_depends_on_its_numbers_alone() -> None:
    assert sample_users(5, 10, 0).tolist() == [0, 1, 2, 3, 4]
    once, again, other = (sample_users(1000, 20, seed) for seed in (3, 3, 4))
    assert once.tolist() == again.tolist() != other.tolist()
    assert len(set(once.tolist())) == 20
    assert (np.diff(once) > 0).all()


def test_the_temperature_undoes_a_scale(loaded: Loaded) -> None:
    noise = torch.randn(
        loaded.dataset.manifest.users, loaded.table.n_items - 1, generator=torch.Generator().manual_seed(0)
    )

    def scores(batch: Batch, scale: float = 1.0) -> torch.Tensor:
        target = torch.nn.functional.one_hot(batch.target - 1, loaded.table.n_items - 1)
        return scale * (noise[batch.user] + 1.5 * target)

    once = fit_temperature(scores, loaded, 0)
    assert fit_temperature(lambda batch: scores(batch, 8.0), loaded, 0) == pytest.approx(8 * once, rel=1e-4)


def test_expected_hit_rates_are_the_softmax_of_what_is_shown(loaded: Loaded) -> None:
    table = torch.randn(
        loaded.dataset.manifest.users, loaded.table.n_items - 1, generator=torch.Generator().manual_seed(1)
    )
    users = np.array([3, 7, 11])
    shown = shown_to(lambda batch: table[batch.user], loaded, users, 0.5)
    for place, user in enumerate(users):
        probability = torch.softmax(table[user].double() / 0.5, dim=0)
        order = torch.argsort(table[user], descending=True)[:10]
        assert shown.items[place].tolist() == (order + 1).tolist()
        assert shown.expected[place] == pytest.approx(float(probability[order].sum()))


def test_calibration_compares_promise_and_hits_in_bins(loaded: Loaded) -> None:
    table = torch.zeros(loaded.dataset.manifest.users, loaded.table.n_items - 1)
    table[:40, :10] = 20.0  # sure of the first ten items; the others have no preference
    users = np.arange(80)
    shown = shown_to(lambda batch: table[batch.user], loaded, users, 1.0)
    rank = np.where(users < 20, 1, 0)
    ranks = RunRanks(users, users, rank, rank, np.zeros(80, bool))
    found = calibration(shown, ranks, 1.0)
    assert [each.users for each in found.bins] == [8] * 10
    assert found.bins[0].expected == pytest.approx(10 / 60)
    assert found.bins[-1].expected == pytest.approx(1.0)
    observed = sum(each.hit_rate * each.users for each in found.bins) / 80
    assert observed == pytest.approx(20 / 80)
    distance = sum(abs(each.expected - each.hit_rate) * each.users for each in found.bins) / 80
    assert found.error == pytest.approx(distance)
