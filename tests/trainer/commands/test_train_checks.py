"""`mealrec train` reports a mistake at once: before that it imports nothing that takes seconds to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_runs import make_dataset
from trainer.config import recipe

HEAVY = ("torch", "ray", "deepspeed", "mlflow")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data: a dataset without layer states. runs/old: a run whose configuration an earlier version wrote."""
    root = tmp_path_factory.mktemp("checks")
    make_dataset(root / "data")
    old = root / "runs/old"
    old.mkdir(parents=True)
    text = recipe.dump(recipe.load("demo", "sasrec", [], str(root / "data")), "mealrec train")
    (old / "config.yaml").write_text(text.replace("hidden: 64", "width: 64"))
    (old / "metrics.jsonl").write_text("")
    return root


#: (arguments of `mealrec train`, what the message says)
CASES = [
    (["--set", "model.hiden=3", "--model", "sasrec"], "unknown option model.hiden: did you mean 'hidden'?"),
    (["--set", "model.hidden=many", "--model", "sasrec"], "model.hidden: it must be a whole number"),
    (["--set", "model.heads=3", "--model", "sasrec"], "heads is 3"),
    (["--set", "train.epoch=3"], "did you mean 'epochs'?"),
    (["--set", "engine.zero_stage=1", "--set", "engine.name=torch"], "needs DeepSpeed"),
    (["--model", "sasrek"], "did you mean 'sasrec'?"),
    (["--model", "popularity", "--set", "eval.index=flat"], "no item vectors"),
    (["--model", "iisan"], "visual_layers: prepare it with"),
    (["--recipe", "dmeo"], "did you mean 'demo'?"),
    (["--seeds", "1,one"], "--seeds"),
    (["--data", "nowhere"], "nowhere"),
    (["--name", "old"], "run 'old' exists"),
    (["--name", "a/b"], "not a plain folder name"),
    (["--name", "new", "--resume"], "nothing to resume"),
    (["--name", "old", "--resume"], "If an earlier version wrote it, use the run with that version"),
    (["--recipe", "runs/old/config.yaml"], "If an earlier version wrote it, use the run with that version"),
]
#: gives every case to the command line, in one process
SCRIPT = """
import io, json, sys
from contextlib import redirect_stderr
from trainer.cli import main
told = []
for arguments in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as said:
        told.append((main(arguments), said.getvalue(), sorted({*json.loads(sys.argv[2])} & {*sys.modules})))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(root: Path) -> list[tuple[int, str, list[str]]]:
    """Of each case the exit status, the message, and the heavy libraries that have been imported by then."""
    base = ["train", "--recipe", "demo", "--data", "data", "--model", "sasrec", "--name", "new"]
    given = json.dumps([[*base, *arguments] for arguments, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given, json.dumps(HEAVY)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, said, heavy) for code, said, heavy in json.loads(done.stdout)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(arguments) for arguments, _ in CASES])
def test_a_mistake_is_told_before_anything_heavy_is_imported(
    root: Path, told: list[tuple[int, str, list[str]]], case: int
) -> None:
    code, said, heavy = told[case]
    assert (code, heavy) == (2, []), said
    assert CASES[case][1] in said
    assert not (root / "runs/new").exists()
