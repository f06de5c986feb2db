"""IISAN-Versa by its authors' code, on the layer states of the dataset."""

from __future__ import annotations

import argparse
import sys
import types
from typing import Any

import torch
from peer import Job
from peer_content import ContentPeer
from torch import Tensor, nn

#: its script for MicroLens; `layers` is the number of evenly spaced layers that have an adapter
PUBLISHED: dict[str, Any] = {
    "batch_size": 512, "lr": 2e-4, "adapter_cv_lr": 1e-4, "adapter_bert_lr": 1e-4, "fine_tune_lr_image": 1e-4,
    "fine_tune_lr_text": 5e-5, "embedding_dim": 64, "drop_rate": 0.1, "num_attention_heads": 2,
    "transformer_block": 2, "bert_adapter_down_size": 64, "cv_adapter_down_size": 512, "adapter_dropout_rate": 0.1,
    "adapter_activation": "RELU", "fusion_method": "gated", "modality": "intra_inter", "remove_first": "None",
    "l2_weight": 0, "layers": 6,
}  # fmt: skip
#: of encoders that the adapters replace
UNUSED: dict[str, Any] = {
    "num_words_title": 1, "num_words_abstract": 0, "num_words_body": 0, "news_attributes": ["title"],
    "word_embedding_dim": 1,
}  # fmt: skip


class IISANVersa(ContentPeer):
    """Adapters over the states of two encoders, as its script for MicroLens."""

    repository = "GAIR-Lab/IISAN"
    commit = "67f5c1faf12a1f9fc3258922bb05684561532d1d"
    epochs = 200

    def __init__(self, job: Job) -> None:
        job.open_code("Code_Cached_Asym")
        _leave_transformers_out()
        from model import ModelMM  # type: ignore[import-not-found]
        from model.model import IISANAdaptedMModel  # type: ignore[import-not-found]

        text, video = (torch.from_numpy(job.content(name)) for name in ("text_layers", "visual_layers"))
        args = self.prepare(job, PUBLISHED)
        lists = {
            f"side_adapter_{name}_list": _spaced(len(states[0]) - 1, args.layers)
            for name, states in (("bert", text), ("vit", video))
        }
        widths = {"text_embedding_dim": text.shape[2], "image_embedding_dim": video.shape[2]}
        vars(args).update(UNUSED | lists | widths)
        self.model = ModelMM(args, job.sequences.manifest["items"], True, None, None, self.share)
        self.model.mm_encoder = IISANAdaptedMModel(self.model.mm_encoder, args)
        self.model.to(job.device)
        self.optimizer = torch.optim.Adam(_groups(self.model, args))
        self._content = video.to(job.device), text.to(job.device)

    def loss(self, history: Tensor, mask: Tensor) -> Tensor:
        video, text = (states[history] for states in self._content)
        return self.model(history.flatten(), video, text, mask, history.device)  # type: ignore[no-any-return]

    def encode(self, rows: Tensor) -> Tensor:
        video, (text, both) = self.model.mm_encoder(*(states[rows] for states in self._content))
        return self.model.com_dense(torch.cat([video, text, both], dim=1))  # type: ignore[no-any-return]


def _leave_transformers_out() -> None:
    """Stand-ins for names of transformers that the model's files import and do not use."""
    for module, name in (("modeling_outputs", "BaseModelOutput"), ("activations", "get_activation")):
        stand_in = types.ModuleType(f"transformers.{module}")
        setattr(stand_in, name, None)
        sys.modules |= {"transformers": types.ModuleType("transformers"), f"transformers.{module}": stand_in}


def _spaced(layers: int, wanted: int) -> str:
    """Evenly spaced layers up to the last, counted from 0, as its scripts write them: "1,3,5,7,9,11" for 12 and 6."""
    number = min(layers, wanted)
    return ",".join(str(round((n + 1) * layers / number) - 1) for n in range(number))


def _groups(model: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The released learning rates, which it chooses by the names of parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate, adapter = args.lr, "adapter" in name
        own_layer = "fc" in name and "fc_" not in name
        if "cv" in name and not own_layer:
            rate = args.adapter_cv_lr if adapter else args.fine_tune_lr_image
        elif "cv" not in name and "bert" in name and not own_layer:
            rate = args.adapter_bert_lr if adapter else args.fine_tune_lr_text
        elif "mm_adapter" in name:
            rate = args.adapter_cv_lr
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
