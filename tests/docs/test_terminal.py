"""docs/pictures/terminal.py draws what a command printed, and its picture asks no host for anything."""

from __future__ import annotations

import importlib.util
import re
from xml.etree import ElementTree

from tests.helpers.paths import ROOT

SCRIPT = ROOT / "docs/pictures/terminal.py"
LOG = "Everything stays in this folder (/home/ann/work)\nKeep demo-x: <best> & more\n  mealrec compare a b\n"


def letters(picture: str) -> str:
    texts = [each.text or "" for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    return re.sub(r"\s", "", "".join(texts))


def outside(picture: str) -> list[str]:
    """Addresses that a viewer would fetch."""
    return re.findall(r"(?:url\(|href=|src=)[\"']?https?:[^\s\"')]*", picture)


def test_the_picture_has_every_letter_and_asks_no_host() -> None:
    spec = importlib.util.spec_from_file_location("terminal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    terminal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(terminal)
    picture = terminal.draw(LOG, folder="/home/ann/work")
    assert re.sub(r"\s", "", "$ ./launch.sh" + LOG.replace("/home/ann/work", "/home/ann/mealrec")) in letters(picture)
    assert outside(picture) == []
    assert outside('@font-face {src: url("https://x.org/a.woff2")}') == ['url("https://x.org/a.woff2']


def test_the_picture_of_readme_is_one_of_the_demo() -> None:
    picture = (ROOT / "docs/demo.svg").read_text(encoding="utf-8")
    assert outside(picture) == []
    for said in ("$./launch.sh", "trainandcompare", "bestpossible", "Keepdemo-", "Whattomakeofit"):
        assert said in letters(picture)
    assert str(ROOT) not in picture
