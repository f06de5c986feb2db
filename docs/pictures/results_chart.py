"""`python docs/pictures/results_chart.py` draws docs/results.svg, README's chart, from the table in docs/results.md.

A picture, and not a chart in Markdown, so that it looks alike wherever README is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
TABLE, CHART = DOCS / "results.md", DOCS / "results.svg"
COLUMN = "masked NDCG@10"
#: kinds of system by what their names begin with, and their colours
COLOURS = {"baseline, fitted in seconds": "#8a8f98", "trained": "#5b8def", "MealRec": "#d9480f"}
BASELINES = ("popularity", "content-kNN", "TF-IDF-kNN", "transition-kNN")
_ROW, _LEFT, _RIGHT, _TOP, _WIDTH = 22, 268, 92, 58, 634


@dataclass(frozen=True)
class Bar:
    """One system and its figure. spread: standard deviation over seeds, 0 for one seed."""

    name: str
    value: float
    spread: float

    @property
    def kind(self) -> str:
        if self.name.startswith(BASELINES):
            return "baseline, fitted in seconds"
        return "MealRec" if self.name.startswith("MealRec") else "trained"


def bars(text: str) -> list[Bar]:
    """The rows of the first table in `text`, the best first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    found = []
    for row in rows:
        if len(row) != len(header):
            break  # the next table
        value, _, spread = row[header.index(COLUMN)].partition(" ±")
        if re.fullmatch(r"\d*\.\d+", value):
            found.append(Bar(row[0], float(value), float(spread or 0)))
    return sorted(found, key=lambda bar: -bar.value)


def draw(found: list[Bar]) -> str:
    """The chart as SVG: a bar for each system, with its figure beside it and its spread as a whisker."""
    scale = (_WIDTH - _LEFT - _RIGHT) / max(bar.value + bar.spread for bar in found)
    height = _TOP + _ROW * len(found) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        "<title>NDCG@10 of all systems on the MicroLens sample</title>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff" stroke="#d0d7de"/>',
        '<text x="16" y="24" font-size="15" font-weight="600" fill="#1f2328">NDCG@10 on the MicroLens sample, history '
        "masked (higher is better)</text>",
    ]
    x = 16
    for kind, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="36" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="46" fill="#57606a">{kind}</text>')
        x += 40 + 7 * len(kind)
    for place, bar in enumerate(found):
        y, width = _TOP + _ROW * place, bar.value * scale
        middle, end = y + _ROW / 2, _LEFT + width
        place_of_name = f'x="{_LEFT - 8}" y="{middle + 4.5}" text-anchor="end" fill="#1f2328"'
        parts.append(f"<text {place_of_name}>{escape(bar.name)}</text>")
        size = f'x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}"'
        parts.append(f'<rect {size} fill="{COLOURS[bar.kind]}"/>')
        if bar.spread:
            reach = bar.spread * scale
            whisker = f"M{end - reach:.1f} {middle}H{end + reach:.1f}"
            parts.append(f'<path d="{whisker}" stroke="#1f2328" stroke-width="1.5"/>')
            end += reach
        parts.append(f'<text x="{end + 6:.1f}" y="{middle + 4.5}" fill="#1f2328">{_figure(bar)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _figure(bar: Bar) -> str:
    return f"{bar.value:.4f}"[1:] + (f" ±{bar.spread:.4f}".replace("0.", ".") if bar.spread else "")


if __name__ == "__main__":
    CHART.write_text(draw(bars(TABLE.read_text(encoding="utf-8"))), encoding="utf-8")
