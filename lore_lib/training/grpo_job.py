"""What a GRPO run is: its settings, the ways of training it may take, and TRL's settings that follow.

Clip-higher only acts when samples are reused: with one update per rollout the ratio is 1 and both clips are
idle. The policy ``on_policy`` is just that, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from lore_lib.config import Config, Curriculum, GrpoConfig, Policy, RolloutEngine, Schedule
from lore_lib.errors import DataError
from lore_lib.rng import derive_seed
from lore_lib.training.rewards import Grading
from lore_lib.training.sft import hardware


@dataclass(frozen=True)
class Variant:
    """One way of training: how a rollout is reused, and in which order the pool is drawn.

    >>> Variant("on_policy", "shuffled").name
    'on_policy, shuffled'
    """

    policy: Policy = "clip_higher"
    curriculum: Curriculum = "easy_to_hard"

    @property
    def name(self) -> str:
        """What figures and rows call it."""
        return f"{self.policy}, {self.curriculum}"


def variants(config: GrpoConfig) -> list[Variant]:
    """Every policy with every curriculum; the first is the recipe that later stages use."""
    return [Variant(policy, curriculum) for curriculum in config.curricula for policy in config.policies]


@dataclass(frozen=True)
class GrpoJob:
    """One GRPO run; picklable.

    Attributes:
        base: the tuned model to start from.
        pool: Parquet file with pair_id, prompt (user text) and label, in curriculum order.
        probe: Parquet file of dev pairs with pair_id, query_id, prompt and label; never trained on.
        out: folder for checkpoints, the best model, ``history.jsonl`` and ``probes.jsonl``.
        prompts_per_rollout, completions_per_prompt: a rollout trains on their product of completions.
        updates_per_rollout: optimiser steps made on each rollout, 2 or more; the policy on_policy makes 1.
        rollouts: how many rollouts, unless the probe stops the run.
        learning_rate, epsilon, epsilon_high, temperature: of the method; the policy symmetric has both bounds
            at epsilon.
        schedule: of the learning rate after its rise in the first rollout: "linear", down to 0 at the last
            rollout, or "constant".
        max_completion_tokens: longest completion.
        probe_every_rollouts: how often the probe set is sampled.
        probe_n: samples per probe pair.
        patience_looks: looks without a new best after which the run stops.
        max_refills: further draws to replace groups whose completions all earn the same.
        window_share: see `sampling.strata.curriculum_window`.
        micro_batch: most completions in memory at once for an update.
        variant: policy and curriculum.
        grading: the stated choices of the reward.
        batch_completions: completions decoded at once; processes that train together deal such batches out
            among them.
        engine: who draws the completions: "hf", the model in training; "vllm", beside it on the same device;
            "server", a ``vllm serve`` that takes its weights over NCCL.
        engine_memory: share of a GPU's memory that vLLM beside it takes.
        url: of the server, up to and with ``/v1``.
        seed: the run's number among its sisters, as rows and tables name it.
        stream: root of its random streams.
        lora_rank, dtype, device: as in supervised tuning.
    """

    base: str
    pool: Path
    probe: Path
    out: Path
    prompts_per_rollout: int
    completions_per_prompt: int
    updates_per_rollout: int
    rollouts: int
    learning_rate: float
    epsilon: float
    epsilon_high: float
    temperature: float
    max_completion_tokens: int
    probe_every_rollouts: int
    probe_n: int
    patience_looks: int = 4
    max_refills: int = 2
    window_share: float = 0.5
    micro_batch: int = 64
    variant: Variant = Variant()
    grading: Grading = field(default_factory=Grading)
    batch_completions: int = 256
    engine: RolloutEngine = "hf"
    engine_memory: float = 0.3
    url: str = ""
    lora_rank: int = 0
    seed: int = 0
    stream: int = 0
    schedule: Schedule = "linear"
    dtype: str = "float32"
    device: str = "auto"

    @property
    def updates(self) -> int:
        """Optimiser steps on each rollout."""
        return 1 if self.variant.policy == "on_policy" else self.updates_per_rollout


def grpo_grading(config: Config) -> Grading:
    """The reward's stated choices as `config.grpo` and `config.sampling` have them."""
    g = config.grpo
    limit = config.sampling.max_completion_tokens
    return Grading(g.outcome, g.outcome_start, g.format_reward, g.overlong_penalty, limit)


def grpo_job(
    config: Config,
    base: str | Path,
    pool: Path,
    probe: Path,
    out: Path,
    seed: int,
    variant: Variant = Variant(),
) -> GrpoJob:
    """A job as `config.grpo`, `config.sampling` and `config.model` have it; arguments as in `GrpoJob`.

    Its streams follow from the root seed and the run's, so that two projects do not draw the same prompts.
    """
    g, s, m = config.grpo, config.sampling, config.model
    return GrpoJob(
        base=str(base),
        pool=pool,
        probe=probe,
        out=out,
        prompts_per_rollout=g.prompts_per_rollout,
        completions_per_prompt=g.completions_per_prompt,
        updates_per_rollout=g.updates_per_rollout,
        rollouts=g.rollouts,
        learning_rate=g.learning_rate,
        schedule=g.schedule,
        epsilon=g.epsilon,
        epsilon_high=g.epsilon_high,
        temperature=s.temperature,
        max_completion_tokens=s.max_completion_tokens,
        probe_every_rollouts=g.probe_every_rollouts,
        probe_n=g.probe_completions,
        patience_looks=g.patience_looks,
        max_refills=g.max_refills,
        window_share=g.window_share,
        micro_batch=g.micro_batch_completions,
        variant=variant,
        grading=grpo_grading(config),
        batch_completions=s.batch_completions,
        engine=g.engine,
        engine_memory=g.engine_memory,
        url=g.url,
        lora_rank=m.lora_rank,
        seed=seed,
        stream=derive_seed(config.seed, "grpo", seed),
        dtype=m.dtype,
        device=m.device,
    )


def grpo_jobs(config: Config, base: str | Path, pool: Path, probe: Path, folder: Path) -> list[GrpoJob]:
    """Every variant with every seed; the recipe's runs come first and lie in ``folder`` itself."""
    recipe, *others = variants(config.grpo)
    homes = {recipe: folder} | {way: folder / f"{way.policy}-{way.curriculum}" for way in others}
    return [
        grpo_job(config, base, pool, probe, home / f"seed-{seed}", seed, way)
        for way, home in homes.items()
        for seed in config.grpo.seeds
    ]


def system_names(config: GrpoConfig) -> list[str]:
    """What tables call the runs of `grpo_jobs`, in their order.

    >>> system_names(GrpoConfig(seeds=(0,), policies=("clip_higher", "symmetric")))
    ['grpo seed 0', 'symmetric, easy_to_hard seed 0']
    """
    names = ["grpo", *(way.name for way in variants(config)[1:])]
    return [f"{name} seed {seed}" for name in names for seed in config.seeds]


def grpo_config(job: GrpoJob, processes: int = 1) -> GRPOConfig:
    """TRL's settings for a job. Checkpoints fall on rollout boundaries, where resuming is exact.

    Args:
        job: the run.
        processes: of a distributed run; the sums are the same.

    Raises:
        DataError: a rollout or an update cannot be shared evenly among the processes.
    """
    per_update = job.prompts_per_rollout * job.completions_per_prompt // job.updates
    if job.prompts_per_rollout % processes or per_update % processes:
        raise DataError(
            f"{processes} processes cannot share {job.prompts_per_rollout} prompts per rollout and "
            f"{per_update} completions per update evenly; use --set grpo.prompts_per_rollout="
            f"{math.ceil(job.prompts_per_rollout / processes) * processes}"
        )
    mine = per_update // processes
    micro = max(size for size in range(1, min(job.micro_batch, mine) + 1) if mine % size == 0)
    symmetric = job.variant.policy != "clip_higher"
    return GRPOConfig(
        output_dir=str(job.out),
        max_steps=job.rollouts * job.updates,
        learning_rate=job.learning_rate,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=mine // micro,
        steps_per_generation=job.updates * mine // micro,
        num_generations=job.completions_per_prompt,
        lr_scheduler_type="linear" if job.schedule == "linear" else "constant_with_warmup",
        warmup_steps=job.updates,
        adam_beta2=0.98,
        weight_decay=0.0,
        beta=0.0,
        epsilon=job.epsilon,
        epsilon_high=job.epsilon if symmetric else job.epsilon_high,
        loss_type="dapo",
        scale_rewards="group",
        reward_weights=[1.0, job.grading.format_weight, job.grading.length_weight],
        temperature=job.temperature,
        top_k=0,
        top_p=1.0,
        max_completion_length=job.max_completion_tokens,
        mask_truncated_completions=False,
        shuffle_dataset=False,
        save_strategy="steps",
        save_steps=job.updates * job.probe_every_rollouts,
        save_total_limit=1,
        logging_steps=1,
        log_completions=False,
        disable_tqdm=True,
        seed=job.stream,
        **_engine_settings(job),
        **hardware(job.device),
    )


def _engine_settings(job: GrpoJob) -> dict[str, Any]:
    """TRL starts vLLM and keeps its weights those of the model in training.

    At each rollout and look it merges an adapter for that and sends whole weights; a base in 4 bits would
    lose by it. vLLM's rounding differs from the trainer's (the rows have ``engine_gap``): TRL weighs the loss
    by the ratio of the two probabilities and leaves out completions on which they are too far apart.
    """
    if job.engine == "hf":
        return {}
    beside = job.engine == "vllm"
    return {
        "use_vllm": True,
        "vllm_mode": "colocate" if beside else "server",
        "vllm_gpu_memory_utilization": job.engine_memory,
        "vllm_server_base_url": None if beside else job.url.removesuffix("/v1"),
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
    }
