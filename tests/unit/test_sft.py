"""Supervised tuning at tiny size: loss on the completion, no row cut, finished arms kept, kills resumed."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from lore_lib.artifacts import write_parquet
from lore_lib.config import load_config
from lore_lib.device import resolve_device
from lore_lib.errors import ArtifactError, ConfigError, DataError, EngineError
from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer
from lore_lib.training import sft
from lore_lib.training.head import score_labelled_positions
from lore_lib.training.sft import (
    SftJob,
    check_lengths,
    sft_config,
    sft_job,
    share_batch,
    train_sft,
    training_history,
)

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


@pytest.mark.parametrize("at", [4, 6])
def test_a_killed_arm_resumes_to_the_same_weights_and_a_finished_one_is_kept(
    job: SftJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In the first epoch of three steps, and in the second, whose order is another."""
    train_sft(job)
    killed = replace(job, out=tmp_path / "killed")
    steps, step = count(1), SFTTrainer.training_step

    def killed_there(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == at:
            raise Caught
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", killed_there)
        with pytest.raises(Caught):
            train_sft(killed)
    assert not (killed.out / sft.FINISHED).exists()
    assert [path.name for path in killed.out.glob("checkpoint-*")] == [f"checkpoint-{at - 2}"]
    half_written = killed.out / f"checkpoint-{at - 1}"
    half_written.mkdir()
    shutil.copy(killed.out / f"checkpoint-{at - 2}" / "model.safetensors", half_written)
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


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_equal_seeds_give_equal_weights_to_the_bit_and_other_seeds_others(
    job: SftJob, tmp_path: Path, lora_rank: int
) -> None:
    short = replace(job, epochs=1, lora_rank=lora_rank)
    seeds = {"one": 17, "again": 17, "other": 18}
    one, again, other = (
        load_file(train_sft(replace(short, out=tmp_path / name, seed=seed)) / "model.safetensors")
        for name, seed in seeds.items()
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_in_parts_trains_to_the_same_losses(job: SftJob, tmp_path: Path) -> None:
    """The mean is over the tokens of the whole batch, so parts of unequal length weigh what they should."""
    whole, parts = (
        [row["loss"] for row in training_history(train_sft(replace(job, out=tmp_path / name, **how)))]
        for name, how in {"whole": {}, "parts": {"pairs_at_once": 1}}.items()
    )
    assert parts == pytest.approx(whole, rel=1e-4)
    assert whole[-1] < whole[0]


@pytest.mark.parametrize("labelled", [1, 9, 40])
def test_the_head_that_scores_labelled_positions_alone_gives_trls_numbers(
    tiny_model: Path, labelled: int
) -> None:
    ids = torch.randint(4, 300, (3, 41), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :-labelled] = -100
    labels[0, :-1] = -100
    given = {"input_ids": ids, "labels": labels, "num_items_in_batch": 7, "fused_lm_head": True}
    told = []
    for ours in (False, True):
        model = load_model(str(tiny_model))
        add_fused_lm_head(model, 0.7, outputs=("log_probs", "entropy", "is_top1"))
        if ours:
            score_labelled_positions(model, 0.7)
        out = model(**given)
        out.loss.backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        told.append([out.loss, out.log_probs, out.entropy, out.is_top1.float(), out.label_mask, gradients])
        assert model(input_ids=ids).logits.shape == (3, 41, model.config.vocab_size)
    for trls, mine in zip(*told, strict=True):
        torch.testing.assert_close(mine, trls, rtol=1e-4, atol=1e-6)
    assert told[0][5].abs().max() > 1e-3


@pytest.mark.parametrize("share", [(16, 3, 0), (2, 4, 0)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(share: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"cannot be shared evenly by . processes; use \d+ or \d+"):
        share_batch(*share)


def test_rows_of_one_label_alone_are_refused(job: SftJob) -> None:
    write_parquet(pd.read_parquet(job.rows).assign(completion="[L4]"), job.rows)
    with pytest.raises(DataError, match="all 12 rows carry the label 'L4'"):
        train_sft(job)


def test_a_row_longer_than_the_models_context_is_refused(job: SftJob) -> None:
    rows = pd.read_parquet(job.rows)
    rows.loc[3, "prompt"] = "navy dress " * 400
    write_parquet(rows, job.rows)
    with pytest.raises(DataError, match=r"longest row has \d+ tokens and the model's context 512"):
        train_sft(replace(job, max_sequence_tokens=4096))
    assert not job.out.exists()


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(job: SftJob, tmp_path: Path) -> None:
    model = load_model(job.base)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    load_tokenizer(job.base).save_pretrained(broken)
    with pytest.raises(EngineError, match=r"loss of step 1 is nan.*Lower the learning rate \(now 0\.01\)"):
        train_sft(replace(job, base=str(broken)))
    assert not list(job.out.glob("checkpoint-*"))
    assert not (job.out / sft.FINISHED).exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_too_little_memory_names_the_two_settings_in_order(
    job: SftJob, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(SFTTrainer, "training_step", full)
    with pytest.raises(EngineError, match=r"4 pairs .* sft\.pairs_at_once \(to 2\), then features\.budget"):
        train_sft(job)


def test_the_checkpoints_of_another_job_or_model_are_not_gone_on_from(
    job: SftJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = count(1), SFTTrainer.training_step

    def killed(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 4:
            raise Caught
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", killed)
        with pytest.raises(Caught):
            train_sft(job)
    with pytest.raises(ArtifactError, match=r"another training: learning_rate 0\.01 \(now 0\.02\), seed 17 "):
        train_sft(replace(job, learning_rate=0.02, seed=18))
    other = shutil.copytree(job.base, tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"another training: base '.*' \(now '.*other'\)"):
        train_sft(replace(job, base=str(other)))


def test_a_tokenizer_without_pad_token_still_teaches_the_end(job: SftJob, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(job.base)
    tokenizer.pad_token = None
    folder = tmp_path / "padless"
    tokenizer.save_pretrained(folder)
    load_model(job.base).save_pretrained(folder)
    told = training_history(train_sft(replace(job, base=str(folder), epochs=1)))
    padded = training_history(train_sft(replace(job, out=tmp_path / "padded", epochs=1)))
    assert load_tokenizer(str(folder)).pad_token == tokenizer.eos_token
    assert [row["loss"] for row in told] == [row["loss"] for row in padded]


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


def test_no_trainer_pings_home() -> None:
    """In a fresh process without our settings: the hub reads its switch once, when it is imported."""
    code = "import lore_lib, huggingface_hub.constants as c; raise SystemExit(not c.HF_HUB_DISABLE_TELEMETRY)"
    clean = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    assert subprocess.run([sys.executable, "-c", code], env=clean, check=False).returncode == 0
