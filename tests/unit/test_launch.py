"""Training in processes of its own: the same numbers as in this one, and a kill that loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from lore_lib.artifacts import write_parquet
from lore_lib.config import RuntimeConfig, load_config
from lore_lib.errors import ConfigError, EngineError
from lore_lib.training.checkpoints import FINISHED
from lore_lib.training.grpo_job import grpo_job
from lore_lib.training.launch import launch_command, read_job, train_all, write_job
from lore_lib.training.sft import SftJob, train_sft, training_history

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> SftJob:
    frame = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(24)],
            "prompt": [f"query: navy dress\ntitle: {'soft ' * (i % 7)}dress\nprice: {i}" for i in range(24)],
            "completion": [f"<think>\n{'dress ' * (i % 3)}\n</think>\n[L{1 + i % 4}]" for i in range(24)],
        }
    )
    rows = write_parquet(frame, tmp_path / "rows.parquet")
    return SftJob("naive", str(tiny_model), rows, tmp_path / "out", 4, 1e-2, 8, 0.1, 256, 2, device="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_job_survives_being_written(job: SftJob, tmp_path: Path) -> None:
    rl = grpo_job(load_config(), "base", tmp_path / "pool", tmp_path / "probe", tmp_path / "rl", 3)
    for written in (job, rl):
        assert read_job(write_job(written, tmp_path / "job.json")) == written


def test_one_process_trains_as_ever(job: SftJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(work: Callable[[SftJob], Path], jobs: list[SftJob], workers: int, label: str) -> list[Path]:
        assert workers == 2
        return [work(each) for each in jobs]

    monkeypatch.setattr("lore_lib.training.launch.run_parallel", here)
    assert train_all([replace(job, epochs=1)], RuntimeConfig(workers=2)) == [job.out]
    assert (job.out / FINISHED).exists()


def test_the_command_names_the_file_and_the_nearest_where_there_is_none(tmp_path: Path) -> None:
    command = launch_command(tmp_path / "job.json", RuntimeConfig(processes=2, accelerate="zero3"))
    assert command[0] == sys.executable
    assert Path(command[command.index("--config_file") + 1]).name == "zero3.yaml"
    assert command[-3:] == ["-m", "lore_lib.training.launch", str(tmp_path / "job.json")]
    with pytest.raises(ConfigError, match=r"runtime\.accelerate='zero33'.*did you mean 'zero3'"):
        launch_command(tmp_path / "job.json", RuntimeConfig(processes=2, accelerate="zero33"))


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/accelerate/*.yaml")), ids=lambda file: file.stem)
def test_accelerate_knows_every_setting_of_our_files(file: Path) -> None:
    """Where the hardware is not at hand, this is how far a file can be checked."""
    config = load_config_from_file(str(file))  # refuses names that it does not know
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for kind in ("fsdp", "deepspeed"):
        assert set(getattr(config, f"{kind}_config")) <= set(known)
    assert config.num_processes > 1


def test_a_training_killed_at_any_moment_goes_on_to_the_same_weights(job: SftJob, tmp_path: Path) -> None:
    """SIGKILL from outside, once a checkpoint is there; the order of the rest is that of a whole run."""
    train_sft(job)
    killed = replace(job, out=tmp_path / "killed")
    file = write_job(killed, tmp_path / "job.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "lore_lib.training.launch", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        until = time.monotonic() + 120
        while not list(killed.out.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(killed.out.glob("checkpoint-*"))
    assert not (killed.out / FINISHED).exists()
    train_sft(killed)
    whole, resumed = weights(job.out), weights(killed.out)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one(job: SftJob, tmp_path: Path) -> None:
    """Sums of gradients are taken in another order: float32 rounding, which Adam carries on."""
    train_sft(job)
    both = replace(job, out=tmp_path / "both")
    assert train_all([both], RuntimeConfig(processes=2, accelerate="cpu")) == [both.out]
    one, two = ([row["loss"] for row in training_history(folder)] for folder in (job.out, both.out))
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-3)
    assert "loss" in (both.out / "train.log").read_text()


@pytest.mark.slow
def test_a_launched_training_that_fails_shows_the_end_of_its_log(job: SftJob) -> None:
    with pytest.raises(
        EngineError, match=r"(?s)ended with status 1; .*cannot be shared evenly by 3 processes"
    ):
        train_all([job], RuntimeConfig(processes=3, accelerate="cpu"))
    assert json.loads((job.out / "launch.json").read_text())["kind"] == "sft"
