"""Mean and deviation of blocks against numpy over all vectors at once, in float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.mean_and_deviation import MeanAndDeviation


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_blocks_give_what_all_vectors_give_at_once(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((size, 4)) * [1, 1e-3, 50, 1] + [0, 1e6, -3, 1e4] for size in sizes]
    found = MeanAndDeviation(4)
    for block in blocks:
        found.add(block)
    everything = np.concatenate(blocks)
    assert found.count == len(everything)
    if len(everything) > 1:
        np.testing.assert_allclose(found.mean_V, everything.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.deviation_V, everything.std(axis=0), rtol=1e-6)


def test_a_dimension_that_does_not_vary_is_not_scaled() -> None:
    found = MeanAndDeviation(2)
    assert found.deviation_V.tolist() == [1, 1]
    found.add(np.array([[0.1, 1.0], [0.1, 3.0]]))
    found.add(np.array([[0.1, 2.0]]))
    np.testing.assert_allclose(found.mean_V, [0.1, 2.0])
    np.testing.assert_allclose(found.deviation_V, [1.0, np.sqrt(2 / 3)])
