"""The error message for a dataset that lacks content which a system needs."""

from __future__ import annotations

from collections.abc import Collection

from models.errors import UserError
from models.options.base import ContentField

HOW_TO_MAKE: dict[ContentField, str] = {
    "sequence": "frames (`--features DIR` with frames.npy) or title segments (`--text minilm --segments 5`)",
    "visual": "video vectors (`--features DIR` with video.npy or frames.npy) or title segments (`--segments 5`)",
    "text": "title vectors (`--text minilm`, or `--features DIR` with text.npy)",
    "visual_layers": "layer states of the video encoder (`--features DIR` with video_layers.npy) or of title segments "
    "(`--text minilm --segments 5 --layers`)",
    "text_layers": "layer states of the text encoder (`--text minilm --layers`, or `--features DIR` with "
    "text_layers.npy)",
}


def require_content(system: str, fields: Collection[str], needs: tuple[ContentField, ...]) -> None:
    """Raises UserError if a dataset with content `fields` lacks one that `system` needs; says how to prepare it."""
    lacking = [field for field in needs if field not in fields]
    if lacking:
        hints = "; ".join(f"{field}: prepare it with {HOW_TO_MAKE[field]}" for field in lacking)
        raise UserError(f"{system} needs item content that this dataset lacks. {hints}")
