"""How much a denoiser explains of what it is to recover, beside what its own input explains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: less variance than this is none (all rows are equal)
_LEAST_VARIANCE = 1e-12


@torch.no_grad()
def explained(name: str, clean: Tensor, noisy: Tensor, estimate: Tensor) -> dict[str, Tensor]:
    """Shares of the variance of `clean` over the rows: 1 for a perfect estimate, 0 for the mean, less for worse.

    clean, noisy, estimate: (B, ...). `NAME/explained` is the share that the estimate explains,
    `NAME/explained_by_input` the share that the noisy state explains if it is multiplied by the factor that suits it
    best. A denoiser is of use as one only if its share is the larger one. Without variance both are 0.
    """
    clean, noisy, estimate = clean.float(), noisy.float(), estimate.float()
    centred, state = clean - clean.mean(0), noisy - noisy.mean(0)
    variance = centred.square().mean()
    error = (estimate - clean).square().mean()
    shared = (centred * state).mean().square() / state.square().mean().clamp(min=_LEAST_VARIANCE)
    varies = variance > _LEAST_VARIANCE
    safe = variance.clamp(min=_LEAST_VARIANCE)
    return {
        f"{name}/explained": torch.where(varies, 1 - error / safe, 0.0),
        f"{name}/explained_by_input": torch.where(varies, shared / safe, 0.0),
    }


def idle(figures: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each denoiser that does not denoise, by its `figures` (of `explained`, means of an epoch)."""
    found = []
    for name, what in (("tcd", "content"), ("npd", "preference")):
        own, trivial = (figures.get(f"{name}/explained{suffix}") for suffix in ("", "_by_input"))
        if own is not None and trivial is not None and own < trivial:
            found.append(
                f"{name.upper()} does not denoise here: its estimate explains {own:.1%} of the variance of the {what}, "
                f"its noisy input times the best factor {trivial:.1%} (a larger model.lambda_{name} makes it denoise; "
                "validation tells whether it ranks better then)"
            )
    return tuple(found)
