"""Vectors as trained models have them."""

from __future__ import annotations

import numpy as np


def clustered(n_items: int = 2000, width: int = 16, seed: int = 0) -> np.ndarray:
    """Items around 20 centres. Learned item vectors look like this, and IVF and HNSW are made for it."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(20, width))[rng.integers(0, 20, n_items)] + 0.3 * rng.normal(size=(n_items, width))
    vectors[0] = 100.0  # if padding were in the index, it would be found first
    return vectors.astype(np.float32)
