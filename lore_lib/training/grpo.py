"""KL-free GRPO with clip-higher over TRL's ``GRPOTrainer``.

What is ours: how prompts and updates per rollout become the trainer's batch numbers (`grpo_job`), which
prompts a rollout draws and by which engine (`rollout`), the rewards (`rewards`), the looks at dev pairs that
pick the checkpoint and stop the run (`looks`), and the rows a run leaves behind (`grpo_rows`). What is TRL's:
advantages, the clipped token-level loss, the optimiser; `lean` leaves out what cannot change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lore_lib.artifacts import read_parquet, write_jsonl
from lore_lib.device import out_of_memory
from lore_lib.errors import DataError, EngineError
from lore_lib.sampling.engine import Sampling, chat_text, check_context, load_model, load_tokenizer
from lore_lib.training.checkpoints import FINISHED, claim_folder, drop_checkpoints, last_whole_checkpoint
from lore_lib.training.grpo_job import GrpoJob, grpo_config
from lore_lib.training.grpo_rows import history_rows
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.lean import LeanTrainer
from lore_lib.training.looks import (
    BEST,
    Probe,
    log_of_ended,
    replace_folder,
    settle,
)
from lore_lib.training.rewards import reward_functions
from lore_lib.training.rollout import Rollout
from lore_lib.training.sft import lora_config, processes, quiet_trl, weights_type
from lore_lib.training.sharding import check_sharded

_ELSEWHERE = ("out", "micro_batch", "device", "engine_memory", "url")  # do not decide the result
_FILES = ("pool", "probe")


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


def train_grpo(job: GrpoJob) -> Path:
    """Train one run and return the folder of its best checkpoint by the probe's pass@1.

    A finished run is not trained again; a killed one resumes at its last checkpoint.

    Raises:
        DataError: a pool of fewer prompts than one rollout takes, or of one label alone.
        ArtifactError: the folder holds the model or the checkpoints of another job.
        ConfigError: sharding asked for on CPUs.
        EngineError: a prompt of the pool or the probe leaves no room for a completion in the model's context;
            or a gradient is not finite, memory runs out, or vLLM is not there or ends: the last checkpoint
            and the best look's weights stay.
    """
    if (job.out / FINISHED).exists():
        claim_folder(job, job.out, _ELSEWHERE, _FILES)
        return job.out / BEST
    tokenizer = load_tokenizer(job.base)
    pool = read_parquet(job.pool)
    if len(pool) < job.prompts_per_rollout:
        raise DataError(
            f"the pool has {len(pool)} prompts, one rollout takes {job.prompts_per_rollout}; use "
            f"--set grpo.prompts_per_rollout={max(1, len(pool))} or measure more pairs (sampling.pool_pairs)"
        )
    if len(pool) > 1 and pool.label.nunique() == 1:
        raise DataError(
            f"all {len(pool)} prompts of the pool carry the label {pool.label.iloc[0]!r}: a model that says "
            "nothing else earns full marks. Measure more pairs (sampling.pool_pairs)"
        )
    rollout = Rollout(job, [chat_text(tokenizer, user) for user in pool.prompt], pool.label.tolist())
    probe, arguments = Probe(job), grpo_config(job, processes())
    held = weights_type(job.dtype, job.lora_rank)
    model = load_model(job.base, held, job.device if processes() == 1 else "cpu")
    asked = [*rollout.texts, *(chat_text(tokenizer, user) for user in probe.pairs.prompt)]
    lengths = [len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]
    drawn = Sampling(max_completion_tokens=job.max_completion_tokens)
    check_context(lengths, drawn, model.config.get_text_config().max_position_embeddings)
    claim_folder(job, job.out, _ELSEWHERE, _FILES)
    if job.engine == "vllm":  # else it makes room for the model's whole context
        arguments.vllm_max_model_length = max(lengths) + job.max_completion_tokens
    with quiet_trl(), _explained(job):
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
        check_sharded(trainer)
        if arguments.use_cpu:
            score_labelled_positions(model, job.temperature)
        probe.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        checkpoint = last_whole_checkpoint(job.out)
        log = log_of_ended(job, checkpoint)
        trainer.accelerator.wait_for_everyone()  # all have read the folder before one changes it
        if trainer.is_world_process_zero():
            settle(job.out / BEST)
        if log is None:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            log = trainer.state.log_history
        if trainer.is_world_process_zero():
            _finish(job, log)
    return job.out / BEST


@contextmanager
def _explained(job: GrpoJob) -> Iterator[None]:
    """Tells what to do where memory or vLLM fails."""
    try:
        yield
    except ImportError as error:
        if job.engine == "hf":
            raise
        raise EngineError(
            f"grpo.engine={job.engine}, but vLLM cannot be imported ({error}): pip install lore-kit[vllm], "
            "or use grpo.engine=hf"
        ) from error
    except ConnectionError as error:
        raise EngineError(
            f"grpo.url={job.url} does not answer. Start it with VLLM_SERVER_DEV_MODE=1 vllm serve {job.base} "
            """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs, on GPUs """
            "that do not train"
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise EngineError(
            f"out of memory with {job.micro_batch} completions at once in an update of {job.out.name}: lower "
            f"grpo.micro_batch_completions (to {max(1, job.micro_batch // 2)}), then features.budget or "
            "sampling.max_completion_tokens; the run resumes at its last checkpoint"
        ) from error


def _finish(job: GrpoJob, log: Sequence[dict[str, Any]]) -> None:
    """Merge an adapter into its base, then write the rows that say the run is whole."""
    best = job.out / BEST
    if (best / "adapter_config.json").exists():
        merged = PeftModel.from_pretrained(
            load_model(job.base, job.dtype, "cpu"), str(best)
        ).merge_and_unload()
        replace_folder(best, merged, load_tokenizer(job.base))
    write_jsonl(job.out / FINISHED, history_rows(log, job))
    drop_checkpoints(job.out)


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
            resumes = last_whole_checkpoint(self._job.out) or "the start"
            raise EngineError(
                f"the gradient of {bad[0]} ({len(bad)} tensors) is not finite at update "
                f"{state.global_step + 1} of {self._job.out.name}; the weights were not touched. The best "
                f"look's model is in {self._job.out / BEST}; a run resumes from {resumes}. "
                f"Try --set grpo.learning_rate={self._job.learning_rate / 3:.2g}"
            )
