"""Small random vision models of transformers, saved with their image processors like models of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from trainer.extract.video.encoders import preparation

SIDE = 32
#: every type that trainer.extract.video.encoders knows, except the two that are vision parts of others
KINDS = (
    "videomae",
    "vit",
    "deit",
    "beit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip",
    "siglip",
    "swin",
    "convnext",
    "convnextv2",
    "resnet",
)
_CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_SQUARE = {"size": {"height": SIDE, "width": SIDE}}


def save(kind: str, folder: Path, **settings: Any) -> Any:
    """Save a model of this type, with these settings of its configuration, in `folder`; return the model.

    Images of 32x32 in patches of 8; hidden states of 16 numbers, 3 of them where the type is a transformer.
    """
    torch.manual_seed(sum(map(ord, kind)))
    model = _model(kind, settings).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # initial weights make all frames look alike, and zero biases would hide that biases are not loaded
            weights.add_(0.2 * torch.randn_like(weights) if "logit" not in name else 0.0)
    model.save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    if kind == "dinov3_vit":
        edit(folder / "preprocessor_config.json", image_processor_type="DINOv3ViTImageProcessorFast")
    return model


def edit(file: Path, **settings: Any) -> None:
    """Change settings in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def frames(count: int, size: tuple[int, int] = (48, 80), seed: int = 0) -> list[NDArray[np.uint8]]:
    """Frames of noise, uint8."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def clips(folder: Path, n: int, count: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """Clips that we prepared, and clips from transformers' own processor: (n, K, 3, 32, 32)."""
    prepare = preparation(str(folder))
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    raw = [frames(count, seed=seed) for seed in range(n)]
    whole = [np.asarray(processor(kind)(clip)["pixel_values"]) for clip in raw]
    pixels = torch.tensor(np.stack(whole)).reshape(n, count, 3, 32, 32).float()
    return np.stack([prepare(clip) for clip in raw]), pixels


def processor(kind: str) -> Any:
    """The image processor of this type, for 32x32: the public models' own settings otherwise."""
    by_kind: dict[str, Any] = {
        "videomae": transformers.VideoMAEImageProcessorPil(**_CROP),
        "deit": transformers.DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size=_CROP["crop_size"]),
        "beit": transformers.BeitImageProcessorPil(**_SQUARE),
        "clip": transformers.CLIPImageProcessorPil(**_CROP),
        "siglip": transformers.SiglipImageProcessorPil(**_SQUARE),
        "convnext": transformers.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    }
    by_kind["dinov2"] = by_kind["dinov2_with_registers"] = transformers.BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size=_CROP["crop_size"]
    )
    by_kind["convnextv2"] = by_kind["resnet"] = by_kind["convnext"]
    return by_kind.get(kind) or transformers.ViTImageProcessorPil(**_SQUARE)


def _model(kind: str, settings: dict[str, Any]) -> Any:
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**tower, "image_size": SIDE, "patch_size": 8}
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    if kind == "videomae":  # as on the hub: for pre-training, with a decoder that is not used
        decoder = {f"decoder_{name}": size for name, size in tower.items()}
        config = transformers.VideoMAEConfig(**{**vision, **decoder, "use_mean_pooling": False, **settings})
        return transformers.VideoMAEForPreTraining(config)
    if kind in ("clip", "siglip"):
        text = {**tower, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
        config = transformers.AutoConfig.for_model(kind, vision_config={**vision, **settings}, text_config=text)
        return transformers.AutoModel.from_config(config)
    own: dict[str, dict[str, Any]] = {
        "swin": {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
        "convnext": stages,
        "convnextv2": stages,
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }
    if kind == "swin":
        own["swin"]["window_size"] = 4
    config = transformers.AutoConfig.for_model(kind, **{**own.get(kind, vision), **settings})
    if kind == "vit":  # as on the hub, also for DeiT: with a classifier, without a pooler
        return transformers.ViTForImageClassification(config)
    if kind == "deit":
        return transformers.DeiTForImageClassification(config)
    return transformers.AutoModel.from_config(config)
