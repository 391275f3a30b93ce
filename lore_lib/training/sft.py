"""Supervised tuning over TRL's ``SFTTrainer``: loss on the completion only, resumable, no row ever cut.

One process and several give the same batches in the same order, whatever a device holds at once: the sampler
groups by length over ``batch_pairs``, and gradients are averaged over the tokens of the whole batch.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from lore_lib.artifacts import read_jsonl, read_parquet, write_jsonl
from lore_lib.completion import reader_of
from lore_lib.config import Config
from lore_lib.device import out_of_memory, resolve_device
from lore_lib.errors import ConfigError, DataError, EngineError
from lore_lib.rng import derive_seed
from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer, no_weight_bars
from lore_lib.training.checkpoints import claim_folder, drop_checkpoints, last_whole_checkpoint
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.sharding import check_sharded, gathered_weights

FINISHED = "history.jsonl"
"""Written last: its presence means that the folder holds a whole model."""

_ELSEWHERE = ("rows", "out", "device", "pairs_at_once", "checkpoint_steps")  # do not decide the result


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
        pairs_at_once: most pairs that a device holds at once, 0 for all; gradients of the parts of a batch
            are added up, so that it changes memory and time alone.
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
    pairs_at_once: int = 0
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

    In a process that ``accelerate launch`` has started it trains together with the others.

    Raises:
        DataError: no rows, rows of one label alone, or rows that are longer than ``max_sequence_tokens`` or
            than the model's context.
        ArtifactError: the folder holds the checkpoints of another job.
        ConfigError: a batch that the devices cannot share evenly, several GPUs for one process, or sharding
            asked for on CPUs.
        EngineError: the loss is not a number, or memory ran out.
    """
    if (job.out / FINISHED).exists():
        return job.out
    tokenizer = load_tokenizer(job.base)
    rows = read_parquet(job.rows)
    rows = rows[rows.kept] if "kept" in rows else rows
    data = pd.DataFrame(
        {"prompt": [chat_text(tokenizer, user) for user in rows.prompt], "completion": rows.completion}
    )
    longest = check_lengths(tokenizer, data, rows.pair_id.tolist(), job.max_sequence_tokens)
    check_labels(job.arm, rows.completion.tolist())
    model = load_model(job.base, job.dtype, job.device if processes() == 1 else "cpu")
    check_fits(model, longest)
    claim_folder(job, job.out, _ELSEWHERE)
    with quiet_trl():
        trainer = sft_trainer(job, model, tokenizer, data)
        check_sharded(trainer)
        if processes() == 1:
            trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(job.out))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            held = trainer.args.per_device_train_batch_size
            raise EngineError(
                f"out of memory with {held} pairs of up to {longest} tokens at once on each device: lower "
                f"sft.pairs_at_once (to {max(1, held // 2)}), then features.budget or cot.max_words"
            ) from error
    save_model(trainer, job.out)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(job.out)
        logged = [{"arm": job.arm, **row} for row in trainer.state.log_history if "loss" in row]
        write_jsonl(job.out / FINISHED, logged)
        drop_checkpoints(job.out)
    return job.out


def sft_trainer(job: SftJob, model: PreTrainedModel, tokenizer: Any, data: pd.DataFrame) -> SFTTrainer:
    """The trainer of a job.

    Args:
        job: settings.
        model: to tune; it is changed.
        tokenizer: of the model.
        data: columns prompt, up to where the assistant begins, and completion.

    Raises:
        ConfigError: a batch that the devices cannot share evenly.
    """
    arguments = sft_config(job)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_pandas(data, preserve_index=False),
        processing_class=tokenizer,
        peft_config=lora_config(job.lora_rank),
    )
    if arguments.use_cpu:
        score_labelled_positions(model)
    return trainer


class _Order(LengthGroupedSampler):
    """An order for each epoch that follows from the seed alone.

    Left to itself the sampler draws from torch's global state, which a resumed run has at hand only after the
    order of its epoch is drawn: from the second epoch on it would see other batches.
    """

    def __init__(self, seed: int, epoch: Callable[[], int], batch: int, lengths: list[int]) -> None:
        super().__init__(batch, lengths=lengths, generator=torch.Generator())
        self._seed, self._epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(derive_seed(self._seed, "order", self._epoch()))
        yield from super().__iter__()


class _Trainer(SFTTrainer):
    """TRL's, with batches that do not depend on how they are shared, and no step on a loss that is none."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        updates = math.ceil(len(data) / whole)
        lengths = [len(ids) for ids in data["input_ids"]]
        return _Order(self.args.data_seed, lambda: self.state.global_step // updates, whole, lengths)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise EngineError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}, so no step is made on it. "
                f"Lower the learning rate (now {self.args.learning_rate:g}), or look for broken weights in "
                "the base; a checkpoint in the folder is from before it"
            )
        return loss


@contextmanager
def quiet_trl() -> Iterator[None]:
    """No bars for checkpoints, nor the two warnings that are about TRL 1.16 itself.

    It reads a name that transformers has deprecated, and calls ``rollout_func`` experimental.
    """
    with warnings.catch_warnings(), no_weight_bars():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        yield


def sft_config(job: SftJob) -> SFTConfig:
    """TRL's settings for a job; every TRL default that would spoil a CPU run is set here.

    Raises:
        ConfigError: the batch cannot be shared evenly by the processes and ``pairs_at_once``.
    """
    held, parts = share_batch(job.batch_pairs, processes(), job.pairs_at_once)
    return SFTConfig(
        output_dir=str(job.out),
        num_train_epochs=job.epochs,
        learning_rate=job.learning_rate,
        per_device_train_batch_size=held,
        gradient_accumulation_steps=parts,
        lr_scheduler_type="cosine",
        warmup_steps=job.warmup_share,
        max_length=job.max_sequence_tokens,
        completion_only_loss=True,
        seed=job.seed,
        data_seed=job.seed,
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


def processes() -> int:
    """How many train together; more than one where ``accelerate launch`` has started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share_batch(pairs: int, processes: int, at_once: int) -> tuple[int, int]:
    """(pairs a device holds at once, parts whose gradients are added up) that make a batch of ``pairs``.

    Args:
        pairs: in a batch, over all processes.
        processes: that train together.
        at_once: most pairs a device may hold, 0 for no bound.

    Raises:
        ConfigError: the processes cannot share the batch evenly.

    >>> share_batch(128, 8, 4), share_batch(16, 1, 0), share_batch(12, 2, 5)
    ((4, 4), (16, 1), (3, 2))
    """
    each, left = divmod(pairs, processes)
    if left or not each:
        raise ConfigError(
            f"sft.batch_pairs={pairs} cannot be shared evenly by {processes} processes; use "
            f"{max(each, 1) * processes} or {(each + 1) * processes}"
        )
    held = next(size for size in range(min(at_once or each, each), 0, -1) if each % size == 0)
    return held, each // held


def hardware(device: str) -> dict[str, Any]:
    """Trainer settings that follow from the device: only CUDA gets mixed precision and recomputation.

    Raises:
        ConfigError: one process sees several GPUs, over which transformers would spread it in a way that TRL
            does not support.
    """
    target = resolve_device(device)
    cuda = target == "cuda"
    if cuda and processes() == 1 and (seen := torch.cuda.device_count()) > 1:
        raise ConfigError(
            f"one process and {seen} GPUs: train on all with runtime.processes={seen}, or on one with "
            "CUDA_VISIBLE_DEVICES=0 in the environment"
        )
    return {"use_cpu": target == "cpu", "bf16": cuda, "activation_checkpointing": cuda, "report_to": "none"}


def lora_config(rank: int) -> LoraConfig | None:
    """An adapter on all linear layers, or None for rank 0 (full tuning)."""
    if rank == 0:
        return None
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(trainer: Any, folder: Path) -> None:
    """Save the final weights as safetensors; an adapter is merged into its base first.

    All processes take part, for sharded weights are gathered; the first one writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = gathered_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    with no_weight_bars():
        if weights is not None and isinstance(model, PeftModel):
            base = load_model(model.peft_config["default"].base_model_name_or_path, device="cpu")
            model.save_pretrained(folder / "adapter", state_dict=weights)
            model, weights = PeftModel.from_pretrained(base, folder / "adapter"), None
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        model.save_pretrained(folder, state_dict=weights)


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


def check_labels(arm: str, completions: list[str]) -> None:
    """Refuse rows that all carry one label: what is tuned on them says nothing else.

    Raises:
        DataError: names the label.
    """
    labels = {reader_of(arm)(completion).label for completion in completions}
    if len(completions) > 1 and len(labels) == 1:
        raise DataError(
            f"all {len(completions)} rows carry the label {labels.pop() or '(none can be read)'!r}: a model "
            "tuned on them says nothing else. Take rows of two labels or more"
        )


def check_fits(model: PreTrainedModel, longest: int) -> None:
    """Refuse rows that are longer than the model's context.

    Raises:
        DataError: names both lengths.
    """
    context = model.config.get_text_config().max_position_embeddings
    if longest > context:
        raise DataError(
            f"the longest row has {longest} tokens and the model's context {context}; use a smaller "
            "features.budget, or a model with a longer context"
        )


def training_history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a finished training."""
    return read_jsonl(folder / FINISHED)
