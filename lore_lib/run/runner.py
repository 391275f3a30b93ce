"""The strict runner: papermill executes, this checks what papermill does not.

A parameter the notebook lacks is an error; the working folder is the project root; the kernel is the one of
this environment; a dead kernel is explained; a stage counts as done when its manifest and every promised file
are there, whatever the exit code says; a stage whose key has not changed is not run again.
"""

import ast
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from lore_lib.artifacts import (
    Manifest,
    explain_disk,
    make_folder,
    outputs_root,
    project_root,
    read_manifest,
    verify_files,
)
from lore_lib.config import Config, load_config, require_built
from lore_lib.errors import ArtifactError, ConfigError, EngineError, LoreError, nearest
from lore_lib.run.stage import (
    EXECUTED,
    LOG,
    STAGES,
    StageSpec,
    check_input,
    claim_run,
    code_cells,
    finished,
    notebook_path,
    rerun_command,
    run_folder,
    stage_spec,
    tree_rss_mib,
)
from lore_lib.vertical.definition import load_vertical

KERNEL = "lore"
PARAMETERS = ("PROFILE", "VERTICAL", "RUN", "SEED", "OVERRIDES")


@dataclass(frozen=True)
class Progress:
    """Where a run is; the caller's `watch` gets one about twice a second and at the end of a stage."""

    stage: str
    position: int  # 1-based, among the stages of this run
    stages: int
    seconds: float
    expected_minutes: float
    cell: int = 0  # code cell being run, as in In [cell]
    cells: int = 0
    outcome: str = ""  # "" while running; then ok | unchanged | failed


@dataclass(frozen=True)
class CellStarted:
    """Message of the child: code cell `number` (as in In [number]) of `total` began."""

    number: int
    total: int


@dataclass(frozen=True)
class Failed:
    """Message of the child: the notebook did not run to its end."""

    error: str  # class name
    message: str
    kernel_exit: int | None = None  # of a kernel that died; negative is a signal


@dataclass(frozen=True)
class StageResult:
    """How a stage went."""

    stage: str
    outcome: str  # ok | unchanged
    seconds: float
    peak_memory_mib: float
    manifest: Manifest


def select_stages(first: str = "", last: str = "", only: Sequence[str] = ()) -> list[StageSpec]:
    """The stages to run, in order. Names may be short: "3" or "03" means "03_sft".

    Raises:
        ConfigError: an unknown stage, `first` after `last`, or `only` together with either.
    """
    names = list(STAGES)
    if only and (first or last):
        raise ConfigError("--only names the stages itself; leave out --from and --to")
    if only:
        wanted = {_full_name(name) for name in only}
        return [STAGES[name] for name in names if name in wanted]
    start = names.index(_full_name(first)) if first else 0
    stop = names.index(_full_name(last)) if last else len(names) - 1
    if start > stop:
        raise ConfigError(f"--from {names[start]} comes after --to {names[stop]}; swap them")
    return [STAGES[name] for name in names[start : stop + 1]]


def install_kernel() -> Path:
    """Make sure a kernel named "lore" runs this interpreter; returns the folder of its spec.

    Threads are bounded by OMP_NUM_THREADS, where set when this is called, else 2.

    Raises:
        EngineError: the environment's folder cannot be written.
    """
    environment = {
        # read before torch is imported: idle threads of torch must not spin on a small machine
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(min(2, os.cpu_count() or 1)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # bars of weights and of data preparation would fill a notebook's output
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    folder = Path(sys.prefix, "share", "jupyter", "kernels", KERNEL)
    try:
        spec = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
        if spec["argv"][0] == sys.executable and spec["env"] == environment:
            return folder
    except (OSError, ValueError, KeyError):
        pass  # absent or not ours: written anew below
    from ipykernel.kernelspec import install  # slow to import, and seldom needed

    title = f"LORE (Python {sys.version_info.major}.{sys.version_info.minor})"
    try:
        install(kernel_name=KERNEL, display_name=title, prefix=sys.prefix, env=environment)
    except OSError as error:
        raise EngineError(
            f"cannot install the notebook kernel into {folder} ({error.strerror}); "
            "use a virtual environment of your own, such as the one `make run` makes"
        ) from error
    return folder


def kernel_interpreter() -> str:
    """The interpreter that Jupyter starts for the kernel "lore"; "" when there is none."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel  # slow to import

    try:
        return str(KernelSpecManager().get_kernel_spec(KERNEL).argv[0])
    except NoSuchKernel:
        return ""


def run_stages(
    profile: str = "demo",
    vertical: str = "apparel_home",
    run: str = "",
    seed: int = 17,
    overrides: Mapping[str, Any] | None = None,
    *,
    first: str = "",
    last: str = "",
    only: Sequence[str] = (),
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[StageResult]:
    """Run the notebooks of the chosen stages in order, each in a process and kernel of its own.

    Raises:
        ConfigError: an unknown stage, profile or setting; a notebook without one of the parameters.
        DataError: no such vertical, or one with problems; each is listed.
        ArtifactError: another run is writing the folder, or it is of another profile, vertical or seed; an
            earlier stage is missing, or a stage ended without what it promised.
        EngineError: a cell failed, the kernel died, or the stage took too long.
    """
    config = load_config(profile, vertical, run, seed, overrides)
    specs = select_stages(first, last, only)
    parameters = {
        "PROFILE": config.profile,
        "VERTICAL": config.vertical,
        "RUN": config.run,
        "SEED": config.seed,
        "OVERRIDES": json.loads(json.dumps(dict(overrides or {}))),
    }
    require_built(config)
    _no_password_in(config)
    load_vertical(config.vertical)  # its mistakes are told before a folder is made
    for spec in specs:
        check_parameters(notebook_path(spec.name))
    with _sole_runner(make_folder(run_folder(config))):
        claim_run(config)
        _check_earlier(specs, config)
        install_kernel()
        results = []
        for position, spec in enumerate(specs, start=1):
            base = Progress(spec.name, position, len(specs), 0.0, spec.minutes[config.profile])
            results.append(_run_stage(spec, config, parameters, base, watch))
    return results


def _no_password_in(config: Config) -> None:
    if "@" in config.service.store:
        raise ConfigError(
            "service.store holds a password, which would be kept in the executed notebooks; "
            "give this setting to `lore serve` alone"
        )


def check_parameters(notebook: Path) -> None:
    """Check that a notebook is there and takes every parameter the runner passes.

    Raises:
        ArtifactError: no such notebook.
        ConfigError: a parameter is missing from its `parameters` cell; the nearest name is given.
    """
    if not notebook.is_file():
        raise ArtifactError(
            f"no notebook {notebook}; take it from the repository: git checkout notebooks/{notebook.name}"
        )
    found = [
        name for source, tags in code_cells(notebook) if "parameters" in tags for name in _assigned(source)
    ]
    if not found:
        raise ConfigError(f"{notebook} has no cell tagged `parameters` that sets {', '.join(PARAMETERS)}")
    for name in PARAMETERS:
        if name not in found:
            has = ", ".join(found)
            raise ConfigError(f"{notebook} has no parameter {name}; it has {has}: {nearest(name, found)}")


def _assigned(source: str) -> list[str]:
    """Names a cell assigns at its top level."""
    names = []
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ConfigError(f"a `parameters` cell does not parse: {error}; write one literal a line") from error
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _full_name(name: str) -> str:
    for full in STAGES:
        if name.isdecimal() and int(name) == int(full[:2]):
            return full
    return stage_spec(name).name


@contextmanager
def _sole_runner(folder: Path) -> Iterator[None]:
    """Hold the run folder; the hold ends with this process, even when it is killed."""
    with explain_disk(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        with explain_disk(folder):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"another `lore run` is writing {folder}; wait for it, or use another RUN"
                ) from error
        yield


def _check_earlier(specs: list[StageSpec], config: Config) -> None:
    """Fail now, not in the middle, when an earlier stage that is not part of this run is missing."""
    chosen = {spec.name for spec in specs}
    for spec in specs:
        for name in spec.needs:
            if name not in chosen:
                try:
                    check_input(run_folder(config) / name, spec, config)
                except ArtifactError as error:
                    raise ArtifactError(f"{spec.name}: {error} Run: {rerun_command(config, name)}") from error


def _run_stage(
    spec: StageSpec,
    config: Config,
    parameters: dict[str, Any],
    base: Progress,
    watch: Callable[[Progress], None],
) -> StageResult:
    if manifest := finished(spec, config):
        watch(replace(base, outcome="unchanged"))
        return StageResult(spec.name, "unchanged", 0.0, manifest.peak_memory_mib, manifest)
    folder = make_folder(run_folder(config) / spec.name)
    child = _Child(notebook_path(spec.name), folder, parameters, _environment(config))
    try:
        child.follow(config.runtime.stage_timeout_minutes * 60, lambda: watch(child.progress(base)))
        if fault := child.fault():
            raise EngineError(
                f"{spec.name} failed in {fault}\n  notebook as far as it ran: {folder / EXECUTED}\n"
                f"  log: {folder / LOG}\n  run it again: {rerun_command(config, spec.name)}"
            )
        manifest = _check_kept(spec, config)
    except LoreError:
        watch(replace(child.progress(base), outcome="failed"))
        raise
    finally:
        child.end()
    watch(replace(child.progress(base), outcome="ok"))
    return StageResult(spec.name, "ok", round(child.seconds, 1), round(child.peak_mib, 1), manifest)


def _environment(config: Config) -> dict[str, str]:
    """What the kernel inherits beside the kernel spec's own variables; paths hold in any working folder."""
    environment = {"LORE_ROOT": str(project_root()), "LORE_OUTPUTS": str(outputs_root())}
    if config.profile in ("smoke", "demo"):  # these never touch the network
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return environment


def _check_kept(spec: StageSpec, config: Config) -> Manifest:
    """The manifest of a stage whose notebook ran to its end, if it did what it promised."""
    folder = run_folder(config) / spec.name
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
    except ArtifactError as error:
        raise ArtifactError(
            f"{spec.name} ran to its end but its folder is not whole: {error} "
            "The last cell of its notebook must call stage.finish()."
        ) from error
    return manifest


def _execute(*work: Any) -> None:
    from lore_lib.run.execute import execute  # in the child alone

    execute(*work)


def end_tree(pid: int) -> None:
    """Kill a process and all its descendants."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)


class _Child:
    """The process that executes one notebook, seen from the runner."""

    def __init__(self, notebook: Path, folder: Path, parameters: dict[str, Any], environment: dict[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lore_lib.run.execute"])  # papermill is imported once, not per stage
        self._pipe, theirs = context.Pipe(duplex=False)
        work = (theirs, project_root(), notebook, folder / EXECUTED, folder / LOG, parameters, environment)
        self._process = context.Process(target=_execute, args=work)
        self._began = time.monotonic()
        self._failure: Failed | None = None
        self._timed_out = False
        self._cell = CellStarted(0, 0)
        self.seconds = 0.0
        self.peak_mib = 0.0
        self._process.start()
        theirs.close()

    def follow(self, limit_seconds: float, tick: Callable[[], None]) -> None:
        """Wait for the end, or for the limit, calling `tick` about twice a second."""
        while not self._closed() and not self._timed_out:
            self.seconds = time.monotonic() - self._began
            self.peak_mib = max(self.peak_mib, tree_rss_mib(self._process.pid or 0))
            self._timed_out = self.seconds > limit_seconds
            tick()
        if not self._timed_out:
            self._process.join()

    def _closed(self) -> bool:
        """Read what the child has sent, waiting at most half a second; True once it has hung up."""
        try:
            while self._pipe.poll(0.5):
                message = self._pipe.recv()
                if isinstance(message, CellStarted):
                    self._cell = message
                    return False
                self._failure = message
        except EOFError:
            return True
        return False

    def progress(self, base: Progress) -> Progress:
        return replace(base, seconds=self.seconds, cell=self._cell.number, cells=self._cell.total)

    def fault(self) -> str:
        """Where and why it went wrong, in a sentence or two; "" when it did not."""
        where = f"cell In [{self._cell.number}]" if self._cell.number else "the start of its kernel"
        memory = f"peak memory {self.peak_mib:.0f} MiB of {psutil.virtual_memory().total / 2**20:.0f} MiB"
        if self._timed_out:
            return (
                f"{where}: it took longer than runtime.stage_timeout_minutes; {memory}. "
                "Raise that setting with --set, or choose a smaller profile."
            )
        if self._failure is None:
            code = self._process.exitcode
            return f"{where}: the process that executes it ended ({_ending(code)}); {memory}." if code else ""
        if self._failure.error == "DeadKernelError":
            return (
                f"{where}: the kernel died ({_ending(self._failure.kernel_exit)}); {memory}. "
                "SIGKILL is most often the system running out of memory: choose a smaller profile or batch."
            )
        return f"{where}: {self._failure.error}: {self._failure.message}"

    def end(self) -> None:
        """Leave no process behind."""
        if self._process.pid and self._process.is_alive():
            end_tree(self._process.pid)
        self._process.join()
        self._pipe.close()


def _ending(code: int | None) -> str:
    if code is None:
        return "how is not known"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
