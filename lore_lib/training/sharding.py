"""Weights that the processes hold in parts (FSDP 2, ZeRO-3), put together where they are needed whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.fsdp import FSDPModule
from trl.models import unwrap_model_for_generation

from lore_lib.errors import ConfigError


def is_sharded(trainer: Any) -> bool:
    """Whether each process holds but a part of the weights."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def check_sharded(trainer: Any) -> None:
    """Refuse to train with whole weights where the accelerate file asks for parts.

    Raises:
        ConfigError: accelerate has left the sharding out, which it does on CPUs without a word.
    """
    asked = [kind for kind in ("FSDP", "DEEPSPEED") if parse_flag_from_env(f"ACCELERATE_USE_{kind}")]
    if asked and not is_sharded(trainer):
        raise ConfigError(
            f"the accelerate file asks for {asked[0]}, which accelerate leaves out on {trainer.args.device}: "
            "it shards on GPUs alone. Use runtime.accelerate=cpu (each process holds the whole model)"
        )


@contextmanager
def whole_weights(trainer: Any) -> Iterator[None]:
    """Inside, each process holds all weights of the model in training, and may sample at its own pace.

    All processes enter and leave it together. Without it each forward pass fetches the parts of the others,
    and processes whose completions end at different times wait for calls that never come.
    """
    if trainer.is_deepspeed_enabled:
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator):
            yield
        return
    model = trainer.model
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if sharded:
        model.set_reshard_after_forward(False)
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        if sharded:
            model.set_reshard_after_forward(trainer.accelerator.state.fsdp_plugin.reshard_after_forward)
        for module in sharded:
            module.reshard()


def gathered_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """All weights, on the first process alone, to be saved; None where each process holds them anyway.

    All processes take part. Of tied weights one is left, as ``save_pretrained`` does it where they share
    their memory.
    """
    if not is_sharded(trainer):
        return None
    tied = trainer.accelerator.unwrap_model(trainer.model).all_tied_weights_keys
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight for name, weight in weights.items() if name not in tied}
