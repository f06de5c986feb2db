"""What the processes of `fork_server` share: all that a first training step imports, which takes seconds each time."""

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
gc.freeze()  # DeepSpeed collects garbage with each engine: not through all these modules
