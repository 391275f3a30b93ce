"""Jobs in their own processes: order kept, one thread each, exceptions and kills surface.

The jobs are expressions for ``eval``, which a fresh process can find by name.
"""

from pathlib import Path

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
