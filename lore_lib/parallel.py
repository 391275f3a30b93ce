"""Independent jobs in their own processes, one thread each: two cores train two models at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm.auto import tqdm

from lore_lib.errors import EngineError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_parallel(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str = ""
) -> list[Result]:
    """Run ``work(job)`` for each job in fresh processes and return the results in the order of ``jobs``.

    Each process computes with one thread: two 2-thread processes on two cores are far slower than two
    1-thread ones. An exception of a job is raised here; the other jobs finish first.

    Args:
        work: function at module level (it is pickled by name).
        jobs: picklable arguments.
        workers: processes at a time.
        label: text of the progress bar.

    Raises:
        EngineError: a process died without an exception, most often because memory ran out.
    """
    if not jobs:
        return []
    context = multiprocessing.get_context("spawn")
    results: dict[int, Result] = {}
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=start_worker) as pool:
        futures = {pool.submit(work, job): index for index, job in enumerate(jobs)}
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc=label or None):
                results[futures[future]] = future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                f"a worker process of {label or work.__name__!r} was killed, most often for lack of memory; "
                "run again with --set runtime.workers=1 (finished parts are kept)"
            ) from error
    return [results[index] for index in range(len(jobs))]


def start_worker() -> None:
    """Compute with one thread, and end with the parent: a worker that outlives a killed notebook would go on
    writing into the folder in which the next run resumes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
