"""One answer to where a model runs."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lore_lib.device import out_of_memory, resolve_device
from lore_lib.errors import ConfigError
from lore_lib.run.stage import open_stage
from lore_lib.training.sft import hardware


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    resolve_device.cache_clear()
    yield
    resolve_device.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_what_is_shown_is_what_trains(
    cuda: bool, mps: bool, device: str, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert ("device", device) in open_stage("00_start_here", "smoke").show().rows
    settings = hardware("auto")
    assert settings["use_cpu"] is (device == "cpu")
    assert settings["bf16"] is settings["activation_checkpointing"] is (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_named_device_stays_as_it_is_without_asking_torch(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would fail
    assert resolve_device(device) == device


def test_several_gpus_for_one_process_are_refused_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would spread the model over them by DataParallel, which TRL refuses in its own words."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"runtime\.processes=4, or .*CUDA_VISIBLE_DEVICES=0"):
        hardware("cuda")
    assert hardware("cpu")["use_cpu"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert hardware("cuda")["bf16"]


def test_too_little_memory_is_known_on_every_device() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**55)
    assert out_of_memory(full.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) + torch.ones(3)
    assert not out_of_memory(other.value)
