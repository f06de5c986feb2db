"""Keyed noise: random numbers that are a pure function of (seed, key, stream), for any batch size and world size.

The generator is counter-based: each number is a 32-bit integer hash of its row's key and its position. So there is no
state, the host never waits for the device, and a row gets the same noise in every worker and batch.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """The uses of keyed noise; different streams give independent random numbers for the same key."""

    TCD_STEP = 1
    TCD_NOISE = 2
    NPD_STEP = 3
    NPD_NOISE = 4
    GATE_NOISE = 5
    TCD_CHAIN = 6
    NPD_CHAIN = 7
    AUGMENTATION = 8
    SELECTION = 9
    INSERTION = 10
    NEGATIVES = 11
    CLUSTER = 12
    TARGET_STEP = 13
    TARGET_NOISE = 14
    VISUAL_STEP = 16
    VISUAL_NOISE = 17
    TEXT_STEP = 18
    TEXT_NOISE = 19
    BEHAVIOUR_STEP = 20
    BEHAVIOUR_NOISE = 21
    FUSION_STEP = 22
    FUSION_NOISE = 23
    START_NOISE = 24
    UNCERTAINTY = 25
    SHORTENING = 26
    CANDIDATES = 27
    ID_DROPOUT = 28
    DISTURBED_SEQUENCE = 29
    DISTURBED_VISUAL = 30
    DISTURBED_LAYERS = 31


Integers = TypeVar("Integers", Tensor, int)


def hash32(x: Integers) -> Integers:
    """A bijective hash of 32-bit integers (two multiply-xorshift rounds, hash-prospector constants).

    Of a tensor in int64, or of one number. Both multipliers are below 2^31, so that products do not overflow int64.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


def _mix(seed: int, stream: int, salt: int) -> int:
    """One 32-bit constant per (seed, stream, salt)."""
    state = 0x9E3779B9
    for word in (seed & _MASK, (seed >> 32) & _MASK, stream, salt):
        state = (hash32((state ^ word) & _MASK) + 0x6D2B79F5) & _MASK
    return state


class KeyedNoise:
    """Random numbers for int64 `keys` (B,); they depend on (seed, key, stream, element) and on nothing else."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._constants: dict[tuple[int, int], int] = {}

    def _row_keys(self, keys_B: Tensor, stream: Stream, salt: int) -> Tensor:
        """(B,) 32-bit row keys; different salts give independent keys."""
        constant = self._constants.get((stream, salt))
        if constant is None:
            constant = self._constants[stream, salt] = _mix(self._seed, stream, salt)
        low, high = keys_B & _MASK, (keys_B >> 32) & _MASK
        return hash32(hash32(low ^ constant) ^ high ^ (constant >> 7))

    def normal(self, keys_B: Tensor, shape: tuple[int, ...], stream: Stream) -> Tensor:
        """(B, *shape) float32 standard normal values (Box-Muller on two hashed uniforms)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        counter = hash32(torch.arange(1, half + 1, device=keys_B.device))
        first = hash32(counter ^ self._row_keys(keys_B, stream, 0)[:, None])
        second = hash32(counter ^ self._row_keys(keys_B, stream, 1)[:, None])
        radius = first.float().add_(0.5).mul_(2.0**-32).clamp_(max=1.0).log_().mul_(-2.0).sqrt_()
        angle = second.float().mul_(2.0 * math.pi * 2.0**-32)
        values = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return values[:, :count].reshape(-1, *shape)

    def uniform(self, keys_B: Tensor, shape: tuple[int, ...], stream: Stream) -> Tensor:
        """(B, *shape) float32 uniform values above 0 and below 1."""
        counter = hash32(torch.arange(1, math.prod(shape) + 1, device=keys_B.device))
        uniform = hash32(counter ^ self._row_keys(keys_B, stream, 4)[:, None]).float().add_(0.5).mul_(2.0**-32)
        return uniform.clamp_(max=1 - 2.0**-24).reshape(-1, *shape)

    def gumbel(self, keys_B: Tensor, shape: tuple[int, ...], stream: Stream) -> Tensor:
        """(B, *shape) float32 standard Gumbel values: minus the logarithm of exponential values."""
        counter = hash32(torch.arange(1, math.prod(shape) + 1, device=keys_B.device))
        uniform = hash32(counter ^ self._row_keys(keys_B, stream, 3)[:, None]).float().add_(0.5).mul_(2.0**-32)
        # below 1 in float32, so that the exponential is finite
        exponential = uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()
        return exponential.log_().neg_().reshape(-1, *shape)

    def integers(self, keys_B: Tensor, low: int, high: int, stream: Stream) -> Tensor:
        """(B,) int64 uniform on {low, ..., high}, both ends included."""
        return low + (self._row_keys(keys_B, stream, 2) * (high - low + 1) >> 32)

    def below(self, size: int, key: Tensor, count: int, stream: Stream) -> Tensor:
        """(count,) int64 uniform on range(size), of one key (0-dim). size: at most 2^40 (a bias of 2^-22)."""
        counter = hash32(torch.arange(1, count + 1, device=key.device))
        first = hash32(counter ^ self._row_keys(key[None], stream, 5))
        second = hash32(counter ^ self._row_keys(key[None], stream, 6))
        return ((first >> 1 << 31) | second >> 1) % size
