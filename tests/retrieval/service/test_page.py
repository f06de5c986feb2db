"""The page at `/`: used in a real browser, by keyboard and on a phone's width, and what it may ask for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from models.mealrec.model import MealRec
from retrieval import Recommender
from retrieval.batches import batches
from retrieval.service.app import Service
from retrieval.service.guard import Limits
from retrieval.service.page import whole_page
from retrieval.service.thumbnails import Thumbnails
from tests.helpers.browser import look, require_browser
from tests.helpers.exported import MAX_LENGTH, N_ITEMS, export_model, make_model
from tests.helpers.listening import listening

#: a picture of one pixel
GIF = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")
NASTY = '<img src=x onerror="document.title=1"> 60'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    root = tmp_path_factory.mktemp("page")
    titles = [*(f"title {row}" for row in range(1, N_ITEMS - 1)), NASTY]
    export_model(root / "model", titles=titles)
    (root / "pictures").mkdir()
    (root / "pictures/v7.png").write_bytes(GIF)
    pictures = Thumbnails(root / "pictures")
    return Service(lambda: Recommender.load(root / "model"), limits=Limits(token="secret"), thumbnails=pictures)


def count(selector: str, number: int) -> str:
    return f"document.querySelectorAll('{selector}').length === {number}"


TOKEN = [
    ("document.getElementById('secret').focus()", "!document.getElementById('token').hidden"),
    ("type secret", "document.getElementById('secret').value === 'secret'"),
    ("key Enter", count("#list > li", 12)),
]
BY_KEYBOARD = [
    *TOKEN,
    ("document.getElementById('text').focus()", "true"),
    ("type title 1", count("#found button", 11)),  # title 1, and 10 to 19
    ("key ArrowDown", "document.activeElement.textContent.startsWith('title 1')"),
    ("key Enter", count("#history li", 1)),
    ("key ArrowDown", "true"),
    ("key Enter", f"{count('#history li', 2)} && {count('.why li', 24)}"),
    ("key Escape", f"document.activeElement.id === 'text' && {count('#found button', 0)}"),
    ("document.querySelector('#list button').focus()", "true"),
    ("key Enter", f"{count('#history li', 3)} && {count('.why li', 36)}"),
    ("document.querySelector('#history button').focus()", "true"),
    ("key Enter", f"{count('#history li', 2)} && {count('.why li', 24)} && document.activeElement.ariaLabel !== null"),
]


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_history_is_built_by_keyboard(service: Service, width: int, dark: bool) -> None:
    require_browser()
    asked = {
        "wider than the window": "document.documentElement.scrollWidth > innerWidth",
        "gone": "document.getElementById('gone').textContent",
        "changes": "[...document.querySelectorAll('.change')].length",
        "link": "decodeURIComponent(location.hash)",
        "back": "getComputedStyle(document.body).backgroundColor",
        "first": "document.querySelector('#list > li').dataset.item",
        "history": "[...document.querySelectorAll('#history .id')].map((each) => each.textContent)",
        "nameless": "[...document.querySelectorAll('button, input')].filter((each) => each.offsetParent && "
        "!(each.ariaLabel || each.textContent.trim() || each.labels?.length)).length",
    }
    with listening(service.asgi) as url:
        ready = "!document.getElementById('token').hidden"
        seen = look(f"{url}/", width, dark=dark, until=ready, ask=asked, steps=BY_KEYBOARD)
    assert [each for each in seen.messages if "401" not in each] == []
    outside = [each for each in seen.requests if not each.startswith((url, "blob:", "data:"))]
    assert outside == []
    answers = seen.answers
    assert not answers["wider than the window"]
    assert answers["changes"] > 0 or answers["gone"]
    assert answers["link"] == "#" + str(answers["history"]).replace("'", '"').replace(", ", ",")
    assert answers["back"] == ("rgb(18, 21, 27)" if dark else "rgb(246, 247, 249)")
    assert answers["nameless"] == 0
    best = service._answering.recommender.recommend(answers["history"], 1).recommendations[0].item
    assert answers["first"] == best


def test_a_link_holds_a_history_and_titles_are_never_html(service: Service) -> None:
    require_browser()
    asked = {
        "titles": "[...document.querySelectorAll('#history .what')].map((each) => each.textContent)",
        "pictures": "document.querySelectorAll('#history img').length",
        "title": "document.title",
    }
    link = "/#%5B%22v7%22%2C%22v413%22%2C%22nobody%22%5D"
    with listening(service.asgi) as url:
        until = "!document.getElementById('token').hidden"
        steps = [*TOKEN, ("0", f"{count('#history li', 3)} && {count('#history img', 1)} && {count('.why li', 24)}")]
        seen = look(url + link, 1280, dark=False, until=until, ask=asked, steps=steps)
    assert seen.answers["titles"] == ["title 1v7", f"{NASTY}v413", "nobody"]
    assert seen.answers["title"] == "MealRec"
    assert seen.answers["pictures"] == 1


def test_the_page_is_one_file_and_may_run_nothing_else(service: Service) -> None:
    html, policy = whole_page()
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"// .*", "", html))
    assert "{{" not in html
    with TestClient(service.asgi) as client:
        answer = client.get("/")  # it asks for the token itself
        assert (answer.status_code, answer.text) == (200, html)
        assert answer.headers["content-security-policy"] == policy
        assert "unsafe" not in policy
        assert client.get("/v1/model").status_code == 401


def test_pictures_are_those_of_the_folder_alone(service: Service, tmp_path: Path) -> None:
    headers = {"authorization": "Bearer secret"}
    with TestClient(service.asgi, headers=headers) as client:
        found = client.get("/v1/thumbnail", params={"id": "v7"})
        assert (found.status_code, found.content, found.headers["content-type"]) == (200, GIF, "image/png")
        assert client.get("/v1/thumbnail", params={"id": "v14"}).status_code == 204
        assert client.get("/v1/model").json()["thumbnails"] is True
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(GIF)
    (tmp_path / "in/a%2Fb%25.webp").write_bytes(GIF)
    pictures = Thumbnails(tmp_path / "in")
    for strange in ("../secret", "..", "", "\0", "x" * 255, "/secret"):
        assert pictures.of(strange) is None
    found_ = pictures.of("a/b%")
    assert found_ is not None
    assert found_.media_type == "image/webp"


def test_influences_of_several_items_are_those_of_each(service: Service) -> None:
    with TestClient(service.asgi, headers={"authorization": "Bearer secret"}) as client:
        together = client.post("/v1/influences", json={"history": ["v7", "v14", "x"], "items": ["v70", "v77"]}).json()
        for item, row in zip(("v70", "v77"), together["influences"], strict=True):
            alone = client.post("/v1/explain", json={"history": ["v7", "v14", "x"], "item": item}).json()["influences"]
            assert [each["item"] for each in row] == ["v7", "v14"]
            assert [each["effect"] for each in row] == pytest.approx([each["effect"] for each in alone], abs=1e-5)
        assert client.post("/v1/influences", json={"history": ["v7"], "items": ["x"]}).status_code == 404
        one = client.post("/v1/influences", json={"history": ["v7"], "items": ["v70"]}).json()["influences"]
        assert one[0][0]["effect"] is None


#: items of the fixture with and without frames
SEEN, UNSEEN = "v7", "v14"


@pytest.fixture(scope="module")
def of_frames(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """MealRec, whose TCD denoises the frames of a video; of SEEN a picture of the second of three is known."""
    root = tmp_path_factory.mktemp("frames")
    export_model(root / "model", "mealrec")
    (root / "pictures" / SEEN).mkdir(parents=True)
    (root / "pictures" / SEEN / "2.png").write_bytes(GIF)
    return Service(lambda: Recommender.load(root / "model"), thumbnails=Thumbnails(root / "pictures"))


def test_an_explanation_says_which_frames_the_denoiser_keeps(of_frames: Service, service: Service) -> None:
    model, _, present = make_model("mealrec")
    assert isinstance(model, MealRec)
    model.inference = model.inference_choices[-1]
    with TestClient(of_frames.asgi) as client:
        assert present["sequence"][:3].tolist() == [False, True, False]
        answer = client.post("/v1/explain", json={"history": [UNSEEN, SEEN, "nobody"], "item": "v70"}).json()
        (batch,) = batches([[2, 1]], MAX_LENGTH, torch.device("cpu"))
        with torch.no_grad():
            before, after = model.refined(batch)
        changes = ((after - before).norm(dim=-1) / before.norm(dim=-1)).square()[0]
        assert [each["change"] for each in answer["frames"]] == pytest.approx(changes.tolist(), rel=1e-4)
        assert [each["kept"] for each in answer["frames"]] == (changes <= changes.mean()).tolist()
        assert 0 < sum(each["kept"] for each in answer["frames"]) < len(changes) == 3
        together = client.post("/v1/influences", json={"history": [SEEN], "items": ["v70", "v77"]}).json()
        assert len(together["frames"]) == 3
        unknown = client.post("/v1/explain", json={"history": [SEEN, UNSEEN], "item": "v70"}).json()
        assert unknown["frames"] == [], "nobody knows the frames of the last"
        assert client.get("/v1/thumbnail", params={"id": SEEN, "frame": 2}).content == GIF
        for strange in ({"id": SEEN, "frame": 1}, {"id": "..", "frame": 2}, {"id": SEEN}):
            assert client.get("/v1/thumbnail", params=strange).status_code == 204
    with TestClient(service.asgi, headers={"authorization": "Bearer secret"}) as client:
        assert client.post("/v1/explain", json={"history": ["v7"], "item": "v70"}).json()["frames"] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_frames_that_are_kept_are_highlighted(of_frames: Service, width: int) -> None:
    require_browser()
    asked = {
        "wider": "document.documentElement.scrollWidth > innerWidth",
        "kept": "[...document.querySelectorAll('#frames li')].map((each) => each.classList.contains('kept'))",
        "said": "[...document.querySelectorAll('#frames li')].map((each) => each.ariaLabel)",
        "pictures": "[...document.querySelectorAll('#frames li')].map((each) => each.querySelectorAll('img').length)",
        "colours": "new Set([...document.querySelectorAll('#frames li')]"
        ".map((each) => getComputedStyle(each).borderColor)).size",
    }
    steps = [("document.getElementById('clear').click()", "document.getElementById('frames-section').hidden")]
    with listening(of_frames.asgi) as url:
        ready = f"{count('#frames li', 3)} && {count('#frames img', 1)}"
        seen = look(f"{url}/#%5B%22{SEEN}%22%5D", width, dark=width < 600, until=ready, ask=asked)
        look(f"{url}/#%5B%22{SEEN}%22%5D", width, dark=False, until=ready, ask={}, steps=steps)
    kept = [each.kept for each in of_frames._answering.recommender.frames([SEEN])]
    assert (seen.messages, seen.answers["kept"], seen.answers["pictures"]) == ([], kept, [0, 1, 0])
    assert ["kept" in each for each in seen.answers["said"]] == kept
    assert (seen.answers["colours"], seen.answers["wider"]) == (2, False)
