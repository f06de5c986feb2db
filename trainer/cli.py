"""The command line: `mealrec VERB ...`.

Exit codes: 0 done, 2 a user's mistake (one message), 1 a bug (traceback), 75 stopped by SIGTERM: the work is saved, and
the same command with --resume continues it.
"""

from __future__ import annotations

import difflib
import io
import os
import resource
import shlex
import signal
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster import console
from cluster.failures import PreflightError, Stopped, WorkerFailed
from models.errors import UserError
from retrieval.disk import disk_trouble
from trainer.commands.output import chosen
from trainer.commands.verbs import VERBS, module_of, parser_of, top_parser

DONE, BUG, MISTAKE = 0, 1, 2
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code. Bugs propagate, so that Python prints their traceback and exits with 1."""
    with console.harmless_output():
        return _told(sys.argv[1:] if argv is None else list(argv))


def _told(argv: list[str]) -> int:
    try:
        return _run(argv)
    except (UserError, PreflightError) as error:
        return _mistake(str(error))
    except Stopped as stopped:
        return _stopped(str(stopped))
    except WorkerFailed as failure:
        if failure.kind == Stopped.__name__:
            return _stopped(failure.message)
        if failure.kind == UserError.__name__:
            return _mistake(failure.message)
        if told := disk_trouble(failure, Path.cwd()):
            return _mistake(told)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else DONE
    except BrokenPipeError:  # the program that reads our output (head, less) has ended
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - else Python reports an error when it flushes at exit
        return DONE
    except OSError as error:
        if told := disk_trouble(error, _place(error)):
            return _mistake(told)
        raise


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        top_parser().parse_args(argv or ["--help"])
        return DONE
    started, verb = time.perf_counter(), argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "see mealrec --help"
        return _mistake(f"there is no command {verb!r} (commands: {', '.join(VERBS)}); {hint}")
    args = parser_of(verb).parse_args(_joined(argv[1:], getattr(module_of(verb), "DASHED_VALUES", ())))
    args.command_line = shlex.join(["mealrec", *argv])  # what runs and datasets say that they were made by
    with console.printing(chosen(args)):
        status: int = module_of(verb).run(args)
        console.note(_cost(verb, started), console.Verbosity.VERBOSE)
    sys.stdout.flush()  # a full disk that takes our output is told here; at the exit Python would only warn
    return status


def _place(error: OSError) -> Path:
    """The folder whose disk caused an error that names no file: that of our output if this cannot be written either."""
    if error.filename is not None:
        return Path.cwd()  # the error itself says where
    if _output_is_refused():
        output = Path(os.path.realpath(f"/dev/fd/{sys.stdout.fileno()}"))
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - else Python reports it again when it flushes at exit
        return output.parent
    return Path.cwd()


def _output_is_refused() -> bool:
    """Whether our output cannot be written; a long text that could not is gone, and then its disk still tells."""
    try:
        sys.stdout.flush()
        number = sys.stdout.fileno()
        return stat.S_ISREG(os.fstat(number).st_mode) and os.fstatvfs(number).f_bavail == 0
    except io.UnsupportedOperation:  # it is no file
        return False
    except OSError:
        return True


def _joined(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """`argv` with `--item -7` as `--item=-7` for these options: argparse takes `-7` for an option, whatever it follows.

    A value that begins with two dashes looks like a forgotten value before the next option, and must be joined by hand.
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1] in options and word.startswith("-") and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _cost(verb: str, started: float) -> str:
    """Time and memory of this process and of those that it waited for, as text."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    # Linux counts ru_maxrss in KiB, macOS in bytes
    peak = max(own.ru_maxrss, others.ru_maxrss) / (1024**2 if sys.platform == "darwin" else 1024)
    return f"{verb}: {time.perf_counter() - started:.1f} s, {computed:.1f} s of CPU time, at most {peak:,.0f} MiB"


def _stopped(message: str) -> int:
    print(message, file=sys.stderr)
    return STOPPED


def _mistake(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
