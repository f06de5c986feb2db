"""A page about one item as a single HTML file: nothing is loaded from elsewhere, nothing in it runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --soft: #8883; --dim: color-mix(in srgb, currentColor 65%, transparent);
  --warn: #8a5200; }
@media (prefers-color-scheme: dark) { :root { --warn: #f0b35a; } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .1rem; }
h1, p, td, li, figcaption { overflow-wrap: anywhere; }
p { margin: .25rem 0; }
.dim, th { color: var(--dim); font-size: .875rem; font-weight: normal; }
.warn { color: var(--warn); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12.5rem, 44%), 1fr)); gap: 1rem .75rem;
  margin: .75rem 0 0; padding: 0; list-style: none; }
.grid > li { min-width: 0; }
figure { margin: 0; }
img, .none { display: block; width: 100%; border-radius: .4rem; background: var(--soft); }
.near img { aspect-ratio: 16 / 9; object-fit: contain; }
.none { aspect-ratio: 16 / 9; box-sizing: border-box; padding: .6rem; font-size: .8rem; color: var(--dim);
  overflow: auto; overflow-wrap: anywhere; }
figcaption { margin-top: .3rem; font-size: .9rem; line-height: 1.35; }
figcaption > span, td > span { display: block; }
.number { font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; margin-top: .6rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--soft); }
thead th { border-top: 0; }
.facts th { width: 8rem; }
.facts td { font-size: .9rem; }
.titles .number { width: 5.5rem; }
"""


@dataclass(frozen=True)
class Frames:
    """Frames of the item's video. times: seconds as recorded, one per frame; pictures: data: URIs, none where the video
    cannot be shown; trouble: what is wrong, "" where nothing is."""

    times: Sequence[float]
    pictures: Sequence[str] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Near:
    """A neighbour. picture: a data: URI; trouble: why there is none. Both "" where it has no video."""

    item: str
    title: str
    similarity: float
    picture: str = ""
    trouble: str = ""


class Neighbours(NamedTuple):
    """The neighbours by one kind of vector, best first. by: the kind in words."""

    by: str
    items: Sequence[Near]


@dataclass(frozen=True)
class Part:
    """What one folder of features holds of the item. name: the folder; made_by: encoder; facts: what else, in words."""

    name: str
    made_by: str
    facts: Mapping[str, str]
    frames: Frames | None = None
    neighbours: Sequence[Neighbours] = field(default_factory=tuple)


def render(item: str, title: str, parts: Sequence[Part], absent: Mapping[str, str]) -> str:
    """The page of an item as HTML. title: "" where it has none; absent: folder -> why it does not hold the item.

    All text may come from strangers.
    """
    name = title or item
    sections = [
        *(_frames(part, part.frames, name) for part in parts if part.frames),
        *(_neighbours(part, near) for part in parts for near in part.neighbours),
        *(_facts(part) for part in parts),
    ]
    missing = [f'<p class="warn">Not in {_text(folder)}: {_text(why)}</p>' for folder, why in absent.items()]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            """<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escaped(f'{title} ({item})' if title else item)}</title>",
            f"<style>{_STYLE}</style>",
            "<header>",
            f"<h1>{_heading(title)}</h1>",
            f'<p class="dim">item {_text(item)}</p>',
            *missing,
            "</header>",
            *sections,
            "</html>\n",
        ]
    )


def _frames(part: Part, frames: Frames, name: str) -> str:
    times = [f"{time:.2f} s" for time in frames.times]
    if frames.pictures:
        cells = [
            f'<li><figure><img src="{_escaped(picture)}" alt="{_escaped(f"frame {number} of {name}, at {time}")}">'
            f'<figcaption class="number">{time}</figcaption></figure></li>'
            for number, (picture, time) in enumerate(zip(frames.pictures, times, strict=True), 1)
        ]
        shown = f'<ol class="grid">{"".join(cells)}</ol>'
    else:
        shown = f'<p class="number">Sampled at {", ".join(times)}</p>'
    trouble = f'<p class="warn">{_text(frames.trouble)}</p>' if frames.trouble else ""
    return f"<section><h2>Sampled frames</h2>{_origin(part)}{trouble}{shown}</section>"


def _neighbours(part: Part, near: Neighbours) -> str:
    head = f"<section><h2>Nearest by {_text(near.by)}</h2>{_origin(part)}"
    if not near.items:
        return f'{head}<p class="dim">There is no other item.</p></section>'
    if not any(each.picture or each.trouble for each in near.items):
        rows = [f'<tr><td class="number">{_similarity(each)}</td><td>{_named(each)}</td></tr>' for each in near.items]
        columns = '<thead><tr><th scope="col">similarity</th><th scope="col">title, item</th></tr></thead>'
        return f'{head}<table class="titles">{columns}<tbody>{"".join(rows)}</tbody></table></section>'
    cells = [
        f"<li><figure>{_picture(each)}"
        f'<figcaption><span class="dim number">similarity {_similarity(each)}</span>{_named(each)}</figcaption>'
        "</figure></li>"
        for each in near.items
    ]
    return f'{head}<ol class="grid near">{"".join(cells)}</ol></section>'


def _facts(part: Part) -> str:
    rows = [f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in part.facts.items()]
    return f'<section><h2>Features in {_text(part.name)}</h2><table class="facts">{"".join(rows)}</table></section>'


def _picture(near: Near) -> str:
    if not near.picture:
        return f'<div class="none">no picture: {_text(near.trouble)}</div>'
    return f'<img src="{_escaped(near.picture)}" alt="{_escaped(f"middle frame of {near.title or near.item}")}">'


def _similarity(near: Near) -> str:
    return f"{near.similarity:.3f}".replace("-", "\N{MINUS SIGN}")


def _named(near: Near) -> str:
    return f'<span>{_heading(near.title)}</span><span class="dim">item {_text(near.item)}</span>'


def _heading(title: str) -> str:
    return _text(title) if title else '<span class="dim">no title</span>'


def _origin(part: Part) -> str:
    return f'<p class="dim">{_text(part.made_by)}, in {_text(part.name)}</p>'


def _text(text: str) -> str:
    """Escaped, and kept apart: its direction of writing does not reach the text around it."""
    return f"<bdi>{_escaped(text)}</bdi>"


def _escaped(text: str) -> str:
    """Safe in text and in quoted attributes; control characters, which HTML does not allow, become U+FFFD."""
    return html.escape("".join(c if c in "\t\n\r" or (c >= " " and not "\x7f" <= c <= "\x9f") else "�" for c in text))
