"""Trains a peer's own released code on exactly the rows, content and split of a prepared dataset.

Runs in the peer's environment (benchmarks/peers/README.md), so nothing of ours is imported. The released code is a
checkout of the user's; what is changed of it is changed while it runs, and said in the README. Writes metrics.json,
and ranks per user as our runs have them. The same command goes on where it was stopped.

    python benchmarks/peers/train.py --peer tedrec --code build/peers/TedRec --data data/sample --out build/peers/tedrec
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import logging
import os
import resource
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peer import Job, Peer, require_commit
from reference_clock import environment
from reference_rows import read_sequences
from training import report, train

#: name -> module and class; a module is imported when its peer is asked for, because each has its own environment
PEERS = {
    "sasrec": ("peer_sasrec", "SASRec"),
    "cl4srec": ("peer_cl4srec", "CL4SRec"),
    "tedrec": ("peer_tedrec", "TedRec"),
    "diqdiff": ("peer_diqdiff", "DiQDiff"),
    "mmgcn": ("peer_mmgcn", "MMGCN"),
    "morec": ("peer_morec", "MoRec"),
    "iisan-versa": ("peer_iisan", "IISANVersa"),
    "dmmd4sr": ("peer_dmmd4sr", "DMMD4SR"),
    "ssdrec": ("peer_ssdrec", "SSDRec"),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--code", type=Path, required=True, help="the peer's checkout")
    parser.add_argument("--data", type=Path, required=True, help="a folder that `mealrec prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="a folder of this training alone")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the peer's")
    parser.add_argument("--epochs", type=int, help="at most so many in all (as released)")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def options_of(settings: list[str]) -> dict[str, Any]:
    """["lr=0.1", "name=x"] -> {"lr": 0.1, "name": "x"}: a value is JSON, or else text."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            sys.exit(f"--set {setting}: write it as option=value")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def head(args: argparse.Namespace, peer: Peer, job: Job, started: str) -> dict[str, Any]:
    """What the figures must be read with."""
    manifest = job.sequences.manifest
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": started,
        "peer": {"name": args.peer, "repository": peer.repository, "commit": peer.commit, "settings": peer.settings},
        "data": {
            "manifest_sha256": job.sequences.manifest_sha256,
            **{key: manifest[key] for key in ("users", "items", "train_rows", "max_length")},
        },
        "seed": args.seed,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "environment": environment(),
    }


def main() -> None:
    args = parse_arguments()
    args.code, args.data, args.out = args.code.resolve(), args.data.resolve(), args.out.resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    module, name = PEERS[args.peer]
    chosen: type[Peer] = getattr(importlib.import_module(module), name)
    require_commit(chosen, args.code)
    args.out.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        os.chdir(scratch)  # some peers write logs where they stand
        options, device = options_of(args.set), torch.device(args.device)
        job = Job(args.data, read_sequences(args.data), args.code, Path(scratch), options, args.seed, device)
        peer = chosen(job)  # type: ignore[call-arg]
        training = train(peer, job, args.out, args.epochs or peer.epochs)
        result = head(args, peer, job, started) | {"training": training, **report(peer, job, args.out)}
        os.chdir("/")
    partial = args.out / "metrics.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(args.out / "metrics.json")
    print(json.dumps({split: result[split]["unmasked"] for split in ("valid", "test")}, indent=1))


if __name__ == "__main__":
    main()
