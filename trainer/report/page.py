"""The page of a study: sections of figures and tables as one HTML file, in which nothing is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import plotly.offline

from trainer.report.figures.style import PageFigure, template
from trainer.report.tables import Table
from trainer.study.record import StudyRecord


@dataclass(frozen=True)
class Fact:
    """A figure in the head of the page. mark: "good", "warn", "bad" or ""."""

    name: str
    value: str
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """name: its anchor. about: a sentence or two."""

    name: str
    title: str
    figures: Sequence[PageFigure] = ()
    tables: Sequence[Table] = ()
    about: str = ""


@dataclass(frozen=True)
class Page:
    """What the page shows. remake: the command that makes it."""

    study: StudyRecord
    facts: Sequence[Fact]
    sections: Sequence[Section]
    remake: str

    @property
    def figures(self) -> list[PageFigure]:
        """All figures, in the order of the page."""
        return [figure for section in self.sections for figure in section.figures]


def render(page: Page, *, pictures: bool) -> str:
    """The page as HTML. pictures: whether figures/NAME.png and .pdf are beside it. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    here = files("trainer.report")
    sections = [
        {
            **vars(section), "figures": [_placed(figure) for figure in section.figures],
        }
        for section in page.sections
    ]  # fmt: skip
    return environment.get_template("page.html").render(
        study=page.study,
        facts=page.facts,
        sections=sections,
        remake=page.remake,
        pictures=pictures,
        css=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        plotly=plotly.offline.get_plotlyjs(),
        figures=_json({figure.name: _drawn(figure) for figure in page.figures}),
        templates=_json({"light": template(dark=False), "dark": template(dark=True)}),
    )


def _placed(figure: PageFigure) -> dict[str, Any]:
    """What the template needs of a figure."""
    return {
        "name": figure.name, "title": figure.title, "caption": figure.caption, "commands": figure.commands,
        "height": figure.figure.layout.height, "least_width": figure.least_width, "wide": figure.wide,
    }  # fmt: skip


def _drawn(figure: PageFigure) -> Mapping[str, Any]:
    """Data and layout, as plain values."""
    content: dict[str, Any] = json.loads(figure.figure.to_json())
    return {"data": content["data"], "layout": content["layout"]}


def _json(content: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
