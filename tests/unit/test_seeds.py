"""Several runs in one table: the numbers by hand, and what cannot be compared is refused."""

from typing import Any

import pytest
from typer.testing import CliRunner

from lore_lib.cli import commands
from lore_lib.errors import ArtifactError
from lore_lib.run.seeds import differing_settings, over_seeds, runs_of_a_stage
from lore_lib.run.stage import open_stage

STAGE = "00_start_here"


def made(run: str, seed: int, value: float, **settings: Any) -> str:
    stage = open_stage(STAGE, "smoke", run=run, seed=seed, overrides=settings.get("overrides"))
    stage.metric("pass@1 | direct", value, n=10)
    if seed == 1:
        stage.metric("only here", 1.0, n=1)
    stage.finish()
    return run


@pytest.fixture
def runs(kit: Any) -> list[str]:
    return [made(f"r{seed}", seed, value) for seed, value in ((1, 0.5), (2, 0.6), (3, 0.7))]


def test_the_interval_is_students_t_over_the_runs(runs: list[str]) -> None:
    table = over_seeds(runs_of_a_stage(runs, STAGE))
    assert table.name.tolist() == ["pass@1 | direct"], "what one run lacks cannot be compared"
    row = table.iloc[0]
    # standard deviation .1, of the mean .1 / sqrt 3; t of two degrees of freedom is 4.303
    assert (row["mean"], row.lowest, row.highest, row.runs) == (pytest.approx(0.6), 0.5, 0.7, 3)
    assert row.high - row["mean"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert row["mean"] - row.low == pytest.approx(row.high - row["mean"])


def test_what_is_no_draw_of_its_own_is_refused(runs: list[str]) -> None:
    with pytest.raises(ArtifactError, match="one run has no spread"):
        runs_of_a_stage(runs[:1], STAGE)
    with pytest.raises(ArtifactError, match="several runs have the seed 3"):
        runs_of_a_stage([*runs, made("again", 3, 0.9)], STAGE)
    with pytest.raises(ArtifactError, match=r"run 'r1' has not finished '04_pass_at_8'"):
        runs_of_a_stage(runs, "04_pass_at_8")
    with pytest.raises(ArtifactError, match=r"no run 'r9' in .*r1, r2, r3"):
        runs_of_a_stage([*runs, "r9"], STAGE)


def test_the_command_shows_the_table_and_names_other_differences(runs: list[str]) -> None:
    runs.append(made("r4", 4, 0.6, overrides={"world.label_noise": 0.5}))
    shown = CliRunner().invoke(commands, ["seeds", *runs, "--stage", "0"])
    assert shown.exit_code == 0, shown.output
    assert "pass@1 | direct" in shown.output
    assert "differ in world.label_noise too" in shown.output
    assert differing_settings(runs_of_a_stage(runs[:3], STAGE)) == []
