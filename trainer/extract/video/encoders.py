"""Frames to vectors: VideoMAE and image encoders of transformers, and one encoder that needs no model hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import UserError
from models.registry import refuse_misspelt
from trainer.extract.pipeline.protocols import Preparation, VideoEncoder
from trainer.extract.video import efficientnet
from trainer.extract.video.vision import Clips, Encoder, FrameByFrame, ImageModel

_SHORT = {"videomae": "MCG-NJU/videomae-base"}


@dataclass(frozen=True)
class _Family:
    """How models of one type are loaded and read."""

    model: str
    #: a frame's vector: the [CLS] token, what the model's own pooling gives, or (a clip model) the mean of its tokens
    reads: Literal["cls", "pooled", "tubelets"]
    #: whether all hidden states are tokens of one width, so that they can be stacked
    layers: bool = True
    #: whether it takes only images of the image_size in its configuration
    one_size: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)


#: by model_type. Heads that many checkpoints lack (such as ViT's pooler) are left out: their weights would be random
_FAMILIES = {
    "videomae": _Family("VideoMAEModel", "tubelets"),
    "vit": _Family("ViTModel", "cls", arguments={"add_pooling_layer": False}),
    "deit": _Family("DeiTModel", "cls", arguments={"add_pooling_layer": False}),
    # BEiT's pooler gives the normalised mean of the patches if the model is fine-tuned, else [CLS]
    "beit": _Family("BeitModel", "pooled"),
    "dinov2": _Family("Dinov2Model", "cls", one_size=False),
    "dinov2_with_registers": _Family("Dinov2WithRegistersModel", "cls", one_size=False),
    "dinov3_vit": _Family("DINOv3ViTModel", "cls", one_size=False),
    "clip": _Family("CLIPVisionModel", "pooled"),
    "clip_vision_model": _Family("CLIPVisionModel", "pooled"),
    "siglip": _Family("SiglipVisionModel", "pooled"),
    "siglip_vision_model": _Family("SiglipVisionModel", "pooled"),
    "swin": _Family("SwinModel", "pooled", layers=False, one_size=False),
    "convnext": _Family("ConvNextModel", "pooled", layers=False, one_size=False),
    "convnextv2": _Family("ConvNextV2Model", "pooled", layers=False, one_size=False),
    "resnet": _Family("ResNetModel", "pooled", layers=False, one_size=False),
}


def describe(name: str, layers: bool) -> str:
    """What the encoder is, for manifests: "MCG-NJU/videomae-base (videomae)". Reads its configuration, no weights.

    name: "videomae", "efficientnet-lite0", a model of the Hugging Face hub, or a folder made by save_pretrained.
    Raises UserError: packages not installed, not found, not a vision encoder that is known here, states asked of a
    model that has none to stack, frames prepared to a size that varies or that the model does not take.
    """
    if name == efficientnet.NAME:
        if layers:
            raise UserError(f"encoder {name} has no layer states to stack; leave --layers out or take a transformer")
        efficientnet.check()
        return name
    refuse_misspelt("encoder", name, ("videomae", efficientnet.NAME))  # the hub would be asked for half a minute
    source = _source(name)
    family, config, kind = _configuration(source)
    if layers and not family.layers:
        raise UserError(
            f"encoder {name} ({kind}) has no layer states to stack; leave --layers out or take one of "
            f"{', '.join(known for known, its in _FAMILIES.items() if its.layers)}"
        )
    if not getattr(config, "vision_use_head", True):
        raise UserError(f"encoder {name} ({kind}) was saved without the head that makes one vector; take another")
    height, width = _prepared_size(name, _Resized(_processor(source, kind)))
    side = getattr(config, "image_size", None)
    takes = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if family.one_size and takes != (height, width):
        raise UserError(
            f"encoder {name}: its preprocessor_config.json makes images of {height}x{width}, its config.json takes "
            f"{takes[0]}x{takes[1]}; mend the one that is wrong"
        )
    return f"{source} ({kind})"


def preparation(name: str) -> Preparation:
    """What resizes and crops frames for the encoder, on a CPU: the model's own image processor, its PIL form.

    Values stay uint8; the encoder rescales and normalises. Raises UserError: not found, not installed.
    """
    if name == efficientnet.NAME:
        return efficientnet.prepare
    source = _source(name)
    return _Resized(_processor(source, _configuration(source)[2]))


def load(name: str, layers: bool, device: str, threads: int | None) -> VideoEncoder:
    """The encoder on `device` ("cpu", "cuda", "cuda:0"), in float32, with `threads` threads of the CPU where given.

    Raises UserError: not found, weights missing or of other shapes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # convolutions on CUDA would round to TF32: features are to be the same on every device
    torch.backends.cudnn.allow_tf32 = False
    if name == efficientnet.NAME:
        vectors = efficientnet.load(device)
        return Encoder(FrameByFrame(lambda images: (vectors(images), [])), efficientnet.MEAN, efficientnet.STD, device)
    source = _source(name)
    family, config, kind = _configuration(source)
    processor = _processor(source, kind)
    model = _model(source, family, config).to(device)
    by_frame = FrameByFrame(ImageModel(model, family.reads == "cls", layers))
    see = Clips(model, layers) if family.reads == "tubelets" else by_frame
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return Encoder(see, mean, std, device, processor.rescale_factor if processor.do_rescale else 1.0)


def _model(source: str, family: _Family, config: Any) -> Any:
    """The model in float32, in evaluation mode, every weight that is used from the checkpoint."""
    with _transformers("weights", source) as transformers:
        model, report = getattr(transformers, family.model).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below; transformers itself would only log them
            output_loading_info=True,
            **family.arguments,
        )
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    # mask tokens are only used in pre-training
    random = sorted(key for key in lacking if not key.endswith("mask_token"))
    if random:
        more = f" and {len(random) - 3} more" if len(random) > 3 else ""
        raise UserError(
            f"encoder {source}: its weights lack {', '.join(random[:3])}{more}, or have them in another shape than "
            f"config.json says, and they would be left random; take a complete checkpoint of a {config.model_type}"
        )
    return model.eval()


class _Resized:
    """An image processor of transformers without its rescaling and normalising."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        found = self._processor(frames, do_rescale=False, do_normalize=False, input_data_format="channels_last")
        pixels = np.asarray(found["pixel_values"])
        # (K, 3, h, w), or for a clip model one more dimension of 1 before it
        return np.ascontiguousarray(np.moveaxis(pixels.reshape(len(frames), *pixels.shape[-3:]), 1, -1))


def _prepared_size(name: str, prepare: _Resized) -> tuple[int, int]:
    """(height, width) of prepared frames, the same for wide, high and small ones."""
    made = [prepare([np.zeros((*size, 3), np.uint8)]) for size in ((90, 160), (160, 90), (20, 30))]
    shapes = {pixels.shape for pixels in made}
    if len(shapes) > 1 or made[0].ndim != 4 or made[0].shape[-1] != 3 or made[0].dtype != np.uint8:
        raise UserError(
            f"encoder {name}: its preprocessor_config.json does not make RGB images of one size from frames of any "
            "size; give it a crop_size with do_center_crop, or a size of height and width"
        )
    return made[0].shape[1], made[0].shape[2]


def _source(name: str) -> str:
    """The hub's name, or the folder, that `name` stands for."""
    path = Path(name).expanduser()
    if name in _SHORT or path.is_dir():
        return _SHORT.get(name, str(path))
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"encoder {name}: no such folder; give one made by save_pretrained, or a name of the hub")
    return name


def _configuration(source: str) -> tuple[_Family, Any, str]:
    """How the model is read, the configuration of its vision part, and its type."""
    with _transformers("config.json", source) as transformers:
        config: Any = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    kind = str(config.model_type)
    if kind not in _FAMILIES:
        raise UserError(
            f"encoder {source} is of type {kind!r}, not a vision encoder that is known here; take "
            f"{efficientnet.NAME} or a model of one of these types: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind], getattr(config, "vision_config", config), kind


def _processor(source: str, kind: str) -> Any:
    with _transformers("preprocessor_config.json", source) as transformers:
        if kind == "dinov3_vit":
            # its own processor needs torchvision and resizes floats; this one resizes the same way, rounding to uint8
            return transformers.ViTImageProcessorPil.from_pretrained(source)
        return transformers.AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)


@contextlib.contextmanager
def _transformers(what: str, source: str) -> Iterator[Any]:
    """The library, without its reports and progress bars, its errors as one UserError."""
    try:
        import PIL  # noqa: F401 - image processors need it, but fail only when they are made
        import transformers
    except ImportError as error:
        raise UserError(f"encoder {source} needs packages ({error}): pip install transformers pillow") from None
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    except Exception as error:  # wrong names, broken files and the network raise exceptions without a common class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if Path(source).is_dir():
            advice = "give a folder made by save_pretrained, with config.json, preprocessor_config.json and weights"
        else:
            advice = (
                "check the name on the hub; where there is no network, download the model elsewhere and give its "
                "folder, or bring the hub's cache and set HF_HUB_OFFLINE=1"
            )
        raise UserError(f"encoder {source}: cannot load its {what} ({reason}); {advice}") from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
