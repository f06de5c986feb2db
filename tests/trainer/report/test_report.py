"""`mealrec report` on a study written by hand: the page in a real browser, its text, its pictures, and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.browser import look, require_browser
from tests.helpers.finished_study import write_study
from tests.helpers.tiny_runs import make_dataset
from trainer.cli import main
from trainer.comparison.published import reader
from trainer.comparison.published.reader import PaperDataset
from trainer.data.format.manifest import load_manifest
from trainer.report import pictures
from trainer.report.build import build
from trainer.report.figures.style import PageFigure, figure
from trainer.report.pictures import NoBrowserError, write_pictures
from trainer.report.read import read
from trainer.report.tables import part_tables

FIGURES = {
    "table2-demo", "ablation-demo", "sensitivity-demo-mealrec", "noise-demo", "complexity-demo", "tune-demo-sasrec",
    "tune-demo-sasrec-settings", "time", "data-demo", "curves-table2-demo", "curves-ablation-demo",
    "curves-sensitivity-demo", "curves-noise-demo", "curves-complexity-demo", "curves-embedding-demo",
    "curves-tune-demo", "tsne-embedding-mealrec-s2020", "analysis-embedding-mealrec-s2020-history",
    "analysis-embedding-mealrec-s2020-calibration", "analysis-embedding-mealrec-s2020-frames",
}  # fmt: skip
DRAWN = "document.documentElement.dataset.drawn !== undefined"
#: titles of the buttons of a figure, where the mouse can hover: headless browsers have none
BUTTONS = """(() => {
  const plot = document.getElementById("time");
  Plotly.newPlot(plot, plot.data, plot.layout, { ...config, displayModeBar: true });
  return [...plot.querySelectorAll(".modebar-btn")].map((button) => button.dataset.title);
})()"""
#: what the software renderer of a machine without a GPU says of itself
_OF_THE_DRIVER = "GL Driver Message"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the study "first"."""
    folder = tmp_path_factory.mktemp("runs")
    write_study(folder / "first", make_dataset(folder / "demo"))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    """The page of the study."""
    out = runs.parent / "page"
    arguments = ["report", "--study", "first", "--runs-dir", str(runs), "--out", str(out), "--no-pictures"]
    assert main(arguments) == 0
    return out / "index.html"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_page_draws_every_figure_asks_for_nothing_and_fits(page: Path, width: int, dark: bool) -> None:
    require_browser()
    ask = {
        "drawn": "[...document.querySelectorAll('.plot')].filter(e => e.querySelector('.main-svg')).map(e => e.id)",
        "empty": "[...document.querySelectorAll('.plot')].filter(e => e.clientHeight < 100).map(e => e.id)",
        "width": "document.documentElement.scrollWidth",
        "buttons": BUTTONS,
        "back": "getComputedStyle(document.body).backgroundColor",
        "paper": "getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor",
    }
    seen = look(page, width, dark=dark, until=DRAWN, ask=ask)
    assert [message for message in seen.messages if _OF_THE_DRIVER not in message] == []
    assert [url for url in seen.requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert set(seen.answers["drawn"]) == FIGURES
    assert seen.answers["empty"] == []
    assert seen.answers["width"] <= width
    buttons = {title.lower() for title in seen.answers["buttons"]}
    assert buttons
    assert buttons <= {"download plot as a png", "zoom", "pan", "autoscale", "reset axes"}  # none sends it elsewhere
    light = {"back": "rgb(246, 247, 249)", "paper": "rgb(255, 255, 255)"}
    assert all((seen.answers[name] == colour) != dark for name, colour in light.items())


def test_page_tells_what_is_missing_and_how_each_figure_is_made(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    body = text[: text.index('<script type="application/json"')]
    for told in (
        "&lt;demo&gt; has no visual_layers", "out of memory in a step of 2048 rows", "81,234", "OutOfMemoryError",
        "table2-mmgcn-s2020", "41 of 43", "&lt;b&gt;first&lt;/b&gt;", "third &amp; last", "75 % of pairs",
    ):  # fmt: skip
        assert told in body, told
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", body)
    for part in re.split(r"(?=<figure)", body)[1:]:
        assert re.search(r'<pre class="command"><code>[^<]*mealrec (report|analyse)', part), part[:80]
    assert "mealrec compare table2-mealrec-s2020" in body


def test_tables_hold_mean_deviation_and_the_sign_of_a_test(page: Path, runs: Path) -> None:
    reports = [
        json.loads((runs / f"first/table2-mealrec-s{seed}/test.json").read_bytes()) for seed in (2020, 2021, 2022)
    ]
    values = [report["NDCG@10"] for report in reports]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    text = page.read_text(encoding="utf-8")
    row = re.search(r"<tr><td class=\"\">mealrec</td>.*?</tr>", text)
    assert row is not None
    assert re.search(rf"{mean:.4f}\*? ±{deviation:.4f}", row[0])
    for table in ("Tests over users", "Effect sizes over users", "Tests over seeds"):
        assert f"{table}, every item ranked: mealrec minus each other run" in text
    assert re.search(r"Rel. Imp.</td>.{0,60}[+-]\d+\.\d\d %", text)


def test_published_figures_are_shown_on_the_papers_data_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read(runs / "first")
    (part,) = [part for part in study.record.parts if part.name == "table2"]
    assert not [table for table in part_tables(study, part) if "Published" in table.title]
    counts = load_manifest(Path(next(iter(study.record.datasets.values()))))
    size = {"users": counts.users, "items": counts.items, "interactions": counts.interactions}
    as_the_paper_has = {"microlens-big": PaperDataset(printed="Microlens-big", source="microlens", **size)}
    monkeypatch.setattr(reader, "datasets", lambda: as_the_paper_has)
    metrics, costs = [table for table in part_tables(study, part) if "Published" in table.title]
    assert metrics.title.startswith("Published metrics, Table 2, Microlens-big, beside ")
    (row,) = [[cell.text for cell in row] for row in metrics.rows if row[0].text == "MealRec"]
    assert row[:3] == ["MealRec", "mealrec", "0.0809"]
    assert any(note.startswith("the paper, I2: HR@20 of TedRec is 0.0893 here") for note in costs.notes)
    assert metrics.command.endswith(" --published")


def test_heatmap_outlines_the_one_that_was_tested(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    drawn = json.loads(re.search(r'id="figures-data">(.*?)</script>', text, re.DOTALL)[1])["sensitivity-demo-mealrec"]  # type: ignore[index]
    (shape,) = drawn["layout"]["shapes"]
    heat = drawn["data"][0]
    assert (heat["x"][round(shape["x0"] + 0.5)], heat["y"][round(shape["y0"] + 0.5)]) == ("25", "0.1")


def test_a_map_of_a_run_that_two_parts_share_is_shown_once(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "shared", only=("table2", "embedding"))
    content = json.loads((folder / "study.json").read_bytes())
    (mapped,) = [trial for trial in content["trials"] if trial["part"] == "embedding"]
    (folder / mapped["run"] / "analysis.json").rename(folder / "table2-mealrec-s2020/analysis.json")
    mapped["run"] = "table2-mealrec-s2020"
    (folder / "study.json").write_text(json.dumps(content))
    names = [figure.name for figure in build(read(folder), "mealrec report").figures]
    assert names.count("tsne-embedding-mealrec-s2020") == 1  # the name of the analysed run, as the analysis has it
    assert len(names) == len(set(names))


def test_pictures_are_png_and_pdf(tmp_path: Path) -> None:
    require_browser()
    drawn = figure(200)
    drawn.add_bar(x=[1, 2], y=[3, 4])
    write_pictures([PageFigure("one", "One", "", drawn, ())], tmp_path)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_browser_the_page_is_made_and_the_reason_told(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures.SilentChromium, "find_browser", lambda **_: None)
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda **_: None)
    out = tmp_path / "report"
    assert main(["report", "--study", str(runs / "first"), "--out", str(out)]) == 0
    assert "no Chrome or Chromium was found" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert 'href="figures/' not in (out / "index.html").read_text(encoding="utf-8")
    with pytest.raises(NoBrowserError):
        write_pictures([], tmp_path)


def test_an_earlier_report_is_replaced_and_nothing_else(
    runs: Path, page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", "--study", "first", "--runs-dir", str(runs), "--no-pictures", "--out"]
    before = page.stat().st_mtime_ns
    assert main([*arguments, str(page.parent)]) == 0
    assert page.stat().st_mtime_ns > before
    (tmp_path / "index.html").write_text("mine")
    assert main([*arguments, str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


def test_an_unknown_study_is_told_with_the_nearest_name(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--study", "frist", "--runs-dir", str(runs)]) == 2
    assert "did you mean 'first'?" in capsys.readouterr().err


def test_a_study_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    study = write_study(tmp_path / "new")
    for report in study.rglob("*.json"):
        if report.parent != study:
            report.unlink()
    for log in study.rglob("metrics.jsonl"):
        log.unlink()
    assert main(["report", "--study", str(study), "--out", str(tmp_path / "out"), "--no-pictures"]) == 0
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "0 of 43" in text
    assert "not there any more" in text
