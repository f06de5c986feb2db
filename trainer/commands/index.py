"""`mealrec index`: Build a FAISS index over an exported model's item vectors, and measure its recall."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields

import numpy as np

from cluster import console
from retrieval.export import index_folder
from retrieval.index.build import build_index, recall_against_exact
from retrieval.index.kinds import KINDS, parse_options
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
        "Recall is measured against exact ranking, for synthetic users: the model encodes random histories."
    )
    parser.epilog = "example:\n  mealrec index --model export/demo --kind hnsw"
    parser.add_argument("--model", type=local_path, required=True, metavar="DIR", help="made by `mealrec export`")
    parser.add_argument("--kind", required=True, metavar="KIND",
                        help=f"{', '.join(KINDS)}: flat is exact, the others are faster but approximate")  # fmt: skip
    for name, text in _options().items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", dest=name, help=text)
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
    recommender = Recommender.load(args.model)
    histories = np.random.default_rng(0).integers(1, len(recommender.items.ids) + 1, size=(_QUERIES, _HISTORY)).tolist()
    users = recommender.encode(histories).numpy()  # first, because this refuses a system without vectors
    vectors = recommender.item_vectors.numpy()
    started = time.perf_counter()
    index = build_index(
        vectors,
        args.kind,
        options,
        checksum=recommender.card.checksum,
        device=args.device,
        threads=args.threads,
    )
    seconds = time.perf_counter() - started
    folder = index_folder(args.model, args.kind)
    index.save(folder)
    recalls = {k: recall_against_exact(index, users, vectors, k) for k in (10, 20)}
    size = (folder / "index.faiss").stat().st_size
    console.say(index.description)
    console.say(f"built in {seconds:.2f} s, {size / 1e6:,.1f} MB in {folder}")
    console.say(
        f"recall@10 {recalls[10]:.4f}  recall@20 {recalls[20]:.4f}  against exact ranking "
        f"({_QUERIES} synthetic users: random histories of {_HISTORY} items, encoded by the model)"
    )
    if recalls[20] < LOW_RECALL:
        wider = [f"--{field.name.replace('_', '-')}" for field in fields(KINDS[args.kind])]
        console.warn(
            f"recall@20 is below {LOW_RECALL}: many of the best items are missed; build it with other options "
            f"({', '.join(wider)}), or as flat, which is exact"
        )
    return 0
