"""`mealrec recommend`: Recommend the top k items for a history, for a user of a dataset, or for a file of histories."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from cluster import console
from models.errors import UserError
from retrieval.answers import Answer
from retrieval.index.kinds import KINDS
from retrieval.items import Items
from retrieval.recommender import Recommender
from trainer.commands.model_source import add_model_argument, model_source
from trainer.data.format.dataset import Dataset
from trainer.data.histories import UserHistories
from trainer.local_path import local_path

#: options whose value may begin with a dash
DASHED_VALUES = ("--history", "--item", "--user")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and examples of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Recommend items for a history, for a user of a dataset, or for each row of a file (--users, --out).\n"
        "Ids that the model does not know are reported and ignored; items of the history are not recommended again."
    )
    parser.epilog = (
        "examples:\n"
        '  mealrec recommend --model export/demo --history "i8 i19 i7" --k 20\n'
        "  mealrec recommend --model export/demo --item i8 --item i19 --json\n"
        "  mealrec recommend --model export/demo --user u17 --data data/demo"
    )
    add_model_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--history", metavar='"ITEM ..."',
                        help="raw item ids, oldest first, with blanks between them, or as a list in JSON")  # fmt: skip
    source.add_argument("--item", type=str.strip, action="append", metavar="ITEM",
                        help="an item of the history, as it is; once for each, oldest first "
                        "(--item=--x for an id that begins with two dashes)")  # fmt: skip
    source.add_argument("--user", type=str.strip, metavar="USER", help="all that this user watched in --data")
    source.add_argument("--users", type=local_path, metavar="FILE",
                        help="many users: a Parquet file, or folder of parts, with the columns user, and items "
                        "(lists of raw item ids, oldest first)")  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="for --user: a prepared dataset, since an export holds no users")
    parser.add_argument("--out", type=local_path, metavar="FILE",
                        help="for --users: the Parquet file of user, items, scores, ranks, note")  # fmt: skip
    parser.add_argument("--launcher", choices=["inline", "ray"],
                        help="for --users: this process, or Ray Data (default: on a cluster ray)")  # fmt: skip
    parser.add_argument("--k", type=int, default=20, metavar="N", help="how many items (20); at most the catalogue")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--index",
        default="exact",
        metavar="KIND",
        help=f"how to rank: exact, or by an index that `mealrec index` made: {', '.join(KINDS)} (exact)",
    )
    parser.add_argument("--keep-history", action="store_true", help="let items of the history be recommended again")


def run(args: argparse.Namespace) -> int:
    """Print the recommendations for one history, or write those for a file; return the exit code."""
    _require_together("--user", args.user, "--data", args.data, "an export holds no users and no log")
    _require_together("--users", args.users, "--out", args.out, "their recommendations are written to a file")
    if args.launcher is not None and args.users is None:
        raise UserError("--launcher is only for --users: one answer is made in this process")
    if args.users is not None:
        if args.json:
            raise UserError("--json prints one answer; the answers to --users are written to --out as Parquet")
        from trainer.commands.recommend_many import answer_users

        return answer_users(args)
    recommender = Recommender.load(model_source(args.model).folder(), index=args.index)
    answer = recommender.recommend(_history(args, recommender), args.k, exclude_history=not args.keep_history)
    if args.json:
        ranked = [{"rank": n, **asdict(item)} for n, item in enumerate(answer.recommendations, start=1)]
        said = {"unknown": answer.unknown, "note": answer.note, "ranked_by": recommender.description}
        print(json.dumps({"recommendations": ranked, **said}))
        return 0
    if answer.remarks:
        console.warn(answer.remarks)
    print(_table(answer))
    return 0


def _require_together(option: str, value: object, other: str, its_value: object, why: str) -> None:
    if (value is None) != (its_value is None):
        given, missing = (option, other) if its_value is None else (other, option)
        raise UserError(f"{given} needs {missing}: {why}" if given == option else f"{given} is only for {missing}")


def _history(args: argparse.Namespace, recommender: Recommender) -> list[str]:
    if args.item is not None:
        return list(args.item)
    if args.history is not None:
        return _parsed(args.history, recommender.items)
    dataset = Dataset.open(args.data)
    if dataset.manifest.fingerprint != recommender.card.provenance.get("data"):
        console.warn(f"{args.data} is not the dataset that {args.model} was trained on; only ids that it knows count")
    history = UserHistories(dataset).of(args.user)
    console.note(f"{args.user} watched {len(history):,} items, the last one {history[-1]!r}")
    return history


def _parsed(text: str, known: Items) -> list[str]:
    """Ids between blanks, or a list in JSON.

    Raises UserError for JSON that is not a list of ids; and where known ids hold blanks, if the words are one id
    together or are not all known: the answer would be for other items than were meant.
    """
    if not text.lstrip().startswith("["):
        words = text.split()
        unclear = known.row(text.strip()) is not None or None in known.rows(words)
        if len(words) > 1 and unclear and any(each.split() != [each] for each in known.ids):
            raise UserError(
                f"--history {text[:80]!r} would be divided at its blanks, but ids of this model hold blanks too; "
                "give each id with --item"
            )
        return words
    try:
        ids = json.loads(text)
        if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in ids):
            raise ValueError("an id is text or a whole number")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'--history {text[:80]} begins like a list in JSON and is none ({error}); write \'["a b", "c"]\', '
            "or give each id with --item"
        ) from None
    return [str(each).strip() for each in ids]


def _table(answer: Answer) -> str:
    ids = [console.in_a_line(item.item) for item in answer.recommendations]
    width = max([2, *map(len, ids)])
    lines = [f"{'rank':>4}  {'id':<{width}}  {'score':>9}  title"]
    lines += [
        f"{n:>4}  {shown:<{width}}  {item.score:>9.4f}  {console.in_a_line(item.title or '-')}"
        for n, (shown, item) in enumerate(zip(ids, answer.recommendations, strict=True), start=1)
    ]
    return "\n".join(lines)
