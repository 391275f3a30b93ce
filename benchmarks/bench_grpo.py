"""Speed and memory of GRPO's updates, beside TRL's trainer as it stands.

    python benchmarks/bench_grpo.py

Completions of one rollout by `lore-nano`, with the lengths seen in training (prompts of 57 +- 12 tokens,
completions of 39 +- 10, one in fifty cut at 112) and 40 % of them in groups without signal: log-probabilities
of the old policy, then loss and gradient in updates of 64. ``ways.py`` says what is measured. Sampling is not
in it: it is the same for every way.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer
from ways import print_table

from lore_lib.sampling.engine import load_model, load_tokenizer
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.lean import LeanTrainer

BASE, UPDATE, SEED = "data/models/lore-nano", 64, 17
WAYS: dict[str, type[GRPOTrainer]] = {"stock TRL": GRPOTrainer, "LeanTrainer": LeanTrainer}


def trainer_of(way: str, base: str = BASE) -> GRPOTrainer:
    """A trainer of one prompt: only its loss is used."""
    model, tokenizer = load_model(base, device="cpu").train(), load_tokenizer(base)
    settings = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=UPDATE,
        steps_per_generation=2,
        loss_type="dapo",
    )
    trainer = WAYS[way](
        model=model,
        reward_funcs=[lambda completions, **_: [0.0 for _ in completions]],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["x"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    if way != "stock TRL":
        score_labelled_positions(model)  # as a training on a CPU does
    return trainer


def rollout_of(completions: int) -> dict[str, torch.Tensor]:
    """Tokens and advantages as TRL pads them."""
    rng = np.random.default_rng(SEED)
    prompts = rng.normal(57, 12, completions).clip(20, 110).astype(int)
    answers = np.where(rng.random(completions) < 0.02, 112, rng.normal(39, 10, completions).clip(15, 100))

    def padded(lengths: np.ndarray, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [torch.from_numpy(rng.integers(10, 1000, int(length))) for length in lengths]
        ones = [torch.ones_like(one) for one in ids]
        return tuple(pad_sequence(rows, batch_first=True, padding_side=side) for rows in (ids, ones))  # type: ignore[return-value]

    prompt_ids, prompt_mask = padded(prompts, "left")
    completion_ids, completion_mask = padded(answers, "right")
    signal = rng.random(completions) < 0.6
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.from_numpy(np.where(signal, rng.choice([-0.9, 0.9], completions), 0)).float(),
    }


def update(trainer: GRPOTrainer, rollout: dict[str, torch.Tensor]) -> float:
    """One rollout's updates, without the optimiser's step; returns the sum of the losses."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    keep, total = rollout["completion_ids"].shape[1], 0.0
    with torch.no_grad():
        old, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, keep, batch_size=UPDATE
        )
    whole: dict[str, Any] = rollout | {"old_per_token_logps": old}
    for start in range(0, len(ids), UPDATE):
        part = {name: rows[start : start + UPDATE] for name, rows in whole.items()}
        loss = trainer._compute_loss(
            trainer.model, part | {"num_items_in_batch": rollout["completion_mask"].sum()}
        )
        loss.backward()
        total += loss.item()
    return total


def prepare(way: str, completions: int) -> Callable[[], float]:
    """The model loaded and warm, the tokens drawn."""
    torch.set_num_threads(1)
    trainer, rollout = trainer_of(way), rollout_of(completions)
    update(trainer, rollout_of(4))
    return functools.partial(update, trainer, rollout)


if __name__ == "__main__":
    print_table(WAYS, (256, 1024), prepare, "samples")
