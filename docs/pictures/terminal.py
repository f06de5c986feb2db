"""`./launch.sh 2>&1 | tee demo.log; python docs/pictures/terminal.py demo.log` draws docs/demo.svg, README's terminal.

The picture has what the command printed, letter by letter, but for the path of the repository, which is shown as
/home/ann/mealrec. It is drawn by rich, without the font that rich would fetch from a host.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "docs/demo.svg"
COMMAND = "./launch.sh"
_WIDEST = 120  # letters; longer lines are folded, as a terminal does
_FONT = re.compile(r"@font-face \{\{.*?\n    \}\}\n", re.DOTALL)


def draw(log: str, folder: str = str(ROOT)) -> str:
    """The terminal as SVG, after `log` was printed. folder: the repository, where the command ran."""
    text = log.replace(folder, "/home/ann/mealrec").rstrip()
    width = min(_WIDEST, max(len(line) for line in text.splitlines()))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(Text.assemble(("$ ", "green"), (COMMAND, "bold")))
    for line in text.splitlines():
        console.print(_coloured(line))
    form = _FONT.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    return console.export_svg(title="MealRec", theme=MONOKAI, code_format=form, unique_id="demo") + "\n"


def _coloured(line: str) -> Text:
    text = Text(line)
    text.highlight_regex(r"^  \S*mealrec .*|^  \. .*", "cyan")
    text.highlight_regex(r"^best possible.*", "yellow")
    text.highlight_regex(r"^Keep \S+", "bold")
    return text


if __name__ == "__main__":
    PICTURE.write_text(draw(Path(sys.argv[1]).read_text(encoding="utf-8")), encoding="utf-8")
