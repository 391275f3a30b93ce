"""KL-free GRPO with clip-higher over TRL's ``GRPOTrainer``.

What is ours: how prompts and updates per rollout become the trainer's batch numbers, which prompts a rollout
draws (a window of the curriculum; groups without signal are dropped and refilled, as DAPO has it), the
rewards, sampling (by the engine that measures pass@k), the probe on dev pairs that picks the checkpoint and
stops the run, and the rows a run leaves behind. What is TRL's: advantages, the clipped token-level loss, the
optimiser.

Clip-higher only acts when samples are reused: with one update per rollout the ratio is 1 and both clips are
idle. The policy ``on_policy`` is just that, and says so.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
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
from lore_lib.config import Config, Curriculum, GrpoConfig, Policy
from lore_lib.errors import DataError, EngineError
from lore_lib.rng import derive_seed, generator
from lore_lib.sampling.engine import (
    HfEngine,
    Sampling,
    chat_text,
    load_model,
    load_tokenizer,
    no_weight_bars,
    sample_pairs,
)
from lore_lib.sampling.pass_at_k import summarise
from lore_lib.sampling.strata import curriculum_window
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.rewards import Grading, reward, reward_functions, training_progress
from lore_lib.training.sft import (
    FINISHED,
    claim_folder,
    drop_checkpoints,
    hardware,
    lora_config,
    processes,
    quiet_trl,
)

PROBES = "probes.jsonl"
BEST = "best"
ROWS_AT_ONCE = 16  # completions of like length in one forward pass
NO_ADVANTAGE = (
    1e-2  # below it an advantage is the rounding of a group of equal rewards, over the 1e-4 in TRL's divisor
)
_ELSEWHERE = ("pool", "probe", "out", "micro_batch", "device")  # do not decide the result
LEAST_SIGNAL = 0.25  # a refill draws at most 1 / LEAST_SIGNAL groups for one that is missing


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
        max_completion_tokens: longest completion.
        probe_every_rollouts: how often the probe set is sampled.
        probe_n: samples per probe pair.
        patience_looks: looks without a new best after which the run stops.
        max_refills: further draws to replace groups whose completions all earn the same.
        window_share: see `sampling.strata.curriculum_window`.
        micro_batch: most completions in memory at once for an update.
        variant: policy and curriculum.
        grading: the stated choices of the reward.
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
    lora_rank: int = 0
    seed: int = 0
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
        lora_rank=m.lora_rank,
        seed=seed,
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
        lr_scheduler_type="constant_with_warmup",
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
        seed=job.seed,
        **hardware(job.device),
    )


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


def train_grpo(job: GrpoJob) -> Path:
    """Train one run and return the folder of its best checkpoint by the probe's pass@1.

    A finished run is not trained again; a killed one resumes at its last checkpoint.

    Raises:
        DataError: a pool of fewer prompts than one rollout takes.
        ArtifactError: the folder holds the checkpoints of another job.
        EngineError: a gradient is not finite; the last good checkpoint and the best look's weights stay.
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
    rollout = _Rollout(job, [chat_text(tokenizer, user) for user in pool.prompt], pool.label.tolist())
    claim_folder(job, job.out, _ELSEWHERE)
    probe, arguments = _Probe(job), grpo_config(job, processes())
    model = load_model(job.base, job.dtype, job.device if processes() == 1 else "cpu")
    with quiet_trl():
        trainer = LeanTrainer(
            model=model,
            reward_funcs=reward_functions(job.grading),
            args=arguments,
            train_dataset=rollout.first_draws(),
            processing_class=tokenizer,
            callbacks=[probe, _Finite(job)],
            peft_config=lora_config(job.lora_rank),
            rollout_func=rollout,
        )
        if arguments.use_cpu:
            score_labelled_positions(model, job.temperature)
        probe.trainer = trainer
        if trainer.is_world_process_zero():
            _settle(job.out / BEST)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(job.out)))
        if trainer.is_world_process_zero():
            _finish(job, trainer.state.log_history)
    return job.out / BEST


def _finish(job: GrpoJob, log: Sequence[dict[str, Any]]) -> None:
    """Merge an adapter into its base, then write the rows that say the run is whole."""
    best = job.out / BEST
    if (best / "adapter_config.json").exists():
        merged = PeftModel.from_pretrained(
            load_model(job.base, job.dtype, "cpu"), str(best)
        ).merge_and_unload()
        _replace_folder(best, merged, load_tokenizer(job.base))
    write_jsonl(job.out / FINISHED, history_rows(log, job))
    drop_checkpoints(job.out)


def _keep(trainer: GRPOTrainer, folder: Path) -> None:
    """Save the weights as they are now, of an adapter its own alone: the model in training stays untouched.

    All processes take part, for sharded weights are gathered; the first one writes.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        _replace_folder(folder, model, trainer.processing_class, weights)


def _replace_folder(folder: Path, model: Any, tokenizer: Any, weights: Any = None) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with no_weight_bars():
        model.save_pretrained(part, state_dict=weights)
    tokenizer.save_pretrained(part)
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _settle(folder: Path) -> None:
    """End a replacement that was killed: where the folder is gone, the new one was whole already."""
    old, part = (folder.with_name(f"{folder.name}.{what}") for what in ("old", "part"))
    if old.exists() and not folder.exists():
        part.replace(folder)
    for left in (old, part):
        shutil.rmtree(left, ignore_errors=True)


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


@contextmanager
def _sampler(trainer: GRPOTrainer) -> Iterator[HfEngine]:
    """The model in training as an engine; dropout and recomputation rest meanwhile."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        yield HfEngine(model, trainer.processing_class)
    finally:
        model.train()


@dataclass
class _Rollout:
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
        with _sampler(trainer) as engine:
            return engine.draw([self.texts[i] for i in asked], sampling)

    def _has_signal(self, i: int, group: list[list[int]], tokenizer: Any, progress: float) -> bool:
        texts = tokenizer.batch_decode(group, skip_special_tokens=True)
        earned = [
            reward(text, self.labels[i], self.job.grading, len(ids), progress).total
            for text, ids in zip(texts, group, strict=True)
        ]
        return max(earned) - min(earned) > 1e-6


class _Finite(TrainerCallback):
    """Stops a run before a gradient that is not finite reaches the weights."""

    def __init__(self, job: GrpoJob) -> None:
        self._job = job

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        **_: Any,
    ) -> None:
        bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if bad:
            resumes = get_last_checkpoint(str(self._job.out)) or "the start"
            raise EngineError(
                f"the gradient of {bad[0]} ({len(bad)} tensors) is not finite at update "
                f"{state.global_step + 1} of {self._job.out.name}; the weights were not touched. The best "
                f"look's model is in {self._job.out / BEST}; a run resumes from {resumes}. "
                f"Try --set grpo.learning_rate={self._job.learning_rate / 3:.2g}"
            )


class _Probe(TrainerCallback):
    """Samples the dev pairs every few rollouts, keeps the weights with the best pass@1 so far, and stops the
    run when ``patience_looks`` looks have brought no new best."""

    def __init__(self, job: GrpoJob) -> None:
        self._job = job
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
        rollout, update = divmod(state.global_step, self._job.updates)
        if update == 0 and (rollout % self._job.probe_every_rollouts == 0 or rollout == self._job.rollouts):
            scores = self._measure(rollout)
            if len(scores) - 1 - scores.index(max(scores)) >= self._job.patience_looks:
                control.should_training_stop = True

    def _measure(self, rollout: int) -> list[float]:
        """Take a look, write its row, and return pass@1 of all looks so far."""
        assert self.trainer is not None
        with _sampler(self.trainer) as engine:
            samples = sample_pairs(engine, self._pairs, "probe", self._sampling)
        per_pair = summarise(samples, self._pairs[["pair_id", "query_id", "label"]], self._job.probe_n)
        path = self._job.out / PROBES
        rows = [row for row in (read_jsonl(path) if path.exists() else []) if row["rollout"] < rollout]
        row = {
            "seed": self._job.seed,
            "variant": self._job.variant.name,
            "rollout": rollout,
            "pass_at_1": float(per_pair.pass_at_1.mean()),
            "pass_at_k": float(per_pair.pass_at_k.mean()),
            "mean_tokens": float(samples.tokens.mean()),
            "parse_rate": float((samples.parse_kind == "ok").mean()),
            "examples": samples.completion[:3].tolist(),
        }
        if all(row["pass_at_1"] > earlier["pass_at_1"] for earlier in rows):
            _keep(self.trainer, self._job.out / BEST)
        if self.trainer.is_world_process_zero():
            write_jsonl(path, [*rows, row])
        return [earlier["pass_at_1"] for earlier in (*rows, row)]


_KEYS = {
    "reward": "reward",
    "outcome": "outcome_reward",
    "rewards/format_reward/mean": "format_reward",
    "rewards/length_reward/mean": "length_reward",
    "parse_rate": "parse_rate",
    "top_label_share": "top_label_share",
    "no_reasoning_share": "no_reasoning_share",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "completions/mean_length": "mean_tokens",
    "completions/clipped_ratio": "cut_share",
    "zero_variance_share": "zero_variance_share",
    "refill_share": "refill_share",
    "idle_share": "idle_share",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
}


def history_rows(log: Sequence[dict[str, Any]], job: GrpoJob) -> list[dict[str, Any]]:
    """One row per update from the trainer's log, with our names; a key the trainer did not log is left out.

    Rewards, lengths and what was drawn are logged on the updates that drew samples only.
    ``zero_variance_share`` is of the groups drawn first, ``refill_share`` the groups drawn beyond those
    wanted, ``idle_share`` what is left of groups without signal in the batch (TRL's own
    ``frac_reward_zero_std`` misses those whose equal rewards do not average exactly in floating point).
    Entropy and clips are over completions with an advantage.
    """
    rows = []
    for entry in log:
        values = {ours: float(entry[theirs]) for theirs, ours in _KEYS.items() if theirs in entry}
        if "grad_norm" in values or "reward" in values:
            step = int(entry["step"])
            rows.append(
                {
                    "seed": job.seed,
                    "variant": job.variant.name,
                    "step": step,
                    "rollout": (step - 1) // job.updates + 1,
                    **values,
                }
            )
    return rows


def run_rows(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(history, probes) of a finished run."""
    return pd.DataFrame(read_jsonl(folder / FINISHED)), pd.DataFrame(read_jsonl(folder / PROBES))


_PANELS = {
    "outcome_reward": ("reward", "outcome"),
    "format_reward": ("reward", "format"),
    "entropy": ("entropy (nats per token)", "mean"),
    "mean_tokens": ("tokens per completion", "mean"),
    "clip_low": ("clipped tokens (share)", "low"),
    "clip_high": ("clipped tokens (share)", "high"),
    "zero_variance_share": ("groups without signal (share)", "drawn first"),
    "idle_share": ("groups without signal (share)", "trained on"),
}


def health_rows(history: pd.DataFrame, probes: pd.DataFrame, k: int) -> pd.DataFrame:
    """What the recipe's runs logged, as `viz.figures.training_curves` takes it: a series per quantity."""
    looks = {"pass_at_1": ("dev pairs", "pass@1"), "pass_at_k": ("dev pairs", f"pass@{k}")}
    rows = pd.concat([_long(history, _PANELS), _long(probes, looks)], ignore_index=True)
    mine: pd.DataFrame = rows[rows.variant == history.variant.iloc[0]]
    return mine


def variant_rows(history: pd.DataFrame, probes: pd.DataFrame, k: int) -> pd.DataFrame:
    """What every variant's runs logged, as `viz.figures.training_curves` takes it: a series per variant."""
    logged = {"outcome_reward": "outcome reward", "entropy": "entropy (nats per token)"}
    looks = {"pass_at_1": "pass@1, dev", "pass_at_k": f"pass@{k}, dev", "mean_tokens": "tokens, dev"}
    rows = pd.concat(
        _long(frame, {name: (panel, "") for name, panel in panels.items()})
        for frame, panels in ((history, logged), (probes, looks))
    )
    return rows.assign(series=rows.variant).reset_index(drop=True)


def _long(rows: pd.DataFrame, panels: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """variant, seed, rollout, panel, series, value; updates of one rollout are averaged."""
    keys = ["variant", "seed", "rollout"]
    means = rows.groupby(keys, sort=False)[list(panels)].mean().reset_index()
    long = means.melt(keys, list(panels)).dropna()
    long[["panel", "series"]] = [panels[name] for name in long.variable]
    return long.drop(columns="variable")


def compare_variants(probes: pd.DataFrame) -> pd.DataFrame:
    """One row per variant: gains on dev pairs from the first look to the best and to the last, over seeds.

    Returns:
        Columns variant, seeds, start (pass@1), best and last (gain of pass@1), k_last (gain of pass@k),
        tokens (gain) and, for the last gain of pass@1, lowest and highest of the seeds.
    """
    rows = []
    for variant, part in probes.groupby("variant", sort=False):
        looks = part.sort_values("rollout").groupby("seed")
        first, last, best = looks.first(), looks.last(), looks.pass_at_1.max()
        gain = last.pass_at_1 - first.pass_at_1
        rows.append(
            {
                "variant": variant,
                "seeds": len(first),
                "start": first.pass_at_1.mean(),
                "best": (best - first.pass_at_1).mean(),
                "last": gain.mean(),
                "lowest": gain.min(),
                "highest": gain.max(),
                "k_last": (last.pass_at_k - first.pass_at_k).mean(),
                "tokens": (last.mean_tokens - first.mean_tokens).mean(),
            }
        )
    return pd.DataFrame(rows)
