"""A page about one item as a single HTML file: nothing is loaded from elsewhere, nothing in it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jinja2

_TEMPLATE = "page.html"


@dataclass(frozen=True)
class Frames:
    """Frames of the item's video. times: seconds as recorded, one per frame; pictures: data: URIs, none where the video
    cannot be shown; trouble: what is wrong, "" where nothing is."""

    times: Sequence[float]
    pictures: Sequence[str] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Neighbour:
    """An item like the one of the page. picture: a data: URI; trouble: why there is none. Both "" without a video."""

    item: str
    title: str
    similarity: float
    picture: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class NeighbourList:
    """The items nearest by one kind of vector, best first. by: the kind in words."""

    by: str
    items: Sequence[Neighbour]

    @property
    def pictured(self) -> bool:
        """Whether any of them has a video."""
        return any(each.picture or each.trouble for each in self.items)


@dataclass(frozen=True)
class FolderSection:
    """What one folder of features says about the item. made_by: the encoder; facts: all else, name -> words."""

    folder: str
    made_by: str
    facts: Mapping[str, str]
    frames: Frames | None = None
    neighbours: Sequence[NeighbourList] = field(default_factory=tuple)


def render(item: str, title: str, sections: Sequence[FolderSection], absent: Mapping[str, str]) -> str:
    """The page of an item as HTML. title: "" where it has none; absent: folder -> why it does not hold the item.

    All text may come from strangers: the template escapes it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.extract.inspect", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"printable": _printable, "similarity": _similarity}
    template = environment.get_template(_TEMPLATE)
    return template.render(item=item, title=title, sections=sections, absent=absent)


def _similarity(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _printable(text: str) -> str:
    """The text with U+FFFD for control characters, which HTML does not allow."""
    return "".join(
        c if c in "\t\n\r" or (c >= " " and not "\x7f" <= c <= "\x9f") else "\N{REPLACEMENT CHARACTER}" for c in text
    )
