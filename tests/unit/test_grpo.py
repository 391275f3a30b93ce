"""GRPO at tiny size: the sums by hand, TRL's settings, a run that may be killed, and what it leaves."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer

from lore_lib.artifacts import read_jsonl, write_parquet
from lore_lib.config import load_config
from lore_lib.errors import DataError
from lore_lib.sampling.engine import load_model, load_tokenizer
from lore_lib.training.grpo import (
    BEST,
    PROBES,
    GrpoJob,
    _rollout,
    clipped_objective,
    group_advantages,
    grpo_config,
    grpo_job,
    history_rows,
    run_rows,
    train_grpo,
)
from lore_lib.training.sft import FINISHED


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> GrpoJob:
    frame = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(6)],
            "query_id": [f"q{i // 2}" for i in range(6)],
            "prompt": [f"query: navy dress\ntitle: dress\nprice: {i}" for i in range(6)],
            "label": ["L1", "L2", "L3", "L4", "L1", "L2"],
        }
    )
    return GrpoJob(
        base=str(tiny_model),
        pool=write_parquet(frame, tmp_path / "pool.parquet"),
        probe=write_parquet(frame.head(2), tmp_path / "probe.parquet"),
        out=tmp_path / "out",
        prompts_per_rollout=2,
        completions_per_prompt=4,
        updates_per_rollout=2,
        rollouts=3,
        learning_rate=1e-2,
        epsilon=0.2,
        epsilon_high=0.28,
        format_reward=0.1,
        temperature=1.0,
        max_completion_tokens=6,
        probe_every_rollouts=1,
        probe_n=2,
        seed=3,
    )


class Caught(Exception):
    """Ends a training where the test has seen enough."""


def length_reward(completions: list[str], label: list[str], **_: Any) -> list[float]:
    """A reward that a random model varies in, so that weights move."""
    return [float(len(text) % 3) for text in completions]


def test_a_job_follows_the_config(tmp_path: Path) -> None:
    config = load_config(
        overrides={"grpo.rollouts": 3, "sampling.batch_completions": 64, "model.device": "cpu"}
    )
    files = {name: tmp_path / name for name in ("pool", "probe", "out")}
    job = grpo_job(config, tmp_path / "base", **files, seed=2)
    assert (job.base, job.out, job.seed) == (str(tmp_path / "base"), tmp_path / "out", 2)
    assert (job.rollouts, job.batch_completions, job.probe_n, job.device) == (3, 64, 4, "cpu")
    assert (job.temperature, job.max_completion_tokens) == (1.0, 112)


@pytest.fixture
def varied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_reward, "__name__", "outcome_reward")  # TRL logs a reward by its name
    monkeypatch.setattr("lore_lib.training.grpo.outcome_reward", length_reward)


def test_advantages_worked_by_hand() -> None:
    # rewards 1 0 0 0: mean 0.25, sample standard deviation 0.5
    assert group_advantages([1, 0, 0, 0], 4) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-3)
    # two groups of two: (1, 0) has mean 0.5 and deviation 0.7071; equal rewards give no advantage
    assert group_advantages([1, 0, 0.3, 0.3], 2) == pytest.approx([0.7071, -0.7071, 0, 0], abs=1e-3)
    assert group_advantages([1.1, 0.4, 0.1, 0.1], 4) == pytest.approx(
        [1.4307, -0.0530, -0.6889, -0.6889], abs=1e-3
    )


@given(
    arrays(
        float,
        st.tuples(st.integers(1, 5), st.integers(2, 8)),
        elements=st.sampled_from([0.0, 0.1, 0.3, 0.4, 1.0, 1.1]),
    )
)
def test_advantages_sum_to_zero_in_each_group_and_keep_the_order_of_rewards(rewards: np.ndarray) -> None:
    size = rewards.shape[1]
    advantages = group_advantages(rewards.ravel().tolist(), size).reshape(rewards.shape)
    assert np.abs(advantages.sum(1)).max() < 1e-6
    for scores, gains in zip(rewards, advantages, strict=True):
        assert (np.diff(gains[np.argsort(scores, kind="stable")]) >= -1e-9).all()
        assert np.ptp(scores) > 0 or np.abs(gains).max() < 1e-9


def test_the_clipped_objective_worked_by_hand() -> None:
    ratio = np.array([1.0, 1.28, 1.5, 0.8, 0.5, 1.5, 0.5])
    advantage = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    # a gain is capped at 1.28, a loss floored at 0.8; where the ratio moved the wrong way nothing is clipped
    expected = [1.0, 1.28, 1.28, -0.8, -0.8, -1.5, 0.5]
    assert clipped_objective(ratio, advantage, 0.2, 0.28) == pytest.approx(expected)
    assert clipped_objective(np.array([1.25]), np.array([1.0]), 0.2, 0.2) == pytest.approx([1.2])


@pytest.mark.filterwarnings("error")
def test_the_installed_trl_takes_our_settings(job: GrpoJob) -> None:
    config = grpo_config(replace(job, probe_every_rollouts=5, rollouts=20))
    assert isinstance(config, GRPOConfig)
    assert config.beta == 0.0, "no reference model is held"
    assert (config.epsilon, config.epsilon_high) == (0.2, 0.28)
    assert (config.loss_type, config.scale_rewards) == ("dapo", "group")
    assert config.reward_weights == [1.0, 0.1]
    assert config.max_steps == 20 * 2
    assert config.save_steps == 5 * 2
    assert config.save_steps % config.steps_per_generation == 0, "checkpoints fall on rollout boundaries"
    assert config.steps_per_generation == 2
    assert config.generation_batch_size == 2 * 4
    assert config.num_generations == 4
    assert config.num_iterations == 1
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 0, 1.0)
    assert config.shuffle_dataset is False, "the pool's order is the curriculum"
    assert config.report_to == []


def test_the_trainer_clips_with_our_bounds_and_takes_the_pool_in_order(
    job: GrpoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[GRPOTrainer] = []

    def look(self: GRPOTrainer, **_: object) -> None:
        caught.append(self)
        raise Caught

    monkeypatch.setattr(GRPOTrainer, "train", look)
    with pytest.raises(Caught):
        train_grpo(job)
    (trainer,) = caught
    assert (trainer.epsilon_low, trainer.epsilon_high, trainer.beta) == (0.2, 0.28, 0.0)
    assert trainer.ref_model is None
    order = list(dict.fromkeys(trainer._get_train_sampler()))
    assert order == list(range(6))


def test_a_killed_run_resumes_to_the_same_weights_and_a_finished_one_is_kept(
    job: GrpoJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, varied: None
) -> None:
    monkeypatch.setattr("lore_lib.training.grpo.drop_checkpoints", lambda _: None)  # to compare last weights
    assert train_grpo(job) == job.out / BEST
    killed = replace(job, out=tmp_path / "killed")
    steps, step = count(1), GRPOTrainer.training_step

    def killed_in_the_second_rollout(self: GRPOTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 4:
            raise Caught
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "training_step", killed_in_the_second_rollout)
        with pytest.raises(Caught):
            train_grpo(killed)
    assert [path.name for path in killed.out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (killed.out / FINISHED).exists()
    train_grpo(killed)

    def without_clock(folder: Path) -> list[dict[str, Any]]:
        return [row | {"seconds": 0} for row in read_jsonl(folder / FINISHED)]

    assert without_clock(killed.out) == without_clock(job.out)
    assert read_jsonl(killed.out / PROBES) == read_jsonl(job.out / PROBES)
    whole, resumed = (load_file(f / "checkpoint-6" / "model.safetensors") for f in (job.out, killed.out))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    base = load_model(job.base).state_dict()
    assert any(not torch.equal(base[key], whole[key]) for key in whole), "training moved the weights"

    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    assert train_grpo(replace(job, base="gone", pool=tmp_path / "gone")) == job.out / BEST
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before


@pytest.mark.filterwarnings("error::FutureWarning", "error:.*rollout_func")
def test_a_run_leaves_rows_probes_and_its_best_model(
    job: GrpoJob, varied: None, capfd: pytest.CaptureFixture[str]
) -> None:
    best = train_grpo(job)
    assert "model shards" not in capfd.readouterr().err
    history, probes = run_rows(job.out)
    assert history.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert history.rollout.tolist() == [1, 1, 2, 2, 3, 3]
    assert set(history.seed) == {3}
    assert {"reward", "outcome_reward", "format_reward", "clip_low", "clip_high", "grad_norm"} <= set(history)
    assert probes.rollout.tolist() == [0, 1, 2, 3]
    assert (probes.mean_tokens > 0).all()
    assert load_tokenizer(str(best)).chat_template
    assert not list(job.out.glob("checkpoint-*")), "a finished run keeps no optimiser states"
    # a random model never answers rightly, so the first of the equal probes, the base itself, stays best
    assert set(probes.pass_at_1) == {0.0}
    kept, base = load_model(str(best)).state_dict(), load_model(job.base).state_dict()
    assert all(torch.equal(kept[key], base[key]) for key in base)


def test_a_rollout_draws_a_group_per_prompt_and_new_ones_at_each_step(tiny_model: Path, job: GrpoJob) -> None:
    model = load_model(str(tiny_model)).train()
    accelerator = SimpleNamespace(process_index=0, unwrap_model=lambda wrapped: wrapped)
    state = SimpleNamespace(global_step=0)
    trainer: Any = SimpleNamespace(
        model=model, accelerator=accelerator, state=state, processing_class=load_tokenizer(str(tiny_model))
    )
    prompts = [text for text in ("navy", "a longer one") for _ in range(4)]
    first = _rollout(job)(prompts, trainer)
    assert model.training, "the trainer finds the model as it left it"
    assert [trainer.processing_class.decode(ids) for ids in first["prompt_ids"]] == prompts
    assert len(first["completion_ids"]) == 8
    assert all(1 <= len(ids) <= job.max_completion_tokens for ids in first["completion_ids"])
    assert _rollout(job)(prompts, trainer) == first
    state.global_step = 2
    assert _rollout(job)(prompts, trainer) != first


def test_a_pool_smaller_than_a_rollout_is_refused_with_the_remedy(job: GrpoJob) -> None:
    with pytest.raises(
        DataError, match=r"the pool has 6 prompts, one rollout takes 8; .*prompts_per_rollout=6"
    ):
        train_grpo(replace(job, prompts_per_rollout=8))


def test_the_log_becomes_one_row_per_update_with_our_names(job: GrpoJob) -> None:
    log = [
        {"step": 1, "reward": 0.5, "rewards/outcome_reward/mean": 0.45, "grad_norm": 1.0, "epoch": 0.1},
        {"step": 2, "clip_ratio/high_mean": 0.25, "grad_norm": 2.0, "loss": 0.0},
        {"step": 2, "train_runtime": 3.0},
    ]
    assert history_rows(log, job) == [
        {"seed": 3, "step": 1, "rollout": 1, "reward": 0.5, "outcome_reward": 0.45, "grad_norm": 1.0},
        {"seed": 3, "step": 2, "rollout": 1, "clip_high": 0.25, "grad_norm": 2.0},
    ]
