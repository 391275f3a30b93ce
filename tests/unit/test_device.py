"""One answer to where a model runs."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lore_lib.device import resolve_device
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
