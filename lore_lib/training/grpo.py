"""KL-free GRPO with clip-higher over TRL's ``GRPOTrainer``.

What is ours: how prompts and updates per rollout become the trainer's batch numbers, the curriculum order,
the rewards, sampling (by the engine that measures pass@k), the probe on dev pairs that picks the checkpoint,
and the rows a run leaves behind. What is TRL's: advantages, the clipped token-level loss, the optimiser.

Clip-higher only acts when samples are reused: with one update per rollout the ratio is 1 and both clips are
idle.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from lore_lib.artifacts import read_jsonl, read_parquet, write_jsonl
from lore_lib.config import Config
from lore_lib.errors import DataError
from lore_lib.rng import derive_seed
from lore_lib.sampling.engine import (
    HfEngine,
    Sampling,
    chat_text,
    load_model,
    load_tokenizer,
    sample_pairs,
)
from lore_lib.sampling.pass_at_k import summarise
from lore_lib.training.rewards import format_reward, outcome_reward
from lore_lib.training.sft import FINISHED, drop_checkpoints, hardware, lora_config, quiet_trl, save_model

PROBES = "probes.jsonl"
BEST = "best"


def group_advantages(rewards: Sequence[float], group_size: int) -> np.ndarray:
    """Advantages within groups, (r - mean) / (std + 1e-4), with the sample std (ddof 1), as TRL has it.

    Args:
        rewards: completions of one prompt stand together; length a multiple of ``group_size``.
        group_size: completions per prompt, at least 2.

    Returns:
        Array of the shape of ``rewards``; all zero for a group whose rewards are equal.

    >>> group_advantages([1, 1, 0, 0], 4).round(3).tolist()
    [0.866, 0.866, -0.866, -0.866]
    """
    grouped = np.asarray(rewards, dtype=float).reshape(-1, group_size)
    centred = grouped - grouped.mean(1, keepdims=True)
    scaled: np.ndarray = centred / (grouped.std(1, ddof=1, keepdims=True) + 1e-4)
    return scaled.ravel()


def clipped_objective(ratio: np.ndarray, advantage: np.ndarray, low: float, high: float) -> np.ndarray:
    """PPO's pessimistic objective, min(r A, clip(r, 1 - low, 1 + high) A); ``high > low`` is clip-higher."""
    objective: np.ndarray = np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)
    return objective


@dataclass(frozen=True)
class GrpoJob:
    """One GRPO run; picklable.

    Attributes:
        base: the tuned model to start from.
        pool: Parquet file with pair_id, prompt (user text) and label, in curriculum order.
        probe: Parquet file of dev pairs with pair_id, query_id, prompt and label; never trained on.
        out: folder for checkpoints, the best model, ``history.jsonl`` and ``probes.jsonl``.
        prompts_per_rollout, completions_per_prompt: a rollout draws their product of completions.
        updates_per_rollout: optimiser steps made on each rollout, 2 or more.
        rollouts: how many rollouts.
        learning_rate, epsilon, epsilon_high, format_reward, temperature: of the method.
        max_completion_tokens: longest completion.
        probe_every_rollouts: how often the probe set is sampled.
        probe_n: samples per probe pair.
        batch_completions: completions decoded at once.
        lora_rank, seed, dtype, device: as in supervised tuning.
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
    format_reward: float
    temperature: float
    max_completion_tokens: int
    probe_every_rollouts: int
    probe_n: int
    batch_completions: int = 256
    lora_rank: int = 0
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"


def grpo_job(config: Config, base: str | Path, pool: Path, probe: Path, out: Path, seed: int) -> GrpoJob:
    """A job as `config.grpo`, `config.sampling` and `config.model` have it; arguments as in `GrpoJob`."""
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
        epsilon=g.epsilon,
        epsilon_high=g.epsilon_high,
        format_reward=g.format_reward,
        temperature=s.temperature,
        max_completion_tokens=s.max_completion_tokens,
        probe_every_rollouts=g.probe_every_rollouts,
        probe_n=g.probe_completions,
        batch_completions=s.batch_completions,
        lora_rank=m.lora_rank,
        seed=seed,
        dtype=m.dtype,
        device=m.device,
    )


def grpo_config(job: GrpoJob) -> GRPOConfig:
    """TRL's settings for a job. Checkpoints fall on rollout boundaries, where resuming is exact."""
    completions = job.prompts_per_rollout * job.completions_per_prompt
    return GRPOConfig(
        output_dir=str(job.out),
        max_steps=job.rollouts * job.updates_per_rollout,
        learning_rate=job.learning_rate,
        per_device_train_batch_size=completions // job.updates_per_rollout,
        gradient_accumulation_steps=1,
        steps_per_generation=job.updates_per_rollout,
        num_generations=job.completions_per_prompt,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=job.updates_per_rollout,
        adam_beta2=0.98,
        weight_decay=0.0,
        beta=0.0,
        epsilon=job.epsilon,
        epsilon_high=job.epsilon_high,
        loss_type="dapo",
        scale_rewards="group",
        reward_weights=[1.0, job.format_reward],
        temperature=job.temperature,
        top_k=0,
        top_p=1.0,
        max_completion_length=job.max_completion_tokens,
        mask_truncated_completions=False,
        shuffle_dataset=False,
        save_strategy="steps",
        save_steps=job.updates_per_rollout * job.probe_every_rollouts,
        save_total_limit=1,
        logging_steps=1,
        log_completions=False,
        disable_tqdm=True,
        seed=job.seed,
        **hardware(job.device),
    )


def train_grpo(job: GrpoJob) -> Path:
    """Train one run and return the folder of its best checkpoint by the probe's pass@1.

    A finished run is not trained again; a killed one resumes at its last checkpoint.

    Raises:
        DataError: an empty pool, or fewer prompts than one rollout takes.
    """
    if (job.out / FINISHED).exists():
        return job.out / BEST
    tokenizer = load_tokenizer(job.base)
    pool = read_parquet(job.pool)
    if len(pool) < job.prompts_per_rollout:
        raise DataError(
            f"the pool has {len(pool)} prompts, one rollout takes {job.prompts_per_rollout}; use "
            f"--set grpo.prompts_per_rollout={max(1, len(pool))} or measure more pairs (sampling.pool_pairs)"
        )
    data = Dataset.from_dict(
        {"prompt": [chat_text(tokenizer, user) for user in pool.prompt], "label": pool.label.tolist()}
    )
    job.out.mkdir(parents=True, exist_ok=True)
    probe = _Probe(job, tokenizer)
    with quiet_trl():
        trainer = GRPOTrainer(
            model=load_model(job.base, job.dtype, job.device),
            reward_funcs=[outcome_reward, format_reward],
            args=grpo_config(job),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[probe],
            peft_config=lora_config(job.lora_rank),
            rollout_func=_rollout(job),
        )
        probe.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(job.out)))
    write_jsonl(job.out / FINISHED, history_rows(trainer.state.log_history, job))
    drop_checkpoints(job.out)
    return job.out / BEST


@contextmanager
def _sampler(trainer: GRPOTrainer) -> Iterator[HfEngine]:
    """The model in training as an engine; dropout and recomputation rest meanwhile."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        yield HfEngine(model, trainer.processing_class)
    finally:
        model.train()


def _rollout(job: GrpoJob) -> Callable[[list[str], GRPOTrainer], dict[str, Any]]:
    """TRL's hook for sampling: every prompt comes ``completions_per_prompt`` times in a row.

    The draws depend on the job's seed and the step alone, so a resumed run repeats them.
    """

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        n = job.completions_per_prompt
        seed = derive_seed(job.seed, "rollout", trainer.state.global_step, trainer.accelerator.process_index)
        sampling = Sampling(n, job.temperature, job.max_completion_tokens, job.batch_completions, seed)
        with _sampler(trainer) as engine:
            drawn = engine.draw(prompts[::n], sampling)
        prompt_ids = trainer.processing_class(prompts, add_special_tokens=False)["input_ids"]
        completion_ids = list(chain.from_iterable(drawn))
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return rollout


class _Probe(TrainerCallback):
    """Samples the dev pairs every few rollouts and keeps the weights with the best pass@1 so far."""

    def __init__(self, job: GrpoJob, tokenizer: Any) -> None:
        self._job, self._tokenizer = job, tokenizer
        self._pairs = read_parquet(job.probe)
        self._sampling = Sampling(
            job.probe_n, job.temperature, job.max_completion_tokens, job.batch_completions, job.seed
        )
        self.trainer: GRPOTrainer | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        rollout, update = divmod(state.global_step, self._job.updates_per_rollout)
        if update == 0 and (rollout % self._job.probe_every_rollouts == 0 or rollout == self._job.rollouts):
            self._measure(rollout)

    def _measure(self, rollout: int) -> None:
        assert self.trainer is not None
        with _sampler(self.trainer) as engine:
            samples = sample_pairs(engine, self._pairs, "probe", self._sampling)
        per_pair = summarise(samples, self._pairs[["pair_id", "query_id", "label"]], self._job.probe_n)
        path = self._job.out / PROBES
        rows = [row for row in (read_jsonl(path) if path.exists() else []) if row["rollout"] < rollout]
        row = {
            "seed": self._job.seed,
            "rollout": rollout,
            "pass_at_1": float(per_pair.pass_at_1.mean()),
            "pass_at_k": float(per_pair.pass_at_k.mean()),
            "mean_tokens": float(samples.tokens.mean()),
            "parse_rate": float((samples.parse_kind == "ok").mean()),
            "examples": samples.completion[:3].tolist(),
        }
        if all(row["pass_at_1"] > earlier["pass_at_1"] for earlier in rows):
            self._keep_best()
        write_jsonl(path, [*rows, row])

    def _keep_best(self) -> None:
        folder, part = self._job.out / BEST, self._job.out / f"{BEST}.part"
        shutil.rmtree(part, ignore_errors=True)
        save_model(self.trainer, part)
        self._tokenizer.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)


_KEYS = {
    "reward": "reward",
    "rewards/outcome_reward/mean": "outcome_reward",
    "rewards/format_reward/mean": "format_reward",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "completions/mean_length": "mean_tokens",
    "frac_reward_zero_std": "zero_variance_share",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
}


def history_rows(log: Sequence[dict[str, Any]], job: GrpoJob) -> list[dict[str, Any]]:
    """One row per update from the trainer's log, with our names; a key the trainer did not log is left out.

    Rewards and lengths are logged on the updates that drew samples only.
    """
    rows = []
    for entry in log:
        values = {ours: float(entry[theirs]) for theirs, ours in _KEYS.items() if theirs in entry}
        if "grad_norm" in values or "reward" in values:
            step = int(entry["step"])
            rows.append(
                {
                    "seed": job.seed,
                    "step": step,
                    "rollout": (step - 1) // job.updates_per_rollout + 1,
                    **values,
                }
            )
    return rows


def run_rows(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(history, probes) of a finished run."""
    return pd.DataFrame(read_jsonl(folder / FINISHED)), pd.DataFrame(read_jsonl(folder / PROBES))
