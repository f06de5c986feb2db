"""Sets a run of ours beside a peer's training on the same dataset: metrics, paired difference, its standard error.

Runs in our environment. Prints a row of docs/parity.md for each column of ranks.

    python benchmarks/peers/parity.py --theirs build/peers/out/tedrec --ours runs/tedrec
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from models.errors import UserError
from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.significance import paired_t_test
from retrieval.metrics.summary import per_user
from trainer.evaluation.run_ranks import RunRanks, difference, read_ranks
from trainer.text_files import read_yaml

CHOICE = MetricChoice(("HR", "NDCG"), (10,))


def read_peer(folder: Path, split: str) -> RunRanks:
    """The ranks that benchmarks/peers/train.py wrote."""
    path = folder / f"ranks-{split}.npz"
    if not path.exists():
        raise UserError(f"{path} does not exist: the peer's training has not ended; its command goes on with it")
    with np.load(path, allow_pickle=False) as file:
        return RunRanks(**{name: file[name] for name in ("user", "target", "rank", "rank_masked", "cold")})


def rows(theirs: Path, ours: Path) -> list[str]:
    """Lines of a table in Markdown, for test without and with the history masked.

    Raises UserError where the two were not evaluated on the same users, targets and training rows.
    """
    peer, run = read_peer(theirs, "test"), read_ranks(ours, "test")
    if what := difference(run, peer):
        raise UserError(f"{theirs} and {ours} cannot be compared: they have other {what}")
    named = json.loads((theirs / "metrics.json").read_text())["peer"]["name"]
    system = read_yaml(ours / "config.yaml")["model"]["name"]
    lines = []
    for masked in (False, True):
        found = [per_user(each.ranks(masked), CHOICE) for each in (peer, run)]
        figures = [short(values[key].mean()) for values in found for key in CHOICE.keys]
        test = paired_t_test(found[1]["NDCG@10"], found[0]["NDCG@10"])
        error = float(np.std(found[1]["NDCG@10"] - found[0]["NDCG@10"], ddof=1) / np.sqrt(test.n))
        verdict = "yes" if test.mean_difference >= -error else "no"
        label = f"{named} ({system}){', masked' if masked else ''}"
        cells = [label, *figures, f"{test.mean_difference:+.4f} ± {error:.4f}", f"{test.p:.2g}", verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", type=Path, required=True, help="a folder that benchmarks/peers/train.py wrote")
    parser.add_argument("--ours", type=Path, required=True, help="a run of ours on the same dataset")
    args = parser.parse_args()
    try:
        print("| system | HR@10, theirs | NDCG@10, theirs | HR@10, ours | NDCG@10, ours | ours - theirs | p | parity |")
        print("|---|---|---|---|---|---|---|---|", *rows(args.theirs, args.ours), sep="\n")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
