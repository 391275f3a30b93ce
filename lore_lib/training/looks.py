"""Looks at the dev pairs during a GRPO run: they pick the weights that are kept, and stop the run.

The pairs are the same at each look, so what is measured on them can rise and fall freely. The groups that are
trained on cannot tell as much: they were chosen because their completions differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer

from lore_lib.artifacts import read_jsonl, read_parquet, write_jsonl
from lore_lib.sampling.engine import Sampling, chat_text, no_weight_bars, read_tokens, sample_rows
from lore_lib.sampling.pass_at_k import summarise
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.lean import ROWS_AT_ONCE
from lore_lib.training.rollout import draw_together
from lore_lib.training.sharding import gathered_weights

PROBES = "probes.jsonl"
BEST = "best"
EXAMPLES = 3  # dev pairs of which a look keeps a completion to be read, each of another gold label


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
        tokenizer = self.trainer.processing_class
        texts = [chat_text(tokenizer, user) for user in self.pairs.prompt]
        drawn = draw_together(self._job, self.trainer, texts, self._sampling)
        answers = [[read_tokens(tokenizer, one.tokens) for one in group] for group in drawn]
        samples = sample_rows(self.pairs, answers, "probe")
        first = samples[samples["sample"] == 0].set_index("pair_id").completion
        shown = self.pairs.drop_duplicates("label").pair_id.head(EXAMPLES)
        per_pair = summarise(samples, self.pairs[["pair_id", "query_id", "label"]], self._job.probe_n)
        path = self._job.out / PROBES
        rows = [row for row in (read_jsonl(path) if path.exists() else []) if row["rollout"] < rollout]
        row = {
            "seed": self._job.seed,
            "variant": self._job.variant.name,
            "rollout": rollout,
            "pairs": len(self.pairs),
            "n": self._job.probe_n,
            "pass_at_1": float(per_pair.pass_at_1.mean()),
            "pass_at_k": float(per_pair.pass_at_k.mean()),
            "mean_tokens": float(samples.tokens.mean()),
            "parse_rate": float((samples.parse_kind == "ok").mean()),
            "entropy": policy_entropy(self.trainer, texts, [group[0].tokens for group in drawn]),
            "examples": [{"pair_id": pair, "completion": first[pair]} for pair in shown],
        }
        if all(row["pass_at_1"] > earlier["pass_at_1"] for earlier in rows):
            _keep(self.trainer, self._job.out / BEST)
        if self.trainer.is_world_process_zero():
            write_jsonl(path, [*rows, row])
        return [earlier["pass_at_1"] for earlier in (*rows, row)]


def policy_entropy(trainer: GRPOTrainer, texts: Sequence[str], completions: Sequence[list[int]]) -> float:
    """Mean entropy of the next token, at the temperature of the draws, over the tokens of completions.

    All processes take part, each with all rows, for a sharded model wants the same calls from each.

    Args:
        trainer: its model is asked, in evaluation mode, and goes back to training.
        texts: prompts in the model's chat template.
        completions: the tokens of one completion for each, which are enough to settle a mean.

    Returns:
        Nats per token.
    """
    prompts = trainer.processing_class(list(texts), add_special_tokens=False)["input_ids"]
    rows = sorted(zip(prompts, completions, strict=True), key=lambda row: len(row[0]) + len(row[1]))
    total, device = 0.0, trainer.accelerator.device
    trainer.model.eval()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        asked, said = zip(*rows[start : start + ROWS_AT_ONCE], strict=True)
        parts = [_padded(asked, "left", device), _padded(said, "right", device)]
        ids, mask = (torch.cat(both, dim=1) for both in zip(*parts, strict=True))
        inside = parts[1][1]
        with torch.no_grad():
            _, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, inside.shape[1], compute_entropy=True
            )
        total += float((entropies * inside).sum())
    trainer.model.train()
    return total / sum(map(len, completions))


def _padded(rows: Sequence[list[int]], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their mask, (rows, longest)."""
    ids = pad_sequence([torch.tensor(row) for row in rows], True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True, padding_side=side)
    return ids.to(device), mask.to(device)


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
    weights = gathered_weights(trainer)
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
