"""`mealrec systems`: list the systems that can be trained: what each is, where it comes from, what it needs and costs.

Example: mealrec systems --format markdown
"""

from __future__ import annotations

import argparse
from typing import get_args, get_type_hints

from models.options.base import ContentField, SystemOptions
from models.options.mealrec import MealRecOptions
from models.systems import SYSTEMS, options_class
from trainer.commands.listing import Listing, Row, add_format, render

_CONTENT: dict[ContentField, str] = {
    "sequence": "frames",
    "visual": "video vectors",
    "text": "title vectors",
    "visual_layers": "layer states of a video encoder",
    "text_layers": "layer states of a title encoder",
}
#: seconds of the fastest epoch in the table of docs/results.md (MealRec: over TedRec, as published)
EPOCH_SECONDS = {
    "sasrec": 3.3, "cl4srec": 10.6, "tedrec": 9.3, "ssdrec": 24.4, "diqdiff": 6.3, "dmmd4sr": 17.7, "morec": 4.9,
    "iisan": 18.5, "iisan-versa": 33.4, "mmgcn": 20.8, "m3bsr": 33.4, "mealrec": 24.1,
}  # fmt: skip
_NOTES = (
    "kind: a baseline counts, it has no epochs and is fitted in seconds; MealRec can be built over any backbone "
    "(`model.backbone`).",
    "needs: content of the items, with the default options. Five overlapping parts of the titles (`mealrec prepare "
    "... --text minilm --segments 5`, for layer states also `--layers`) can take the place of frames and videos. M3BSR "
    "also uses behaviours, such as likes, where the dataset has them.",
    "cost: time of an epoch, SASRec's is 1: on a sample of MicroLens, at width 64, by batches of different size "
    "(2026-11-21, one thread of a 2-core AMD EPYC; docs/results.md has the figures and the commands).",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    print(page() if args.format == "markdown" else render([_listing()], args.format))
    return 0


def page() -> str:
    """docs/systems.md; a test compares them."""
    made = "This page is the output of `mealrec systems --format markdown`."
    return f"# Systems\n\n{made} The options of each system are in [settings.md](settings.md).\n\n" + render(
        [_listing()], "markdown"
    )


def _listing() -> Listing:
    return Listing("systems", "Systems", [_row(name) for name in SYSTEMS], _NOTES)


def _row(name: str) -> Row:
    entry, options = SYSTEMS[name], options_class(name)
    content = [_CONTENT[field] for field in options().needs]
    if options.needs_titles:
        content.append("titles")
    return {
        "system": name,
        "kind": _kind(name, options),
        "needs": ", ".join(content) or "ids alone",
        "cost": _cost(name),
        "what it is": entry.what + (f" ({entry.source})" if entry.source else ""),
    }


def _kind(name: str, options: type[SystemOptions]) -> str:
    if not options.trained:
        return "baseline"
    return "backbone" if name in get_args(get_type_hints(MealRecOptions)["backbone"]) else "system"


def _cost(name: str) -> float | None:
    seconds = EPOCH_SECONDS.get(name)
    return None if seconds is None else round(seconds / EPOCH_SECONDS["sasrec"], 1)
