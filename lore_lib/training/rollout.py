"""Which prompts a rollout draws: a window of the curriculum, and dynamic sampling as DAPO has it.

Groups whose completions all earn the same teach nothing; they are dropped, and others drawn in their place.
Several processes deal the drawing out among them and exchange what they drew, so that the rollout is the same
for any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOTrainer

from lore_lib.rng import derive_seed, generator
from lore_lib.sampling.engine import Drawn, Engine, HfEngine, Sampling
from lore_lib.sampling.server_engine import ServerEngine
from lore_lib.sampling.strata import curriculum_windows
from lore_lib.sampling.vllm_engine import VllmEngine
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.rewards import best_hack, habits, reward, training_progress
from lore_lib.training.sharding import whole_weights

LEAST_SIGNAL = 0.25  # a refill draws at most 1 / LEAST_SIGNAL groups for one that is missing


def schedule(job: GrpoJob, size: int) -> list[np.ndarray]:
    """Places of the pool each rollout may draw, in the order in which it takes them.

    They depend on the job alone, so that a resumed run draws the same. The first ``prompts_per_rollout`` are
    drawn at once; the others replace groups without signal.
    """
    how = job.window_share, job.variant.curriculum, job.prompts_per_rollout
    return [
        generator(job.stream, "prompts", rollout).permutation(np.array(window))
        for rollout, window in enumerate(curriculum_windows(size, job.rollouts, *how))
    ]


@contextmanager
def sampler(job: GrpoJob, trainer: GRPOTrainer) -> Iterator[Engine]:
    """The model in training as an engine, with the weights of this moment; training rests meanwhile.

    vLLM gets its weights from TRL, which all processes must take part in.
    """
    if job.engine != "hf" and trainer.state.global_step != trainer._last_loaded_step:
        trainer.vllm_generation.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step  # TRL looks here before a rollout
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        if job.engine == "vllm":
            yield VllmEngine(trainer.vllm_generation.llm, trainer.processing_class, bar=False)
        elif job.engine == "server":
            yield ServerEngine("grpo", job.base, job.url, trainer.processing_class, setting="grpo.url")
        else:
            with whole_weights(trainer), trainer.accelerator.autocast():
                yield HfEngine(model, trainer.processing_class)
    finally:
        model.train()


def draw_together(
    job: GrpoJob, trainer: GRPOTrainer, texts: Sequence[str], sampling: Sampling
) -> list[list[Drawn]]:
    """By text, its completions, which the processes deal out among them and exchange: all get all."""
    share = trainer.accelerator.process_index, trainer.accelerator.num_processes
    with sampler(job, trainer) as engine:
        mine = engine.draw(texts, sampling, share)
    return [next(filter(None, parts)) for parts in zip(*gather_object([mine]), strict=True)]


Group = tuple[int, list[Drawn]]  # a place of the pool, and its completions


@dataclass
class Rollout:
    """TRL's hook for sampling: draws groups until enough have a signal, or the refills are used up.

    A group whose completions all earn the same is put aside; it fills the batch only where nothing better was
    found. The draws depend on the job, the step and the weights alone, so a resumed run repeats them.

    Attributes:
        job: the run.
        texts: the pool's prompts in the model's chat template.
        labels: their gold labels.
        places: see `schedule`.
        hack_reward: what the best hack earns on this pool, to log beside what the model earns.
    """

    job: GrpoJob
    texts: list[str]
    labels: list[str]
    places: list[np.ndarray] = field(init=False)
    hack_reward: float = field(init=False)

    def __post_init__(self) -> None:
        self.places = schedule(self.job, len(self.texts))
        self.hack_reward = best_hack(self.labels, self.job.grading)

    def first_draws(self) -> Dataset:
        """The prompts that TRL counts and hands over: of each rollout those drawn first."""
        first = [int(i) for places in self.places for i in places[: self.job.prompts_per_rollout]]
        return Dataset.from_dict(
            {"prompt": [self.texts[i] for i in first], "label": [self.labels[i] for i in first]}
        )

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Tokens of as many groups as ``prompts`` holds, their labels, and what was drawn for them.

        Of the whole rollout, which all processes know, each takes its own part. What is logged of the drawing
        is of the groups drawn first: those that are trained on were chosen because they differ.
        """
        job, n, tokenizer = self.job, self.job.completions_per_prompt, trainer.processing_class
        wanted = job.prompts_per_rollout
        places = self.places[trainer.state.global_step // job.updates].tolist()
        asked, rest = places[:wanted], places[wanted:]
        first = trainer.accelerator.process_index * len(prompts) // n
        mine = slice(first, first + len(prompts) // n)
        assert prompts[::n] == [self.texts[i] for i in asked[mine]], (
            "the trainer asks for other prompts than planned"
        )
        kept: list[Group] = []
        flat: list[Group] = []
        seen: dict[str, float] = {}
        for refill in range(job.max_refills + 1):
            groups = list(zip(asked, self._draw(asked, trainer, refill), strict=True))
            for i, group in groups:
                signal = self._has_signal(i, group, tokenizer, training_progress(trainer.state))
                (kept if signal else flat).append((i, group))
            seen = seen or self._habits(groups, tokenizer) | {"zero_variance_share": len(flat) / wanted}
            missing = wanted - len(kept)
            more = math.ceil(missing / max(LEAST_SIGNAL, len(kept) / len(kept + flat)))
            asked, rest = rest[:more], rest[more:]
            if missing <= 0 or not asked:
                break
        rows = [(i, one) for i, group in (kept + flat)[:wanted][mine] for one in group]
        return {
            "prompt_ids": tokenizer([self.texts[i] for i, _ in rows], add_special_tokens=False)["input_ids"],
            "completion_ids": [one.tokens for _, one in rows],
            "logprobs": None if job.engine == "hf" else [one.logprobs for _, one in rows],
            "label": [self.labels[i] for i, _ in rows],  # of the prompts drawn, not of those asked for
            "drawn": seen
            | {
                "hack_reward": self.hack_reward,
                "refill_share": len(kept + flat) / wanted - 1,
                "idle_share": max(0, missing) / wanted,
            },
        }

    def _draw(self, asked: list[int], trainer: GRPOTrainer, refill: int) -> list[list[Drawn]]:
        """A group of completions for each place of the pool, drawn by all processes together."""
        job = self.job
        sampling = Sampling(
            job.completions_per_prompt,
            job.temperature,
            job.max_completion_tokens,
            job.batch_completions,
            derive_seed(job.stream, "rollout", trainer.state.global_step, refill),
        )
        return draw_together(job, trainer, [self.texts[i] for i in asked], sampling)

    def _habits(self, groups: list[Group], tokenizer: Any) -> dict[str, float]:
        texts = [text for _, group in groups for text in _texts(group, tokenizer)]
        labels = [self.labels[i] for i, group in groups for _ in group]
        cut = [one.tokens[-1:] != [tokenizer.eos_token_id] for _, group in groups for one in group]
        return habits(texts, labels, self.job.grading) | {"cut_share": float(np.mean(cut))}

    def _has_signal(self, i: int, group: list[Drawn], tokenizer: Any, progress: float) -> bool:
        texts = _texts(group, tokenizer)
        earned = [
            reward(text, self.labels[i], self.job.grading, len(one.tokens), progress).total
            for text, one in zip(texts, group, strict=True)
        ]
        return max(earned) - min(earned) > 1e-6


def _texts(group: list[Drawn], tokenizer: Any) -> list[str]:
    """The completions as the reward functions read them."""
    decoded: list[str] = tokenizer.batch_decode([one.tokens for one in group], skip_special_tokens=True)
    return decoded
