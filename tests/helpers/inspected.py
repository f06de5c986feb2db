"""Features like those of an extraction, made without a model; pages of `mealrec inspect` as a browser reads them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.clips import number_clip
from tests.helpers.extraction_job import items_of
from trainer.cli import main
from trainer.extract.pipeline.finish import finish
from trainer.extract.pipeline.units import COST, FAILED, POSITIONS, REASONS, TIMES, pack
from trainer.extract.pipeline.work import Work
from trainer.extract.titles.job import TitleJob
from trainer.extract.video.job import VideoJob

#: `clips` have 25 pictures, 5 per second: the middle is at 2.5 s, and picture 12 is shown from 2.4 s on
SHOWN, AT = [2, 7, 12, 17, 22], [0.4, 1.4, 2.4, 3.4, 4.4]


def made(
    out: Path,
    job: VideoJob | TitleJob,
    vectors: Mapping[str, NDArray[Any]],
    items: pl.DataFrame,
    failed: Mapping[int, str] | None = None,
) -> str:
    """Features of items (item, title, source) with these vectors; those of videos have the times of `clips`."""
    failed = failed or {}
    good = np.array([n for n in range(len(items)) if n not in failed])
    arrays = {name: array[good].astype(np.float16) for name, array in vectors.items()}
    if isinstance(job, VideoJob):
        arrays[TIMES] = np.tile(np.array(AT, np.float32), (len(good), 1))
    reasons = {FAILED: np.array(list(failed), np.int64), REASONS: np.array(list(failed.values()), np.str_)}
    work = Work.begin(out, items, job.settings)
    work.keep(pack({POSITIONS: good, COST: np.zeros(4), **arrays, **reasons}))
    finish(work, job, "an encoder", "mealrec extract ...", {})
    return str(out)


def video(out: Path, sources: Sequence[str], failed: Mapping[int, str] | None = None) -> str:
    """Features of videos i0, i1 ... without titles, random."""
    frames = np.random.default_rng(1).standard_normal((len(sources), 5, 6))
    items = items_of(list(sources)).with_columns(title=pl.lit(None, pl.String))
    return made(out, VideoJob("e"), {"sequence": frames, "visual": frames.mean(1)}, items, failed)


def named(count: int) -> pl.DataFrame:
    """Items i0, i1 ... with the titles Name 0, Name 1 ..."""
    titles = [f"Name {n}" for n in range(count)]
    return items_of(titles).with_columns(title=pl.Series(titles))


def title(out: Path, items: pl.DataFrame, failed: Mapping[int, str] | None = None) -> str:
    """Features of titles, random."""
    vectors = np.random.default_rng(2).standard_normal((len(items), 4))
    return made(out, TitleJob("e"), {"text": vectors}, items, failed)


def clips(folder: Path, count: int) -> list[str]:
    """Clips; clip n shows the numbers 100 n, 100 n + 1, ..."""
    folder.mkdir()
    for n in range(count):
        number_clip(folder / f"{n}.mp4", size=(480, 270), first=100 * n, fps=5)
    return [str(folder / f"{n}.mp4") for n in range(count)]


class Page(HTMLParser):
    """A page as a browser reads it: tags with attributes; text and pictures by section ("": before the first one)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {"": ""}
        self.pictures: dict[str, list[dict[str, str]]] = {"": []}
        self.title = self._inside = self._heading = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "img":
            self.pictures[self._heading].append(attributes)
        elif tag == "h2":
            self._heading = ""
        if tag in ("h2", "title", "style"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self.text[self._heading], self.pictures[self._heading] = "", []
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "h2":
            self._heading += data
        elif self._inside == "title":
            self.title += data
        elif self._inside != "style":
            self.text[self._heading] += data


def inspected(tmp_path: Path, item: str, *features: str, **options: int | str) -> Page:
    """The page of an item. Asserts that it loads nothing from elsewhere and has no scripts."""
    out = tmp_path / "pages" / "page.html"
    more = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folders = [word for folder in features for word in ("--features", folder)]
    assert main(["inspect", *folders, "--item", item, "--out", str(out), *more]) == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "a", "iframe", "object", "form", "b"})
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    return page


def pixels(image: Mapping[str, str]) -> NDArray[np.uint8]:
    """A picture of a page (height, width, 3), RGB."""
    header, _, data = image["src"].partition(",")
    assert header == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB"))
