"""benchmarks/gpu.py without a GPU: its parts run, and its page and exit status say what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_page import page


def test_the_parts_that_need_no_gpu_run_and_pass(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--only", "guard,waits,loop,catalogue",
         "--out", str(tmp_path)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("*-cpu-gpu.json")
    parts = json.loads(written.read_text())["parts"]
    assert parts["guard"] == {"wrong": []}
    assert parts["waits"] == {"missing": "a CPU does not wait"}
    assert len(parts["loop"]["tiny"]["commit_s"]) == 3
    assert parts["catalogue"]["1,000"]["rank_s"] > 0
    assert "Nothing is wrong." in written.with_suffix(".md").read_text()


def test_a_page_says_what_is_wrong_and_what_is_missing() -> None:
    parts = {"parity": {"wrong": ["gradient of tedrec"], "tedrec fp32": {"loss": 0.5}}, "epochs": {"failed": "why"}}
    text = page({"command": "c", "date": "2026-11-26", "device": "d", "cuda": "13", "torch": "2", "parts": parts})
    assert "**wrong**: gradient of tedrec" in text
    assert "loss 5.0e-01" in text
    assert text.rstrip().endswith("why")
