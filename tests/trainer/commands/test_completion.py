"""What shells offer with the script that `mealrec completion` prints; a shell that is not installed is skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from trainer.cli import main

#: what is typed before TAB, and what is offered
TYPED = {
    "mealrec tra": {"train", "track"},
    "mealrec train --mod": {"--model"},
    "mealrec train --model sas": {"sasrec"},
    "mealrec train --recipe microl": {"microlens"},
    "mealrec evaluate --run demo-s": {"demo-sasrec"},
    "mealrec compare demo-sasrec demo-": {"demo-mealrec", "demo-sasrec"},
    "mealrec prepare ta": {"table"},
    "mealrec prepare table --fi": {"--file"},
    "mealrec settings dmm": {"dmmd4sr"},
    "mealrec evaluate --split t": {"test"},
    "mealrec index --model exp": {"export/"},
}
BASH = """
source "$1"
COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_mealrec mealrec "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs, something else beside them, and an export."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo-sasrec", "demo-mealrec"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs/demo-notes").mkdir()
    (tmp_path / "export").mkdir()
    return tmp_path


@pytest.fixture
def script(world: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Path:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    path = world / f"mealrec.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def shell(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash(script: Path) -> None:
    for typed, offered in TYPED.items():
        assert {each.strip() for each in shell("bash", "-c", BASH, "bash", script, typed)} == {
            each.rstrip("/") for each in offered
        }, typed
    assert shell("bash", "-c", BASH, "bash", script, "mealrec train --model sasrec,tedr") == ["sasrec,tedrec"]


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish(script: Path) -> None:
    for typed, offered in TYPED.items():
        lines = shell("fish", "--no-config", "-c", f"source {script}; complete -C '{typed}'")
        assert {line.partition("\t")[0] for line in lines} == offered, typed


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_finds_its_script(script: Path) -> None:
    (script.parent / "functions").mkdir()
    script.rename(script.parent / "functions/_mealrec")
    load = "fpath+=$1; autoload -U compinit; compinit -u -D; autoload +X _mealrec; print $_comps[mealrec]"
    assert shell("zsh", "-f", "-c", load, "zsh", script.parent / "functions") == ["_mealrec"]
    assert "compadd -- runs/*/config.yaml" in (script.parent / "functions/_mealrec").read_text()
