"""Vision models that cannot work are refused before the start if their configuration shows it, else when they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

from models.errors import UserError
from tests.helpers import small_vision
from trainer.extract.video import encoders as vision

Copied = Callable[[str], Path]


@pytest.fixture
def copied(tmp_path: Path) -> Copied:
    """kind -> a folder with a model of that type, which a test may damage."""

    def of(kind: str) -> Path:
        small_vision.save(kind, tmp_path)
        return tmp_path

    return of


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("vit", "vit.encoder.layer.1.output.dense.weight"),
        ("videomae", "videomae.encoder.layer.0.attention.attention.q_bias"),
        ("clip", "vision_model.post_layernorm.weight"),
        ("beit", "pooler.layernorm.bias"),
        ("resnet", "encoder.stages.1.layers.0.layer.0.normalization.running_mean"),
    ],
)
def test_a_missing_weight_is_named_and_not_left_random(kind: str, tensor: str, copied: Copied) -> None:
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    del weights[tensor]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lack .*{tensor.split('.')[-1].replace('q_bias', 'query.bias')}"):
        vision.load(str(folder), False, "cpu", None)


def test_a_weight_of_another_shape_is_named(copied: Copied) -> None:
    folder = copied("dinov2")
    small_vision.edit(folder / "config.json", mlp_ratio=2)
    with pytest.raises(UserError, match=r"mlp\.fc1\.\w+.*another shape"):
        vision.load(str(folder), False, "cpu", None)


def test_an_unused_mask_token_may_be_missing(copied: Copied) -> None:
    folder = copied("dinov2")
    clips, _ = small_vision.clips(folder, 1, 1)
    whole = vision.load(str(folder), False, "cpu", None)(clips)
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.mask_token"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(vision.load(str(folder), False, "cpu", None)(clips)["sequence"], whole["sequence"])


def test_broken_and_absent_weights(copied: Copied) -> None:
    folder = copied("vit")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot load its weights .* folder made by save_pretrained"):
        vision.load(str(folder), False, "cpu", None)
    file.unlink()
    with pytest.raises(UserError, match=r"cannot load its weights \(.*no file named model.safetensors"):
        vision.load(str(folder), False, "cpu", None)


def test_frames_of_varying_size_are_refused_before_the_start(copied: Copied) -> None:
    folder = copied("clip")
    small_vision.edit(folder / "preprocessor_config.json", do_center_crop=False)
    with pytest.raises(UserError, match=r"preprocessor_config.json does not make RGB images of one size.*crop_size"):
        vision.describe(str(folder), False)


@pytest.mark.parametrize("kind", ["vit", "clip", "videomae"])
def test_frames_of_a_size_that_the_model_does_not_take_are_refused_before_the_start(kind: str, copied: Copied) -> None:
    folder = copied(kind)
    small_vision.edit(
        folder / "preprocessor_config.json", size={"height": 40, "width": 40}, crop_size={"height": 40, "width": 40}
    )
    with pytest.raises(UserError, match=r"makes images of 40x40, its config.json takes 32x32"):
        vision.describe(str(folder), False)


def test_a_model_that_interpolates_its_positions_takes_other_sizes(copied: Copied) -> None:
    folder = copied("dinov2")
    small_vision.edit(
        folder / "preprocessor_config.json", size={"height": 40, "width": 40}, crop_size={"height": 40, "width": 40}
    )
    vision.describe(str(folder), False)
    clips = vision.preparation(str(folder))(small_vision.frames(2))[None]
    assert clips.shape == (1, 2, 40, 40, 3)
    assert vision.load(str(folder), False, "cpu", None)(clips)["sequence"].shape == (1, 2, 16)


@pytest.mark.parametrize("kind", ["swin", "convnext", "resnet"])
def test_layers_of_a_model_without_a_stack_of_them(kind: str, copied: Copied) -> None:
    with pytest.raises(UserError, match=r"no layer states to stack; leave --layers out .*videomae, vit"):
        vision.describe(str(copied(kind)), True)


def test_folders_and_names_that_are_no_vision_model(tmp_path: Path, copied: Copied, monkeypatch: Any) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    transformers.BertConfig().save_pretrained(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    cases = {
        str(tmp_path / "text"): "is of type 'bert', not a vision encoder.*efficientnet-lite0 or .*videomae, vit",
        str(tmp_path / "empty"): r"cannot load its config.json \(.*; give a folder made by save_pretrained",
        str(tmp_path / "bad"): r"cannot load its config.json \(.*JSON.*; give a folder made by save_pretrained",
        str(tmp_path / "nowhere"): "no such folder; give one",
        "./nowhere": "no such folder; give one",
        "videomae": r"MCG-NJU/videomae-base: cannot load its config.json.*HF_HUB_OFFLINE=1",
        "nobody/nothing": r"nobody/nothing: cannot load its config.json.*check the name on the hub",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            vision.describe(name, False)
    folder = copied("vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"cannot load its preprocessor_config\.json"):
        vision.describe(str(folder), False)


def test_a_misspelt_encoder_is_told_before_the_hub_is_asked() -> None:
    with pytest.raises(UserError, match="unknown encoder 'videomaee': did you mean 'videomae'"):
        vision.describe("videomaee", False)
