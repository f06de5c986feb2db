"""A real Chromium without a window, driven over its DevTools protocol: what a page shows, says and asks for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from choreographer import Browser
from choreographer.browsers.chromium import Chromium
from choreographer.errors import BrowserDepsError, BrowserFailedError, ChromeNotFoundError

from trainer.report.pictures import SilentChromium

_LOAD_S = 60.0


@dataclass
class Seen:
    """What became of a page. messages: errors and warnings of its console. requests: URLs that it asked for.
    answers: the results of the expressions, by name."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)


def require_browser() -> None:
    """Skip the test where there is no Chrome or Chromium."""
    if Chromium.find_browser(skip_local=False) is None:
        pytest.skip("no Chrome or Chromium is installed")


def look(
    page: Path, width: int, *, dark: bool, until: str, ask: Mapping[str, str], picture: Path | None = None
) -> Seen:
    """Open the file `page` in a window of `width` pixels, wait until `until` is true, and evaluate `ask`.

    picture: a PNG of the whole page, for a person to look at.
    """
    return asyncio.run(_look(page, width, dark, until, ask, picture))


async def _look(page: Path, width: int, dark: bool, until: str, ask: Mapping[str, str], picture: Path | None) -> Seen:
    seen = Seen()
    try:
        browser = await Browser(browser_cls=SilentChromium)
    except (ChromeNotFoundError, BrowserDepsError, BrowserFailedError) as error:
        pytest.skip(f"Chromium does not start: {error}")
    try:
        tab = await browser.create_tab("about:blank")

        async def told(message: dict[str, Any]) -> None:
            _note(message["method"], message["params"], seen)

        for event in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.requestWillBeSent",
        ):
            tab.subscribe(event, told, repeating=True)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send_command(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await tab.send_command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.send_command("Emulation.setEmulatedMedia", {"features": [scheme]})
        await tab.send_command("Page.navigate", {"url": page.absolute().as_uri()})
        for _ in range(int(_LOAD_S * 10)):
            if await _evaluate(tab, until):
                break
            await asyncio.sleep(0.1)
        for name, expression in ask.items():
            seen.answers[name] = await _evaluate(tab, expression)
        if picture is not None:
            await asyncio.sleep(0.5)
            height = await _evaluate(tab, "document.documentElement.scrollHeight")
            await tab.send_command("Emulation.setDeviceMetricsOverride", {**size, "height": height})
            await asyncio.sleep(0.5)
            shot = await tab.send_command("Page.captureScreenshot", {"format": "png"})
            picture.write_bytes(base64.b64decode(shot["result"]["data"]))
    finally:
        await browser.close()
    return seen


async def _evaluate(tab: Any, expression: str) -> Any:
    answer = await tab.send_command("Runtime.evaluate", {"expression": expression, "returnByValue": True})
    return answer["result"]["result"].get("value")


def _note(method: str, params: Mapping[str, Any], seen: Seen) -> None:
    if method == "Network.requestWillBeSent":
        seen.requests.append(params["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        seen.messages.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
    elif method == "Log.entryAdded":
        seen.messages.append(f"{params['entry']['level']}: {params['entry']['text']}")
    elif params["type"] in ("error", "warning", "assert"):
        seen.messages.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
