"""A real Chromium without a window, driven over its DevTools protocol: what a page shows, says and asks for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from choreographer import Browser
from choreographer.browsers.chromium import Chromium
from choreographer.errors import BrowserDepsError, BrowserFailedError, ChromeNotFoundError

from trainer.report.pictures import SilentChromium

_LOAD_S = 60.0
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40}


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
    page: Path | str,
    width: int,
    *,
    dark: bool,
    until: str,
    ask: Mapping[str, str],
    picture: Path | None = None,
    steps: Sequence[tuple[str, str]] = (),
) -> Seen:
    """Open the file or URL `page` in a window of `width` pixels, wait until `until` is true, and evaluate `ask`.

    steps: before `ask`, what a person does, each with what is true after it: "key NAME" presses a key, "type TEXT"
    types, anything else is an expression. One that does not come true ends the test. picture: a PNG of the whole page,
    for a person to look at.
    """
    return asyncio.run(_look(page, width, dark, until, ask, picture, steps))


async def _look(
    page: Path | str,
    width: int,
    dark: bool,
    until: str,
    ask: Mapping[str, str],
    picture: Path | None,
    steps: Sequence[tuple[str, str]],
) -> Seen:
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
        url = page if isinstance(page, str) else page.absolute().as_uri()
        await tab.send_command("Page.navigate", {"url": url})
        await _until(tab, until)
        for step, after in steps:
            await _do(tab, step)
            assert await _until(tab, after), f"after {step!r} this did not come true: {after}; {seen.messages}"
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


async def _until(tab: Any, condition: str) -> bool:
    for _ in range(int(_LOAD_S * 10)):
        if await _evaluate(tab, condition):
            return True
        await asyncio.sleep(0.1)
    return False


async def _do(tab: Any, step: str) -> None:
    kind, _, what = step.partition(" ")
    if kind == "type":
        await tab.send_command("Input.insertText", {"text": what})
    elif kind == "key":
        key = {"key": what, "code": what, "windowsVirtualKeyCode": _KEYS[what]}
        text = {"text": "\r"} if what == "Enter" else {}
        await tab.send_command("Input.dispatchKeyEvent", {"type": "keyDown" if text else "rawKeyDown", **key, **text})
        await tab.send_command("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    else:
        await _evaluate(tab, step)


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
