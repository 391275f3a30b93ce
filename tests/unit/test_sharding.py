"""``configs/accelerate/fsdp2.yaml`` in two CPU processes: the numbers of one process, and whole models.

accelerate shards on GPUs alone; the script that is launched tells it that these CPUs are some. All else is
what runs on GPUs, but for their number formats, the all-reduce of NCCL and the recomputing of activations.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lore_lib.artifacts import write_parquet
from lore_lib.config import RuntimeConfig
from lore_lib.errors import EngineError
from lore_lib.training.checkpoints import FINISHED
from lore_lib.training.grpo_job import GrpoJob, Variant
from lore_lib.training.grpo_rows import run_rows
from lore_lib.training.launch import Job, train_all, write_job
from lore_lib.training.looks import BEST
from lore_lib.training.sft import SftJob, train_sft, training_history

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = """
import os, sys
from accelerate import state
from accelerate.utils import DistributedType
from lore_lib.training import sft

start = state.AcceleratorState.__init__

def shards(self, *args, **kwargs):
    if state.PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    start(self, *args, **kwargs)

state.AcceleratorState.__init__ = shards
step = sft._Trainer.training_step

def killed(self, *args, **kwargs):
    if self.is_world_process_zero() and str(self.state.global_step) == os.environ.get("KILLED_AT"):
        os._exit(1)  # the one that writes
    return step(self, *args, **kwargs)

sft._Trainer.training_step = killed

"""


@pytest.fixture
def launched(tmp_path: Path, by_length: str) -> Callable[..., int]:
    """Trains a job by the shipped file, on CPUs; returns the exit status."""
    return partial(launch_on_cpus, f"{ON_CPU}\n{by_length}\nlaunch.main(sys.argv[1:])\n", tmp_path)


def launch_on_cpus(code: str, folder: Path, job: Job, processes: int, **environment: str) -> int:
    shipped = yaml.safe_load((ROOT / "configs/accelerate/fsdp2.yaml").read_text(encoding="utf-8"))
    file, script = folder / "fsdp2.yaml", folder / "on_cpu.py"
    file.write_text(yaml.safe_dump(shipped | {"use_cpu": True, "mixed_precision": "no"}), encoding="utf-8")
    script.write_text(code, encoding="utf-8")
    how = ["--config_file", str(file), "--num_processes", str(processes)]
    launcher = ["-m", "accelerate.commands.launch", *how] if processes > 1 else []
    command = [sys.executable, *launcher, str(script), str(write_job(job, folder / "job.json"))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
    )
    sys.stderr.write(done.stderr[-3000:])
    return done.returncode


def same_weights(one: Path, two: Path, tolerance: float) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert ours.keys() == theirs.keys(), "tied weights are written once"
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=tolerance)


@pytest.fixture
def sft(tiny_model: Path, tmp_path: Path) -> SftJob:
    frame = pd.DataFrame({"pair_id": [f"p{i}" for i in range(24)]})
    frame["prompt"] = [f"query: navy dress\ntitle: {'soft ' * (i % 7)}dress\nprice: {i}" for i in range(24)]
    frame["completion"] = [f"<think>\n{'dress ' * (i % 3)}\n</think>\n[L{1 + i % 4}]" for i in range(24)]
    rows = write_parquet(frame, tmp_path / "rows.parquet")
    return SftJob("naive", str(tiny_model), rows, tmp_path / "one", 4, 1e-2, 8, 0.1, 256, 2, device="cpu")


@pytest.mark.slow
def test_sharded_tuning_is_that_of_one_process_also_after_a_kill(
    sft: SftJob, launched: Callable[..., int], tmp_path: Path
) -> None:
    """But for float32 rounding: sums of gradients are taken in another order."""
    train_sft(sft)
    shards = replace(sft, out=tmp_path / "two")
    assert launched(shards, 2, KILLED_AT="2") != 0
    assert (shards.out / "checkpoint-2" / "pytorch_model_fsdp.bin").exists(), "it was sharded"
    assert not (shards.out / FINISHED).exists()
    assert launched(shards, 2) == 0
    one, two = ([row["loss"] for row in training_history(folder)] for folder in (sft.out, shards.out))
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-5)
    same_weights(sft.out, shards.out, 1e-4)


@pytest.mark.slow
def test_a_sharded_adapter_is_merged_into_the_model_of_one_process(
    sft: SftJob, launched: Callable[..., int], tmp_path: Path
) -> None:
    one = replace(sft, lora_rank=2, epochs=2)
    train_sft(one)
    shards = replace(one, out=tmp_path / "two")
    assert launched(shards, 2) == 0
    assert not list(shards.out.glob("checkpoint-*"))
    same_weights(one.out, shards.out, 1e-5)


@pytest.fixture
def grpo(grpo_run: Callable[..., GrpoJob]) -> GrpoJob:
    """Five prompts, two of them drawn first, a batch of one prompt: one process draws more than the other."""
    frame = pd.DataFrame({"pair_id": [f"p{i}" for i in range(5)], "query_id": [f"q{i}" for i in range(5)]})
    frame["prompt"] = [f"query: navy dress\ntitle: dress\nprice: {i}" for i in range(5)]
    frame["label"] = ["L1", "L2", "L3", "L4", "L1"]
    once = Variant("on_policy")
    return grpo_run(
        frame,
        variant=once,
        rollouts=2,
        learning_rate=1e-3,
        window_share=1.0,
        batch_completions=4,
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "adapter"])
def test_sharded_rollouts_are_those_of_one_process(
    grpo: GrpoJob, launched: Callable[..., int], tmp_path: Path, rank: int
) -> None:
    one = replace(grpo, lora_rank=rank)
    shards = replace(one, out=tmp_path / "two")
    assert launched(one, 1) == launched(shards, 2) == 0
    (history, looks), (sharded, sharded_looks) = run_rows(one.out), run_rows(shards.out)
    assert history.refill_share.tolist() == [1.5, 1.5], "a random model never earns the real reward"
    for name in ("mean_tokens", "refill_share"):
        assert sharded[name].tolist() == history[name].tolist(), name
    assert history.grad_norm.min() > 1e-3
    assert sharded.grad_norm.tolist() == pytest.approx(history.grad_norm.tolist(), rel=1e-3)
    assert sharded_looks.examples.map(list).tolist() == looks.examples.map(list).tolist()
    same_weights(one.out / BEST, shards.out / BEST, 0)


@pytest.mark.slow
def test_sharding_that_accelerate_leaves_out_is_refused(sft: SftJob) -> None:
    with pytest.raises(EngineError, match=r"asks for FSDP.*runtime\.accelerate=cpu"):
        train_all([sft], RuntimeConfig(processes=2, accelerate="fsdp2"))
