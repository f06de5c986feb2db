"""Measures feature extraction: decoding, encoding, and the Ray Data pipeline with one and two workers.

    python benchmarks/extraction.py --videos clips/          # your clips, repeated until there are --count
    python benchmarks/extraction.py                          # clips made on the spot: 1280 x 720, 30 fps, 12 s, H.264

Writes `benchmarks/results/DATE-HARDWARE-extraction.md` and .json. VideoMAE-base and BERT-base are measured with random
weights of their size: no network is needed, and time does not depend on the weights. Run it on idle cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from benchmark import ROOT, _git, _hardware

sys.path.insert(0, str(ROOT))

from cluster.ray_data import stream
from trainer.durations import in_words
from trainer.extract.pipeline import units as jobs
from trainer.extract.pipeline.protocols import Sampling
from trainer.extract.pipeline.units import Unit
from trainer.extract.titles import encoders as titles
from trainer.extract.video import decode
from trainer.extract.video import encoders as vision
from trainer.extract.video.job import VideoJob
from trainer.process import peak_memory_mib

Result = dict[str, Any]
LITE = "efficientnet-lite0"
HERE = Path(__file__).resolve().parent


def main() -> int:
    """Measure, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of clips")
    parser.add_argument("--count", type=int, default=96, help="videos through the pipeline (96)")
    parser.add_argument("--titles", type=Path, help="a text file, one title a line (else made-up titles of 12 words)")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="(benchmarks/results)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mealrec-extraction-") as name:
        work = Path(name)
        clips = sorted(args.videos.glob("*.*")) if args.videos else made_clips(work)
        result: Result = {
            "command": shlex.join(["python", "benchmarks/extraction.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "git": _git(),
            "load_before": os.getloadavg()[0], "machine": _hardware(), "count": args.count,
            "clips": "given" if args.videos else "made: 1280 x 720, 30 fps, 12 s, H.264, key frame every 250",
            "gpus": torch.cuda.device_count(),
            "decode": decode_alone(clips), "encode": {name: each() for name, each in encoders(work, args).items()},
        }  # fmt: skip
        videos = [str(clips[n % len(clips)]) for n in range(args.count)]
        result["pipeline"] = [
            pipeline(work, label, videos, encoder, **sizes) for label, encoder, sizes in plans(work, result["gpus"])
        ]
    words = f"{result['machine']['cores']}-core {result['machine']['cpu']}"
    hardware = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{result['date'][:10]}-{hardware}-extraction.md"
    path.write_text(report(result), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report(result))
    print(f"written: {path}", file=sys.stderr)
    return 0


def made_clips(folder: Path, count: int = 8) -> list[Path]:
    """Clips of moving shapes over moving noise."""
    from tests.helpers.clips import write_clip  # the writer that the tests check

    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        ground = random.integers(0, 256, (720, 1600, 3), np.uint8)
        ground = ground[::16, ::16].repeat(16, 0).repeat(16, 1)
        frames = [np.ascontiguousarray(ground[:, (2 * t) % 320 : (2 * t) % 320 + 1280]) for t in range(360)]
        paths.append(folder / f"{number}.mp4")
        write_clip(paths[-1], frames, fps=30, gop=250, bframes=2, options={"preset": "veryfast"})
    return paths


def decode_alone(clips: list[Path]) -> Result:
    """Seconds per video of sampling and preparing 5 frames, in this process, one thread; the median of 3 rounds."""
    prepare = vision.preparation(LITE)
    rounds: list[tuple[float, float]] = []
    for _ in range(3):
        sampling = preparing = 0.0
        for clip in clips:
            started = time.perf_counter()
            frames, _ = decode.sample(str(clip), Sampling())
            middle = time.perf_counter()
            prepare(frames)
            sampling, preparing = sampling + middle - started, preparing + time.perf_counter() - middle
        rounds.append((sampling / len(clips), preparing / len(clips)))
    sampling, preparing = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"sample_s": sampling, "prepare_s": preparing, "videos": len(clips), "mib": peak_memory_mib(_CPU)}


def encoders(work: Path, args: argparse.Namespace) -> dict[str, Callable[[], Result]]:
    """What encodes, by name, each measured when called."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = args.titles.read_text(encoding="utf-8").splitlines() if args.titles else _made_titles()
    return {
        LITE: lambda: _per_clip(vision.load(LITE, False, device, 1), 224),
        "VideoMAE-base (random weights)": lambda: _per_clip(vision.load(videomae_base(work), False, device, 1), 224),
        "glove": lambda: _per_title(titles.load("glove", None, False, device, 1), lines),
        "minilm": lambda: _per_title(titles.load("minilm", None, False, device, 1), lines),
        "BERT-base (random weights)": lambda: _per_title(titles.load(bert_base(work), None, False, device, 1), lines),
    }


def _per_clip(encode: Any, side: int, batch: int = 4) -> Result:
    clips = np.random.default_rng(0).integers(0, 256, (batch, 5, side, side, 3), np.uint8)
    return {"s": _median(lambda: encode(clips)) / batch, "what": "video", "at_once": batch}


def _per_title(encode: Any, lines: list[str]) -> Result:
    batch = lines[:256]
    return {"s": _median(lambda: encode(batch)) / len(batch), "what": "title", "at_once": len(batch)}


def _median(run: Callable[[], Any]) -> float:
    """Median seconds of three calls after one that does not count."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _made_titles() -> list[str]:
    random, words = np.random.default_rng(0), ["video", "of", "a", "dancing", "cat", "best", "funny", "food", "travel"]
    return [" ".join(random.choice(words, 12)) for _ in range(256)]


def plans(work: Path, gpus: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Label, encoder and sizes of each pipeline: one CPU, then all; with a cheap encoder too: decoding is all."""
    tiny = tiny_vit(work)
    cpus = len(os.sched_getaffinity(0))
    yield "1 CPU: 1 loader and 1 encoder share it", LITE, {"loaders": 1, "encoders": 1, "cpus": 1}
    yield f"{cpus} CPUs: 1 loader, 1 encoder", LITE, {"loaders": 1, "encoders": max(1, gpus), "cpus": cpus}
    yield "a tiny encoder, 1 CPU: 1 loader", tiny, {"loaders": 1, "encoders": 1, "cpus": 1}
    yield f"a tiny encoder, {cpus} CPUs: {cpus} loaders", tiny, {"loaders": cpus, "encoders": 1, "cpus": cpus}


def pipeline(
    work: Path, label: str, videos: list[str], encoder: str, *, loaders: int, encoders: int, cpus: int
) -> Result:
    """Videos per second from the first unit that comes out to the last, on so many CPUs; shares and peak memory."""
    print(f"pipeline, {label} ...", file=sys.stderr, flush=True)
    job, size = VideoJob(encoder), 8
    units = [
        Unit(tuple(range(at, min(at + size, len(videos)))), tuple(videos[at : at + size]))
        for at in range(0, len(videos), size)
    ]
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everything)[:cpus])  # Ray's processes inherit it
    try:
        started, arrived, costs = time.perf_counter(), [], []
        for data in stream(
            units, job.load, job.make_encoder, cpus=loaders + encoders, gpus=torch.cuda.device_count(), use_gpus=None,
            loaders=loaders, encoders=encoders, unit_bytes=job.item_bytes() * size, out=work,
        ):  # fmt: skip
            arrived.append(time.perf_counter())
            costs.append(jobs.unpack(data)[jobs.COST])
    finally:
        os.sched_setaffinity(0, everything)
    load, encode, load_mib, encode_mib = np.stack(costs).T
    return {
        "label": label, "encoder": encoder if encoder == LITE else "tiny ViT", "first_s": arrived[0] - started,
        "videos_per_s": (len(videos) - size) / (arrived[-1] - arrived[0]),
        "load_s": float(load.sum()) / len(videos), "encode_s": float(encode.sum()) / len(videos),
        "load_mib": float(load_mib.max()), "encode_mib": float(encode_mib.max()), "driver_mib": peak_memory_mib(_CPU),
    }  # fmt: skip


@functools.cache
def videomae_base(work: Path) -> str:
    """A folder with a VideoMAE of the base size, random weights."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessorPil, VideoMAEModel

    torch.manual_seed(0)
    return _saved(work / "videomae", VideoMAEModel(VideoMAEConfig()), VideoMAEImageProcessorPil())


@functools.cache
def tiny_vit(work: Path) -> str:
    """A folder with a ViT that costs next to nothing, for frames of 224 x 224."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, patch_size=56)
    return _saved(work / "vit", ViTModel(config), ViTImageProcessorPil())


@functools.cache
def bert_base(work: Path) -> str:
    """A folder with a BERT of the base size, random weights, and a small WordPiece vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    letters = [prefix + c for c in "abcdefghijklmnopqrstuvwxyz0123456789#" for prefix in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "video", "of", "dancing", "cat", "best", "funny"]
    vocabulary = work / "vocab.txt"
    vocabulary.write_text("\n".join(words), encoding="utf-8")
    folder = _saved(work / "bert", BertModel(BertConfig()))
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=512).save_pretrained(folder)
    return folder


def _saved(folder: Path, *parts: Any) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


_CPU = torch.device("cpu")


def report(result: Result) -> str:
    """The page for people."""
    machine, alone = result["machine"], result["decode"]
    lines = [
        f"# Extraction, {result['date'][:10]}", "",
        f"`{result['command']}`, commit {result['git']}, {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gb']} GB, {result['gpus']} GPUs, load before {result['load_before']:.2f}. "
        f"Clips: {result['clips']}. One thread per process.", "",
        "## Decoding alone", "",
        f"{alone['sample_s']:.3f} s a video to find and decode 5 frames, {alone['prepare_s']:.3f} s to resize them: "
        f"{1 / (alone['sample_s'] + alone['prepare_s']):.2f} videos/s on a core ({alone['videos']} videos, 3 rounds).",
        "", "## Encoding alone", "", "| encoder | s each | per second | 1,000 take |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, each in result["encode"].items():
        lines.append(
            f"| {name} | {each['s']:.3g} a {each['what']} | {1 / each['s']:,.2f} | {in_words(1000 * each['s'])} |"
        )
    lines += [
        "", "## The pipeline (Ray Data)", "",
        f"{result['count']} videos, 5 frames each; videos/s from the first unit that comes out to the last.", "",
        "| pipeline | encoder | videos/s | load s | encode s | to the first unit | MiB loader, encoder, driver |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for each in result["pipeline"]:
        lines.append(
            f"| {each['label']} | {each['encoder']} | {each['videos_per_s']:.2f} | {each['load_s']:.3f} | "
            f"{each['encode_s']:.3f} | {each['first_s']:.0f} s | "
            f"{each['load_mib']:,.0f}, {each['encode_mib']:,.0f}, {each['driver_mib']:,.0f} |"
        )
    one, both, cheap_one, cheap_both = result["pipeline"]
    share = both["load_s"] / (both["load_s"] + both["encode_s"])
    scaling = both["videos_per_s"] / one["videos_per_s"]
    cheap = cheap_both["videos_per_s"] / cheap_one["videos_per_s"]
    lines += [
        "",
        f"From one CPU to {machine['cores']}: {scaling:.2f} times as many videos/s, and {cheap:.2f} times where "
        f"decoding is all. Loading is {share:.0%} of the work with {both['encoder']}, encoding {1 - share:.0%}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
