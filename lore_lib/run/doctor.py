"""Is this machine ready? One check a line, each with its fix."""

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from lore_lib.artifacts import atomic_write_text, outputs_root, project_root
from lore_lib.config import Config, require_built
from lore_lib.device import resolve_device
from lore_lib.errors import LoreError
from lore_lib.run.runner import install_kernel, kernel_interpreter

_MEMORY_GIB = {"smoke": 3, "demo": 4, "small": 8, "paper": 64}  # free memory a profile wants
_DISK_GIB = {"smoke": 1, "demo": 2, "small": 10, "paper": 200}  # free disk for its outputs


@dataclass(frozen=True)
class Check:
    """One finding; `fix` is empty when it is fine."""

    name: str
    found: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.fix


def diagnose(config: Config) -> list[Check]:
    """Check python, packages, kernel, device, memory, disk and the model for one config; loads no model."""
    return [
        _python(),
        *_packages(),
        _kernel(),
        _engines(config),
        _device(config),
        _memory(config),
        _outputs(config),
        _disk(config),
        _model(config),
        _training(config),
    ]


def _python() -> Check:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at {sys.executable}"
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check(
        "python", found, "" if fits else "install Python 3.11 or 3.12 and make the environment again"
    )


def _packages() -> Iterator[Check]:
    """Every requirement of the installed lore-kit, against what is installed; optional ones when present."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("lore-kit") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check("lore-kit", "not installed in this environment", 'pip install -e ".[dev]"')
        return
    wrong = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if optional and not version:
            continue
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(Check(requirement.name, version or "missing", f'pip install "{requirement}"'))
    yield from wrong or [Check("packages", "every pin of pyproject.toml is met")]


def _kernel() -> Check:
    try:
        install_kernel()
    except LoreError as error:
        return Check("kernel", "not installed", str(error))
    found = kernel_interpreter()
    if found != sys.executable:
        fix = "another kernel named 'lore' hides this one: jupyter kernelspec list, then remove it"
        return Check("kernel", f"lore -> {found or 'nothing'}", fix)
    return Check("kernel", f"lore -> {found}")


def _device(config: Config) -> Check:
    import torch  # seconds to import

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(names) or f"{resolve_device('auto').upper()}, {torch.get_num_threads()} threads"
    if config.profile == "paper" and not names:
        return Check("device", found, "profile paper wants a GPU of 80 GB; use profile demo on a CPU")
    if config.model.device == "cuda" and not names:
        return Check(
            "device", found, "model.device=cuda, but torch sees none; use auto, or a CUDA build of torch"
        )
    return Check("device", found)


def _engines(config: Config) -> Check:
    chosen = (
        f"{config.sampling.engine}, rollouts {config.grpo.engine}, teacher {config.cot.teacher}, captioner "
        f"{config.features.captioner}"
    )
    try:
        require_built(config)
    except LoreError as error:
        return Check("engines", chosen, str(error))
    of_vllm = "vllm" in (config.sampling.engine, config.cot.teacher) or config.grpo.engine != "hf"
    if of_vllm and importlib.util.find_spec("vllm") is None:
        return Check("engines", chosen, 'vllm is not installed: pip install -e ".[vllm]"')
    return Check("engines", chosen)


def _memory(config: Config) -> Check:
    free, wanted = psutil.virtual_memory().available / 2**30, _MEMORY_GIB[config.profile]
    fix = (
        ""
        if free >= wanted
        else f"profile {config.profile} wants {wanted} GiB free; close programs or go smaller"
    )
    return Check("memory", f"{free:.1f} GiB free", fix)


def _outputs(config: Config) -> Check:
    folder = outputs_root()
    probe = folder / f".doctor-{config.run}"
    try:
        atomic_write_text(probe, "ok\n").unlink()
    except LoreError as error:
        return Check("outputs", "not writable", str(error))
    return Check("outputs", str(folder))


def _disk(config: Config) -> Check:
    place = next(folder for folder in (outputs_root(), *outputs_root().parents) if folder.exists())
    free, wanted = shutil.disk_usage(place).free / 2**30, _DISK_GIB[config.profile]
    fix = (
        ""
        if free >= wanted
        else f"profile {config.profile} wants {wanted} GiB; free some, or set LORE_OUTPUTS"
    )
    return Check("disk", f"{free:.1f} GiB free at {place}", fix)


def _model(config: Config) -> Check:
    base = config.model.base
    if not base.startswith("data/"):
        return Check("model", f"{base}, fetched from the hub on first use or read from its cache")
    folder = Path(project_root(), base)
    if (folder / "model.safetensors").is_file():
        return Check("model", str(folder))
    return Check(
        "model", f"no model.safetensors in {folder}", "git checkout data/models, or: lore pretrain-nano"
    )


def _training(config: Config) -> Check:
    """Whether the tuning of one arm and a GRPO run fit the memory, and how long each takes.

    Reckoned from the student's shape, with every row as long as it may be.
    """
    from lore_lib.training.estimate import (  # seconds to import
        grpo_needs,
        reckoned_minutes,
        require_memory,
        sft_needs,
    )

    try:
        needs = {"tuning": sft_needs(config), "GRPO": grpo_needs(config)}
    except LoreError as error:
        return Check("training", "cannot be reckoned", str(error))
    try:
        for one in needs.values():
            require_memory(one, config)
    except LoreError as error:
        return Check("training", "does not fit", str(error))
    each = [f"{name} {one}, {reckoned_minutes(one, config):,.1f} minutes" for name, one in needs.items()]
    how = "reckoned with every row as long as it may be, at half of what a large product makes here"
    return Check("training", f"{'; '.join(each)} ({how})")
