import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lore_lib.config import load_config
from lore_lib.run import doctor
from lore_lib.run.doctor import Check, diagnose


def finding(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_this_environment_is_fine(outputs: Path) -> None:
    checks = diagnose(load_config("smoke"))
    for name in ("python", "packages", "kernel", "device", "outputs", "disk"):
        assert finding(checks, name).ok, finding(checks, name)
    assert not list(outputs.iterdir())


def test_a_wrong_and_a_missing_package_are_named_with_the_command(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "papermill":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "trl" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = diagnose(load_config("smoke"))
    assert (finding(checks, "trl").found, finding(checks, "papermill").found) == ("0.1", "missing")
    assert finding(checks, "trl").fix.startswith('pip install "trl==')


def test_an_optional_package_that_is_absent_is_no_fault(outputs: Path) -> None:
    assert not [check for check in diagnose(load_config("smoke")) if check.name == "vllm" and not check.found]


@pytest.mark.parametrize(
    "chosen",
    [
        {"sampling.engine": "vllm", "runtime.workers": 1},
        {"grpo.engine": "server"},
        {"cot.teacher": "vllm", "cot.teacher_model": "m"},
    ],
)
def test_an_engine_that_is_chosen_must_be_installed(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any]
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    check = finding(diagnose(load_config("smoke", overrides=chosen)), "engines")
    assert "[vllm]" in check.fix, check


def test_each_shortage_has_a_fix(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**31))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    monkeypatch.setattr(doctor, "kernel_interpreter", lambda: "/elsewhere/python")
    monkeypatch.setattr(sys, "version_info", Old((3, 9, 1)))
    checks = diagnose(
        load_config("demo", overrides={"model.device": "cuda", "model.base": "data/models/none"})
    )
    for name in ("python", "memory", "disk", "kernel", "device", "model"):
        assert finding(checks, name).fix, name


class Old(tuple[int, ...]):
    """A version_info of an old Python."""

    major, minor, micro = 3, 9, 1


def test_outputs_that_cannot_be_written(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "free space" in finding(diagnose(load_config("smoke")), "outputs").fix
