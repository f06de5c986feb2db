"""`mealrec index`: Build a FAISS index over an exported model's item vectors, and measure its recall."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import numpy as np

from cluster import console
from models.errors import UserError
from retrieval.export import index_folder
from retrieval.index.base import RECALL_TARGET, IndexKind
from retrieval.index.build import build_index, recall_against_exact
from retrieval.index.faiss_index import Index, IndexRecord
from retrieval.index.kinds import KINDS, parse_options
from retrieval.index.shards import load as load_index
from retrieval.index.shards import save_shards
from retrieval.recommender import Recommender
from trainer.evaluation.report import LOW_RECALL
from trainer.local_path import local_path

_QUERIES = 256
_HISTORY = 3  # items: the average history of a training row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Build a FAISS index over an exported model and save it in MODEL/index/KIND.\n"
        "It searches as widely as the recall asked for needs, if no option fixes that.\n"
        "Recall is measured against exact ranking, for synthetic users: the model encodes random histories."
    )
    parser.epilog = "example:\n  mealrec index --model export/demo --kind hnsw --recall 0.999"
    parser.add_argument("--model", type=local_path, required=True, metavar="DIR", help="made by `mealrec export`")
    parser.add_argument("--kind", required=True, metavar="KIND",
                        help=f"{', '.join(KINDS)}: flat is exact, the others are faster but approximate")  # fmt: skip
    for name, text in _options().items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", dest=name, help=text)
    parser.add_argument("--recall", type=float, metavar="SHARE",
                        help="search as widely as finds this share of the exact first 20 (0.99)")  # fmt: skip
    parser.add_argument("--shards", type=int, metavar="N",
                        help="an index in N parts, built one after the other, to need less memory")  # fmt: skip
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto",
                        help="where FAISS searches when recall is measured (auto)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="FAISS threads (all cores)")


def _options() -> dict[str, str]:
    """The help text of each option by name. Kinds with an option of the same name share it."""
    texts: dict[str, list[str]] = {}
    for kind in KINDS:
        for field in fields(KINDS[kind]):
            texts.setdefault(field.name, []).append(f"{kind}: {field.metadata.get('help', field.name)}")
    return {name: "; ".join(lines).replace("%", "%%") for name, lines in texts.items()}


def run(args: argparse.Namespace) -> int:
    """Build, save and measure the index; return the exit code. Raises UserError for an option that the kind lacks."""
    given = {name: getattr(args, name) for name in _options() if getattr(args, name) is not None}
    options = parse_options(args.kind, given)
    recall = _recall(args.recall, args.kind, options)
    recommender = Recommender.load(args.model)
    last, shape = len(recommender.items), (2 * _QUERIES, _HISTORY)
    histories = np.random.default_rng(0).integers(1, last + 1, size=shape).tolist()
    encoded = recommender.encode(histories).numpy()  # first, because this refuses a system without vectors
    queries, users = encoded[:_QUERIES], encoded[_QUERIES:]
    vectors = recommender.item_vectors.numpy()
    folder, checksum = index_folder(args.model, args.kind), recommender.card.checksum
    build = partial(
        build_index, kind=args.kind, options=options, checksum=checksum, device=args.device, threads=args.threads,
        queries=queries, recall=recall,
    )  # fmt: skip
    started = time.perf_counter()
    made: Sequence[IndexRecord]
    if args.shards is None:
        index: Index
        index = whole = build(vectors)
        whole.save(folder)
        made = [whole.record]
    else:
        made = save_shards(folder, vectors, args.shards, build)
        index = load_index(folder, checksum, vectors, device=args.device, threads=args.threads)
    seconds = time.perf_counter() - started
    recalls = {k: recall_against_exact(index, users, vectors, k) for k in (10, 20)}
    size = sum(path.stat().st_size for path in folder.rglob("index.faiss"))
    console.say(index.description)
    console.say(f"built in {seconds:.2f} s, {size / 1e6:,.1f} MB in {folder}")
    console.say(
        f"recall@10 {recalls[10]:.4f}  recall@20 {recalls[20]:.4f}  against exact ranking "
        f"({_QUERIES} synthetic users: random histories of {_HISTORY} items, encoded by the model)"
    )
    # of shards, the one that falls shortest of what was asked for
    worst = min(made, key=lambda record: record.tuned.recall if record.tuned and not record.tuned.enough else 1)
    if warning := _too_low(worst, recalls[20]):
        console.warn(warning)
    return 0


def _recall(asked: float | None, kind: str, options: IndexKind) -> float:
    """The recall to reach. Raises UserError if it is none, or if an option says how widely to search instead."""
    if asked is None:
        return RECALL_TARGET
    if not 0 < asked <= 1:
        raise UserError(f"--recall {asked}: it is a share, above 0 and at most 1, such as 0.99")
    if options.effort is not None and options.effort_given:
        option = options.effort.option.replace("_", "-")
        raise UserError(f"--recall {asked} and --{option} are two ways to say how widely {kind} searches; give one")
    return asked


def _too_low(record: IndexRecord, recall: float) -> str | None:
    """A warning where many items are missed, or more than was asked for; None otherwise."""
    kind, widest = KINDS[record.kind], record.tuned is not None and not record.tuned.enough
    useless = kind.effort.option if widest and kind.effort else ""  # where a wider search finds no more
    other = [f"--{field.name.replace('_', '-')}" for field in fields(kind) if field.name != useless]
    with_options = f"with other options ({', '.join(other)}), " if other else ""
    advice = f"build it {with_options}as another kind, or as flat, which is exact"
    if record.tuned is not None and widest:
        return (
            f"recall@20 {record.tuned.target:g} was asked for, and {record.kind} finds no more than "
            f"{record.tuned.recall:.4f} however widely it searches; {advice}"
        )
    if recall < LOW_RECALL:
        return f"recall@20 is below {LOW_RECALL}: many of the best items are missed; {advice}"
    return None
