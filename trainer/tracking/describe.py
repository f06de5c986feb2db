"""What MLflow shows of a run besides its curves: parameters, tags, the dataset, and a description with its table."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError
from retrieval.files import digest
from trainer.text_files import read_yaml

#: limits of MLflow's tracking API
KEY_LENGTH, DIGEST_LENGTH, VALUE_LENGTH = 250, 36, 500
#: letters of a value that MLflow's compare page shows
_AXIS_LENGTH = 10
#: sections of MealRec's options of which one is in use, the one that `backbone` names
BACKBONES = ("sasrec", "cl4srec", "tedrec")
#: parameters; what does not decide the result is left out
_SECTIONS = ("model", "train")
_SINGLE = ("engine.precision", "eval.index", "data.loader", "cluster.workers")


@dataclass(frozen=True)
class DatasetInfo:
    """name: of the folder. digest, source (JSON), profile (JSON): as MLflow's Dataset has them."""

    name: str
    digest: str
    source: str
    profile: str


def command_for(verb: str, run_dir: Path, *more: str) -> str:
    """`mealrec VERB` for a run, to paste into a shell from any folder."""
    return shlex.join(["mealrec", verb, "--run", run_dir.name, "--runs-dir", str(run_dir.parent), *more])


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.yaml of a run; empty where there is none. Raises UserError, naming the file, if it is damaged."""
    path = run_dir / "config.yaml"
    config = read_yaml(path) if path.exists() else {}
    for section in ("model", "data", "train", "engine", "eval", "cluster", "tracking"):
        if not isinstance(config.get(section) or {}, dict):
            raise UserError(f"{path}: {section} is no section of settings; bring the file back from a copy")
    return config


def parameters(run: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Run, seed, system, and the options that decide the result; of MealRec's backbones only the chosen one's.

    MLflow's compare page draws the first three by name of those that differ between runs: these are named to be first,
    as a run that lacks a parameter would be drawn with a value that it does not have. The page cuts texts after ten
    letters and then mixes up those that became equal, so a run has the last ten of its name (srec-s2020). A seed is a
    text (s2020), as the axis of numbers has 2020.2 and 2020.4 between two seeds.
    """
    model = dict(config.get("model") or {})
    system, backbone = model.pop("name", None), model.get("backbone")
    if backbone is not None:
        model = {key: value for key, value in model.items() if key not in BACKBONES or key == backbone}
    sections = {name: config.get(name) or {} for name in _SECTIONS} | {"model": model}
    every = dict(flat(config, "."))
    seed = config.get("seed")
    values: dict[str, Any] = {"compare.run": run[-_AXIS_LENGTH:], "compare.seed": None if seed is None else f"s{seed}"}
    values |= {"compare.system": system, "seed": seed}
    values |= dict(flat(sections, "."))
    values |= {key: every[key] for key in _SINGLE if key in every}
    return {api_name(key): _cut(value) for key, value in values.items() if value is not None and value != {}}


def tags(run_dir: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What runs are grouped and filtered by, and where they come from."""
    model = config.get("model") or {}
    found = {
        "system": model.get("name"),
        "backbone": model.get("backbone"),
        "seed_group": seed_group(run_dir.name),
        "dataset": Path(str((config.get("data") or {}).get("path") or "")).name,
        "host": platform.node(),
        "mlflow.user": _user(),
        "mlflow.source.name": "mealrec train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": _git_revision(),
    }
    return {key: str(value)[:VALUE_LENGTH] for key, value in found.items() if value}


def seed_group(name: str) -> str:
    """The name that runs have in common which differ in their seed alone, as `mealrec compare` joins them."""
    return re.sub(r"-s\d+$", "", name)


def dataset(config: Mapping[str, Any]) -> DatasetInfo | None:
    """The manifest of the data that the run is trained on, if it is where the configuration says."""
    path = Path(str((config.get("data") or {}).get("path"))) / "manifest.json"
    if not path.exists():
        return None
    data = path.read_bytes()
    manifest = json.loads(data)
    counts = {key: manifest.get(key) for key in ("users", "items", "interactions", "train_rows")}
    source = json.dumps({"uri": str(path.absolute())})
    return DatasetInfo(path.parent.name, digest(data)[:DIGEST_LENGTH], source, json.dumps(counts))


def description(run_dir: Path, config: Mapping[str, Any]) -> str:
    """Markdown: what was run, where its folder is, and its test metrics once they are there."""
    model = config.get("model") or {}
    over = f" over {model['backbone']}" if model.get("backbone") else ""
    lines = [f"**{model.get('name', run_dir.name)}**{over}, seed {config.get('seed')}", ""]
    report: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        report = json.loads((run_dir / "test.json").read_bytes())
    if report:
        rows = {
            "all users": report, "history masked": report.get("masked"), "warm targets": report.get("warm"),
            "cold targets": report.get("cold"), "best possible, history masked": report.get("truth"),
        }  # fmt: skip
        lines += [f"Test metrics of epoch {report.get('epoch')}{_approximate(report)}:", "", *_table(rows.items()), ""]
    lines += [f"Run folder `{run_dir}` on `{platform.node()}`, the model in its `checkpoints/`."]
    if command := _command(run_dir):
        lines += ["", f"    {command}"]
    return "\n".join(lines)


def group_description(name: str, reports: Mapping[str, Mapping[str, Any]], total: int) -> str:
    """Markdown of a parent run: the runs that are tested so far, side by side."""
    lines = [f"**{name}**: {len(reports)} of {total} runs are done.", ""]
    for title, key in (("every item ranked", None), ("history masked", "masked")):
        rows = {run + _approximate(report): report.get(key) if key else report for run, report in reports.items()}
        lines += [f"Test metrics, {title}:", "", *_table(rows.items()), ""]
    return "\n".join(lines)


def _approximate(report: Mapping[str, Any]) -> str:
    index = report.get("index", {})
    return f" (approximate: ranked by {index['description']})" if index.get("approximate") else ""


def _table(rows: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[str]:
    filled = [(name, values) for name, values in rows if values and metric_keys(values)]
    if not filled:
        return []
    keys = metric_keys(filled[0][1])
    lines = ["| |" + "".join(f" {key} |" for key in keys), "|---|" + "---:|" * len(keys)]
    for name, values in filled:
        cells = [f"{values[key]:.4f}" if key in values else "-" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def metric_keys(report: Mapping[str, Any]) -> list[str]:
    """The metrics of a report, such as HR@10. Not from retrieval.metrics, whose imports take a mirror a second."""
    return [key for key, value in report.items() if "@" in key and isinstance(value, int | float)]


def flat(tree: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, with the keys on their way joined."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}{separator}{rest}", leaf) for rest, leaf in flat(value, separator))
        else:
            yield str(key), value


def api_name(key: str) -> str:
    """`key` as MLflow allows it: HR@10 becomes HR_at_10."""
    return re.sub(r"[^\w./ -]", "_", key.replace("@", "_at_"))[:KEY_LENGTH]


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."


def _command(run_dir: Path) -> str:
    """The command that made the run: the first line of its config.yaml."""
    with suppress(OSError, UnicodeDecodeError):
        with (run_dir / "config.yaml").open(encoding="utf-8") as file:
            first = file.readline().strip()
        return first.removeprefix("# ") if first.startswith("# ") else ""
    return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in containers
        return str(os.getuid())


def _git_revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return ""
