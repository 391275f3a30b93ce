"""What other tools read: TREC files, the harness's results and task; and the commands that build and
score."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import regex
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lore_lib.cli import commands
from lore_lib.completion import parse, render, render_answer
from lore_lib.errors import DataError
from lore_lib.rair.benchmark import ROW, Benchmark, load_benchmark
from lore_lib.rair.exports import (
    LABEL_PATTERN,
    harness_results,
    task_name,
    trec_qrels,
    trec_run,
    write_exports,
    write_task,
)
from lore_lib.rair.metrics import score_table
from lore_lib.vertical.schema import LABELS

ROWS = [
    ("p1", "q1", "i1", "L4"),
    ("p2", "q1", "i2", "L1"),
    ("p3", "q1", "i3", "L3"),
    ("p4", "q2", "i4", "L2"),
]


@pytest.fixture
def benchmark() -> Benchmark:
    """Four pairs of two queries."""
    rows = pd.DataFrame(ROWS, columns=["pair_id", "query_id", "item_id", "label"])
    rows = rows.assign(**{name: "" for name in ROW if name not in rows})
    return Benchmark(
        "mini/some-place", "1", rows.assign(subset=["general", "hard"] * 2, picture=b"", price=0.0)
    )


def judged(benchmark: Benchmark, labels: list[str]) -> pd.DataFrame:
    said = benchmark.rows[["pair_id"]].assign(label=labels, benchmark=benchmark.reference)
    return benchmark.judged(said)


def test_qrels_and_runs_have_the_columns_of_trec(benchmark: Benchmark) -> None:
    assert trec_qrels(benchmark).splitlines() == ["q1 0 i1 3", "q1 0 i2 0", "q1 0 i3 2", "q2 0 i4 1"]
    run = trec_run(judged(benchmark, ["L3", "", "L4", "L2"]), benchmark, "mine")
    assert run.splitlines() == [
        "q1 Q0 i3 1 4 mine",
        "q1 Q0 i1 2 3 mine",
        "q1 Q0 i2 3 0 mine",
        "q2 Q0 i4 1 2 mine",
    ]
    with pytest.raises(DataError, match="give one word, such as 'my_run'"):
        trec_run(judged(benchmark, list(LABELS)), benchmark, "my run")


def test_an_id_with_blanks_shifts_no_column(benchmark: Benchmark) -> None:
    odd = benchmark.rows.assign(item_id=[f"my item\n{n}" for n in range(len(benchmark.rows))])
    named = Benchmark(benchmark.name, benchmark.version, odd)
    lines = trec_qrels(named).splitlines() + trec_run(judged(named, list(LABELS)), named, "mine").splitlines()
    assert {len(line.split()) for line in lines} == {4, 6}
    assert "my%20item%0A0" in lines[0]


def test_results_have_the_shape_of_the_harness(benchmark: Benchmark) -> None:
    table = score_table(judged(benchmark, ["L4", "L1", "L4", ""]), 200, np.random.default_rng(0))
    found = json.loads(harness_results(table, benchmark, "mine"))
    tasks = ["mini_some_place", "mini_some_place_general", "mini_some_place_hard"]
    assert list(found["results"]) == tasks
    whole = found["results"]["mini_some_place"]
    assert (whole["alias"], whole["acc@4,none"], whole["parse_rate,none"]) == ("mini_some_place", 0.5, 0.75)
    assert whole["acc@4_stderr,none"] > 0
    assert found["results"]["mini_some_place_general"]["acc@4_stderr,none"] == "N/A", "one query"
    assert found["n-samples"]["mini_some_place"] == {"original": 4, "effective": 4}
    assert set(found["versions"].values()) == {benchmark.reference}
    for part in ("versions", "n-shot", "higher_is_better", "n-samples"):
        assert list(found[part]) == tasks


def test_the_task_file_stands_on_its_own(benchmark: Benchmark, tmp_path: Path) -> None:
    prompts = benchmark.rows.set_index("pair_id")["item_id"].map("prompt of {}".format)
    path = write_task(benchmark, prompts, tmp_path)
    task = yaml.safe_load(path.read_text())
    assert task["task"] == task_name(benchmark) == path.stem
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["label"] for row in rows] == benchmark.rows["label"].tolist()
    assert rows[0]["prompt"] == "prompt of i1"
    (steps,) = task["filter_list"]
    pattern = steps["filter"][0]["regex_pattern"]
    assert regex.findall(pattern, rows[0]["answer"]) == ["L4"]
    assert steps["filter"][0]["fallback"] not in LABELS


pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "[L1]",
        "[L2-Color Mismatch]",
        "[L3-Color Mismatch]",
        "[L4]",
        "navy",
        " ",
        "\n",
        "L3",
        "[L2-Colour Mismatch]",
    ]
)


@given(st.lists(pieces, max_size=7).map("".join))
def test_the_harness_reads_the_label_that_the_grammar_reads(completion: str) -> None:
    read, found = parse(completion), regex.findall(LABEL_PATTERN, completion)
    if read.kind == "unknown_mismatch":
        assert len(found) == 1, "the harness does not know the dimensions"
    else:
        assert found == ([read.label] if read.label else [])


def test_the_harness_reads_what_the_kit_writes() -> None:
    for label in LABELS:
        for text in (render_answer(label), render(["L1? no", "color navy: azure conflict"], label)):
            assert regex.findall(LABEL_PATTERN, text) == [label]


def test_all_exports_are_written(benchmark: Benchmark, tmp_path: Path) -> None:
    said = judged(benchmark, list(LABELS))
    table = score_table(said, 10, np.random.default_rng(0))
    prompts = benchmark.rows.set_index("pair_id")["item_id"]
    written = write_exports(tmp_path, benchmark, said, table, prompts, "mine")
    names = ["qrels.txt", "mine.run", "mine.json", "mini_some_place.yaml"]
    assert [path.name for path in written] == names


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(commands, list(arguments))


def test_anybodys_answers_are_scored_by_name_and_version(tmp_path: Path) -> None:
    bundled = load_benchmark("rair-mini/beauty_care")
    answers = bundled.rows[["pair_id", "label"]].assign(benchmark=bundled.reference)
    answers.loc[0, "label"] = ""
    answers.to_json(tmp_path / "good.jsonl", orient="records", lines=True)
    done = invoke("score", str(tmp_path / "good.jsonl"), "--benchmark", "rair-mini/beauty_care")
    assert done.exit_code == 0, done.output
    assert f"{bundled.reference}, 95 % intervals over queries" in done.stdout
    assert "all (n=500): acc@4 0.998 [" in done.stdout
    shape = invoke("score", str(tmp_path / "good.jsonl"), "--benchmark", "rair-mini/beauty_care", "--json")
    assert json.loads(shape.stdout)["results"]["rair_mini_beauty_care"]["acc@4,none"] == 0.998
    other = invoke("score", str(tmp_path / "good.jsonl"), "--benchmark", "rair-mini/apparel_home")
    assert isinstance(other.exception, DataError)
    assert "500 of 500 answers are for 'rair-mini/beauty_care@" in str(other.exception)
