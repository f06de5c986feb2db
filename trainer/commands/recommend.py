"""`mealrec recommend`: Recommend the top k items for a history of raw item ids."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from cluster import console
from retrieval.index.kinds import KINDS
from retrieval.recommender import Answer, Recommender
from trainer.local_path import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and examples of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Recommend items for a history. Ids that the model does not know are reported and ignored;\n"
        "items of the history are not recommended again."
    )
    parser.epilog = (
        "examples:\n"
        '  mealrec recommend --model model --history "8245 1903 77" --k 20\n'
        '  mealrec recommend --model model --history "8245 1903 77" --json --index hnsw'
    )
    parser.add_argument("--model", type=local_path, required=True, metavar="DIR", help="made by `mealrec export`")
    parser.add_argument("--history", required=True, metavar='"ITEM ..."', help="raw item ids, oldest first")
    parser.add_argument("--k", type=int, default=20, metavar="N", help="how many items (20)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--index",
        default="exact",
        metavar="KIND",
        help=f"how to rank: exact, or by an index that `mealrec index` made: {', '.join(KINDS)} (exact)",
    )
    parser.add_argument("--keep-history", action="store_true", help="let items of the history be recommended again")


def run(args: argparse.Namespace) -> int:
    """Print the recommendations for one history; return the exit code."""
    recommender = Recommender.load(args.model, index=args.index)
    (answer,) = recommender.recommend([args.history.split()], args.k, exclude_history=not args.keep_history)
    if args.json:
        ranked = [{"rank": n, **asdict(item)} for n, item in enumerate(answer.recommendations, start=1)]
        said = {"unknown": answer.unknown, "note": answer.note, "ranked_by": recommender.description}
        print(json.dumps({"recommendations": ranked, **said}))
        return 0
    if answer.unknown:
        console.note(f"ignored, because the model does not know them: {' '.join(answer.unknown)}")
    if answer.note:
        console.note(answer.note)
    print(_table(answer))
    return 0


def _table(answer: Answer) -> str:
    width = max([2, *(len(item.item) for item in answer.recommendations)])
    lines = [f"{'rank':>4}  {'id':<{width}}  {'score':>9}  title"]
    lines += [
        f"{n:>4}  {item.item:<{width}}  {item.score:>9.4f}  {item.title or '-'}"
        for n, item in enumerate(answer.recommendations, start=1)
    ]
    return "\n".join(lines)
