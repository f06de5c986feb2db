"""The page at `/` of the service: one HTML file for a person who wants to look. It asks no other host for anything."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent


def whole_page() -> tuple[str, str]:
    """The HTML with its style and script inside, and the Content-Security-Policy that allows these and nothing else."""
    css, js = (_read(name) for name in ("page.css", "page.js"))
    html = _read("page.html").replace("{{css}}", css).replace("{{js}}", js)
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(js)}'; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
