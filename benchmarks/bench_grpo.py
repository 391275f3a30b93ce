"""Speed and memory of GRPO's updates beside TRL's trainer as it stands, and where a rollout's time goes.

    OMP_NUM_THREADS=1 python benchmarks/bench_grpo.py [--sizes 256 1024] [--rollouts 4] [--model FOLDER]

Updates: completions of one rollout by `lore-nano`, with the lengths seen in training (prompts of 57 +- 12
tokens, completions of 39 +- 10, one in fifty cut at 112): log-probabilities of the old policy, then loss and
gradient in updates of 64. Once all of them are in groups with a signal, as ours are after refills, and once
60 %, as first draws are. ``ways.py`` says what is measured. Sampling is not in it: it is the same for both.

Rollouts: the demo's GRPO from a student that is tuned a little, or from the one of ``--model``, on pairs of
the bundled world; processor seconds of drawing (refills included), scoring (the old log-probabilities),
updates (forward and backward) and looks. ``--rollouts 0`` leaves it out.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_train import bench_job, write_rows
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer
from ways import print_table

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.config import load_config
from lore_lib.sampling.engine import load_model, load_tokenizer
from lore_lib.training.grpo import train_grpo
from lore_lib.training.grpo_job import GrpoJob, grpo_job
from lore_lib.training.grpo_rows import run_rows
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.lean import LeanTrainer
from lore_lib.training.looks import Probe
from lore_lib.training.rollout import Rollout
from lore_lib.training.sft import train_sft

BASE, UPDATE, SEED = "data/models/lore-nano", 64, 17
TAUGHT = 1200  # pairs that the student of the rollouts is tuned on, once
WAYS: dict[str, type[GRPOTrainer]] = {"stock TRL": GRPOTrainer, "LeanTrainer": LeanTrainer}


def trainer_of(way: str, base: str = BASE) -> GRPOTrainer:
    """A trainer of one prompt: only its loss is used."""
    model, tokenizer = load_model(base, device="cpu").train(), load_tokenizer(base)
    settings = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=UPDATE,
        steps_per_generation=2,
        loss_type="dapo",
    )
    trainer = WAYS[way](
        model=model,
        reward_funcs=[lambda completions, **_: [0.0 for _ in completions]],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["x"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    if way != "stock TRL":
        score_labelled_positions(model)  # as a training on a CPU does
    return trainer


def rollout_of(completions: int, share: float) -> dict[str, torch.Tensor]:
    """Tokens and advantages as TRL pads them; a share of the completions has a signal."""
    rng = np.random.default_rng(SEED)
    prompts = rng.normal(57, 12, completions).clip(20, 110).astype(int)
    answers = np.where(rng.random(completions) < 0.02, 112, rng.normal(39, 10, completions).clip(15, 100))

    def padded(lengths: np.ndarray, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [torch.from_numpy(rng.integers(10, 1000, int(length))) for length in lengths]
        ones = [torch.ones_like(one) for one in ids]
        return tuple(pad_sequence(rows, batch_first=True, padding_side=side) for rows in (ids, ones))  # type: ignore[return-value]

    prompt_ids, prompt_mask = padded(prompts, "left")
    completion_ids, completion_mask = padded(answers, "right")
    signal = rng.random(completions) < share
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.from_numpy(np.where(signal, rng.choice([-0.9, 0.9], completions), 0)).float(),
    }


def update(trainer: GRPOTrainer, rollout: dict[str, torch.Tensor]) -> float:
    """One rollout's updates, without the optimiser's step; returns the sum of the losses."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    keep, total = rollout["completion_ids"].shape[1], 0.0
    with torch.no_grad():
        old, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, keep, batch_size=UPDATE
        )
    whole: dict[str, Any] = rollout | {"old_per_token_logps": old}
    for start in range(0, len(ids), UPDATE):
        part = {name: rows[start : start + UPDATE] for name, rows in whole.items()}
        loss = trainer._compute_loss(
            trainer.model, part | {"num_items_in_batch": rollout["completion_mask"].sum()}
        )
        loss.backward()
        total += loss.item()
    return total


def prepare(share: float, way: str, completions: int) -> Callable[[], float]:
    """The model loaded and warm, the tokens drawn."""
    torch.set_num_threads(1)
    trainer, rollout = trainer_of(way), rollout_of(completions, share)
    update(trainer, rollout_of(4, 1.0))
    return functools.partial(update, trainer, rollout)


def demo_job(folder: Path, rollouts: int, model: Path | None) -> GrpoJob:
    """The demo's run, but shorter, with a look before and after it."""
    config, pool, probe = load_config("demo", overrides={"model.device": "cpu"}), 300, 240
    rows = read_parquet(write_rows(folder / "rows.parquet", TAUGHT + pool + probe))
    rows = rows.assign(query_id=rows.pair_id)  # by which a look groups its pairs; no interval is asked for
    parts = {"taught": rows[:TAUGHT], "pool": rows[TAUGHT:][:pool], "probe": rows[TAUGHT + pool :]}
    files = {name: write_parquet(part, folder / f"{name}.parquet") for name, part in parts.items()}
    student = model or train_sft(bench_job(files["taught"], folder / "student"))
    job = grpo_job(config, student, files["pool"], files["probe"], folder / "run", SEED)
    return replace(job, rollouts=rollouts, probe_every_rollouts=rollouts)


def spend(job: GrpoJob) -> Counter[str]:
    """Trains a job and returns the processor seconds of each part."""
    spent: Counter[str] = Counter()

    def timed(owner: type, method: str, part: str) -> Any:
        call = getattr(owner, method)

        def inside(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                if part != "scoring" or not torch.is_grad_enabled():
                    spent[part] += time.process_time() - begun

        return patch.object(owner, method, inside)

    with ExitStack() as parts:
        parts.enter_context(timed(Rollout, "__call__", "drawing"))
        parts.enter_context(timed(LeanTrainer, "_get_per_token_logps_and_entropies", "scoring"))
        parts.enter_context(timed(LeanTrainer, "training_step", "updates"))  # the two above are inside
        parts.enter_context(timed(Probe, "_measure", "looks"))
        train_grpo(job)
    spent["updates"] -= spent["drawing"] + spent["scoring"]
    return spent


def print_spent(job: GrpoJob) -> None:
    """What a rollout of a job takes, with its share of the looks of a demo run."""
    demo, spent = load_config("demo").grpo, spend(job)
    looks = 1 + demo.rollouts // demo.probe_every_rollouts
    each = {part: spent[part] / job.rollouts for part in ("drawing", "scoring", "updates")}
    each[f"looks, {looks} in {demo.rollouts} rollouts"] = spent["looks"] / 2 * looks / demo.rollouts
    history, _ = run_rows(job.out)
    print(f"{'part':32}{'CPU s a rollout':>16}{'share':>8}")
    for part, seconds in each.items():
        print(f"{part:32}{seconds:>16.2f}{seconds / sum(each.values()):>8.2f}")
    flat, more, idle = history[["zero_variance_share", "refill_share", "idle_share"]].mean()
    print(
        f"{job.rollouts} rollouts: {flat:.2f} of the groups drawn first had no signal, {more:.2f} times as "
        f"many were drawn again, {idle:.2f} of those trained on had none"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 1024], help="completions (256 1024)")
    parser.add_argument("--rollouts", type=int, default=4, help="rollouts (default: 4)")
    parser.add_argument("--model", type=Path, help="folder of a tuned model to begin the rollouts with")
    asked = parser.parse_args()
    for share in (1.0, 0.6) if asked.sizes else ():
        print(f"\n{share:.0%} of the completions with a signal")
        print_table(WAYS, asked.sizes, functools.partial(prepare, share), "samples")
    if asked.rollouts:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print_spent(demo_job(Path(folder), asked.rollouts, asked.model))


if __name__ == "__main__":
    main()
