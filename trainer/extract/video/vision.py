"""How vision models are run on clips: image models on each frame, VideoMAE on frames repeated into tubelets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.options.base import ContentField

#: vectors (..., V) of the input, and for each of S hidden states its mean over tokens (..., V); no states if not wanted
Seen = tuple[Tensor, list[Tensor]]


class Encoder:
    """A model on clips of uint8 frames, in float32: rescales and normalises them on the device (contract.VideoEncoder).

    see: normalised clips (n, K, 3, height, width) to frame vectors (n, K, V) and clip states, S times (n, V).
    """

    def __init__(
        self, see: Callable[[Tensor], Seen], mean: Any, std: Any, device: str, rescale: float = 1 / 255
    ) -> None:
        self._see, self._device, self._rescale = see, device, rescale
        self._mean, self._std = (torch.tensor(of, device=device).reshape(-1, 1, 1) for of in (mean, std))
        #: clips in one forward pass. Several do not fit a CPU's caches: 16 took twice the time each, and 1 GiB more
        self.at_once = 1 if device == "cpu" else 16

    def __call__(self, clips: NDArray[np.uint8]) -> dict[ContentField, NDArray[np.float32]]:
        parts = [self._encode(clips[at : at + self.at_once]) for at in range(0, len(clips), self.at_once)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _encode(self, clips: NDArray[np.uint8]) -> dict[ContentField, NDArray[np.float32]]:
        # torch.tensor copies: arrays that come through Ray are read-only, about which from_numpy warns
        pixels = torch.tensor(clips, device=self._device).permute(0, 1, 4, 2, 3).float()
        sequence, states = self._see((pixels * self._rescale - self._mean) / self._std)
        found: dict[ContentField, Tensor] = {"sequence": sequence, "visual": sequence.mean(1)}
        if states:
            found["visual_layers"] = torch.stack(states, dim=1)
        return {name: vectors.cpu().numpy() for name, vectors in found.items()}


class FrameByFrame:
    """Encodes clips by an image model, frame by frame. see: takes images (m, 3, height, width)."""

    def __init__(self, see: Callable[[Tensor], Seen]) -> None:
        self._see = see

    def __call__(self, clips: Tensor) -> Seen:
        count = clips.shape[:2]
        vectors, states = self._see(clips.flatten(0, 1))
        return vectors.reshape(*count, -1), [state.reshape(*count, -1).mean(1) for state in states]


class ImageModel:
    """Images (m, 3, height, width) seen by a model of transformers: [CLS], or else what its own pooling gives."""

    def __init__(self, model: Any, cls: bool, layers: bool) -> None:
        self._model, self._cls, self._layers = model, cls, layers

    def __call__(self, images: Tensor) -> Seen:
        found = self._model(pixel_values=images, output_hidden_states=self._layers)
        # ResNet pools to a map of 1x1
        vectors = found.last_hidden_state[:, 0] if self._cls else found.pooler_output.flatten(1)
        return vectors, [state.mean(1) for state in found.hidden_states] if self._layers else []


class Clips:
    """Clips seen by VideoMAE: each frame is repeated to fill a tubelet, so that K frames give K vectors (D3)."""

    def __init__(self, model: Any, layers: bool) -> None:
        self._model, self._layers, self._frames = model, layers, 0

    def __call__(self, clips: Tensor) -> Seen:
        n, frames = clips.shape[:2]
        if frames != self._frames:
            self._fit(frames)
        clip = clips.repeat_interleave(self._model.config.tubelet_size, dim=1)
        found = self._model(pixel_values=clip, output_hidden_states=self._layers)
        tokens = found.last_hidden_state
        # tokens are time-major: all places of the first tubelet, then all of the second
        sequence = tokens.reshape(n, frames, -1, tokens.shape[-1]).mean(2)
        return sequence, [state.mean(1) for state in found.hidden_states] if self._layers else []

    def _fit(self, frames: int) -> None:
        """Positions for so many frames: a sinusoidal table and no weights, so that any number of them can be had."""
        config, embeddings = self._model.config, self._model.embeddings
        config.num_frames = frames * config.tubelet_size
        embeddings.position_embeddings = type(embeddings)(config).position_embeddings
        self._frames = frames
