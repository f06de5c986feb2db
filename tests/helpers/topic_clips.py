"""Clips for the items of a synthetic world: colour, shape and direction show the topic, but only in some seconds."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tests.helpers.clips import write_clip

SIZE, FPS, SECONDS = 96, 6, 7
COLOURS = ((220, 40, 40), (40, 200, 60), (60, 70, 230))
DIRECTIONS = ((1, 0), (0, 1), (-1, 0))


def write_world(dataset: Path, folder: Path, listed: int | None = None) -> None:
    """Turn a prepared synthetic world of three topics into a user's files: FOLDER/clips/ITEM.mp4 (the last is empty),
    items.csv (item, title) and log.csv (user, item, time). listed: how many items have a clip and a title; None: all.
    """
    items = pl.read_parquet(dataset / "items.parquet")
    topics = np.load(dataset / "truth" / "item_topic.npy")[1:]
    assert set(topics.tolist()) == set(range(len(COLOURS)))
    (folder / "clips").mkdir(parents=True)
    known = items.head(listed) if listed else items
    for number, (name, topic) in enumerate(zip(known["item"], topics.tolist(), strict=False)):
        write_clip(folder / "clips" / f"{name}.mp4", pictures(topic, number), fps=FPS, gop=FPS)
    (folder / "clips" / f"{known['item'][-1]}.mp4").write_bytes(b"")
    known.select("item", "title").write_csv(folder / "items.csv")
    users = pl.read_parquet(dataset / "users.parquet")["user"].to_list()
    offsets = np.load(dataset / "sequences" / "offsets.npy")
    rows = np.load(dataset / "sequences" / "items.npy")
    with (folder / "log.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user", "item", "time"])
        for user, (first, last) in enumerate(itertools.pairwise(offsets)):
            table.writerows([users[user], items["item"][int(rows[at]) - 1], at] for at in range(first, last))


def pictures(topic: int, item: int) -> list[NDArray[np.uint8]]:
    """The clip of an item: grey noise, and in three of its seven seconds the topic's moving shape."""
    random = np.random.default_rng(item)
    shown = set(random.choice(np.arange(1, 6), 3, replace=False).tolist())
    start, side = random.uniform(24, 72, 2), random.uniform(16, 26)
    shots = []
    for frame in range(FPS * SECONDS):
        picture = random.integers(90, 130, (SIZE, SIZE, 3)).astype(np.uint8)
        if frame // FPS in shown:
            moved = start + np.array(DIRECTIONS[topic]) * 4 * frame
            picture[_shape(topic, (moved - 24) % 48 + 24, side)] = COLOURS[topic]
        shots.append(picture)
    return shots


def _shape(topic: int, centre: NDArray[np.float64], side: float) -> NDArray[np.bool_]:
    """The pixels of a disc, a square or a triangle."""
    y, x = np.mgrid[:SIZE, :SIZE]
    x, y = x - centre[0], y - centre[1]
    inside = (x**2 + y**2 < side**2, np.maximum(abs(x), abs(y)) < side, (y < side) & (abs(x) < (y + side) / 2))
    return np.asarray(inside[topic])
