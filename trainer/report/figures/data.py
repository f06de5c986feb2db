"""The data of a study: how long histories are, and how unevenly items are watched."""

from __future__ import annotations

import numpy as np

from trainer.data.format.dataset import Dataset
from trainer.report.figures.style import COLOURS, PageFigure, panels, slug

_MOST_POINTS = 200


def distributions(name: str, dataset: Dataset, commands: tuple[str, ...]) -> PageFigure:
    """Users by the length of their history, and interactions of items by their popularity rank, both logarithmic."""
    lengths, users = np.unique(np.diff(dataset.offsets), return_counts=True)
    popularity = np.sort(dataset.train_counts()[1:])[::-1]
    ranks = np.unique(np.geomspace(1, len(popularity), _MOST_POINTS).astype(np.int64))
    titles = ["users by interactions", "items by training interactions"]
    drawn = panels(titles, 430, 0.24)
    drawn.add_bar(
        x=lengths.tolist(), y=users.tolist(), marker={"color": COLOURS[0]}, row=1, col=1,
        hovertemplate="%{x} interactions: %{y:,} users<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=ranks.tolist(), y=popularity[ranks - 1].tolist(), mode="lines", line={"color": COLOURS[0], "width": 2},
        row=2, col=1, hovertemplate="item %{x:,}: %{y:,} interactions<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title_text="interactions", row=1, col=1)
    drawn.update_xaxes(title_text="item, the most popular first", type="log", dtick=1, row=2, col=1)
    drawn.update_yaxes(type="log", dtick=1, row=2, col=1)
    caption = "Above, how many users have so many interactions; below, how often each item is in training histories."
    return PageFigure(slug("data", name), f"Data: {name}", caption, drawn, commands)
