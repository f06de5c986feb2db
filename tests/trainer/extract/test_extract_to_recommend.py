"""From clips and titles to a trained MealRec, with the commands that a user would use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.helpers import small_text, small_vision
from tests.helpers.topic_clips import write_world
from trainer.cli import main
from trainer.data.features import open_features, read_vectors
from trainer.data.format.manifest import load_manifest
from trainer.data.synthetic.generate import SyntheticOptions, generate

SETTINGS = {
    "engine.name": "torch", "cluster.launcher": "inline", "cluster.threads": 1, "tracking.mlflow": "false",
    "train.epochs": 4, "train.batch_size": 128, "train.learning_rate": 0.003,
}  # fmt: skip
TRAIN = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def from_clips(folder: Path, users: int, listed: int, *train: str) -> Path:
    """Extract, prepare and train in `folder`, with clips and titles of the first `listed` of 60 items.

    train: arguments of the command. Returns the folder of runs, whose names begin with r.
    """
    world, raw, video, text = (folder / name for name in ("world", "raw", "video", "text"))
    options = SyntheticOptions(users=users, items=60, topics=3, favourites=2, mean_length=5, cold=0.0, zipf=0.5, seed=3)
    generate(world, options)
    write_world(world, raw, listed)
    table = str(raw / "items.csv")
    assert main(["extract", "videos", "--videos", str(raw / "clips"), "--items", table, "--out", str(video),
                 "--encoder", "efficientnet-lite0", "--max-failures", "1"]) == 0  # fmt: skip
    assert main(["extract", "titles", "--titles", table, "--encoder", "minilm", "--out", str(text),
                 "--launcher", "inline"]) == 0  # fmt: skip
    _topics_are_neighbours(world, video, folder / "unpacked")
    data = folder / "data"
    columns = ["--user", "user", "--item", "item", "--time", "time"]
    features = ["--features", str(video), "--features", str(text)]
    assert main(["prepare", "table", "--file", str(raw / "log.csv"), *columns, *features, "--out", str(data)]) == 0
    runs = ["--runs-dir", str(folder / "runs"), "--name", "r"]
    assert main(["train", "--recipe", "demo", "--data", str(data), *runs, *TRAIN, *train]) == 0
    return folder / "runs"


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_from_clips_and_titles_to_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("train.epochs=1", "train.batch_size=64", "model.steps=3", "model.tcd.channels=[8, 16]")
    runs = from_clips(tmp_path, 300, 24, "--model", "mealrec", *(f"--set={each}" for each in small))
    assert json.loads((runs / "r" / "test.json").read_text())["users"] > 100
    shown = capsys.readouterr().out
    assert "23 items encoded by efficientnet-lite0: sequence 5 x 1280, visual 1280" in shown
    assert "1 items failed: 1 empty file" in shown
    assert "content sequence: frames, 5 x 1280, missing for 37 items" in shown
    assert "content text: title, 384, missing for 36 items" in shown


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("on_ray_head")
def test_sixty_clips_to_a_model_that_beats_popularity(tmp_path: Path) -> None:
    runs = from_clips(tmp_path, 2000, 60, "--model", "popularity,mealrec")
    reports = {name: json.loads((runs / f"r-{name}" / "test.json").read_text()) for name in ("popularity", "mealrec")}
    found = {name: report["NDCG@10"] for name, report in reports.items()}
    print(f"found: NDCG@10 {found['mealrec']:.4f} of MealRec, {found['popularity']:.4f} of popularity")
    assert found["mealrec"] > 1.4 * found["popularity"]


def test_layer_states_from_extraction_to_iisan(tmp_path: Path) -> None:
    """Small models of the hub's classes (VideoMAE, BERT), made by the test; IISAN reads their layers."""
    world, raw = tmp_path / "world", tmp_path / "raw"
    generate(world, SyntheticOptions(users=60, items=60, topics=3, favourites=2, mean_length=5, cold=0.0, seed=3))
    write_world(world, raw)
    small_vision.save("videomae", tmp_path / "videomae")
    small_text.save_small_text(tmp_path / "bert")
    common = ["--layers", "--launcher", "inline", "--max-failures", "1"]
    items = str(raw / "items.csv")
    clips, video, text = str(raw / "clips"), str(tmp_path / "video"), str(tmp_path / "text")
    assert main(["extract", "videos", "--videos", clips, "--items", items, "--out", video,
                 "--encoder", str(tmp_path / "videomae"), *common]) == 0  # fmt: skip
    assert main(["extract", "titles", "--titles", items, "--out", text,
                 "--encoder", str(tmp_path / "bert"), "--batch-size", "16", *common]) == 0  # fmt: skip
    data = tmp_path / "data"
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core-on", "none"]
    features = ["--features", video, "--features", text]
    assert main(["prepare", "table", "--file", str(raw / "log.csv"), *columns, *features, "--out", str(data)]) == 0
    content = load_manifest(data).content
    states = {name: (info.shape, info.kind) for name, info in content.items() if name.endswith("layers")}
    assert states == {"visual_layers": ((3, 16), "video layers"), "text_layers": ((3, 16), "title layers")}
    command = ["train", "--recipe", "demo", "--data", str(data), "--runs-dir", str(tmp_path / "runs"), "--name", "r"]
    assert main([*command, "--model", "iisan", *TRAIN, "--set", "train.epochs=1"]) == 0


def _topics_are_neighbours(world: Path, video: Path, scratch: Path) -> None:
    """By video vectors, the nearest other clip nearly always has the same topic."""
    scratch.mkdir()
    features = open_features(str(video))
    arrays = read_vectors(features, scratch)
    assert features.items["times"].list.len().unique().to_list() == [5]
    names = pl.read_parquet(world / "items.parquet")["item"].to_list()
    topic = dict(zip(names, np.load(world / "truth" / "item_topic.npy")[1:].tolist(), strict=True))
    topics = np.array([topic[item] for item in features.items["item"]])
    vectors = arrays["visual"].astype(np.float32)
    vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert (topics[similarity.argmax(1)] == topics).mean() > 0.9
