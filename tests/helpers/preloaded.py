"""Imports that all processes of `fork_server` share: everything that training imports at its first step."""

from __future__ import annotations

import gc
import importlib

import torch
import torch._dynamo

import trainer.training.worker  # noqa: F401
from trainer.training.build import import_deepspeed_engine

import_deepspeed_engine(torch.device("cpu"))
for name in ("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "torch._inductor.compile_fx"):
    importlib.import_module(name)
gc.collect()
gc.freeze()  # each DeepSpeed engine runs the garbage collector: exempt these modules, which would make it slow
