"""The child process that executes one notebook, so that its death, memory and working folder stay its own.

Imported in that process alone: papermill takes seconds to import.
"""

import logging
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lore_lib.run.runner import KERNEL, CellStarted, Failed, end_tree


def execute(
    pipe: Connection,
    folder: Path,
    notebook: Path,
    copy: Path,
    log: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Run `notebook` in a fresh kernel in `folder` and save it to `copy`.

    Sends `CellStarted` for each code cell and at most one `Failed`.

    Runs in a process of its own: it changes folder, environment and standard streams.
    """
    os.setsid()  # Ctrl-C reaches the runner alone, which then ends this whole tree
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.chdir(folder)
    os.environ.update(environment)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    failure = _run(notebook, copy, parameters, pipe)
    if failure:
        pipe.send(failure)
    pipe.close()


def _follow_parent() -> None:
    """End this tree when the runner is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        end_tree(os.getpid())


class _KernelDied(Exception):
    """A kernel is gone; its exit status (negative: a signal) is taken before it is cleaned away."""

    def __init__(self, exit_status: int | None):
        super().__init__(exit_status)
        self.exit_status = exit_status


class _Client(PapermillNotebookClient):
    def papermill_execute_cells(self) -> None:
        try:
            super().papermill_execute_cells()
        except DeadKernelError as error:
            raise _KernelDied(self.km.provisioner.process.poll()) from error


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, kernel_name: str, log_output: bool = False, **options: Any
    ) -> None:
        _Client(
            nb_man,
            kernel_name=kernel_name,
            log_output=log_output,
            log=logging.getLogger("notebook"),
            startup_timeout=120,
            on_cell_execute=options["on_cell_execute"],
        ).execute()


def _run(notebook: Path, copy: Path, parameters: dict[str, Any], pipe: Connection) -> Failed | None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    papermill_engines.register(KERNEL, _Engine)
    cells = nbformat.read(notebook, as_version=4).cells
    total = 1 + sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)  # 1: injected
    started = 0

    def cell_started(cell: Any, cell_index: int) -> None:
        nonlocal started
        started += 1
        pipe.send(CellStarted(started, total))

    for attempt in (1, 2):
        try:
            execute_notebook(
                notebook,
                copy,
                parameters,
                engine_name=KERNEL,
                kernel_name=KERNEL,
                language="python",
                progress_bar=False,
                log_output=True,
                on_cell_execute=cell_started,
            )
        except PapermillExecutionError as error:
            return Failed(error.ename, error.evalue)
        except _KernelDied as error:
            return Failed("DeadKernelError", "the kernel died", error.exit_status)
        except OSError as error:  # of the disk: the executed copy is saved after every cell
            return Failed(type(error).__name__, f"{error}; is the disk full? see: lore doctor")
        except RuntimeError as error:  # the kernel never answered; ports may have clashed, so once more
            if started or attempt == 2:
                return Failed(type(error).__name__, str(error))
        else:
            break
    return None
