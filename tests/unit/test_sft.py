"""Supervised tuning at tiny size: loss on the completion, no row cut, finished arms kept, kills resumed."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from lore_lib.artifacts import write_parquet
from lore_lib.config import load_config
from lore_lib.device import resolve_device
from lore_lib.errors import DataError
from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer
from lore_lib.training import sft
from lore_lib.training.sft import SftJob, check_lengths, sft_config, sft_job, train_sft, training_history

COMPLETION = "<think>\nneed: color navy\ncolor navy: azure near\n</think>\n[L3]"


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> SftJob:
    frame = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(12)],
            "prompt": [f"query: navy dress\ntitle: {'soft ' * (i % 5)}dress\nprice: {i}" for i in range(12)],
            "completion": [COMPLETION if i % 2 else "[L2-Price Mismatch]" for i in range(12)],
        }
    )
    rows = write_parquet(frame, tmp_path / "rows.parquet")
    return SftJob(
        "progressive",
        str(tiny_model),
        rows,
        tmp_path / "out",
        epochs=2,
        learning_rate=1e-2,
        batch_pairs=4,
        warmup_share=0.1,
        max_sequence_tokens=256,
        checkpoint_steps=2,
    )


class Caught(Exception):
    """Ends a training where the test has seen enough."""


def test_the_loss_lies_on_the_completion_and_its_end_token_alone(
    job: SftJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, torch.Tensor]] = []

    def look(self: SFTTrainer, **_: object) -> None:
        batches.extend(self.get_train_dataloader())
        raise Caught

    monkeypatch.setattr(SFTTrainer, "train", look)
    with pytest.raises(Caught):
        train_sft(job)
    tokenizer = load_tokenizer(job.base)
    seen = 0
    for batch in batches:
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            scored, text = tokenizer.decode(ids[labels != -100]), tokenizer.decode(ids[mask == 1])
            assert scored in (f"{COMPLETION}<|im_end|>", "[L2-Price Mismatch]<|im_end|>")
            context = text.removesuffix(scored)
            assert context.endswith("<|im_start|>assistant\n")
            assert context == chat_text(tokenizer, context.split("user\n")[1].split("<|im_end|>")[0])
            seen += 1
    assert seen == 12


def test_a_row_over_the_limit_is_refused_with_counts_and_never_cut(job: SftJob) -> None:
    tokenizer = load_tokenizer(job.base)
    rows = pd.read_parquet(job.rows)
    data = pd.DataFrame(
        {"prompt": [chat_text(tokenizer, p) for p in rows.prompt], "completion": rows.completion}
    )
    longest = check_lengths(tokenizer, data, rows.pair_id.tolist(), 256)
    assert check_lengths(tokenizer, data, rows.pair_id.tolist(), longest) == longest
    with pytest.raises(
        DataError,
        match=rf"\d of 12 rows are longer than max_sequence_tokens={longest - 1} .*pair 'p9'.*={longest} ",
    ):
        check_lengths(tokenizer, data, rows.pair_id.tolist(), longest - 1)
    with pytest.raises(DataError, match="12 of 12 rows are longer than max_sequence_tokens=20"):
        train_sft(replace(job, max_sequence_tokens=20))
    assert not job.out.exists()


def test_rows_that_the_funnel_dropped_are_not_taught(job: SftJob, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.read_parquet(job.rows)
    write_parquet(rows.assign(kept=rows.index < 5), job.rows)
    taught: list[int] = []

    def look(self: SFTTrainer, **_: object) -> None:
        taught.append(len(self.train_dataset))
        raise Caught

    monkeypatch.setattr(SFTTrainer, "train", look)
    with pytest.raises(Caught):
        train_sft(job)
    assert taught == [5]
    write_parquet(rows.assign(kept=False), job.rows)
    with pytest.raises(DataError, match="no rows to train on"):
        train_sft(job)


def test_no_rows_are_refused(job: SftJob) -> None:
    write_parquet(pd.read_parquet(job.rows).head(0), job.rows)
    with pytest.raises(DataError, match="no rows to train on"):
        train_sft(job)


def test_a_killed_arm_resumes_to_the_same_weights_and_a_finished_one_is_kept(
    job: SftJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_sft(job)
    killed = replace(job, out=tmp_path / "killed")
    steps, step = count(1), SFTTrainer.training_step

    def killed_at_the_fourth_step(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 4:
            raise Caught
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", killed_at_the_fourth_step)
        with pytest.raises(Caught):
            train_sft(killed)
    assert not (killed.out / sft.FINISHED).exists()
    assert [path.name for path in killed.out.glob("checkpoint-*")] == ["checkpoint-2"]
    train_sft(killed)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (job.out, killed.out))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)

    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    assert train_sft(replace(job, base="gone", rows=tmp_path / "gone")) == job.out
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before


@pytest.mark.filterwarnings("error::FutureWarning")
def test_tuning_lowers_the_loss_and_leaves_a_model_that_loads(
    job: SftJob, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten epochs make 30 steps, so that the log holds the first step and every tenth."""
    folder = train_sft(replace(job, epochs=10, checkpoint_steps=100))
    assert "model shards" not in capfd.readouterr().err
    history = training_history(folder)
    assert [row["step"] for row in history] == [1, 10, 20, 30]
    assert {row["arm"] for row in history} == {"progressive"}
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    base, tuned = load_model(job.base).state_dict(), load_model(str(folder)).state_dict()
    assert not all(torch.equal(base[key], tuned[key]) for key in base)
    assert load_tokenizer(str(folder)).chat_template == load_tokenizer(job.base).chat_template


@pytest.mark.filterwarnings("error::FutureWarning")
def test_an_adapter_is_merged_into_a_whole_model(job: SftJob) -> None:
    folder = train_sft(replace(job, epochs=1, lora_rank=4))
    assert not (folder / "adapter_config.json").exists()
    base, tuned = load_model(job.base).state_dict(), load_model(str(folder)).state_dict()
    assert base.keys() == tuned.keys()
    moved = {key for key in base if not torch.equal(base[key], tuned[key])}
    assert moved
    assert all("proj" in key for key in moved)


def test_a_job_follows_the_config(tmp_path: Path) -> None:
    config = load_config(
        overrides={"sft.epochs": 5, "model.lora_rank": 8, "model.device": "cpu", "model.base": "a/b"}
    )
    job = sft_job(config, "naive", tmp_path / "traces-naive.parquet", tmp_path / "out")
    assert (job.arm, job.base, job.epochs, job.lora_rank, job.device) == ("naive", "a/b", 5, 8, "cpu")
    assert (job.batch_pairs, job.max_sequence_tokens) == (16, 256)
    assert sft_config(job).use_cpu


@pytest.mark.filterwarnings("error")
def test_the_installed_trl_takes_our_settings(job: SftJob) -> None:
    config = sft_config(job)
    assert isinstance(config, SFTConfig)
    assert config.completion_only_loss is True
    assert not config.packing
    assert config.max_length == 256
    assert config.report_to == []
    assert (config.save_steps, config.save_total_limit) == (2, 1)
    assert config.use_cpu is (resolve_device("auto") == "cpu")
    assert config.bf16 is torch.cuda.is_available()
