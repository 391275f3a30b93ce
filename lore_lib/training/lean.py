"""TRL's GRPO trainer, without the part of its work that changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

ROWS_AT_ONCE = 16  # completions of like length in one forward pass
NO_ADVANTAGE = (
    1e-2  # below it an advantage is the rounding of a group of equal rewards, over the 1e-4 in TRL's divisor
)


class LeanTrainer(GRPOTrainer):
    """TRL's trainer without work that cannot change the gradient; the loss and its gradient are TRL's own.

    Completions whose group has no signal carry an advantage of 0, so their part of the loss is 0: they are
    left out of the forward pass. The others go through the model in small batches of like length, without the
    padding of the longest prompt and the longest completion of the whole rollout. With several processes,
    which must all make the same calls, it is TRL's trainer unchanged.
    """

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        kept = inputs["advantages"].abs() > NO_ADVANTAGE
        if self.accelerator.num_processes == 1 and kept.any() and not kept.all():
            rows = len(kept)
            inputs = {
                name: value[kept] if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) else value
                for name, value in inputs.items()
            }
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self.accelerator.num_processes > 1:
            found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (
                super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **rest
                )
            )
            return found
        lengths, completions = attention_mask.sum(1), attention_mask[:, -logits_to_keep:].sum(1)
        order = lengths.argsort(stable=True)
        parts = [
            self._trimmed(model, input_ids[rows], attention_mask[rows], completions[rows], logits_to_keep)
            for rows in order.split(ROWS_AT_ONCE)
        ]
        logps, entropies = (torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _trimmed(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, completions: torch.Tensor, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies, (rows, keep), of rows moved to the left and cut at the longest."""
        lengths, width = mask.sum(1, keepdim=True), int(mask.sum(1).max())
        place = torch.arange(width, device=ids.device)
        real = place < lengths
        ids = ids.gather(1, (mask.argmax(1, keepdim=True) + place).clamp(max=ids.shape[1] - 1))
        start = lengths - completions[:, None]
        labels = ids.masked_fill(~real | (place < start), -100)
        with self.accelerator.autocast():
            output = model(input_ids=ids, attention_mask=real.long(), labels=labels, fused_lm_head=True)
        column = torch.arange(keep, device=ids.device)
        inside = column < completions[:, None]
        where = (start - 1 + column).clamp(max=width - 2)  # the token at place t is scored at t - 1
        return output.log_probs.gather(1, where) * inside, output.entropy.gather(1, where) * inside
