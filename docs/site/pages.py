"""The pages of the site (a hook of mkdocs): README, CONTRIBUTING, docs/ and benchmarks/, in the repository's layout.

Since the layout is the same, a relative link leads to the same page in the site and on a host that shows the files.
The pictures of Markdown (mermaid) are drawn by the reader's browser; its program is part of the site, so that neither
the build nor a reader sends a request to another host.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.png", "docs/*.svg", "docs/site/*.css",
         "benchmarks/README.md", "benchmarks/peers/README.md", "benchmarks/results/*")  # fmt: skip
PROGRAM = "assets/mermaid.js"  # in the site
#: sha256 of mermaid 11.12.0 as its authors published it (mermaid.min.js); the package mmdc has a copy
MERMAID = "07e37dfa97b337ccc85365d57eddf99b9706f09db3b59b260d0333b23b343c4b"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files and ours, ours by their place in the repository."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    ours = [path.relative_to(ROOT) for part in PARTS for path in sorted(ROOT.glob(part))]
    return Files([
        *theme,
        *(File(path.as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for path in ours),
        File.generated(config, PROGRAM, content=mermaid()),
    ])  # fmt: skip


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - mkdocs names its arguments
    """A page with a picture loads the program that draws it, before the theme would ask another host for it."""
    if 'class="mermaid"' not in output:
        return output
    script = f'<script src="{get_relative_url(PROGRAM, page.url)}"></script>'
    return output.replace("</head>", f"{script}</head>", 1)


def mermaid() -> str:
    """The program that draws mermaid pictures. Raises ValueError if the installed copy is not the one that we know."""
    found = importlib.util.find_spec("mmdc")
    assert found is not None, "the extra `docs` installs mmdc"
    assert found.origin is not None
    program = (Path(found.origin).parent / "assets/mermaid.js").read_bytes()
    if hashlib.sha256(program).hexdigest() != MERMAID:
        raise ValueError("mmdc/assets/mermaid.js is not mermaid 11.12.0: compare it with the release, note its sha256")
    return program.decode()
