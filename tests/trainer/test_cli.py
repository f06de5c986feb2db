"""The command line: exit codes, messages, start-up time, help with an example for every command."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cluster.failures import PreflightError, WorkerFailed
from models.errors import UserError
from tests.helpers.paths import ROOT
from trainer import cli


def run(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "trainer" / "run.py"), *argv] if cwd != ROOT else ["-m", "trainer.cli", *argv]
    command = command if cwd != ROOT else [sys.executable, *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command that replaces `doctor`; a test sets its `run`."""
    module = types.ModuleType("trainer.commands.doctor", "Do something.\n\nMore.")

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=0)

    module.__dict__.update(add_arguments=add_arguments, run=lambda args: int(args.number))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_exit_code_is_the_command_s(verb: types.ModuleType) -> None:  # noqa: ARG001
    assert cli.main(["doctor"]) == 0
    assert cli.main(["doctor", "--number", "2"]) == 2


@pytest.mark.parametrize(
    "error",
    [UserError("no such file"), PreflightError("no such file"), WorkerFailed("UserError", "no such file", "Traceback")],
)
def test_a_mistake_is_one_message_and_2(
    verb: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    verb.__dict__["run"] = fail
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr() == ("", "error: no such file\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), WorkerFailed("KeyError", "'x'", "Traceback of the worker")])
def test_a_bug_keeps_its_traceback(verb: types.ModuleType, error: Exception) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    verb.__dict__["run"] = fail
    with pytest.raises(type(error)) as caught:
        cli.main(["doctor"])
    assert not isinstance(error, WorkerFailed) or "Traceback of the worker" in str(caught.value)


def test_ctrl_c_is_130(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    verb.__dict__["run"] = fail
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_usage_errors_are_2_and_help_is_0(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    assert cli.main(["doctor", "--number", "many"]) == 2
    assert "invalid int value" in capsys.readouterr().err
    assert cli.main(["doctor", "--help"]) == 0
    assert "Do something." in capsys.readouterr().out
    assert cli.main(["--nonsense"]) == 2


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepair"]) == 2
    assert "did you mean 'prepare'?" in capsys.readouterr().err
    assert cli.main(["zzz"]) == 2
    assert "--help" in capsys.readouterr().err


def test_the_list_of_commands_is_quick_and_complete() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU time: other tests share the cores
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    described = {line[0]: line[1] for line in lines if len(line) == 2}
    assert set(cli.VERBS) <= set(described)
    assert min(seconds) < 1.0


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trainer import cli; cli.main(['--help']); print({'torch', 'ray', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: mealrec {name}" in out
    assert f"mealrec {name}" in out.lower().partition("example")[2], "no example"


def test_a_bug_in_a_process_is_1_with_traceback() -> None:
    code = (
        "import sys, types; from trainer import cli\n"
        "module = types.ModuleType('trainer.commands.doctor', 'Doc.')\n"
        "module.add_arguments = lambda parser: None\n"
        "module.run = lambda args: 1 / 0\n"
        "sys.modules[module.__name__] = module\n"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("error", "code"), [("UserError", 2), ("KeyError", 1)])
def test_neither_a_message_nor_a_traceback_moves_the_cursor(error: str, code: int) -> None:
    program = (
        "import sys, types; from models.errors import UserError; from trainer import cli\n"
        "module = types.ModuleType('trainer.commands.doctor', 'Doc.')\n"
        "module.add_arguments = lambda parser: None\n"
        f"def fail(args): raise {error}(chr(27) + '[2J is no id')\n"
        "module.run = fail\n"
        "sys.modules[module.__name__] = module\n"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "\x1b" not in done.stderr
    assert "x1b[2J is no id" in done.stderr


def test_the_job_script_runs_from_any_folder(tmp_path: Path) -> None:
    done = run("--recipe", "demo", "--data", "nowhere", "--name", "x", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
