"""Print a script that lets a shell complete commands, options, and the names of runs, systems and recipes.

Save it where the shell looks for it, once, and again after an update; then open a new shell:

    bash  mealrec completion bash > ~/.local/share/bash-completion/completions/mealrec
    zsh   mealrec completion zsh > ~/.zfunc/_mealrec      (with `fpath+=~/.zfunc` before compinit in ~/.zshrc)
    fish  mealrec completion fish > ~/.config/fish/completions/mealrec.fish

Example: mealrec completion bash
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from models.errors import UserError
from models.systems import SYSTEMS
from trainer.config import recipe

SHELLS = ("bash", "zsh", "fish")

#: what completes an argument, by shell: a function (bash), an action (zsh), an expression (fish); see shtab
_Completer = dict[str, Any]

_RUNS: _Completer = {
    "bash": "_mealrec_runs",
    "zsh": "_mealrec_runs",
    "fish": "(_mealrec_runs)",
    "preamble": {
        "bash": """
_mealrec_runs() {
  local run
  for run in runs/*/config.yaml; do
    run=${run%/config.yaml}
    [ -e "$run" ] && compgen -W "${run#runs/}" -- "$1"
  done
}
""",
        "zsh": "_mealrec_runs() { compadd -- runs/*/config.yaml(N:h:t) }",
        "fish": """
function _mealrec_runs
  for run in runs/*/config.yaml
    string split -f 2 / $run
  end
end
""",
    },
}


def _systems() -> _Completer:
    """One system, or several separated by commas (not in fish)."""
    names = " ".join(SYSTEMS)
    return {
        "bash": "_mealrec_systems",
        "zsh": "_mealrec_systems",
        "fish": names,
        "preamble": {
            "bash": f"""
_mealrec_systems() {{
  local before=
  case $1 in *,*) before=${{1%,*}}, ;; esac
  compgen -P "$before" -W "{names}" -- "${{1##*,}}"
}}
""",
            "zsh": f"_mealrec_systems() {{ _values -s , system {names} }}",
        },
    }


def _recipes() -> _Completer:
    names = " ".join(recipe.names())
    return {
        "bash": "_mealrec_recipes",
        "zsh": "_mealrec_recipes",
        "fish": f"{names} (__fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f"""
_mealrec_recipes() {{
  compgen -W "{names}" -- "$1"
  compgen -f -- "$1"
}}
""",
            "zsh": f"_mealrec_recipes() {{ compadd -- {names}; _files -g '*.yaml' }}",
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec completion`."""
    parser.description = inspect.cleandoc((__doc__ or "").partition("\n\nExample")[0])
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")


def run(args: argparse.Namespace) -> int:
    """Print the script. Raises UserError if shtab, which writes it, is not installed."""
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs the package shtab: pip install shtab") from None
    from trainer.commands.verbs import whole_parser  # which imports this module

    parser = whole_parser()
    systems, recipes = _systems(), _recipes()
    for command, action in _arguments(parser):
        if completer := _completer(command, action, systems, recipes, shtab):
            action.complete = completer  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _completer(command: str, action: argparse.Action, systems: _Completer, recipes: _Completer, shtab: Any) -> Any:
    """What completes this argument of a command; None for one that has its own choices, or takes anything."""
    name = (action.option_strings or [action.dest])[-1]
    if action.choices or action.nargs == 0:
        return None
    if name in ("--run", "runs"):
        return _RUNS
    if name == "system" or (command, name) == ("train", "--model"):
        return systems
    if name == "--recipe":
        return recipes
    if name == "--data" or action.metavar == "DIR" or name in ("--out", "--runs-dir"):
        return shtab.DIRECTORY
    return shtab.FILE if getattr(action.type, "__name__", "") == "local_path" else None


def _arguments(parser: argparse.ArgumentParser, path: Sequence[str] = ()) -> Iterator[tuple[str, argparse.Action]]:
    """All arguments of all commands, each with the name of its command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _arguments(below, [*path, name])
        else:
            yield path[0] if path else "", action
