"""The ladder of prompts: what a rung tells, who is taught and who is judged, and how rungs are compared."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lore_lib.artifacts import read_parquet
from lore_lib.completion import parse, render_answer
from lore_lib.config import Config, load_config
from lore_lib.errors import DataError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import load_template
from lore_lib.sampling.engine import SAMPLE_COLUMNS, load_tokenizer
from lore_lib.training import ablation
from lore_lib.training.ablation import (
    ANSWER_TOKENS,
    PerfectReader,
    Rung,
    climb,
    judge_ladder,
    ladder,
    ladder_jobs,
    ladder_overview,
    ladder_prompts,
    ladder_table,
    without_model,
)
from lore_lib.vertical.definition import Vertical

Tables = dict[str, pd.DataFrame]


@pytest.fixture
def config(tiny_model: Path) -> Config:
    sizes = {"features.ablation_pairs": 8, "features.ablation_trainings": 2, "features.ablation_samples": 2}
    return load_config("smoke", overrides={**sizes, "model.base": str(tiny_model), "model.device": "cpu"})


@pytest.fixture(scope="module")
def built(world_tables: Tables, captions: "pd.Series[str]", tiny_model: Path) -> dict[Rung, pd.DataFrame]:
    return ladder_prompts(world_tables, captions, load_template("nano"), load_tokenizer(str(tiny_model)))


@pytest.mark.parametrize("name", ["nano", "en", "zh"])
def test_rungs_rise_through_the_papers_features_and_the_budgets(name: str) -> None:
    template = load_template(name)
    rungs = ladder(template)
    added = [set(rung.sections) - set(below.sections) for below, rung in pairwise(rungs)]
    assert added[:3] == [{"cpv"}, {"sku"}, {"picture"}]
    assert all(added)
    for budget, limit in template.budgets.items():
        (whole,) = [rung for rung in rungs if set(rung.sections) == set(limit.sections)]
        assert whole.budget == budget
        assert whole.name.endswith(f"({budget})")


def test_the_rung_that_completes_a_budget_is_that_budgets_prompt(
    built: dict[Rung, pd.DataFrame], world_tables: Tables, captions: "pd.Series[str]"
) -> None:
    whole = {rung.budget: frame for rung, frame in built.items() if f"({rung.budget})" in rung.name}
    assert list(whole) == ["short", "mid", "full"]
    for budget, frame in whole.items():
        assert frame.prompt.equals(build_prompts(world_tables, captions, budget).prompt)
    medians = [frame.tokens.median() for frame in built.values()]
    assert medians == sorted(medians)
    assert medians[0] < medians[-1]


def test_every_taught_pair_stands_on_every_rung_and_all_dev_pairs_are_judged(
    config: Config, built: dict[Rung, pd.DataFrame], world_tables: Tables, tmp_path: Path
) -> None:
    pairs = world_tables["pairs"].set_index("pair_id")
    jobs = ladder_jobs(config, built, world_tables["pairs"], tmp_path)
    assert len(jobs) == 2
    assert len({job.tune.seed for job in jobs} | {job.judges[0].sampling.seed for job in jobs}) == 2
    (rows,) = {job.tune.rows for job in jobs}
    taught = read_parquet(rows)
    assert (taught.groupby("pair_id").size() == len(built)).all()
    assert taught.pair_id.nunique() == 8
    assert set(map(tuple, taught[["pair_id", "prompt"]].to_numpy())) <= {
        row for frame in built.values() for row in zip(frame.pair_id, frame.prompt, strict=True)
    }
    gold = pairs.loc[taught.pair_id]
    assert set(gold.split) == {"train"}
    assert [(parse(c).label, parse(c).mismatch) for c in taught.completion] == list(
        zip(gold.label, gold.mismatch, strict=True)
    )
    for judge, (rung, frame) in zip(jobs[0].judges, built.items(), strict=True):
        asked = read_parquet(judge.prompts)
        assert judge.system == rung.name
        assert asked.prompt.tolist() == frame.prompt[frame.split == "dev"].tolist()
        assert set(asked.pair_id) == set(pairs.index[pairs.split == "dev"])
        assert judge.sampling.n == 2


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_missing_split_is_named(
    config: Config, built: dict[Rung, pd.DataFrame], world_tables: Tables, tmp_path: Path, split: str
) -> None:
    with pytest.raises(DataError, match=f"none in split {split};"):
        ladder_jobs(config, built, world_tables["pairs"].query("split != @split"), tmp_path)


def test_a_job_leaves_samples_and_no_model_and_is_not_done_twice(
    config: Config, built: dict[Rung, pd.DataFrame], world_tables: Tables, tmp_path: Path
) -> None:
    job = ladder_jobs(config, built, world_tables["pairs"], tmp_path)[0]
    drawn = climb(job)
    samples = [read_parquet(file) for file in drawn]
    assert [list(part) for part in samples] == [SAMPLE_COLUMNS] * len(built)
    assert [set(part.system) for part in samples] == [{rung.name} for rung in built]
    assert {len(part) for part in samples} == {2 * (world_tables["pairs"].split == "dev").sum()}
    assert not job.tune.out.exists()
    before = [file.stat().st_mtime_ns for file in drawn]
    job.tune.out.mkdir()  # as a kill between the two leaves it
    assert [file.stat().st_mtime_ns for file in climb(job)] == before
    assert not job.tune.out.exists()


def test_the_trainings_of_a_rung_are_one_system_with_twice_the_samples(
    config: Config, built: dict[Rung, pd.DataFrame], world_tables: Tables, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ablation, "run_parallel", lambda work, jobs, *_: [work(job) for job in jobs])
    samples = judge_ladder(config, built, world_tables["pairs"], tmp_path)
    dev = world_tables["pairs"].query("split == 'dev'")
    assert (samples.groupby("system").size() == 4 * len(dev)).all()
    assert not samples.duplicated(["system", "pair_id", "sample"]).any()
    assert set(zip(samples.training, samples["sample"], strict=True)) == {(0, 0), (0, 1), (1, 2), (1, 3)}
    table = ladder_table(samples, dev, np.random.default_rng(0), 20)
    assert list(table.system[table.pairs == "all"]) == [rung.name for rung in built]


def test_there_is_room_for_every_label(tiny_model: Path, world_tables: Tables) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    pairs = world_tables["pairs"]
    answers = {render_answer(*gold) for gold in zip(pairs.label, pairs.mismatch, strict=True)}
    assert max(map(len, tokenizer(sorted(answers))["input_ids"])) < ANSWER_TOKENS


def samples_of(rungs: dict[str, list[str]]) -> pd.DataFrame:
    """Two samples for each of four pairs, by rung; "" is malformed."""
    rows = [
        (rung, f"p{i // 2}", f"q{i // 4}", i % 2, "", label, "ok" if label else "no_label", 3, "stop")
        for rung, labels in rungs.items()
        for i, label in enumerate(labels)
    ]
    return pd.DataFrame(rows, columns=SAMPLE_COLUMNS)


def test_a_perfect_reader_gains_what_a_rung_tells_and_needs_no_more_than_cpv_and_picture(
    world_tables: Tables, captions: "pd.Series[str]", vertical: Vertical
) -> None:
    rungs, gold = ladder(load_template("nano")), world_tables["pairs"].query("split == 'dev'")
    reader = PerfectReader(vertical, world_tables, captions)
    answers = reader.climb(rungs)
    table = ladder_table(answers, gold, np.random.default_rng(0), 20).query("pairs == 'all'")
    title, cpv, sku, picture, full = table.value
    assert title < cpv == sku < picture == full == 1  # the world's text and picture tell all there is
    for pair_id in gold.pair_id:
        lowest = reader.levels(pair_id, rungs).min()
        assert [f"L{level}" for level in lowest] == answers.label[answers.pair_id == pair_id].tolist()
    blind = PerfectReader(vertical, world_tables, captions.map(lambda _: None)).climb(rungs)
    seen = ladder_table(blind, gold, np.random.default_rng(0), 20).query("pairs == 'all'")
    assert seen.value.tolist() == [title, cpv, cpv, cpv, cpv]


def test_a_perfect_reader_wants_dev_pairs(
    world_tables: Tables, captions: "pd.Series[str]", vertical: Vertical
) -> None:
    train = {**world_tables, "pairs": world_tables["pairs"].query("split == 'train'")}
    with pytest.raises(DataError, match="none in split dev;"):
        PerfectReader(vertical, train, captions)


GOLD = pd.DataFrame(
    {
        "pair_id": ["p0", "p1", "p2", "p3"],
        "query_id": ["q0", "q0", "q1", "q1"],
        "label": ["L1", "L2", "L3", "L4"],
        "kind": ["plain", "visual", "boundary", "visual"],
    }
)


def test_the_table_by_hand() -> None:
    """Lower rung: 4 of 8 right, visual 1 of 4. Upper rung: 7 of 8, visual 4 of 4, one malformed."""
    low = ["L1", "L1", "L2", "L1", "L3", "L1", "L1", "L1"]
    high = ["L1", "L1", "L2", "L2", "L3", "", "L4", "L4"]
    table = ladder_table(samples_of({"b": low, "a": high}), GOLD, np.random.default_rng(0))
    assert list(zip(table.pairs, table.system, table.n, strict=True)) == [
        ("all", "b", 4),
        ("all", "a", 4),
        ("visual", "b", 2),
        ("visual", "a", 2),
    ]
    assert table.value.tolist() == [4 / 8, 7 / 8, 1 / 4, 1.0]
    assert table.gain.tolist()[1::2] == table.total.tolist()[1::2] == [3 / 8, 3 / 4]
    assert table.gain.isna().tolist() == table.total.isna().tolist() == [True, False, True, False]
    assert table.parse_rate.tolist() == [1, 7 / 8, 1, 1]
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert (table.gain_low[1], table.gain_high[1]) == (0.25, 0.5)  # q0 gains 1/4, q1 1/2


def test_judges_stand_side_by_side() -> None:
    low = ["L1", "L1", "L2", "L1", "L3", "L1", "L1", "L1"]
    high = ["L1", "L1", "L2", "L2", "L3", "", "L4", "L4"]
    table = ladder_table(samples_of({"b": low, "a": high}), GOLD, np.random.default_rng(0))
    trainings = pd.Series([0.5, 0.25], pd.MultiIndex.from_tuples([("b", 0), ("a", 0)]))
    wide = ladder_overview(pd.concat([table.assign(judge="one"), table.assign(judge="two")]), trainings)
    assert wide.index.tolist() == ["b", "a"]
    assert wide.columns.tolist()[:3] == [("one", "pass@1"), ("one", "gain"), ("two", "pass@1")]
    assert wide["by training", "0"].tolist() == [0.5, 0.25]
    assert wide["one", "gain"].tolist() == ["", "0.375 [0.250, 0.500]"]


def test_a_gain_is_over_the_rung_below_and_a_total_over_the_lowest() -> None:
    right, wrong = ["L1", "L1", "L2", "L2", "L3", "L3", "L4", "L4"], ["L4"] * 6 + ["L1"] * 2
    middle = [*right[:4], *wrong[4:]]
    rungs = {"low": wrong, "middle": middle, "high": right}
    table = ladder_table(samples_of(rungs), GOLD, np.random.default_rng(0)).query("pairs == 'all'")
    assert table.gain.tolist()[1:] == [1 / 2, 1 / 2]
    assert table.total.tolist()[1:] == [1 / 2, 1.0]
    assert table.total_low.iloc[2] == table.total_high.iloc[2] == 1.0


def test_judges_without_a_model_know_train_and_are_scored_on_dev() -> None:
    pairs = pd.DataFrame(
        {"split": ["train"] * 3 + ["dev"] * 4 + ["test"] * 9, "label": [*"413", *"3331", *"4" * 9]}
    )
    pairs["label"] = "L" + pairs["label"]
    assert without_model(pairs) == {"uniform guessing": 0.25, "always L1": 0.25}  # a tie: the lowest
    pairs.loc[0, "label"] = "L3"
    assert without_model(pairs) == {"uniform guessing": 0.25, "always L3": 0.75}
