"""Script of a Ray job, `ray job submit ... -- python trainer/run.py ...`, with the arguments of `mealrec train`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # For a script, sys.path[0] is its folder, trainer/. Replace it by the folder above, which has our packages, so that
    # modules of trainer/ do not shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from trainer.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
