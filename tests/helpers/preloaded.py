"""Imports that all processes of `fork_server` share: everything that training imports at its first step."""

from __future__ import annotations

import gc

import deepspeed.module_inject
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
import torch._dynamo
import torch._functorch.partitioners
import torch._inductor.compile_fx  # noqa: F401

import trainer.training.engine_deepspeed
import trainer.training.worker  # noqa: F401

gc.collect()
gc.freeze()  # each DeepSpeed engine runs the garbage collector: exempt these modules, which would make it slow
