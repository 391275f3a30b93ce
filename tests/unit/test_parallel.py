"""Jobs in their own processes: order kept, one thread each, exceptions and kills surface.

The jobs are expressions for ``eval``, which a fresh process can find by name.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lore_lib.errors import EngineError
from lore_lib.parallel import run_parallel


def test_results_keep_the_order_of_the_jobs_and_each_process_has_one_thread() -> None:
    slow_first = "__import__('time').sleep(0.4) or 'slow'"
    threads = "__import__('torch').get_num_threads(), __import__('os').environ['OMP_NUM_THREADS']"
    assert run_parallel(eval, [slow_first, "'quick'", threads], workers=2) == ["slow", "quick", (1, "1")]


def test_no_jobs_need_no_process() -> None:
    assert run_parallel(eval, [], workers=2) == []


def test_an_exception_surfaces_after_the_other_jobs_finished(tmp_path: Path) -> None:
    done = tmp_path / "done"
    touch = f"__import__('time').sleep(0.3) or __import__('pathlib').Path({str(done)!r}).touch()"
    with pytest.raises(ZeroDivisionError):
        run_parallel(eval, ["1 / 0", touch], workers=1)
    assert done.exists()


def test_a_killed_worker_is_explained() -> None:
    with pytest.raises(EngineError, match=r"worker process of 'tuning' was killed.*runtime\.workers=1"):
        run_parallel(eval, ["__import__('signal').raise_signal(9)"], workers=1, label="tuning")


def test_a_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """Else it would go on writing into the folder in which the next run resumes."""
    note = tmp_path / "pid"
    job = f"__import__('pathlib').Path({str(note)!r}).write_text(str(__import__('os').getpid())) and "
    job += "__import__('time').sleep(60)"
    code = f"from lore_lib.parallel import run_parallel; run_parallel(eval, [{job!r}], workers=1)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    worker = _wait_for(lambda: int(note.read_text()) if note.exists() and note.read_text() else 0)
    parent.kill()
    parent.wait()
    assert _wait_for(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie")


def _wait_for(condition: Callable[[], int]) -> int:
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.1)
    return 0
