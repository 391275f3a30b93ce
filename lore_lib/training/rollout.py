"""Which prompts a rollout draws: a window of the curriculum, and dynamic sampling as DAPO has it.

Groups whose completions all earn the same teach nothing; they are dropped, and others drawn in their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from trl import GRPOTrainer

from lore_lib.rng import derive_seed, generator
from lore_lib.sampling.engine import HfEngine, Sampling
from lore_lib.sampling.strata import curriculum_window
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.rewards import reward, training_progress

LEAST_SIGNAL = 0.25  # a refill draws at most 1 / LEAST_SIGNAL groups for one that is missing


def schedule(job: GrpoJob, size: int) -> list[np.ndarray]:
    """Places of the pool each rollout may draw, in the order in which it takes them.

    They depend on the job alone, so that a resumed run draws the same. The first ``prompts_per_rollout`` are
    drawn at once; the others replace groups without signal.
    """
    places = []
    for rollout in range(job.rollouts):
        progress = rollout / max(1, job.rollouts - 1)
        window = curriculum_window(
            size, progress, job.window_share, job.variant.curriculum, job.prompts_per_rollout
        )
        places.append(generator(job.seed, "prompts", rollout).permutation(np.array(window)))
    return places


@contextmanager
def sampler(trainer: GRPOTrainer) -> Iterator[HfEngine]:
    """The model in training as an engine; dropout and recomputation rest meanwhile."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        yield HfEngine(model, trainer.processing_class)
    finally:
        model.train()


@dataclass
class Rollout:
    """TRL's hook for sampling: draws groups until enough have a signal, or the refills are used up.

    A group whose completions all earn the same is put aside; it fills the batch only where nothing better was
    found. The draws depend on the job, the step and the weights alone, so a resumed run repeats them.

    Attributes:
        job: the run.
        texts: the pool's prompts in the model's chat template.
        labels: their gold labels.
    """

    job: GrpoJob
    texts: list[str]
    labels: list[str]
    places: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.places = schedule(self.job, len(self.texts))

    def first_draws(self) -> Dataset:
        """The prompts that TRL counts and hands over: of each rollout those drawn first."""
        first = [int(i) for places in self.places for i in places[: self.job.prompts_per_rollout]]
        return Dataset.from_dict(
            {"prompt": [self.texts[i] for i in first], "label": [self.labels[i] for i in first]}
        )

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Tokens of as many groups as ``prompts`` holds, their labels, and what was drawn for them.

        Each process draws its own share, with draws and refills of its own: a run in two processes sees other
        completions than a run in one. Of equal completions both make the same update.
        """
        job, n, tokenizer = self.job, self.job.completions_per_prompt, trainer.processing_class
        process, wanted = trainer.accelerator.process_index, len(prompts) // n
        places = self.places[trainer.state.global_step // job.updates].tolist()
        asked = places[process * wanted : (process + 1) * wanted]
        assert prompts[::n] == [self.texts[i] for i in asked], (
            "the trainer asks for other prompts than planned"
        )
        rest = places[job.prompts_per_rollout :][process :: trainer.accelerator.num_processes]
        kept: list[tuple[int, list[list[int]]]] = []
        flat: list[tuple[int, list[list[int]]]] = []
        flat_at_first = 0
        for refill in range(job.max_refills + 1):
            for i, group in zip(asked, self._draw(asked, trainer, refill), strict=True):
                signal = self._has_signal(i, group, tokenizer, training_progress(trainer.state))
                (kept if signal else flat).append((i, group))
            flat_at_first = flat_at_first if refill else len(flat)
            missing = wanted - len(kept)
            more = math.ceil(missing / max(LEAST_SIGNAL, len(kept) / len(kept + flat)))
            asked, rest = rest[:more], rest[more:]
            if missing <= 0 or not asked:
                break
        groups = (kept + flat)[:wanted]
        rows = [i for i, _ in groups for _ in range(n)]
        return {
            "prompt_ids": tokenizer([self.texts[i] for i in rows], add_special_tokens=False)["input_ids"],
            "completion_ids": list(chain.from_iterable(group for _, group in groups)),
            "logprobs": None,
            "label": [self.labels[i] for i in rows],  # of the prompts drawn, not of those asked for
            "drawn": {
                "zero_variance_share": flat_at_first / wanted,
                "refill_share": len(kept + flat) / wanted - 1,
                "idle_share": max(0, missing) / wanted,
            },
        }

    def _draw(self, asked: list[int], trainer: GRPOTrainer, refill: int) -> list[list[list[int]]]:
        """Tokens of a group of completions for each place of the pool."""
        job, step, process = self.job, trainer.state.global_step, trainer.accelerator.process_index
        seed = derive_seed(job.seed, "rollout", step, process, refill)
        sampling = Sampling(
            job.completions_per_prompt,
            job.temperature,
            job.max_completion_tokens,
            job.batch_completions,
            seed,
        )
        with sampler(trainer) as engine:
            return engine.draw([self.texts[i] for i in asked], sampling)

    def _has_signal(self, i: int, group: list[list[int]], tokenizer: Any, progress: float) -> bool:
        texts = tokenizer.batch_decode(group, skip_special_tokens=True)
        earned = [
            reward(text, self.labels[i], self.job.grading, len(ids), progress).total
            for text, ids in zip(texts, group, strict=True)
        ]
        return max(earned) - min(earned) > 1e-6
