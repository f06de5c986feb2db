"""Write a run's best model as a folder that serves recommendations without the training data.

Example: mealrec export --run demo-mealrec --out export/demo
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from cluster import console
from models.contract import SequenceModel
from models.options.plain import to_plain
from retrieval.export import write_export
from retrieval.folders import writable_folder
from retrieval.index.kinds import suggested_kind
from trainer.evaluation.report import read_report
from trainer.local_path import local_path
from trainer.remote_runs import runs_dir
from trainer.training.groups import weights_of
from trainer.training.runs import Run, open_run, run_folder, whole_table
from trainer.training.worker import evaluate_choices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec export`."""
    parser.add_argument("--run", required=True, help="name or folder of a run")
    parser.add_argument("--runs-dir", type=runs_dir, default=Path("runs"),
                        help="folder of runs, or its s3:// or gs:// URL (default: runs)")  # fmt: skip
    parser.add_argument("--data", help="where the run's dataset is now (default: its path at training)")
    parser.add_argument("--onnx", action="store_true", help="also write the encoder of histories as ONNX")
    parser.add_argument("--out", type=local_path, required=True, help="folder to write to, new or empty")


def run(args: argparse.Namespace) -> int:
    """Write the export and print how to use it."""
    writable_folder(args.out)  # refuses it before the work, not after
    folder = run_folder(args.run, args.runs_dir)
    opened = export_run(folder, args.data, args.out)
    console.say(f"{opened.config.model.name} of run {folder.name} (epoch {opened.epoch}) written to {args.out}")
    out = shlex.quote(str(args.out))
    if args.onnx:
        from retrieval.onnx_encoder import write_encoder

        console.say(f"{args.out}/onnx/user_encoder.onnx differs from torch by at most {write_encoder(args.out):.1g}")
    console.say(f'ask it: mealrec recommend --model {out} --history "ITEM ITEM ..." --k 20')
    if isinstance(opened.model, SequenceModel):
        items = opened.loaded.dataset.manifest.items
        console.say(f"index it: mealrec index --model {out} --kind {suggested_kind(items)}")
    return 0


def export_run(folder: Path, data: str | None, out: Path) -> Run:
    """Export the run in `folder` to `out`, and return it. data: where its dataset is now. Raises UserError."""
    opened = open_run(folder, data)
    valid = folder / "valid.json"
    if valid.exists():
        opened.model.inference = str(read_report(valid)["inference"])
    else:
        evaluate_choices(opened.model, opened.loaded, opened.config)
    _write(opened, out)
    return opened


def _write(opened: Run, out: Path) -> None:
    dataset, model, config = opened.loaded.dataset, opened.model, opened.config
    content, present, kinds, moments = whole_table(opened)
    test = opened.folder / "test.json"
    metrics = {k: v for k, v in read_report(test).items() if "@" in k} if test.exists() else {}
    manifest = dataset.manifest
    vectors, weights, similarity = torch.zeros(manifest.items + 1, 0), {}, SequenceModel.similarity
    if isinstance(model, SequenceModel):
        with torch.no_grad():
            vectors = model.item_vectors().cpu()
        weights, similarity = weights_of(model), model.similarity
    write_export(
        out, system=config.model.name, options=to_plain(config.model.options), similarity=similarity,
        max_length=manifest.max_length, inference=model.inference, seed=config.seed,
        weights=weights, item_vectors=vectors,
        item_ids=dataset.item_ids(), titles=dataset.item_titles(),
        train_counts=dataset.train_counts()[1:].tolist(), content=content, present=present,
        content_kinds=kinds, moments=moments, metrics=metrics, behaviours=manifest.behaviours,
        interactions=dataset.training_interactions() if config.model.options.needs_interactions else None,
        provenance={"run": opened.folder.name, "epoch": opened.epoch, "data": manifest.fingerprint},
    )  # fmt: skip
