"""Looks at the dev pairs during a GRPO run: they pick the weights that are kept, and stop the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer

from lore_lib.artifacts import read_jsonl, read_parquet, write_jsonl
from lore_lib.sampling.engine import Sampling, no_weight_bars, sample_pairs
from lore_lib.sampling.pass_at_k import summarise
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.rollout import sampler

PROBES = "probes.jsonl"
BEST = "best"


class Probe(TrainerCallback):
    """Samples the dev pairs every few rollouts, keeps the weights with the best pass@1 so far, and stops the
    run when ``patience_looks`` looks have brought no new best."""

    def __init__(self, job: GrpoJob) -> None:
        self._job = job
        self.pairs = read_parquet(job.probe)
        self._sampling = Sampling(
            job.probe_n, job.temperature, job.max_completion_tokens, job.batch_completions, job.stream
        )
        self.trainer: GRPOTrainer | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The look before training."""
        if state.global_step == 0:
            self._measure(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A look where one is due; checkpoints fall on the same steps, and are written after it."""
        rollout, update = divmod(state.global_step, self._job.updates)
        due = rollout % self._job.probe_every_rollouts == 0 or rollout == self._job.rollouts
        if update == 0 and due and out_of_patience(self._measure(rollout), self._job.patience_looks):
            control.should_training_stop = True

    def _measure(self, rollout: int) -> list[float]:
        """Take a look, write its row, and return pass@1 of all looks so far."""
        assert self.trainer is not None
        with sampler(self._job, self.trainer) as engine:
            samples = sample_pairs(engine, self.pairs, "probe", self._sampling)
        per_pair = summarise(samples, self.pairs[["pair_id", "query_id", "label"]], self._job.probe_n)
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


def out_of_patience(scores: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` looks have brought no new best.

    >>> [out_of_patience(scores, 2) for scores in ([0.7, 0.6, 0.7], [0.7, 0.6, 0.8], [0.7])]
    [True, False, False]
    """
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def log_of_ended(job: GrpoJob, checkpoint: Path | None) -> list[dict[str, Any]] | None:
    """The trainer's log, where a run was killed between the end of its training and its last rows.

    Args:
        job: the run.
        checkpoint: its last whole one.

    Returns:
        None where there is something left to train.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    rollout = state.global_step // job.updates
    looks = [row["pass_at_1"] for row in read_jsonl(job.out / PROBES) if row["rollout"] <= rollout]
    ended = rollout >= job.rollouts or out_of_patience(looks, job.patience_looks)
    return list(state.log_history) if ended else None


def _keep(trainer: GRPOTrainer, folder: Path) -> None:
    """Save the weights as they are now, of an adapter its own alone: the model in training stays untouched.

    All processes take part, for sharded weights are gathered; the first one writes.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        replace_folder(folder, model, trainer.processing_class, weights)


def replace_folder(folder: Path, model: Any, tokenizer: Any, weights: Any = None) -> None:
    """Write a model beside the folder, then put it in its place: after a kill one of the two is whole."""
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


def settle(folder: Path) -> None:
    """End a replacement that was killed: where the folder is gone, the new one was whole already."""
    old, part = (folder.with_name(f"{folder.name}.{what}") for what in ("old", "part"))
    if old.exists() and not folder.exists():
        part.replace(folder)
    for left in (old, part):
        shutil.rmtree(left, ignore_errors=True)
