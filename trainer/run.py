"""The job: `ray job submit ... -- python trainer/run.py --recipe ...`, with the arguments of `mealrec train`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, sys.path[0] is trainer/, whose modules must not shadow others; the packages are one level up.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from trainer.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
