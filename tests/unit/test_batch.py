"""Batch synthesis: engines that give the same bytes, resumed after a kill, told apart by nothing but time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lore_lib.artifacts import write_parquet
from lore_lib.cli import commands
from lore_lib.config import Config, load_config
from lore_lib.cot import batch
from lore_lib.cot.batch import prepare_batch, run_batch
from lore_lib.cot.chat import Arrived, Reply, Request, ignore
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.on_ray import ray_workers
from lore_lib.cot.synthesis import pair_rows, read_traces, synthesise
from lore_lib.errors import ArtifactError, DataError, EngineError
from lore_lib.vertical.definition import Vertical


def config(**changes: Any) -> Config:
    return load_config("smoke", overrides={"cot.pairs": 50, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    names = [folder / "manifest.json", *sorted((folder / "traces").iterdir())]
    return {path.name: path.read_bytes() for path in names}


def test_shards_hold_what_the_notebook_would_write(
    source: Path,
    tmp_path: Path,
    world_tables: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    captions: "pd.Series[Any]",
    vertical: Vertical,
) -> None:
    batch = prepare_batch(tmp_path, source, config(), "progressive", 16)
    run_batch(batch)
    train = prompts[prompts.split == "train"].head(50)
    cot = config().cot
    whole = synthesise(
        "progressive", world_tables, train, captions, vertical, cot.top_clicked, cot.selling_points, "drop"
    )
    pd.testing.assert_frame_equal(read_traces(tmp_path), whole, check_dtype=False)
    assert batch.shards() == 4
    assert [pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(n).num_rows for n in range(4)] == [
        16, 16, 16, 2,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def workers() -> Iterator[int]:
    """Two local Ray workers."""
    with ray_workers(2):
        yield 2


def test_two_ray_workers_write_the_same_bytes_and_take_up_what_the_other_engine_left(
    source: Path, tmp_path: Path, workers: int
) -> None:
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    run_batch(prepare_batch(alone, source, config(), "without vision", 8))
    on_ray = config(**{"runtime.engine": "ray", "runtime.workers": workers})
    batch = prepare_batch(spread, source, on_ray, "without vision", 8)
    run_batch(replace(batch, config=config()))
    assert tree(spread) == tree(alone)
    kept = spread / "traces" / "00000.parquet"
    before = kept.stat().st_mtime_ns
    for number in (1, 2, 5):
        (spread / "traces" / f"{number:05d}.parquet").unlink()
    (spread / "manifest.json").unlink()
    run_batch(batch)
    assert tree(spread) == tree(alone)
    assert kept.stat().st_mtime_ns == before


def test_a_teacher_that_is_down_stops_both_engines_with_the_same_words(
    source: Path, tmp_path: Path, workers: int
) -> None:
    down = {"cot.teacher": "openai", "cot.teacher_model": "big", "cot.teacher_attempts": 1}
    down |= {"cot.teacher_url": "http://127.0.0.1:9/v1", "runtime.workers": workers}
    for engine in ("local", "ray"):
        settings = config(**down | {"runtime.engine": engine})
        batch = prepare_batch(tmp_path, source, settings, "naive", 25)
        with pytest.raises(EngineError, match=r"25 of the 25 pairs of 0000.*got no reply \(unreachable 25\)"):
            run_batch(batch)
        assert not (tmp_path / "manifest.json").exists()


def test_what_it_was_made_from_is_laid_out_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_batch(tmp_path, source, config(), "naive", 16)
    before = (tmp_path / "rows.parquet").stat().st_mtime_ns
    prepare_batch(tmp_path, source, config(), "progressive", 16)
    assert (tmp_path / "rows.parquet").stat().st_mtime_ns == before
    batch = prepare_batch(tmp_path, source, config(**{"cot.pairs": 20}), "progressive", 16)
    assert batch.shards() == 2
    assert KnowledgeIndex.load(tmp_path / "knowledge").explain("q", ["nothing"]) == {}


def test_the_tables_are_joined_once_for_many_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[int] = []

    def counted(tables: Any, part: pd.DataFrame, captions: Any) -> pd.DataFrame:
        joined.append(len(part))
        return pair_rows(tables, part, captions)

    monkeypatch.setattr(batch, "pair_rows", counted)
    laid_out = prepare_batch(tmp_path, source, config(), "naive", 2)
    assert laid_out.shards() == sum(joined) / 2 == 25
    assert len(joined) <= 25 / 5


def test_tables_that_are_not_there_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no table at .*items\.parquet"):
        prepare_batch(tmp_path / "out", tmp_path, config(), "naive")
    elsewhere = tmp_path / "elsewhere"
    for path in source.iterdir():
        frame = pd.read_parquet(path)
        write_parquet(frame.assign(split="dev") if path.stem == "prompts" else frame, elsewhere / path.name)
    with pytest.raises(DataError, match="no prompts of split train"):
        prepare_batch(tmp_path / "out", elsewhere, config(), "naive")


def test_the_command_writes_counts_and_resumes(source: Path, tmp_path: Path) -> None:
    words = ["synthesise", "--profile", "smoke", "--from", str(source), "--out", str(tmp_path / "out")]
    words += ["--arm", "without rules", "--set", "cot.pairs=50"]
    first = CliRunner().invoke(commands, words)
    assert first.exit_code == 0, first.output
    traces = read_traces(tmp_path / "out")
    assert f"{traces.kept.sum()} of 50 chains kept" in first.output
    for reason, count in traces.reason.value_counts().items():
        assert f"{reason}: {count}" in first.output
    shard = tmp_path / "out" / "traces" / "00000.parquet"
    before = shard.stat().st_mtime_ns
    assert CliRunner().invoke(commands, words).exit_code == 0
    assert shard.stat().st_mtime_ns == before
    unknown = CliRunner().invoke(commands, [*words, "--arm", "progresive"])
    assert "did you mean 'progressive'?" in str(unknown.exception)


def test_the_command_tells_what_the_teachers_tokens_cost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wordy:
        name = "wordy"
        identity: ClassVar[dict[str, Any]] = {}

        def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
            replies = [Reply("no answer", 1_000_000, 10_000)] * len(requests)
            for place, reply in enumerate(replies):
                arrived(place, reply)
            return replies

    monkeypatch.setattr(batch, "open_chat_model", lambda config: Wordy())
    words = ["synthesise", "--profile", "smoke", "--from", str(source), "--out", str(tmp_path / "out")]
    words += ["--arm", "naive", "--set", "cot.pairs=2"]
    for price in ("prompt", "completion"):
        words += ["--set", f"cot.teacher_{price}_price=2.5"]
    told = CliRunner().invoke(commands, words)
    assert "2,000,000 read, 20,000 written, cached replies included; cost 5.05" in told.output
    assert "0 of 2 chains kept" in told.output
