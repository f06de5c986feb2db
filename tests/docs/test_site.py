"""The documentation as a site: it is built with all its pages, and a dead link, anchor or page ends the build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES
from tests.helpers.paths import ROOT


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    for page in PAGES:
        place = page.relative_to(ROOT).with_suffix(".html").as_posix().replace("README.html", "index.html")
        assert (site / place).exists(), place
        text = (site / place).read_text(encoding="utf-8")
        assert "\\|" not in text, f"{page.name}: code in a table has a pipe, which only some hosts show without \\"
    assert re.search(r"<code>train\.batch_size</code>", (site / "docs/settings.html").read_text(encoding="utf-8"))


def test_no_page_asks_another_host(site: Path) -> None:
    """Links are followed by people; scripts, styles, pictures and fonts are loaded by browsers."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="([^"]+)"', text)
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], page
        if 'class="mermaid"' in text:  # else the theme would load the program from another host
            script = re.search(r'<script src="([^"]*mermaid\.js)">', text)
            assert script is not None
            assert (page.parent / script[1]).resolve() == site / "assets/mermaid.js"
    assert 'class="mermaid"' in (site / "index.html").read_text(encoding="utf-8")


def test_what_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    for name in ("docs", "benchmarks/results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/cluster.md").open("a") as page:
        page.write("\n[a](nowhere.md) [b](settings.md#no-such-heading) [c](../trainer/cli.py)\n")
    (tmp_path / "docs/forgotten.md").write_text("# Not in the menu\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for what in ("nowhere.md", "#no-such-heading", "../trainer/cli.py"):
        assert any(what in line and "docs/cluster.md" in line for line in said), (what, said)
    assert "docs/forgotten.md" in done.stderr
