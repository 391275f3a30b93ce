"""The command line as a user meets it: exit status, text on the right stream, no traceback."""

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from lore_lib import __version__, cli
from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.cli import app, commands
from lore_lib.errors import ConfigError
from lore_lib.run.stage import open_stage
from lore_lib.vertical import stream


def lore(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lore_lib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["run", "--profile", "demoo"], 2, "did you mean 'demo'?"),
        (["run", "--set", "grpo.learning_rat=1"], 2, "did you mean 'learning_rate'?"),
        (["run", "--set", "grpo.learning_rate"], 2, "key=value"),
        (["run", "--only", "03_stf"], 2, "did you mean '03_sft'?"),
        (["run", "--run", "../up"], 2, "not a folder name"),
        (["run", "--bogus"], 2, "No such option"),
        (["run", "--run", "x" * 300], 2, "underscore, at most 100"),
        (["run", "--profile", "smoke", "--vertical", "aparel_home"], 1, "did you mean 'apparel_home'"),
        (["run", "--set", "service.store=redis://:word@host"], 2, "holds a password"),
        (["run", "--set", "rair.judge_url=http://me:word@host/v1"], 2, "no password"),
        (["serve", "--set", "features.template=en"], 2, "was settled when the run was made"),
        (["report", "--run", "none"], 1, "no run 'none'"),
        (["diagnose", "none"], 1, "no run 'none'"),
        (["generate", "--items", "18", "--out", "x", "--label-noise", "1.5"], 2, "less than or equal to 1"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(
    kit: Any, arguments: list[str], status: int, says: str
) -> None:
    result = lore(*arguments)
    assert result.returncode == status
    assert says in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not kit.outputs.exists()


def test_a_folder_that_is_a_file_is_named(kit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("no folder")
    monkeypatch.setenv("LORE_OUTPUTS", str(taken))
    kit.notebook("00_start_here")
    result = lore("run", "--profile", "smoke", "--only", "0")
    assert result.returncode == 1
    assert f"cannot write {taken}" in result.stderr
    assert "a file stands where a folder should be" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "lore: /x: Permission denied",
        ),
        (ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn"), 1, "package uvicorn is missing"),
        (ConfigError("帽子\x1b[2J\nis no setting"), 2, "lore: \\u5e3d\\u5b50\\x1b[2J\nis no setting\n"),
    ],
)
def test_an_error_ends_in_one_line_that_any_terminal_can_show(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, says: str
) -> None:
    def fail(**options: object) -> None:
        raise error

    told = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(cli, "commands", fail)
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    monkeypatch.setattr(sys, "stderr", told)
    with pytest.raises(SystemExit) as caught:
        app()
    told.flush()
    assert caught.value.code == status
    assert says in told.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error", [OSError("a socket of nobody"), ModuleNotFoundError("lore_lib.utils", name="lore_lib.utils")]
)
def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "commands", fail)
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    with pytest.raises(type(error)):
        app()


def test_windows_is_told_of_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="WSL"):
        app()


def test_help_is_quick_to_read_and_names_every_command() -> None:
    result = lore("--help")
    assert result.returncode == 0
    for command in ("run", "report", "doctor", "generate", "kernel"):
        assert command in result.stdout
    assert "Exit status: 0 done" in result.stdout
    assert CliRunner().invoke(commands, ["--version"]).stdout == f"lore {__version__}\n"


def test_diagnose_names_signs_with_their_evidence_and_a_remedy(kit: Any) -> None:
    folder = kit.outputs / "r"
    pairs = pd.DataFrame(
        {"pair_id": [f"p{i:02}" for i in range(20)], "query_id": [f"q{i}" for i in range(20)]}
    )
    pairs = pairs.assign(label="L4", kind="plain")
    write_parquet(pairs, folder / "01_features" / "prompts.parquet")
    result = CliRunner().invoke(commands, ["diagnose", "r"])
    assert (result.exit_code, result.stdout.split(";")[0]) == (0, "nothing to judge yet")
    samples = pairs[["pair_id", "query_id"]].assign(sample=0, parse_kind="ok", tokens=9)
    arms = [samples.assign(system="direct", label="L4"), samples.assign(system="naive", label="L1")]
    both = [arm.assign(sample=1, label="L4") for arm in arms]  # the second try is right in both
    write_parquet(pd.concat([*arms, *both]), folder / "04_pass_at_8" / "samples.parquet")
    result = CliRunner().invoke(commands, ["diagnose", "r"])
    assert result.exit_code == 0
    assert (
        "[FOUND] naive chains: pass@1 falls, pass@k does not: pass@1 -0.500 [-0.500, -0.500]" in result.stdout
    )
    assert "remedy: " in result.stdout


def test_report_prints_the_table_the_page_and_json(kit: Any) -> None:
    stage = open_stage("02_cot_synthesis", "smoke", run="r")
    for name in stage.spec.promises:
        stage.path(name).write_text("")
    stage.metric("teacher accuracy | naive", 0.5, 0.4, 0.6, n=48)
    stage.finish()
    result = lore("report", "--run", "r")
    assert result.returncode == 0, result.stderr
    assert "0.500 [0.400, 0.600]" in result.stdout
    assert str(kit.outputs / "r" / "report.html") in result.stdout
    assert (kit.outputs / "r" / "report.html").is_file()
    assert lore("report", "--run", "r", "--json").stdout.startswith("{")


def test_doctor_fails_when_a_check_does(kit: Any) -> None:
    result = lore("doctor", "--profile", "smoke", "--set", "model.base=data/models/none")
    assert result.returncode == 1
    assert "[OK]   python" in result.stdout
    assert "[FAIL] model" in result.stdout


def test_generate_writes_the_tables_says_where_they_go_and_never_overwrites(tmp_path: Path) -> None:
    command = ("generate", "--vertical", "beauty_care", "--items", "20", "--out", str(tmp_path / "a"))
    result = lore(*command)
    assert result.returncode == 0, result.stderr
    assert "items 24, queries 4, " in result.stdout
    assert f"{Path('data', 'verticals', 'beauty_care')}, then 'lore run --vertical" in result.stdout
    assert len(read_parquet(tmp_path / "a" / "pairs.parquet")) == 16
    again = lore(*command)
    assert again.returncode == 1
    assert "already and is left as it is; choose another folder" in again.stderr
    assert "Traceback" not in again.stderr


def test_ctrl_c_while_generating_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> object:
        yield "clicks", {"query_id": "q", "item_id": "i", "clicks": 1}
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "world_rows", interrupted)
    result = CliRunner().invoke(commands, ["generate", "--items", "18", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.notebook
def test_run_prints_a_line_per_stage_then_the_results(kit: Any) -> None:
    kit.notebook("00_start_here", "stage.metric('pass@1 | naive', 0.5, n=4)")
    result = lore("run", "--profile", "smoke", "--only", "0")
    assert result.returncode == 0, result.stderr
    assert "[1/1] 00_start_here  " in result.stdout
    assert ") ok" in result.stdout
    assert "all 1 numbers with their seeds: lore report" in result.stdout
    assert "report.html" in result.stdout
    assert "unchanged" in lore("run", "--profile", "smoke", "--only", "0").stdout


@pytest.mark.notebook
def test_a_failing_notebook_gives_status_1(kit: Any) -> None:
    kit.notebook("00_start_here", "1 / 0")
    result = lore("run", "--profile", "smoke", "--only", "0")
    assert result.returncode == 1
    assert ") failed" in result.stdout
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_the_script_is_installed() -> None:
    assert (Path(sys.executable).parent / "lore").is_file()
