"""The figures of a report as PNG and PDF, drawn by a browser without a window (Kaleido)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from choreographer.browsers.chromium import Chromium
from choreographer.errors import BrowserDepsError, BrowserFailedError, ChromeNotFoundError

from trainer.progress import Progress
from trainer.report.figures.style import PageFigure, template

FORMATS = ("png", "pdf")
_WIDTH = 840


class SilentChromium(Chromium):  # type: ignore[misc]
    """Chrome or Chromium that asks no other host for anything of its own accord."""

    def get_cli(self) -> list[str]:
        """The command line that starts it."""
        return [*super().get_cli(), "--disable-background-networking", "--disable-quic"]


class NoBrowserError(Exception):
    """There is no browser that could draw, or it does not start; the message says which."""


def write_pictures(figures: Sequence[PageFigure], folder: Path) -> None:
    """Write NAME.png and NAME.pdf of each figure, in the light colours, into `folder`.

    Raises NoBrowserError. A browser that ends halfway is an error of its own.
    """
    try:
        asyncio.run(_write(figures, folder))
    except ChromeNotFoundError:
        raise NoBrowserError("no Chrome or Chromium was found") from None
    except (BrowserDepsError, BrowserFailedError) as error:
        raise NoBrowserError(f"the browser does not start ({str(error).splitlines()[0][:200]})") from None


async def _write(figures: Sequence[PageFigure], folder: Path) -> None:
    progress = Progress("PNG and PDF", len(figures))
    page = kaleido.PageGenerator(mathjax=False)  # else it is fetched from another host
    async with kaleido.Kaleido(page_generator=page, browser_cls=SilentChromium) as drawer:
        for done, each in enumerate(figures, 1):
            drawn = go.Figure(each.figure)
            drawn.update_layout(template=template(dark=False))
            size = {"width": max(_WIDTH, each.least_width), "height": each.figure.layout.height, "scale": 2}
            for form in FORMATS:
                path = folder / f"{each.name}.{form}"
                await drawer.write_fig(drawn, path=path, opts={"format": form, **size})
            progress.update(done)
    progress.close()
