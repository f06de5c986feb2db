"""Look at one item's features on a page: its sampled frames, its title, and its nearest items.

Example: mealrec inspect --features features/titles --item i19 --out i19.html
"""

from __future__ import annotations

import argparse
import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cluster import console
from models.errors import UserError
from retrieval.files import write_text
from retrieval.folders import writable_file
from trainer.data.features import FEATURES, Features, is_extracted, open_features
from trainer.data.storage import check_scheme, is_url, join, open_file
from trainer.extract.inspect import pictures
from trainer.extract.inspect.neighbours import SimilarRow, nearest
from trainer.extract.inspect.page import FolderSection, Frames, Neighbour, NeighbourList, render
from trainer.extract.pipeline.protocols import Unusable
from trainer.extract.pipeline.work import FAILED_CSV
from trainer.local_path import local_path
from trainer.progress import Progress

_NEIGHBOURS = 8
#: options whose value may begin with a dash
DASHED_VALUES = ("--item",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add = parser.add_argument
    add(
        "--features",
        action="append",
        required=True,
        metavar="DIR",
        help="folder or URL made by `mealrec extract`; may be given several times",
    )
    add("--item", type=str.strip, required=True, metavar="ID", help="the item to look at, as it is: it may hold blanks")
    add(
        "--out", type=local_path, required=True, metavar="FILE", help="the page to write: HTML that needs no other file"
    )
    add(
        "--fetch",
        action="append",
        default=[],
        metavar="URL",
        help="show videos at this address and below it too (http, https, s3 or gs); without it only local ones are "
        "read, as whoever made the features chose the addresses; may be given several times",
    )
    add("--neighbours", type=int, default=_NEIGHBOURS, metavar="N", help="nearest items shown (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    if args.neighbours < 1:
        raise UserError(f"--neighbours {args.neighbours}: give a number of at least 1")
    for address in args.fetch:
        check_scheme(address)
        if not is_url(address):
            raise UserError(f"--fetch {address}: give a URL such as https://host/videos; local files are read anyway")
    out = writable_file(args.out)
    folders = [_opened(root) for root in dict.fromkeys(args.features)]
    holding = [features for features in folders if args.item in features.items["item"]]
    present = {features.root for features in holding}
    absent = {each.root: _why_absent(each, args.item) for each in folders if each.root not in present}
    if not holding:
        raise UserError(_unknown(args.item, folders, absent))
    title = _titles(folders, [args.item]).get(args.item, "")
    sections = [_section(features, args.item, args, folders) for features in holding]
    write_text(out, render(args.item, title, sections, absent))
    console.say(f"written to {args.out}; open it in a browser")
    return 0


def _opened(root: str) -> Features:
    if not is_extracted(root) and not (Path(root) / "unfinished").exists():
        raise UserError(
            f"{root} has no {FEATURES}: `mealrec inspect` reads what `mealrec extract` made, not arrays made elsewhere"
        )
    return open_features(root)


def _why_absent(features: Features, item: str) -> str:
    """The reason in failed.csv, or that the item was not in the list."""
    if features.manifest.failed:
        try:
            with open_file(join(features.root, FAILED_CSV)) as stream:
                for row in csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline="")):
                    if row.get("item") == item:
                        return f"failed: {row.get('reason')}"
        except (UserError, csv.Error, UnicodeDecodeError) as error:
            return f"not one of the {features.manifest.items:,} items, and why is not known: {error}"
    return f"not one of the {features.manifest.items:,} items"


def _unknown(item: str, folders: Sequence[Features], absent: Mapping[str, str]) -> str:
    where = "; ".join(f"{root}: {why}" for root, why in absent.items())
    known = {each: None for features in folders for each in features.items["item"]}
    near = difflib.get_close_matches(item, known, 3, 0.5)
    hint = f"; the nearest ids are {', '.join(map(repr, near))}" if near else f"; an id is {next(iter(known))!r}"
    return f"no features of item {item!r}: {where}{'' if 'failed: ' in where else hint}"


def _section(features: Features, item: str, args: argparse.Namespace, folders: Sequence[Features]) -> FolderSection:
    row = features.items.row(by_predicate=pl.col("item") == item, named=True)
    content = features.manifest.content
    return FolderSection(
        folder=features.root,
        made_by=features.manifest.encoder,
        facts=_facts(features, row),
        frames=_frames(features, row, args.fetch) if row["times"] else None,
        neighbours=[
            NeighbourList(
                content[field].kind, _neighbours(features, similar, folders, args.fetch if field == "visual" else None)
            )
            for field, similar in nearest(features, row["row"], args.neighbours).items()
        ],
    )


def _frames(features: Features, row: Mapping[str, Any], fetch: Sequence[str]) -> Frames:
    fps = features.manifest.settings.get("fps")
    if not isinstance(fps, float | int) or fps <= 0:
        raise UserError(f"{features.root}: the manifest does not say at how many frames per second (settings, fps)")
    try:
        shown, times = pictures.sampled(row["source"], len(row["times"]), fps, fetch)
    except Unusable as error:
        return Frames(row["times"], trouble=f"The video cannot be shown: {error}")
    if pictures.moved(row["times"], times):
        recorded = ", ".join(f"{time:.2f}" for time in row["times"])
        trouble = f"The video has changed since the features were made of its frames at {recorded} s."
        return Frames(times, shown, trouble)
    return Frames(row["times"], shown)


def _neighbours(
    features: Features, similar: Sequence[SimilarRow], folders: Sequence[Features], fetch: Sequence[str] | None
) -> list[Neighbour]:
    """With pictures if `fetch` is not None, see `pictures.sampled`."""
    rows = [features.items.row(each.row - 1, named=True) for each in similar]
    titles = _titles(folders, [row["item"] for row in rows])
    progress = Progress("pictures of neighbours", len(rows))
    made = []
    for each, row in zip(similar, rows, strict=True):
        picture = trouble = ""
        if fetch is not None and row["times"]:
            try:
                picture = pictures.thumbnail(row["source"], fetch)
            except Unusable as error:
                trouble = str(error)
        made.append(Neighbour(row["item"], titles.get(row["item"], ""), each.similarity, picture, trouble))
        progress.update(len(made))
    progress.close()
    return made


def _titles(folders: Sequence[Features], items: Sequence[str]) -> dict[str, str]:
    """Titles of items, each from the first folder that has one."""
    found: dict[str, str] = {}
    for features in reversed(folders):
        rows = features.items.filter(pl.col("item").is_in(items), pl.col("title").str.strip_chars() != "")
        found |= dict(rows.select("item", "title").iter_rows())
    return found


def _facts(features: Features, row: Mapping[str, Any]) -> dict[str, str]:
    manifest = features.manifest
    fields = [f"{name}: {info.kind}, {' x '.join(map(str, info.shape))}" for name, info in manifest.content.items()]
    settings = [f"{name} {value}" for name, value in manifest.settings.items() if value is not None]
    return {
        "encoder": manifest.encoder,
        "settings": ", ".join(settings),
        "vectors": "; ".join(fields),
        "row": f"{row['row']:,} of {manifest.items:,} ({manifest.failed:,} items failed)",
        "video" if row["times"] else "text": row["source"],
        "made": f"{manifest.provenance.time}, by {manifest.provenance.command}",
    }
