"""Examples of the documentation, taken from the page and run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any


def example(page: str) -> str:
    """The one Python block of a page."""
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return str(source)


def load_example(page: str, name: str, folder: Path) -> Any:
    """The module `name` of the page's Python block, written to `folder`; whoever calls removes it from sys.modules."""
    path = folder / f"{name}.py"
    path.write_text(example(page), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module

