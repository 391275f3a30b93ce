"""GRPO at tiny size: the sums by hand, TRL's settings, a run that may be killed, and what it leaves.

Where each known trap of TRL 1.16 is guarded:

| trap | guard | test |
| --- | --- | --- |
| both clips idle with one update per rollout | the config wants 2, or on_policy | here, test_config |
| resume inside a rollout buffer diverges | checkpoints at rollout boundaries only | here |
| truncation eats the label | rows are counted before training, none is cut | test_sft |
| an adapter on the LM head raises | all linear layers but the head; merged once, at the end | here |
| groups of equal rewards are trained on | dropped, refilled, and left out of the forward pass | here |
| equal rewards that do not average exactly look like a signal | our own share of idle groups | here |
| `auto_find_batch_size` raises | the batch numbers follow from the job | here |
| bf16 and recomputation on by default, on a CPU too | `sft.hardware` | test_sft, here |
| a ping home per trainer, and per engine of vLLM | HF_HUB_DISABLE_TELEMETRY, VLLM_NO_USAGE_STATS | test_sft |
| removed argument names | the settings are built without a warning | here |
| `apply_chat_template` returns another type | text only, `engine.chat_text` | test_engine |
| NaN is filtered from the log | a gradient that is not finite stops the run | here |
| vLLM gets an adapter merged, as whole weights at each sync | noted in `grpo_job._engine_settings` | here |
| a model opened with `gguf_file=` cannot be saved | written as safetensors, `convert` | test_convert |
| vLLM on a CPU lags behind the weights | importance sampling on, `engine_gap` in the rows | here |
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from transformers import get_scheduler
from trl import GRPOConfig, GRPOTrainer

from lore_lib.artifacts import read_jsonl, write_parquet
from lore_lib.config import Curriculum, Policy, RuntimeConfig, Schedule, load_config
from lore_lib.errors import ArtifactError, ConfigError, DataError, EngineError
from lore_lib.sampling.engine import Drawn, load_model, load_tokenizer
from lore_lib.training.checkpoints import FINISHED
from lore_lib.training.grpo import clipped_objective, group_advantages, train_grpo
from lore_lib.training.grpo_job import GrpoJob, Variant, grpo_config, grpo_job, grpo_jobs, variants
from lore_lib.training.grpo_rows import (
    compare_variants,
    health_rows,
    history_rows,
    look_answers,
    run_rows,
    variant_rows,
)
from lore_lib.training.launch import launch_command, write_job
from lore_lib.training.lean import LeanTrainer
from lore_lib.training.looks import BEST, PROBES, policy_entropy, replace_folder, settle
from lore_lib.training.rewards import Grading, reward, reward_functions
from lore_lib.training.rollout import Rollout, schedule
from lore_lib.training.sft import SftJob, train_sft


@pytest.fixture
def job(grpo_run: Callable[..., GrpoJob]) -> GrpoJob:
    frame = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(6)],
            "query_id": [f"q{i // 2}" for i in range(6)],
            "prompt": [f"query: navy dress\ntitle: dress\nprice: {i}" for i in range(6)],
            "label": ["L1", "L2", "L3", "L4", "L1", "L2"],
        }
    )
    return grpo_run(frame)


class Caught(Exception):
    """Ends a training where the test has seen enough."""


def outcome_reward(
    completions: list[str], label: list[str], log_metric: Any, drawn: Any = ({},), **_: Any
) -> list[float]:
    """A reward that a random model varies in, so that weights move; it logs what was drawn, as ours does."""
    for name, value in drawn[0].items():
        log_metric(name, value)
    return [float(len(text) % 3) for text in completions]


def test_a_job_follows_the_config(tmp_path: Path) -> None:
    config = load_config(
        overrides={"grpo.rollouts": 3, "sampling.batch_completions": 64, "model.device": "cpu"}
    )
    files = {name: tmp_path / name for name in ("pool", "probe", "out")}
    job = grpo_job(config, tmp_path / "base", **files, seed=2)
    assert (job.base, job.out, job.seed) == (str(tmp_path / "base"), tmp_path / "out", 2)
    assert (job.rollouts, job.batch_completions, job.device) == (3, 64, "cpu")
    assert job.probe_n == config.grpo.probe_completions == 8, "looks show the pass@8 that is spoken of"
    assert (job.temperature, job.max_completion_tokens) == (1.0, 168)
    assert job.schedule == "linear"
    constant = load_config(overrides={"grpo.schedule": "constant"})
    assert grpo_job(constant, tmp_path / "base", **files, seed=2).schedule == "constant"


@pytest.mark.parametrize(
    ("schedule", "falling"), [("linear", [0.75, 0.5, 0.25, 0.0]), ("constant", [1.0] * 4)]
)
def test_the_rate_rises_over_a_rollout_then_falls_or_stays(
    job: GrpoJob, schedule: Schedule, falling: list[float]
) -> None:
    config = grpo_config(replace(job, schedule=schedule))  # 3 rollouts of 2 updates
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=config.learning_rate)
    rate = get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=config.get_warmup_steps(config.max_steps),
        num_training_steps=config.max_steps,
    )
    rates = []
    for _ in range(config.max_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"] / job.learning_rate)
        optimizer.step()
        rate.step()
    assert rates == pytest.approx([0.0, 0.5, 1.0, *falling])


@pytest.fixture
def varied(monkeypatch: pytest.MonkeyPatch) -> None:
    def functions(grading: Grading) -> list[Any]:
        return [outcome_reward, *reward_functions(grading)[1:]]

    monkeypatch.setattr("lore_lib.training.grpo.reward_functions", functions)


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
    assert config.reward_weights == [1.0, 0.1, 0.0]
    assert config.max_steps == 20 * 2
    assert config.save_steps == 5 * 2
    assert config.save_steps % 2 == 0, "checkpoints fall on rollout boundaries, whatever the accumulation"
    assert config.steps_per_generation == 2
    assert config.generation_batch_size == 2 * 4
    assert config.num_generations == 4
    assert config.num_iterations == 1
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 0, 1.0)
    assert config.shuffle_dataset is False, "the pool's order is the curriculum"
    assert config.report_to == []
    cpu = grpo_config(replace(job, device="cpu"))
    assert (cpu.use_cpu, cpu.bf16, cpu.activation_checkpointing) == (True, False, False)
    assert not cpu.auto_find_batch_size


def test_the_trainer_clips_with_our_bounds_and_keeps_the_order(
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
    assert order == list(range(3 * 2)), "rollout by rollout, as the schedule has it"


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
    with pytest.raises(ArtifactError, match=r"another training: learning_rate 0\.01 \(now 0\.02\)"):
        train_grpo(replace(killed, learning_rate=0.02))
    train_grpo(replace(killed, pool=job.pool.rename(tmp_path / "moved.parquet")))

    def without_clock(folder: Path) -> list[dict[str, Any]]:
        return [row | {"seconds": 0} for row in read_jsonl(folder / FINISHED)]

    assert without_clock(killed.out) == without_clock(job.out)
    assert read_jsonl(killed.out / PROBES) == read_jsonl(job.out / PROBES)
    whole, resumed = (load_file(f / "checkpoint-6" / "model.safetensors") for f in (job.out, killed.out))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    base = load_model(job.base).state_dict()
    assert any(not torch.equal(base[key], whole[key]) for key in whole), "training moved the weights"

    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    job = replace(job, pool=tmp_path / "moved.parquet")
    assert train_grpo(job) == job.out / BEST
    with pytest.raises(ArtifactError, match=r"another training: base .*, learning_rate 0\.01 \(now 0\.02\)"):
        train_grpo(replace(job, base="gone", learning_rate=0.02))
    with pytest.raises(ArtifactError, match="another training: other contents of probe"):
        train_grpo(replace(job, probe=job.pool))
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before


@pytest.mark.parametrize("ends", ["early", "after all rollouts"])
def test_a_run_killed_between_its_last_checkpoint_and_its_rows_trains_no_more(
    job: GrpoJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    job = replace(job, rollouts=9, patience_looks=2) if ends == "early" else job
    train_grpo(job)
    killed = replace(job, out=tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr("lore_lib.training.grpo._finish", lambda job, log: (_ for _ in ()).throw(Caught))
        with pytest.raises(Caught):
            train_grpo(killed)
    assert not (killed.out / FINISHED).exists()
    monkeypatch.setattr(GRPOTrainer, "training_step", lambda *_: pytest.fail("it trains on"))
    assert train_grpo(killed) == killed.out / BEST
    for folder in (job.out, killed.out):
        assert not list(folder.glob("checkpoint-*"))
    whole, resumed = (run_rows(folder) for folder in (job.out, killed.out))
    for one, other in zip(whole, resumed, strict=True):
        pd.testing.assert_frame_equal(one.assign(seconds=0), other.assign(seconds=0))


@pytest.fixture
def answering_job(tiny_model: Path, tmp_path: Path, job: GrpoJob) -> GrpoJob:
    """From a model that has learnt the form of an answer, so that rewards differ and weights move."""
    frame = pd.DataFrame({"pair_id": [f"p{i}" for i in range(32)]})
    frame["prompt"] = [f"query: navy dress\ntitle: dress\nprice: {i % 6}" for i in range(32)]
    frame["completion"] = [f"[L{1 + i % 4}]" for i in range(32)]
    rows = write_parquet(frame, tmp_path / "rows.parquet")
    tuned = SftJob("direct", str(tiny_model), rows, tmp_path / "tuned", 12, 1e-2, 8, 0.1, 256, 1000)
    return replace(
        job,
        base=str(train_sft(tuned)),
        device="cpu",
        max_completion_tokens=12,
        completions_per_prompt=8,
        rollouts=6,
        learning_rate=1e-3,
        patience_looks=6,
    )


@pytest.mark.slow
def test_a_run_killed_twice_from_outside_ends_with_the_rows_of_a_whole_one(
    answering_job: GrpoJob, tmp_path: Path
) -> None:
    """SIGKILL, at whatever it is doing once a checkpoint is there; then again, later in the resumed run."""
    train_grpo(answering_job)
    history, probes = run_rows(answering_job.out)
    assert history.parse_rate.max() > 0.2
    assert history.grad_norm.max() > 0
    killed = replace(answering_job, out=tmp_path / "killed")
    command = [sys.executable, "-m", "lore_lib.training.launch", str(write_job(killed, tmp_path / "job"))]
    for checkpoint in (2, 6):
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 120
            while not (killed.out / f"checkpoint-{checkpoint}").exists() and time.monotonic() < until:
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert (killed.out / f"checkpoint-{checkpoint}").exists()
        assert not (killed.out / FINISHED).exists()
    train_grpo(killed)
    again = run_rows(killed.out)
    pd.testing.assert_frame_equal(again[0].assign(seconds=0), history.assign(seconds=0))
    pd.testing.assert_frame_equal(again[1], probes)
    whole, resumed = (
        load_file(folder / BEST / "model.safetensors") for folder in (answering_job.out, killed.out)
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class _Saves:
    """Stands for a model and its tokenizer: one small file."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text(self.text, encoding="utf-8")


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_the_best_model_is_whole_wherever_its_replacement_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    best, moves, move = tmp_path / BEST, count(1), Path.replace
    replace_folder(best, _Saves("first"), _Saves("first"))

    def killed(self: Path, target: Path) -> Path:
        if next(moves) == kill_at:
            raise Caught
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        if kill_at < 3:
            with pytest.raises(Caught):
                replace_folder(best, _Saves("second"), _Saves("second"))
        else:
            replace_folder(best, _Saves("second"), _Saves("second"))
    settle(best)
    assert (best / "weights").read_text(encoding="utf-8") == ("first" if kill_at == 1 else "second")
    assert [path.name for path in tmp_path.iterdir()] == [BEST]


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
    assert {"reward", "format_reward", "length_reward", "clip_low", "clip_high"} <= set(history)
    assert {"drawn_reward", "hack_reward", "parse_rate", "top_label_share", "stuffed_share"} <= set(history)
    assert {"grad_norm", "mean_tokens", "zero_variance_share", "refill_share", "idle_share"} <= set(history)
    assert set(history.idle_share.dropna()) == {1.0}, "the reward of the rollout knows no difference"
    assert probes.rollout.tolist() == [0, 1, 2, 3]
    assert (probes.mean_tokens > 0).all()
    assert set(zip(probes.pairs, probes.n, strict=True)) == {(2, 2)}
    assert probes.entropy.between(0.01, np.log(1024)).all()
    assert probes.entropy.nunique() > 1, "of the weights of each look"
    for shown in probes.examples:
        assert [one["pair_id"] for one in shown] == ["p0", "p1"], (
            "one completion of each pair, always the same"
        )
    assert load_tokenizer(str(best)).chat_template
    assert not list(job.out.glob("checkpoint-*")), "a finished run keeps no optimiser states"
    # a random model never answers rightly, so the first of the equal probes, the base itself, stays best
    assert set(probes.pass_at_1) == {0.0}
    kept, base = load_model(str(best)).state_dict(), load_model(job.base).state_dict()
    assert all(torch.equal(kept[key], base[key]) for key in base)


def alone() -> SimpleNamespace:
    """What a rollout asks of accelerate, of one process."""
    return SimpleNamespace(
        process_index=0, num_processes=1, unwrap_model=lambda model: model, autocast=nullcontext
    )


class Hand:
    """A trainer for the sampling hook: a real tokenizer, and groups of completions dealt by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, deal: dict[str, list[str]]) -> None:
        self.processing_class = load_tokenizer(str(folder))
        self.accelerator = alone()
        self.model = load_model(str(folder)).train()
        self.state = SimpleNamespace(global_step=0, max_steps=6)
        self.is_deepspeed_enabled = False
        self.asked: list[list[str]] = []

        def draw(engine: Any, texts: list[str], sampling: Any, share: Any) -> list[list[Drawn]]:
            self.asked.append(texts)
            ids = [self.processing_class(deal[text], add_special_tokens=False)["input_ids"] for text in texts]
            return [[Drawn(tokens) for tokens in group] for group in ids]

        monkeypatch.setattr("lore_lib.training.rollout.HfEngine.draw", draw)


RIGHT, WRONG = "<think>\nx\n</think>\n[L4]", "<think>\nx\n</think>\n[L1]"


def test_groups_without_signal_are_replaced_and_the_labels_follow(
    tiny_model: Path, job: GrpoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"p{i}" for i in range(6)]
    labels = ["L4"] * 6
    deal = {text: [RIGHT] * 4 for text in texts}
    rollout = Rollout(replace(job, window_share=1.0), texts, labels)
    first, second, third, fourth, *_ = rollout.places[0].tolist()
    deal[texts[second]] = deal[texts[third]] = [RIGHT, WRONG, WRONG, RIGHT]
    labels[third] = "L1"  # two of its four are right as well
    trainer: Any = Hand(tiny_model, monkeypatch, deal)
    drawn = rollout([texts[i] for i in (first, second) for _ in range(4)], trainer)
    assert trainer.model.training, "the trainer finds the model as it left it"
    # one of two groups had a signal, so two more were drawn for the one missing
    assert trainer.asked == [[texts[first], texts[second]], [texts[third], texts[fourth]]]
    decoded = trainer.processing_class.batch_decode(drawn["completion_ids"])
    assert decoded == deal[texts[second]] + deal[texts[third]]
    assert (
        trainer.processing_class.batch_decode(drawn["prompt_ids"]) == [texts[second]] * 4 + [texts[third]] * 4
    )
    assert drawn["label"] == ["L4"] * 4 + ["L1"] * 4
    seen = {name: drawn["drawn"][name] for name in ("zero_variance_share", "refill_share", "idle_share")}
    assert seen == {"zero_variance_share": 0.5, "refill_share": 1.0, "idle_share": 0.0}


def test_a_pool_that_is_all_solved_ends_the_refills_and_says_so(
    tiny_model: Path, job: GrpoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"p{i}" for i in range(6)]
    rollout = Rollout(replace(job, window_share=1.0, max_refills=9), texts, ["L4"] * 6)
    trainer: Any = Hand(tiny_model, monkeypatch, {text: [RIGHT] * 4 for text in texts})
    first = [texts[i] for i in rollout.places[0][:2].tolist()]
    drawn = rollout([text for text in first for _ in range(4)], trainer)
    assert sorted(text for asked in trainer.asked for text in asked) == texts, "each prompt once"
    assert trainer.processing_class.batch_decode(drawn["prompt_ids"][::4]) == first
    assert drawn["drawn"] == pytest.approx(
        {
            "zero_variance_share": 1.0,
            "refill_share": 2.0,
            "idle_share": 1.0,
            "drawn_reward": 1.1,
            "hack_reward": 1.1,
            "parse_rate": 1.0,
            "top_label_share": 1.0,
            "no_reasoning_share": 0.0,
            "stuffed_share": 0.0,
            "cut_share": 1.0,  # dealt without the end token
        }
    )


def test_shares_are_of_what_was_drawn_first_not_of_the_groups_that_were_kept(
    tiny_model: Path, job: GrpoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that says L4 to everything but one pair: nothing but that pair is trained on."""
    texts = [f"p{i}" for i in range(6)]
    rollout = Rollout(replace(job, window_share=1.0), texts, ["L4", "L1"] * 3)
    first, second, third, *_ = rollout.places[0].tolist()
    deal = {text: [RIGHT] * 4 for text in texts} | {texts[third]: [RIGHT, WRONG, "", WRONG]}
    trainer: Any = Hand(tiny_model, monkeypatch, deal)
    drawn = rollout([texts[i] for i in (first, second) for _ in range(4)], trainer)
    assert drawn["label"][:4] == [rollout.labels[third]] * 4
    assert (drawn["drawn"]["top_label_share"], drawn["drawn"]["parse_rate"]) == (1.0, 1.0)
    gold = [rollout.labels[i] for i in (first, second)]
    assert drawn["drawn"]["drawn_reward"] == pytest.approx(0.1 + gold.count("L4") / 2)
    assert rollout.hack_reward == pytest.approx(0.1 + 0.5), "of the whole pool"


def test_equal_rewards_are_no_signal_where_trl_takes_their_rounding_for_one() -> None:
    grading = Grading(outcome_start=0.5)
    totals = [reward(RIGHT, "L4", grading, 9, 0.1).total for _ in range(7)]
    assert max(totals) - min(totals) == 0
    assert torch.tensor(totals).std() > 1e-8, "the bound of torch.isclose, by which TRL counts such groups"
    assert np.abs(group_advantages(totals, 7)).max() < 1e-2


def test_a_rollout_draws_a_group_per_prompt_and_new_ones_at_each_step(tiny_model: Path, job: GrpoJob) -> None:
    state = SimpleNamespace(global_step=0, max_steps=6)
    model, tokenizer = load_model(str(tiny_model)).train(), load_tokenizer(str(tiny_model))
    trainer: Any = SimpleNamespace(
        model=model,
        accelerator=alone(),
        state=state,
        processing_class=tokenizer,
        is_deepspeed_enabled=False,
    )
    texts = ["navy", "a longer one"]
    rollout = Rollout(replace(job, window_share=1.0, max_refills=0), texts, ["L1", "L4"])

    def prompts(number: int) -> list[str]:
        return [texts[i] for i in rollout.places[number] for _ in range(4)]

    first = rollout(prompts(0), trainer)
    assert [tokenizer.decode(ids) for ids in first["prompt_ids"]] == prompts(0)
    assert len(first["completion_ids"]) == 8
    assert all(1 <= len(ids) <= job.max_completion_tokens for ids in first["completion_ids"])
    assert rollout(prompts(0), trainer) == first
    state.global_step = 2
    assert rollout(prompts(1), trainer)["completion_ids"] != first["completion_ids"]


def test_the_schedule_slides_from_easy_to_hard_and_never_repeats_within_a_rollout(job: GrpoJob) -> None:
    long = replace(job, rollouts=5, window_share=0.25)
    places = schedule(long, 40)
    assert [sorted(drawn.tolist()) for drawn in places] == [
        list(range(start, start + 10)) for start in (0, 8, 15, 22, 30)
    ]
    shuffled = schedule(replace(long, variant=Variant(curriculum="shuffled")), 40)
    assert all(sorted(drawn.tolist()) == list(range(40)) for drawn in shuffled)
    again = schedule(long, 40)
    assert all((one == other).all() for one, other in zip(places, again, strict=True))
    assert not (places[0] == schedule(replace(long, stream=9), 40)[0]).all()
    assert (places[0] == schedule(replace(long, seed=9), 40)[0]).all(), "a number in the rows, no more"


def test_runs_of_two_projects_draw_different_prompts_under_the_same_numbers(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("pool", "probe", "out")}
    first, second = (
        [grpo_job(load_config(seed=root), "base", **files, seed=seed) for seed in (0, 1, 2)]
        for root in (17, 18)
    )
    assert [job.seed for job in first] == [job.seed for job in second] == [0, 1, 2]
    assert len({job.stream for job in (*first, *second)}) == 6
    assert first[0].stream == grpo_job(load_config(), "base", **files, seed=0).stream
    assert grpo_config(first[1]).seed == first[1].stream
    assert (schedule(first[0], 400)[0] != schedule(second[0], 400)[0]).any()


@pytest.mark.parametrize("policy", get_args(Policy))
def test_every_policy_says_how_a_rollout_is_reused(job: GrpoJob, policy: Policy) -> None:
    config = grpo_config(replace(job, variant=Variant(policy), micro_batch=3))
    updates = 1 if policy == "on_policy" else 2
    assert config.max_steps == 3 * updates
    assert config.per_device_train_batch_size * config.steps_per_generation == 8
    assert config.steps_per_generation == updates * config.gradient_accumulation_steps
    assert config.per_device_train_batch_size == 2, "the largest share of an update within micro_batch"
    assert config.epsilon_high == (0.28 if policy == "clip_higher" else 0.2)
    assert config.save_steps % updates == 0, "inside a rollout the rest of its samples would be lost"


def test_variants_are_every_policy_with_every_curriculum_the_recipe_first() -> None:
    config = load_config(
        overrides={"grpo.policies": list(get_args(Policy)), "grpo.curricula": list(get_args(Curriculum))}
    )
    made = variants(config.grpo)
    assert {(one.policy, one.curriculum) for one in made} == set(
        product(get_args(Policy), get_args(Curriculum))
    )
    assert made[0] == variants(load_config().grpo)[0] == Variant("clip_higher", "easy_to_hard")
    jobs = grpo_jobs(config, "base", Path("pool"), Path("probe"), Path("runs"))
    assert [job.out for job in jobs[:4]] == [
        Path("runs", name) for name in ("seed-0", "seed-1", "seed-2", "symmetric-easy_to_hard/seed-0")
    ]
    assert len({job.out for job in jobs}) == len(jobs) == 6 * 3


def test_one_update_per_rollout_wants_the_clips_declared_off() -> None:
    with pytest.raises(ConfigError, match=r"both clips are idle.*policies=\[on_policy\]"):
        load_config(overrides={"grpo.updates_per_rollout": 1})
    load_config(overrides={"grpo.updates_per_rollout": 1, "grpo.policies": ["on_policy"]})


def test_processes_share_a_rollout_evenly_or_are_refused(job: GrpoJob) -> None:
    alone, shared = grpo_config(job), grpo_config(job, processes=2)
    assert shared.per_device_train_batch_size * 2 == alone.per_device_train_batch_size
    assert shared.steps_per_generation == alone.steps_per_generation
    with pytest.raises(DataError, match=r"3 processes cannot share 2 prompts.*prompts_per_rollout=3"):
        grpo_config(job, processes=3)


def trainer_of(kind: type[GRPOTrainer], job: GrpoJob) -> GRPOTrainer:
    """A trainer with one prompt and one reward, for its loss alone."""
    return kind(
        model=load_model(job.base),
        reward_funcs=[outcome_reward],
        args=GRPOConfig(
            output_dir=str(job.out),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            per_device_train_batch_size=8,
            num_generations=4,
            steps_per_generation=2,
            loss_type="dapo",
            epsilon=0.2,
            epsilon_high=0.28,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["navy"], "label": ["L4"]}),
        processing_class=load_tokenizer(job.base),
    )


def test_the_lean_trainer_has_the_loss_and_the_gradient_of_trl(job: GrpoJob) -> None:
    rng = np.random.default_rng(5)
    prompt_tokens, completion_tokens = rng.integers(3, 30, 40), rng.integers(1, 40, 40)
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(5, 300, (n,), generator=draw) for n in prompt_tokens]
    completions = [torch.randint(5, 300, (n,), generator=draw) for n in completion_tokens]
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = {
        "prompt_ids": pad(prompts, batch_first=True, padding_side="left"),
        "prompt_mask": pad([torch.ones_like(ids) for ids in prompts], batch_first=True, padding_side="left"),
        "completion_ids": pad(completions, batch_first=True),
        "completion_mask": pad([torch.ones_like(ids) for ids in completions], batch_first=True),
        "advantages": torch.tensor(rng.choice([0.0, 0.0, 0.9, -0.9], 40), dtype=torch.float32),
        "num_items_in_batch": torch.tensor(1000),
        "old_per_token_logps": -7 + 0.5 * torch.randn(40, completion_tokens.max(), generator=draw),
    }
    losses, gradients, seen = [], [], []
    for kind in (GRPOTrainer, LeanTrainer):
        trainer = trainer_of(kind, job)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer.model.register_forward_pre_hook(
            lambda model, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()})
        seen.append(0)
    stock, lean = gradients
    assert abs(losses[0]) > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, gradient in stock.items():
        assert torch.allclose(gradient, lean[name], atol=1e-6, rtol=1e-3), name
    whole, trimmed = seen[0], sum(seen[2:])
    assert whole == 40 * (prompt_tokens.max() + completion_tokens.max())
    assert trimmed < whole / 2


def test_strictly_on_policy_never_clips_and_reused_samples_do(
    job: GrpoJob, varied: None, tmp_path: Path
) -> None:
    shares = {}
    for policy in ("on_policy", "clip_higher"):
        out = tmp_path / policy
        one = replace(job, variant=Variant(policy), out=out, learning_rate=0.1, rollouts=2, micro_batch=4)  # type: ignore[arg-type]
        train_grpo(one)
        history, probes = run_rows(out)
        shares[policy] = history[["clip_low", "clip_high"]].to_numpy().max()
        assert set(history.variant) == set(probes.variant) == {f"{policy}, easy_to_hard"}
    assert shares["on_policy"] == 0
    assert shares["clip_higher"] > 0


def test_a_run_without_a_new_best_stops_early_and_keeps_the_base(job: GrpoJob) -> None:
    best = train_grpo(replace(job, rollouts=9, patience_looks=2))
    history, probes = run_rows(job.out)
    assert probes.rollout.tolist() == [0, 1, 2], "a random model never answers rightly"
    assert history.rollout.max() == 2
    assert (best / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights(
    job: GrpoJob, varied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loss = count(1), LeanTrainer._compute_loss

    def spoiled(self: LeanTrainer, *args: Any) -> torch.Tensor:
        return loss(self, *args) * (float("nan") if next(calls) == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(LeanTrainer, "_compute_loss", spoiled)
        with pytest.raises(
            EngineError, match=r"not finite at update 4 .*checkpoint-2.*learning_rate=0\.0033"
        ):
            train_grpo(job)
    for kept in (job.out / BEST, job.out / "checkpoint-2"):
        weights = load_file(kept / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
    train_grpo(job)
    assert run_rows(job.out)[0].step.tolist() == [1, 2, 3, 4, 5, 6]


def test_an_adapter_trains_on_after_its_best_look_and_is_merged_at_the_end(
    job: GrpoJob, varied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lore_lib.training.grpo.drop_checkpoints", lambda _: None)
    best = train_grpo(replace(job, lora_rank=2, rollouts=2, learning_rate=1e-2))
    assert not (best / "adapter_config.json").exists()
    merged, base = load_model(str(best)).state_dict(), load_model(job.base).state_dict()
    assert merged.keys() == base.keys()
    assert all(torch.allclose(merged[name], base[name]) for name in base), "the best look was the first"
    adapter = load_file(job.out / "checkpoint-4" / "adapter_model.safetensors")
    assert all(".lora_" in name and "lm_head" not in name for name in adapter)
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_a_pool_smaller_than_a_rollout_is_refused_with_the_remedy(job: GrpoJob) -> None:
    with pytest.raises(
        DataError, match=r"the pool has 6 prompts, one rollout takes 8; .*prompts_per_rollout=6"
    ):
        train_grpo(replace(job, prompts_per_rollout=8))


def test_a_pool_of_one_label_is_refused(job: GrpoJob) -> None:
    write_parquet(pd.read_parquet(job.pool).assign(label="L3"), job.pool)
    with pytest.raises(DataError, match="all 6 prompts of the pool carry the label 'L3'"):
        train_grpo(job)
    assert not job.out.exists()


@pytest.mark.parametrize("table", ["pool", "probe"])
def test_prompts_that_leave_no_room_for_a_completion_are_refused(job: GrpoJob, table: str) -> None:
    rows = pd.read_parquet(getattr(job, table))
    rows.loc[1, "prompt"] = "navy dress " * 400
    write_parquet(rows, getattr(job, table))
    with pytest.raises(EngineError, match=r"1 of 8 prompts leave no room .* of 6 tokens in a context of 512"):
        train_grpo(job)
    assert not job.out.exists()


def test_the_log_becomes_one_row_per_update_with_our_names(job: GrpoJob) -> None:
    log = [
        {"step": 1, "reward": 0.5, "outcome": 0.45, "grad_norm": 1.0, "epoch": 0.1},
        {"step": 2, "clip_ratio/high_mean": 0.25, "grad_norm": 2.0, "loss": 0.0},
        {"step": 2, "train_runtime": 3.0},
    ]
    made = {"seed": 3, "variant": "clip_higher, easy_to_hard", "rollout": 1}
    assert history_rows(log, job) == [
        made | {"step": 1, "reward": 0.5, "outcome_reward": 0.45, "grad_norm": 1.0},
        made | {"step": 2, "clip_high": 0.25, "grad_norm": 2.0},
    ]


def logged(variant: str, seed: int, gain: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two rollouts of two updates, and a look before, between and after."""
    history = pd.DataFrame({"rollout": [1, 1, 2, 2], "stuffed_share": [0.1, 0.3, 0.2, 0.4]})
    for name in (
        "drawn_reward",
        "hack_reward",
        "parse_rate",
        "top_label_share",
        "no_reasoning_share",
        "clip_low",
        "clip_high",
        "zero_variance_share",
        "idle_share",
        "mean_tokens",
    ):
        history[name] = [0.5, np.nan, 0.7, np.nan]
    looks = {
        "rollout": [0, 1, 2],
        "pass_at_1": [0.5, 0.5 + 2 * gain, 0.5 + gain],
        "pass_at_k": [0.9, 0.9, 0.8],
    }
    probes = pd.DataFrame(looks | {"mean_tokens": [40.0, 39.0, 38.0], "entropy": [0.3, 0.3, 0.4]})
    probes = probes.assign(pairs=1240, n=4)
    return history.assign(variant=variant, seed=seed), probes.assign(variant=variant, seed=seed)


def test_curves_have_a_row_per_rollout_and_quantity_and_the_variants_one_panel_each() -> None:
    runs = [logged("recipe", 0, 0.1), logged("recipe", 1, 0.2), logged("other", 0, 0.0)]
    history, probes = (pd.concat(rows) for rows in zip(*runs, strict=True))
    health = health_rows(history, probes)
    assert set(health.variant) == {"recipe"}
    one = health[health.seed == 0].groupby("series", sort=False).value.agg(list)
    assert one["labels stuffed"] == pytest.approx([0.2, 0.3]), "the mean of a rollout's updates"
    assert one["model"] == [0.5, 0.7], "rewards are logged once per rollout"
    entropy = health[(health.panel == "entropy (nats per token), dev") & (health.seed == 0)]
    assert entropy.value.tolist() == [0.3, 0.3, 0.4]
    dev = health[health.panel == "dev: 1,240 pairs x 4 completions"]
    chance = {"pass@1": 0.25, "pass@4": 1 - 0.75**4}
    assert dev.groupby("series").chance.agg(set).map(list).explode().to_dict() == pytest.approx(chance)
    assert health.chance.notna().sum() == len(dev), "only passing has a chance line"
    ways = variant_rows(history, probes)
    assert (ways.series == ways.variant).all()
    assert ways.groupby("panel").series.nunique().eq(2).all()
    assert {"pass@4, dev 1,240 pairs x 4", "tokens, dev"} <= set(ways.panel)
    crossed = [logged(f"{clip}, {order}", 0, 0.1) for order in ("easy", "mixed") for clip in ("high", "even")]
    ways = variant_rows(*(pd.concat(rows) for rows in zip(*crossed, strict=True)))
    assert list(dict.fromkeys(ways.panel))[:3] == [
        "reward, drawn first: easy",
        "reward, drawn first: mixed",
        "entropy (nats per token), dev: easy",
    ]
    assert ways.groupby("panel").series.agg(set).eq({"high", "even"}).all()
    assert ways.quantity.nunique() == 5


def test_variants_are_compared_from_the_first_look_over_seeds() -> None:
    runs = [logged("recipe", 0, 0.1), logged("recipe", 1, 0.2), logged("other", 0, 0.0)]
    history, probes = (pd.concat(rows) for rows in zip(*runs, strict=True))
    table = compare_variants(probes, history).set_index("variant")
    recipe = table.loc["recipe"]
    expected = [2, 0.5, 0.3, 0.15, 0.1, 0.2, -0.1, -2.0, 0.1, 0.6, 0.6]  # the last are of the training
    assert recipe.tolist() == pytest.approx(expected)
    assert table.loc["other", "last"] == 0


def test_the_last_look_of_each_run_is_read_with_its_labels() -> None:
    said = ["<think>\nx\n</think>\n[L4]", "<script>", "[L1]"]
    probes = pd.DataFrame(
        [
            {"variant": variant, "seed": seed, "rollout": rollout, "examples": [
                {"pair_id": "p0", "completion": said[rollout // 2]},
                {"pair_id": "p7", "completion": said[0]},
            ]}
            for variant in ("recipe", "other")
            for seed, last in ((1, 2), (0, 4))
            for rollout in ((0, last) if variant == "recipe" else (0, 4))
        ]
    )  # fmt: skip
    answers = look_answers(probes)
    assert answers.system.tolist() == ["seed 0", "seed 0", "seed 1", "seed 1"]
    assert answers.label.tolist() == ["L1", "L4", "", "L4"]
    assert answers.parse_kind.tolist() == ["ok", "ok", "no_label", "ok"]


def test_the_entropy_of_a_look_is_that_of_the_policy_at_its_temperature(job: GrpoJob) -> None:
    trainer = trainer_of(LeanTrainer, job)
    tokenizer, model = trainer.processing_class, trainer.model
    texts = ["navy", "a longer dress, navy", "dress"] * 7
    completions = [
        tokenizer(word, add_special_tokens=False)["input_ids"] for word in ["red", "navy red", "x"]
    ] * 7
    total, count_ = 0.0, 0
    for text, said in zip(texts, completions, strict=True):
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
        scores = torch.log_softmax(logits.float(), -1)
        total, count_ = total - float((scores.exp() * scores).sum()), count_ + len(said)
    found = policy_entropy(trainer, texts, completions)
    assert found == pytest.approx(total / count_, rel=1e-4)
    assert trainer.model.training
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)
    assert policy_entropy(trainer, texts, completions) < 0.5 * found, "a sure policy has little"


@pytest.mark.slow
def test_two_processes_draw_the_rollouts_of_one_and_make_its_updates(
    job: GrpoJob, by_length: str, tmp_path: Path
) -> None:
    """With one update per rollout: of several, TRL deals the completions to the updates in another order.

    Sums are taken in another order too: float32 rounding, which Adam carries on. Each batch is of one prompt,
    so that both processes draw; refills included, for a random model never earns the real reward.
    """
    script = tmp_path / "varied.py"
    script.write_text(f"import sys\n{by_length}\nlaunch.main(sys.argv[1:])\n", encoding="utf-8")
    whole = replace(
        job,
        device="cpu",
        variant=Variant("on_policy"),
        batch_completions=4,
        learning_rate=1e-3,
        window_share=1.0,
    )
    histories, looks = {}, {}
    for processes in (1, 2):
        run = replace(whole, out=tmp_path / f"{processes}")
        file = write_job(run, tmp_path / f"{processes}.json")
        launcher = launch_command(file, RuntimeConfig(processes=processes, accelerate="cpu"))[:-3]
        command = [*launcher, str(script), str(file)] if processes > 1 else [sys.executable, script, file]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        histories[processes], looks[processes] = run_rows(run.out)
    one, two = histories[1], histories[2]
    assert one.step.tolist() == two.step.tolist() == [1, 2, 3]
    assert one.refill_share.tolist() == [2.0] * 3
    for name in (
        "mean_tokens",
        "refill_share",
        "zero_variance_share",
        "drawn_reward",
        "hack_reward",
        "stuffed_share",
    ):
        assert two[name].tolist() == one[name].tolist(), name
    assert one.grad_norm.min() > 0.01
    assert two.grad_norm.tolist() == pytest.approx(one.grad_norm.tolist(), rel=1e-3)
    assert looks[2].examples.map(list).tolist() == looks[1].examples.map(list).tolist()
    assert looks[2].entropy.tolist() == pytest.approx(looks[1].entropy.tolist(), rel=1e-3)


class Handed:
    """TRL's hold on a server, without NCCL: the weights are handed over in this process."""

    servers: ClassVar[list[Any]] = []
    handed: ClassVar[list[int]] = []

    def __init__(self, model: Any, mode: str, server_base_url: str, **_: Any) -> None:
        assert mode == "server"
        self._model = model
        (self._server,) = (one for one in self.servers if one.url == f"{server_base_url}/v1")
        info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: info)

    def sync_weights(self) -> None:
        self.handed.append(1)
        self._server.model.load_state_dict(self._model.state_dict())


@pytest.fixture
def elsewhere(
    job: GrpoJob, serve_model: Callable[[Path, str], Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[GrpoJob, Any]:
    server = serve_model(Path(job.base), job.base)
    monkeypatch.setattr(Handed, "servers", [server])
    monkeypatch.setattr(Handed, "handed", [])
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Handed)
    return replace(job, engine="server", url=server.url, device="cpu", window_share=1.0), server


def test_a_server_draws_with_the_weights_of_the_moment(elsewhere: tuple[GrpoJob, Any], varied: None) -> None:
    job, server = elsewhere
    train_grpo(job)
    history, probes = run_rows(job.out)
    assert history.engine_gap.dropna().tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    assert history.grad_norm.min() > 0.01, "the weights move"
    assert history.refill_share.dropna().tolist() == [2.0] * 3
    assert probes.rollout.tolist() == [0, 1, 2, 3]
    assert len(Handed.handed) == 1 + job.rollouts, "at each look, and not again for the rollout after it"
    drawn = [body for body in server.bodies if body["n"] == job.completions_per_prompt]
    assert len(drawn) == 3 * 6
    assert len({(*body["prompt"], body["seed"]) for body in drawn}) == len(drawn)


def test_stale_weights_show_as_a_gap(
    elsewhere: tuple[GrpoJob, Any], varied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = elsewhere
    monkeypatch.setattr(Handed, "sync_weights", lambda self: None)
    train_grpo(replace(job, learning_rate=0.1))
    gap = run_rows(job.out)[0].engine_gap.dropna()
    assert gap.iloc[0] == pytest.approx(0, abs=1e-4)
    assert gap.iloc[-1] > 0.05


def test_a_server_that_dies_in_a_rollout_ends_the_run_and_nothing_is_lost(
    elsewhere: tuple[GrpoJob, Any], varied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, server = elsewhere
    # a look asks for two prompts; the first rollout has two and refills of four
    server.trouble = lambda number, body: (200 if number < 2 + 6 + 2 + 3 else 400, "")
    with pytest.raises(EngineError, match=r"calls to http://127.* brought no completion .*refused"):
        train_grpo(job)
    kept = [path.name for path in job.out.glob("checkpoint-*")]
    assert kept == ["checkpoint-2"]
    server.trouble = lambda number, body: (200, "")
    train_grpo(job)
    assert run_rows(job.out)[0].step.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_server_that_is_not_there_is_told_with_its_command(
    job: GrpoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(**_: Any) -> None:
        raise ConnectionError("can't be reached")

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", nobody)
    away = replace(job, engine="server", url="http://127.0.0.1:9/v1", device="cpu")
    with pytest.raises(EngineError, match=r"grpo\.url=http://127\.0\.0\.1:9/v1 does not answer.*vllm serve"):
        train_grpo(away)


def test_an_update_that_runs_out_of_memory_names_the_two_knobs(
    job: GrpoJob, varied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LeanTrainer, "_compute_loss", full)
    with pytest.raises(
        EngineError, match=r"out of memory with 64 .*micro_batch_completions \(to 32\), then features\.budget"
    ):
        train_grpo(job)


@pytest.fixture
def beside(job: GrpoJob, monkeypatch: pytest.MonkeyPatch) -> GrpoJob:
    """vLLM's CPU build in this process."""
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}.items():
        monkeypatch.setenv(name, value)
    return replace(job, engine="vllm", device="cpu", learning_rate=0.1)


@pytest.mark.vllm
def test_vllm_beside_the_model_draws_with_the_weights_of_the_moment(beside: GrpoJob, varied: None) -> None:
    train_grpo(beside)
    history, probes = run_rows(beside.out)
    gap = history.engine_gap.dropna()
    assert len(gap) == beside.rollouts
    assert gap.max() < 0.02, "nats per token; stale weights are further apart"
    assert probes.entropy.iloc[-1] < 0.5 * probes.entropy.iloc[0], "the weights have moved far"
    assert probes.rollout.tolist() == [0, 1, 2, 3]
    assert probes.examples.map(str).nunique() > 1
