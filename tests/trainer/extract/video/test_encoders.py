"""Vision encoders against references built by hand from small models of the same classes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers import small_vision
from tests.helpers.paths import ROOT
from trainer.extract.video import encoders as vision

TRANSFORMERS = [kind for kind in small_vision.KINDS if kind not in ("swin", "convnext", "convnextv2", "resnet")]
IMAGES = [kind for kind in small_vision.KINDS if kind != "videomae"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (folder, the model that was saved), made on first use."""
    made: dict[str, tuple[Path, Any]] = {}

    def of(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, small_vision.save(kind, folder)
        return made[kind]

    return of


# ---- preparation

PUBLIC = {
    "vit": (transformers.ViTConfig, transformers.ViTImageProcessorPil()),
    "deit": (transformers.DeiTConfig, transformers.DeiTImageProcessorPil()),
    "beit": (transformers.BeitConfig, transformers.BeitImageProcessorPil()),
    "clip": (transformers.CLIPConfig, transformers.CLIPImageProcessorPil()),
    "dinov2": (transformers.Dinov2Config, transformers.BitImageProcessorPil(size={"shortest_edge": 256})),
    "siglip": (transformers.SiglipConfig, transformers.SiglipImageProcessorPil()),
    "convnext": (transformers.ConvNextConfig, transformers.ConvNextImageProcessorPil(size={"shortest_edge": 224})),
    "videomae": (transformers.VideoMAEConfig, transformers.VideoMAEImageProcessorPil()),
}


@pytest.mark.parametrize("kind", PUBLIC)
def test_prepared_frames_are_the_processors_but_for_normalising(kind: str, tmp_path: Path) -> None:
    config, processor = PUBLIC[kind]
    config().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    prepare = vision.preparation(str(tmp_path))
    for size in ((270, 480), (480, 270), (90, 120), (301, 299)):
        frames = small_vision.frames(2, size)
        prepared = prepare(frames)
        assert prepared.shape == (2, 224, 224, 3)
        assert prepared.dtype == np.uint8
        ours = (prepared / 255 - np.asarray(processor.image_mean)) / np.asarray(processor.image_std)
        theirs = np.asarray(processor(frames)["pixel_values"]).reshape(2, 3, 224, 224).transpose(0, 2, 3, 1)
        # both resize in uint8, so that the difference is float rounding: a level of uint8 would be 0.008 or more
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_a_crop_is_what_the_encoder_sees_and_sides_are_not_swapped(saved: Any) -> None:
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :, 0] = np.arange(64) * 4  # red grows to the right
    frame[:, :, 2] = np.arange(32)[:, None] * 8  # blue grows downwards
    prepared = vision.preparation(str(saved("clip")[0]))([frame])[0]
    np.testing.assert_array_equal(prepared, frame[:, 16:48])


# ---- VideoMAE


def test_videomae_gives_a_vector_per_frame_of_a_clip_with_each_frame_twice(saved: Any) -> None:
    folder, _ = saved("videomae")
    encoder = vision.load(str(folder), True, "cpu", None)
    for frames in (5, 3):  # one encoder takes clips of any length
        clips, pixels = small_vision.clips(folder, 2, frames)
        doubled = torch.stack([torch.stack([clip[i // 2] for i in range(2 * frames)]) for clip in pixels])
        model = transformers.VideoMAEModel.from_pretrained(folder, num_frames=2 * frames)
        with torch.no_grad():
            found = model(doubled, output_hidden_states=True)
        places = 16  # 4 x 4 patches
        expected = np.zeros((2, frames, 16))
        for clip in range(2):
            for token in range(frames * places):
                expected[clip, token // places] += found.last_hidden_state[clip, token].numpy() / places
        vectors = encoder(clips)
        np.testing.assert_allclose(vectors["sequence"], expected, atol=1e-5)
        np.testing.assert_allclose(vectors["visual"], found.last_hidden_state.mean(1), atol=1e-5)
        assert vectors["visual_layers"].shape == (2, 3, 16)
        for layer, state in enumerate(found.hidden_states):
            np.testing.assert_allclose(vectors["visual_layers"][:, layer], state.mean(1), atol=1e-5)


def test_without_attention_a_frame_changes_its_own_vector_alone(tmp_path: Path) -> None:
    folder = tmp_path
    small_vision.save("videomae", folder)
    weights = load_file(folder / "model.safetensors")
    cut = [name for name in weights if "videomae" in name and "attention.output.dense" in name]
    assert len(cut) == 4
    save_file({k: w * (k not in cut) for k, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    clips, _ = small_vision.clips(folder, 1, 5)
    encoder = vision.load(str(folder), False, "cpu", None)
    before = encoder(clips)["sequence"][0]
    for frame in range(5):
        changed = clips.copy()
        changed[0, frame] = 255 - changed[0, frame]
        difference = np.abs(encoder(changed)["sequence"][0] - before).max(axis=1)
        assert difference[frame] > 0.01
        assert difference[np.arange(5) != frame].max() == 0


@pytest.mark.parametrize("tubelet", [1, 4])
def test_videomae_with_other_tubelets(tubelet: int, tmp_path: Path) -> None:
    small_vision.save("videomae", tmp_path, tubelet_size=tubelet, num_frames=8)
    clips, pixels = small_vision.clips(tmp_path, 1, 3)
    model = transformers.VideoMAEModel.from_pretrained(tmp_path, num_frames=3 * tubelet)
    clip = torch.stack([pixels[0, i // tubelet] for i in range(3 * tubelet)])[None]
    with torch.no_grad():
        tokens = model(clip).last_hidden_state[0]
    expected = np.stack([tokens[16 * k : 16 * (k + 1)].mean(0).numpy() for k in range(3)])
    np.testing.assert_allclose(
        vision.load(str(tmp_path), False, "cpu", None)(clips)["sequence"][0], expected, atol=1e-5
    )


def test_the_positions_of_videomae_are_the_papers_sinusoids(saved: Any) -> None:
    """They are not weights: a loader that leaves this memory uninitialised would not report them as missing."""
    model = transformers.VideoMAEModel.from_pretrained(saved("videomae")[0], num_frames=10)
    table = model.embeddings.position_embeddings[0]
    for place in (0, 1, 16, 79):
        for i in range(16):
            angle = place / 10000 ** (2 * (i // 2) / 16)
            assert table[place, i] == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


# ---- image models


def _by_hand(kind: str, model: Any, images: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The vectors of images (m, V) and the hidden states, from the last states of the model that was saved."""
    base = {"vit": "vit", "deit": "deit", "clip": "vision_model", "siglip": "vision_model"}.get(kind)
    tower = getattr(model, base) if base else model
    found = tower(pixel_values=images, output_hidden_states=True)
    last = found.last_hidden_state
    if kind == "clip":
        vectors = tower.post_layernorm(last[:, 0])
    elif kind == "siglip":  # attention of a learned query over the tokens, then a residual MLP
        head = tower.head
        query = head.probe.expand(len(images), -1, -1)
        pooled = head.attention(query, last, last)[0]
        vectors = (pooled + head.mlp(head.layernorm(pooled)))[:, 0]
    elif kind == "beit":
        vectors = tower.pooler.layernorm(last[:, 1:].mean(1))
    elif kind == "swin":
        vectors = last.mean(1)
    elif kind.startswith("convnext"):
        vectors = tower.layernorm(last.mean((2, 3)))
    elif kind == "resnet":
        vectors = last.mean((2, 3))
    else:
        vectors = last[:, 0]
    return vectors, found.hidden_states


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_model_gives_one_vector_per_frame(kind: str, saved: Any) -> None:
    folder, model = saved(kind)
    layers = kind in TRANSFORMERS
    assert vision.describe(str(folder), layers) == f"{folder} ({kind})"
    clips, pixels = small_vision.clips(folder, 2, 3)
    vectors = vision.load(str(folder), layers, "cpu", None)(clips)
    assert sorted(vectors) == (["sequence", "visual", "visual_layers"] if layers else ["sequence", "visual"])
    with torch.no_grad():
        for clip in range(2):
            seen = [_by_hand(kind, model, pixels[clip, frame][None]) for frame in range(3)]
            expected = torch.cat([vector for vector, _ in seen])
            assert expected.std(0).mean() > 0.01  # the frames differ
            np.testing.assert_allclose(vectors["sequence"][clip], expected, atol=1e-4)
            np.testing.assert_allclose(vectors["visual"][clip], expected.mean(0), atol=1e-4)
            for layer in range(3 if layers else 0):
                states = torch.stack([states[layer][0].mean(0) for _, states in seen])
                np.testing.assert_allclose(vectors["visual_layers"][clip, layer], states.mean(0), atol=1e-4)


@pytest.mark.parametrize("kind", small_vision.KINDS)
def test_a_clip_is_encoded_alike_in_every_batch(kind: str, saved: Any) -> None:
    folder, _ = saved(kind)
    clips, _ = small_vision.clips(folder, 4, 2)
    clips.flags.writeable = False  # like arrays from Ray
    encoder: Any = vision.load(str(folder), kind in TRANSFORMERS, "cpu", None)
    encoder.at_once = 1
    alone = encoder(clips)
    encoder.at_once = 3
    for name, vectors in encoder(clips).items():
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, alone[name], rtol=1e-5, atol=1e-5)


def test_weights_saved_in_half_precision_are_run_in_full(saved: Any, tmp_path: Path) -> None:
    folder, _ = saved("dinov2")
    clips, pixels = small_vision.clips(folder, 1, 2)
    half = transformers.Dinov2Model.from_pretrained(folder).half()
    half.save_pretrained(tmp_path)
    small_vision.processor("dinov2").save_pretrained(tmp_path)
    vectors = vision.load(str(tmp_path), False, "cpu", None)(clips)
    with torch.no_grad():
        expected = half.float()(pixels[0]).last_hidden_state[:, 0]
    np.testing.assert_allclose(vectors["sequence"][0], expected, atol=1e-5)


def test_threads_are_set(saved: Any) -> None:
    before = torch.get_num_threads()
    try:
        vision.load(str(saved("vit")[0]), False, "cpu", before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_nothing_is_said_when_all_is_well(saved: Any) -> None:
    code = """
import sys, numpy as np
from trainer.extract.video import encoders
for name in sys.argv[1:]:
    encoders.describe(name, False)
    frames = encoders.preparation(name)([np.zeros((40, 50, 3), np.uint8)])
    frames.flags.writeable = False
    encoders.load(name, False, "cpu", None)(frames[None])
"""
    folders = [str(saved(kind)[0]) for kind in ("videomae", "clip", "dinov3_vit")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *folders, "efficientnet-lite0"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    transformers.utils.logging.enable_progress_bar()  # text encoders, and tests before this one, turn it off
    vision.load(folders[0], False, "cpu", None)
    assert transformers.utils.logging.is_progress_bar_enabled()
