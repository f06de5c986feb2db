"""`group.json` of a run folder: which runs one `mealrec train` made; in MLflow they have a parent run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.files import write_json
from trainer.tracking.metrics_log import read_lines

NAME = "group.json"


@dataclass(frozen=True)
class Group:
    """name: what --name says. key: a tag of the parent run. folders: of all runs, those not begun included."""

    name: str
    key: str
    folders: tuple[Path, ...]

    def reports(self) -> dict[str, dict[str, Any]]:
        """test.json of each run that has one, by the run's name; the best NDCG@10 first."""
        found = {}
        for folder in self.folders:
            with suppress(OSError, ValueError):
                found[folder.name] = dict(json.loads((folder / "test.json").read_bytes()))
        return dict(sorted(found.items(), key=lambda each: -each[1].get("NDCG@10", 0.0)))

    def ended(self) -> bool:
        """Whether every run has."""
        with suppress(OSError, ValueError):
            last = [read_lines(folder / "metrics.jsonl", 0)[0][-1:] for folder in self.folders]
            return all(lines and lines[0]["event"] == "end" for lines in last)
        return False


def write_group(name: str, folders: Sequence[Path]) -> None:
    """Note in each of `folders`, which are made, that they belong together; a resumed group stays the one it was."""
    keys = [group.key for folder in folders if (group := read_group(folder)) and group.name == name]
    content = {"name": name, "key": keys[0] if keys else uuid.uuid4().hex, "runs": [folder.name for folder in folders]}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, content)


def read_group(run_dir: Path) -> Group | None:
    """The group of a run; None where it has none, or its folder is a copy under another name."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run_dir / NAME).read_bytes())
        if run_dir.name in content["runs"]:
            folders = tuple(run_dir.parent / Path(name).name for name in content["runs"])
            return Group(str(content["name"]), str(content["key"]), folders)
    return None
