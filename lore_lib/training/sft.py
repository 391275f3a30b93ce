"""Supervised tuning over TRL's ``SFTTrainer``: loss on the completion only, resumable, no row ever cut."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from lore_lib.artifacts import read_jsonl, read_parquet, write_jsonl
from lore_lib.config import Config
from lore_lib.device import resolve_device
from lore_lib.errors import DataError
from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer, no_weight_bars

FINISHED = "history.jsonl"
"""Written last: its presence means that the folder holds a whole model."""


@dataclass(frozen=True)
class SftJob:
    """Tune one arm; picklable.

    Attributes:
        arm: name of the arm.
        base: model folder or hub name to start from.
        rows: Parquet file with pair_id, prompt (user text), completion and, where a funnel has judged them,
            kept: rows that are not kept are not taught.
        out: folder for checkpoints, the final model and ``history.jsonl``.
        epochs, learning_rate, batch_pairs, warmup_share: the schedule.
        max_sequence_tokens: longest prompt + completion; a longer row is an error, never cut.
        checkpoint_steps: optimiser steps between checkpoints.
        lora_rank: 0 tunes all weights.
        seed: of data order and dropout.
        dtype: of the weights.
        device: as in the model config.
    """

    arm: str
    base: str
    rows: Path
    out: Path
    epochs: float
    learning_rate: float
    batch_pairs: int
    warmup_share: float
    max_sequence_tokens: int
    checkpoint_steps: int
    lora_rank: int = 0
    seed: int = 17
    dtype: str = "float32"
    device: str = "auto"


def sft_job(config: Config, arm: str, rows: Path, out: Path) -> SftJob:
    """A job as `config.sft` and `config.model` have it."""
    return SftJob(
        arm=arm,
        base=config.model.base,
        rows=rows,
        out=out,
        **dict(config.sft),
        lora_rank=config.model.lora_rank,
        seed=config.seed,
        dtype=config.model.dtype,
        device=config.model.device,
    )


def train_sft(job: SftJob) -> Path:
    """Tune one arm and return its model folder; a finished arm is not trained again, a killed one resumes.

    Raises:
        DataError: no rows, or rows that are longer than ``max_sequence_tokens``.
    """
    if (job.out / FINISHED).exists():
        return job.out
    tokenizer = load_tokenizer(job.base)
    rows = read_parquet(job.rows)
    rows = rows[rows.kept] if "kept" in rows else rows
    data = pd.DataFrame(
        {"prompt": [chat_text(tokenizer, user) for user in rows.prompt], "completion": rows.completion}
    )
    check_lengths(tokenizer, data, rows.pair_id.tolist(), job.max_sequence_tokens)
    job.out.mkdir(parents=True, exist_ok=True)
    with quiet_trl():
        trainer = SFTTrainer(
            model=load_model(job.base, job.dtype, job.device),
            args=sft_config(job),
            train_dataset=Dataset.from_pandas(data, preserve_index=False),
            processing_class=tokenizer,
            peft_config=lora_config(job.lora_rank),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(job.out)))
    save_model(trainer, job.out)
    tokenizer.save_pretrained(job.out)
    logged = [{"arm": job.arm, **row} for row in trainer.state.log_history if "loss" in row]
    write_jsonl(job.out / FINISHED, logged)
    drop_checkpoints(job.out)
    return job.out


@contextmanager
def quiet_trl() -> Iterator[None]:
    """No bars for checkpoints, nor the two warnings that are about TRL 1.16 itself.

    It reads a name that transformers has deprecated, and calls ``rollout_func`` experimental.
    """
    with warnings.catch_warnings(), no_weight_bars():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        yield


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished training: optimiser states several times the model's size."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def sft_config(job: SftJob) -> SFTConfig:
    """TRL's settings for a job; every TRL default that would spoil a CPU run is set here."""
    return SFTConfig(
        output_dir=str(job.out),
        num_train_epochs=job.epochs,
        learning_rate=job.learning_rate,
        per_device_train_batch_size=job.batch_pairs,
        lr_scheduler_type="cosine",
        warmup_steps=job.warmup_share,
        max_length=job.max_sequence_tokens,
        completion_only_loss=True,
        seed=job.seed,
        data_seed=job.seed,
        train_sampling_strategy="group_by_length",
        adam_beta2=0.98,
        weight_decay=0.0,
        save_strategy="steps",
        save_steps=job.checkpoint_steps,
        save_total_limit=1,
        logging_first_step=True,  # so that even a training of a few steps leaves a row
        logging_steps=min(10, job.checkpoint_steps),
        disable_tqdm=True,
        **hardware(job.device),
    )


def hardware(device: str) -> dict[str, Any]:
    """Trainer settings that follow from the device: only CUDA gets mixed precision and recomputation."""
    target = resolve_device(device)
    cuda = target == "cuda"
    return {"use_cpu": target == "cpu", "bf16": cuda, "activation_checkpointing": cuda, "report_to": "none"}


def lora_config(rank: int) -> LoraConfig | None:
    """An adapter on all linear layers, or None for rank 0 (full tuning)."""
    if rank == 0:
        return None
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(trainer: Any, folder: Path) -> None:
    """Save the final weights as safetensors; an adapter is merged into its base first."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    with no_weight_bars():
        model.save_pretrained(folder)


def check_lengths(tokenizer: Any, data: pd.DataFrame, pair_ids: list[str], limit: int) -> int:
    """Longest row in tokens; a row over ``limit`` would lose its label at the end, so it is refused.

    Raises:
        DataError: no rows, or rows over the limit (counts them and names the first).
    """
    if data.empty:
        raise DataError("no rows to train on: the funnel kept none; look at the reasons in 02_cot_synthesis")
    both = [f"{p}{c}" for p, c in zip(data.prompt, data.completion, strict=True)]
    lengths = [len(ids) + 1 for ids in tokenizer(both, add_special_tokens=False)["input_ids"]]
    over = [i for i, length in enumerate(lengths) if length > limit]
    if over:
        raise DataError(
            f"{len(over)} of {len(data)} rows are longer than max_sequence_tokens={limit} and would lose "
            f"their label; first: pair {pair_ids[over[0]]!r} with {lengths[over[0]]} tokens. "
            f"Use --set sft.max_sequence_tokens={max(lengths)} or a smaller features.budget"
        )
    return max(lengths)


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a finished training."""
    return read_jsonl(folder / FINISHED)


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
