"""An LM head for CPUs, where TRL's scores every position and twice; this one scores what counts, once."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput


def score_labelled_positions(model: PreTrainedModel, temperature: float = 1.0) -> None:
    """Project through the LM head only the positions that carry a label; the numbers stay the same.

    TRL does so where it has Triton, that is on a GPU. Here the logits of all labelled positions are held at
    once: their number times the vocabulary, in float32.

    Args:
        model: after TRL's trainer has added its own head; without PEFT's wrapper.
        temperature: the logits are divided by it.
    """
    trl_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head or kwargs.get("shift_labels") is not None:
            return trl_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels, total = kwargs.pop("labels"), kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != -100
        logits = self.get_output_embeddings()(hidden[mask]).float() / temperature
        scores = torch.log_softmax(logits, dim=-1)
        chosen = scores.gather(1, labels[mask].unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            entropy = -(scores.exp() * scores).sum(-1)
            top = logits.argmax(-1) == labels[mask]
        log_probs, entropy, top = (
            values.new_zeros(mask.shape).masked_scatter(mask, values) for values in (chosen, entropy, top)
        )
        loss = -log_probs.sum() / (mask.sum().clamp(min=1) if total is None else total)
        return FusedCausalLMOutput(
            loss=loss, log_probs=log_probs, entropy=entropy, is_top1=top, label_mask=mask
        )

    model.forward = MethodType(forward, model)
