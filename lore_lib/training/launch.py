"""One training in several processes: ``accelerate launch -m lore_lib.training.launch job.json``.

With ``runtime.processes`` at 1 the jobs train in processes of their own, as ever. Above 1 they train one
after another, each by all processes together, on the devices that the accelerate file names
(``configs/accelerate/``), and the log is streamed; on several machines run the printed command on each.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from lore_lib.artifacts import atomic_write_text, make_folder, project_root
from lore_lib.config import RuntimeConfig
from lore_lib.errors import ConfigError, EngineError, LoreError, nearest
from lore_lib.parallel import run_parallel
from lore_lib.training.grpo import train_grpo
from lore_lib.training.grpo_job import GrpoJob
from lore_lib.training.sft import SftJob, train_sft

Job = SftJob | GrpoJob

_REASON = "lore: "  # begins the line of a process that says why it stops
_PARENT = "LORE_PARENT"  # pid of the process that waits for the training
_KINDS: dict[str, type[Job]] = {"sft": SftJob, "grpo": GrpoJob}


def train(job: Job) -> Path:
    """Do one job in this process; returns the model's folder."""
    return train_sft(job) if isinstance(job, SftJob) else train_grpo(job)


def train_all(jobs: Sequence[Job], runtime: RuntimeConfig, label: str = "") -> list[Path]:
    """Model folders of all jobs, in order; what is finished is not trained again.

    Args:
        jobs: what to train.
        runtime: workers, processes and the accelerate file.
        label: of the progress bar.

    Raises:
        ConfigError: no such accelerate file.
        EngineError: a training failed; the end of its log is shown.
    """
    if runtime.processes == 1:
        return run_parallel(train, jobs, runtime.workers, label)
    return [_launched(job, runtime) for job in jobs]


def launch_command(job_file: Path, runtime: RuntimeConfig) -> list[str]:
    """The command that trains a written job in ``runtime.processes`` processes.

    Raises:
        ConfigError: no such accelerate file.
    """
    folder = project_root() / "configs" / "accelerate"
    file = folder / f"{runtime.accelerate}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ConfigError(
            f"runtime.accelerate={runtime.accelerate!r}: no {file}; {nearest(runtime.accelerate, known)}"
        )
    how = ["--config_file", str(file), "--num_processes", str(runtime.processes)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *how]
    return [*launcher, "-m", "lore_lib.training.launch", str(job_file)]


def write_job(job: Job, path: Path) -> Path:
    """Write a job as JSON, with its kind beside it."""
    kind = next(name for name, known in _KINDS.items() if isinstance(job, known))
    text = TypeAdapter(type(job)).dump_json(job).decode()
    return atomic_write_text(path, f'{{"kind": "{kind}", "job": {text}}}\n')


def read_job(path: Path) -> Job:
    """Read what :func:`write_job` wrote."""
    written = TypeAdapter(dict[str, object]).validate_json(path.read_text(encoding="utf-8"))
    kind = _KINDS[str(written["kind"])]
    return TypeAdapter(kind).validate_python(written["job"])


def _launched(job: Job, runtime: RuntimeConfig) -> Path:
    make_folder(job.out)
    command = launch_command(write_job(job, job.out / "launch.json"), runtime)
    print(shlex.join(command), flush=True)  # noqa: T201 - what to run on the other machines
    last: deque[str] = deque(maxlen=20)
    reasons: dict[str, None] = {}  # all processes give the same one
    environment = os.environ | {_PARENT: str(os.getpid()), "OMP_NUM_THREADS": "1"}
    with (
        (job.out / "train.log").open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)  # noqa: T201 - the log, as it comes
                log.write(line)
                last.append(line)
                if line.startswith(_REASON):
                    reasons[line.removeprefix(_REASON)] = None
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise EngineError(
            f"the training in {job.out} ended with status {process.returncode}; it resumes at its last "
            f"checkpoint, and the whole log is train.log there:\n{''.join(reasons or last)}"
        )
    return train(job)  # finished: its folder


def _end_with(parent: int) -> None:
    """A training that outlives the notebook would write into the folder in which the next run resumes."""
    while psutil.pid_exists(parent):
        time.sleep(1)
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Train the job of a file; started by accelerate in each process."""
    if parent := os.environ.get(_PARENT):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        train(read_job(Path(arguments[0])))
    except LoreError as error:
        print(f"{_REASON}{error}", file=sys.stderr, flush=True)  # noqa: T201 - to whoever waits
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
