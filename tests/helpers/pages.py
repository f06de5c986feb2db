"""Read the examples of the documentation from the page, so that tests can run them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT


def section(title: str) -> str:
    """The section `title` of docs/extending.md."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def example(page: str) -> str:
    """The Python block of a section; there must be exactly one."""
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return str(source)


def load_example(page: str, name: str, folder: Path) -> Any:
    """The module `name` of the Python block, written to `folder`; the caller removes it from sys.modules."""
    path = folder / f"{name}.py"
    path.write_text(example(page), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
