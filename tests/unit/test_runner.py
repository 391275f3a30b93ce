"""The runner, over tiny throw-away notebooks. Tests that start a kernel are marked `notebook`."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from lore_lib.artifacts import MANIFEST
from lore_lib.errors import ArtifactError, ConfigError, DataError, EngineError
from lore_lib.run import execute
from lore_lib.run.runner import (
    Progress,
    _sole_runner,
    check_parameters,
    install_kernel,
    kernel_interpreter,
    run_stages,
    select_stages,
)

SMOKE = {"profile": "smoke", "run": "r"}


def names(**choice: Any) -> list[str]:
    return [spec.name[:2] for spec in select_stages(**choice)]


def test_stages_are_selected_by_full_or_short_name() -> None:
    assert names() == [f"{number:02d}" for number in range(10)]
    assert names(first="3", last="05_grpo") == ["03", "04", "05"]
    assert names(only=("05", "1")) == ["01", "05"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"only": ("03_stf",)}, "did you mean '03_sft'"),
        ({"first": "12"}, "unknown stage '12'"),
        ({"first": "5", "last": "3"}, "swap them"),
        ({"first": "5", "only": ("3",)}, "leave out --from and --to"),
    ],
)
def test_a_wrong_selection_is_explained(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        select_stages(**choice)


def test_a_parameter_the_notebook_lacks_is_an_error_before_anything_runs(kit: Any) -> None:
    kit.notebook("00_start_here")
    mistyped = 'PROFILE = "demo"\nVERTICAL = "v"\nRUN = ""\nSEDE = 17\nOVERRIDES = {}\n'
    path = kit.notebook("01_features", parameters=mistyped)
    with pytest.raises(ConfigError, match=r"no parameter SEED.*did you mean 'SEDE'"):
        run_stages(**SMOKE, last="1")
    assert not kit.outputs.exists()
    book = nbformat.read(path, as_version=4)
    book.cells[0].metadata["tags"] = []
    nbformat.write(book, path)
    with pytest.raises(ConfigError, match="no cell tagged `parameters`"):
        check_parameters(path)
    with pytest.raises(ArtifactError, match="no notebook"):
        run_stages(**SMOKE, only=("8",))


def test_a_vertical_with_problems_is_told_before_a_folder_is_claimed(kit: Any) -> None:
    kit.notebook("00_start_here")
    file = kit.root / "data" / "verticals" / "apparel_home" / "vertical.yaml"
    file.write_text(file.read_text().replace("kind: taxonomy", "kind: taxonomi"))
    with pytest.raises(DataError, match="did you mean 'taxonomy'"):
        run_stages(**SMOKE, only=("0",))
    assert not kit.outputs.exists()


def test_an_earlier_stage_that_is_missing_is_named_before_anything_runs(kit: Any) -> None:
    kit.notebook("02_cot_synthesis")
    with pytest.raises(ArtifactError, match="--only 01_features"):
        run_stages(**SMOKE, only=("2",))


def test_two_runs_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with (
        _sole_runner(tmp_path),
        pytest.raises(ArtifactError, match="another `lore run`"),
        _sole_runner(tmp_path),
    ):
        pass
    with _sole_runner(tmp_path):
        pass


def test_the_kernel_is_the_one_of_this_environment() -> None:
    folder = install_kernel()
    before = (folder / "kernel.json").stat().st_mtime_ns
    assert install_kernel() == folder
    assert (folder / "kernel.json").stat().st_mtime_ns == before
    assert kernel_interpreter() == sys.executable


@pytest.mark.notebook
def test_a_run_writes_executed_copies_and_the_second_one_is_skipped(kit: Any) -> None:
    kit.notebook("00_start_here", "import os\nassert os.environ['HF_HUB_OFFLINE'] == '1'\nassert SEED == 5")
    kit.notebook("01_features", "import os, pathlib\nassert pathlib.Path('pyproject.toml').is_file()")
    kit.notebook("02_cot_synthesis", "assert stage.config.cot.top_clicked == 2")
    seen: list[Progress] = []
    options = {**SMOKE, "seed": 5, "overrides": {"cot.top_clicked": 2}, "last": "2"}
    results = run_stages(**options, watch=seen.append)
    assert [(result.stage[:2], result.outcome) for result in results] == [
        ("00", "ok"),
        ("01", "ok"),
        ("02", "ok"),
    ]
    assert [progress.stage[:2] for progress in seen if progress.outcome] == ["00", "01", "02"]
    assert max(progress.cell for progress in seen) == 6
    assert all(result.peak_memory_mib > 30 for result in results)
    for result in results:
        folder = kit.outputs / "r" / result.stage
        assert nbformat.read(folder / "executed.ipynb", as_version=4).cells[0].execution_count == 1
        assert "Executing notebook" in (folder / "run.log").read_text()
    assert [result.outcome for result in run_stages(**options)] == ["unchanged"] * 3

    # a file that is altered is made again; what reads it stays, because it came out the same
    table = kit.outputs / "r" / "01_features" / "items.parquet"
    table.write_text("tampered")
    assert [result.outcome for result in run_stages(**options)] == ["unchanged", "ok", "unchanged"]
    assert table.read_text() == "items.parquet"

    # an earlier stage with other results is a reason to run again
    kit.notebook("01_features", "stage.path('items.parquet').write_text('other')")
    assert [result.outcome for result in run_stages(**options)] == ["unchanged", "ok", "ok"]


@pytest.mark.notebook
def test_a_failing_cell_names_stage_cell_error_copy_and_command(kit: Any) -> None:
    kit.notebook("00_start_here", "value = 1", "raise KeyError('selling_points')", "never = 1")
    with pytest.raises(EngineError) as caught:
        run_stages(**SMOKE, only=("0",))
    text = str(caught.value)
    assert "00_start_here failed in cell In [6]: KeyError: 'selling_points'" in text
    assert "--only 00_start_here" in text
    copy = kit.outputs / "r" / "00_start_here" / "executed.ipynb"
    assert str(copy) in text
    assert "KeyError" in copy.read_text()
    assert not (copy.parent / MANIFEST).exists()


def test_a_full_disk_under_a_notebook_is_told(
    kit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(execute, "execute_notebook", full)
    here, there = multiprocessing.Pipe(duplex=False)
    with here, there:
        failed = execute._run(kit.notebook("00_start_here"), tmp_path / "copy.ipynb", {}, there)
    assert failed is not None
    assert "No space left on device; is the disk full?" in failed.message


@pytest.mark.notebook
def test_a_killed_kernel_is_explained(kit: Any) -> None:
    kit.notebook("00_start_here", "import os\nos.kill(os.getpid(), 9)", "never = 1")
    with pytest.raises(EngineError) as caught:
        run_stages(**SMOKE, only=("0",))
    text = str(caught.value)
    assert "cell In [5]: the kernel died (signal SIGKILL)" in text
    assert "peak memory" in text
    assert "smaller profile" in text
    assert (kit.outputs / "r" / "00_start_here" / "executed.ipynb").is_file()


@pytest.mark.notebook
def test_reaching_the_end_is_not_enough(kit: Any) -> None:
    kit.notebook("00_start_here", finish=False)
    with pytest.raises(ArtifactError, match=r"ran to its end.*stage\.finish"):
        run_stages(**SMOKE, only=("0",))
    kit.notebook("01_features", "stage.path(stage.spec.promises[0]).unlink()")
    with pytest.raises(EngineError, match="promised items"):
        run_stages(**SMOKE, only=("1",))
    kit.notebook("01_features", "import sys\nsys.exit(0)")  # papermill calls this a success
    with pytest.raises(ArtifactError, match="was interrupted"):
        run_stages(**SMOKE, only=("1",))


@pytest.mark.notebook
def test_a_stage_that_takes_too_long_is_stopped_and_leaves_no_process(kit: Any) -> None:
    kit.notebook("00_start_here", "import time\ntime.sleep(600)")
    before = set(children())
    with pytest.raises(EngineError, match=r"longer than runtime\.stage_timeout_minutes"):
        run_stages(**SMOKE, only=("0",), overrides={"runtime.stage_timeout_minutes": 0.15})
    assert set(children()) <= before


@pytest.mark.notebook
def test_a_run_killed_in_the_middle_leaves_no_manifest_and_resumes(kit: Any, tmp_path: Path) -> None:
    """kill -9 of the runner also ends its notebook; the next run takes up the files left behind."""
    flag = tmp_path / "slow"
    flag.touch()
    kit.notebook(
        "00_start_here",
        "done = stage.path('step_1')\nresumed = done.exists()\ndone.touch()\nstage.count('resumed', resumed)",
        f"import pathlib, time\nwhile pathlib.Path({str(flag)!r}).exists():\n    time.sleep(0.1)",
    )
    command = [sys.executable, "-m", "lore_lib", "run", "--profile", "smoke", "--run", "r", "--only", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        folder = kit.outputs / "r" / "00_start_here"
        wait_for(lambda: (folder / "step_1").exists())
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
    wait_for(lambda: not any(alive(member) for member in family))
    assert not (folder / MANIFEST).exists()
    flag.unlink()
    (result,) = run_stages(**SMOKE, only=("0",))
    assert result.manifest.counts == {"resumed": 1}


@pytest.mark.notebook
def test_ctrl_c_ends_the_notebook_and_leaves_no_manifest(kit: Any) -> None:
    kit.notebook("00_start_here", "import time\ntime.sleep(600)")
    command = [sys.executable, "-m", "lore_lib", "run", "--profile", "smoke", "--run", "r", "--only", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        folder = kit.outputs / "r" / "00_start_here"
        wait_for(lambda: (folder / ".resume").exists())
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    wait_for(lambda: not any(alive(member) for member in family))
    assert not (folder / MANIFEST).exists()


def children() -> list[int]:
    tracker = multiprocessing.resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [
        child.pid for child in psutil.Process(os.getpid()).children(recursive=True) if child.pid != tracker
    ]


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
