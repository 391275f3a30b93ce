"""Leaving out stages, and on-policy data: what is verified, what stands in, how scores are put together."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lore_lib.artifacts import read_parquet
from lore_lib.completion import parse, render
from lore_lib.config import load_config
from lore_lib.cot.arms import open_synthesis
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.on_policy import on_policy_traces, read_path
from lore_lib.cot.synthesis import STAGES_OF, WITHOUT, Synthesis, pair_rows
from lore_lib.cot.teacher import STAGES
from lore_lib.errors import DataError
from lore_lib.training import evidence
from lore_lib.training.evidence import (
    SUBSETS,
    arms_that_teach,
    beside_teachers,
    kept_scores,
    student_gaps,
    student_table,
    subset_of,
    teach_students,
    teacher_table,
)
from lore_lib.vertical.definition import Vertical

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def train(prompts: pd.DataFrame) -> pd.DataFrame:
    return prompts[prompts.split == "train"]


@pytest.fixture(scope="module")
def rows(world_tables: Tables, train: pd.DataFrame, captions: "pd.Series[Any]") -> pd.DataFrame:
    return pair_rows(world_tables, train, captions)


@pytest.fixture(scope="module")
def makers(world_tables: Tables, vertical: Vertical) -> dict[str, Synthesis]:
    config = load_config("smoke")
    knowledge = KnowledgeIndex.of(world_tables, config.cot)
    return {
        arm: open_synthesis(config, arm, vertical, knowledge) for arm in ("progressive", *WITHOUT, "naive")
    }


def test_each_arm_leaves_out_one_stage() -> None:
    assert [set(STAGES) - set(stages) for stages in WITHOUT.values()] == [{stage} for stage in STAGES]
    assert set(WITHOUT) < set(STAGES_OF)


def test_a_teacher_without_a_stage_fails_where_that_stage_was_needed(
    makers: dict[str, Synthesis], rows: pd.DataFrame, train: pd.DataFrame
) -> None:
    kind = train.kind.to_numpy()
    needs = {"without knowledge": "knowledge", "without vision": "visual", "without rules": "boundary"}
    for arm, hurt in needs.items():
        frame = makers[arm](rows)
        assert frame.reason.isin(["accepted", "repaired"]).mean() > 0.9  # as many pairs as the others teach
        right = (frame.teacher_label == frame.label).groupby(kind).mean()
        assert right[hurt] == right.min() < 0.6
        assert right["plain"] > right[hurt] + 0.2
    table = teacher_table({arm: makers[arm](rows) for arm in ("progressive", "without vision")}, train)
    assert table.loc["progressive", "all"] > 0.97
    assert table.loc["without vision", "visual"] < 0.6 < table.loc["without vision", "hard"]


def test_an_arm_without_a_kept_chain_has_no_student(makers: dict[str, Synthesis], rows: pd.DataFrame) -> None:
    frames = {arm: makers[arm](rows.head(8)) for arm in ("progressive", "naive")}
    assert frames["naive"].kept.any()
    lost = frames["progressive"].assign(kept=False, reason="uncovered")
    assert list(arms_that_teach({"progressive": lost, "naive": frames["naive"]})) == ["naive"]
    with pytest.raises(DataError, match=r"kept no chain of any arm \(uncovered 16\)"):
        arms_that_teach({"progressive": lost, "naive": lost})


def written(rows: pd.DataFrame, *completions: list[str]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"pair_id": rows.pair_id, "sample": number, "completion": texts})
        for number, texts in enumerate(completions)
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_first_sound_chain_is_taught_and_the_teacher_stands_in_where_none_is(
    makers: dict[str, Synthesis], rows: pd.DataFrame
) -> None:
    few = rows.head(6)
    teacher = makers["progressive"](few)
    good = teacher.completion.tolist()
    shorter = [
        render(parse(text).reasoning.splitlines()[:-1], parse(text).label, parse(text).mismatch)
        for text in good
    ]
    other = [f"{text.rpartition('[')[0]}[{'L4' if 'L4' not in text else 'L1'}]" for text in good]
    lies = [
        text.replace(f": {found} ", ": moonstone ")
        if (found := next(iter(read_path(text).values())))
        else text
        for text in good
    ]
    first = [good[0], other[1], shorter[2], lies[3], "[L", ""]
    second = [other[0], good[1], good[2], lies[3], "", good[5]]
    chosen, verdicts = on_policy_traces(written(few, first, second), few, teacher, makers["progressive"])
    assert chosen.source.tolist() == ["student", "student", "student", "teacher", "teacher", "student"]
    assert chosen.completion.tolist() == good
    assert chosen.pair_id.tolist() == few.pair_id.tolist()
    assert set(chosen.arm) == {"on-policy"}
    reasons = verdicts.pivot(index="pair_id", columns="sample", values="reason").loc[few.pair_id]
    assert reasons[0].tolist() == [
        "accepted", "disagrees", "uncovered", "invented", "malformed", "malformed",
    ]  # fmt: skip
    assert reasons[1].tolist() == ["disagrees", "accepted", "accepted", "invented", "malformed", "accepted"]


def test_a_teacher_that_failed_is_not_taught(makers: dict[str, Synthesis], rows: pd.DataFrame) -> None:
    few = rows.head(2)
    teacher = makers["progressive"](few)
    sound = teacher.completion.tolist()
    failed = teacher.assign(kept=[False, False], completion="", reason="timeout")
    chosen, _ = on_policy_traces(written(few, [sound[0], "[L"]), few, failed, makers["progressive"])
    assert chosen.kept.tolist() == [True, False]


def test_the_path_of_a_chain_is_read_without_its_explanations() -> None:
    text = "<think>\nneed: color navy\ncolor navy: dark navy match; it is: navy\nnonsense\n</think>\n[L4]"
    assert read_path(text) == {"color navy": "dark navy"}
    assert read_path("[L4]") == read_path("") == {}


def test_students_are_tuned_sampled_and_scored_on_every_subset(
    makers: dict[str, Synthesis],
    rows: pd.DataFrame,
    prompts: pd.DataFrame,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evidence, "run_parallel", lambda work, jobs, *_: [work(job) for job in jobs])
    changes = {"model.base": str(tiny_model), "cot.ablation_samples": 2, "cot.ablation_epochs": 1}
    changes |= {"cot.on_policy_samples": 1, "sampling.max_completion_tokens": 4, "runtime.workers": 1}
    config = load_config("smoke", overrides=changes)
    few, judged = rows.head(4), prompts[prompts.split == "dev"]
    arms = {arm: makers[arm](few) for arm in ("progressive", "naive")}
    samples, chosen, verdicts = teach_students(config, arms, few, judged, makers, tmp_path)
    assert samples.groupby("system", sort=False).size().to_dict() == dict.fromkeys(
        ("progressive", "naive", "on-policy"), 2 * len(judged)
    )
    assert set(chosen.source) == {"teacher"}  # four random tokens are no chain
    assert len(verdicts) == len(few)
    assert not list(tmp_path.rglob("*.safetensors"))
    again = teach_students(config, arms, few, judged, makers, tmp_path)[0]
    pd.testing.assert_frame_equal(again, samples)
    told = judged.assign(label="L9").set_index("pair_id")
    naive = samples[(samples.system == "naive") & (samples["sample"] == 0)].set_index("pair_id")
    told.loc[told.index[:3], "label"] = naive[
        "label"
    ]  # the first three are right in one sample of two, or both
    scores = kept_scores(tmp_path, ["naive", "without vision"], config.cot.ablation_seeds, told.reset_index())
    assert list(scores) == ["naive"]
    assert scores["naive"]["pair_id"].tolist() == judged["pair_id"].tolist()
    assert (scores["naive"]["right"] > 0).tolist() == [True] * 3 + [False] * (len(judged) - 3)
    with pytest.raises(DataError, match=r"naive: 1 pairs without gold label, first"):
        kept_scores(tmp_path, ["naive"], config.cot.ablation_seeds, judged.iloc[1:])
    with pytest.raises(DataError, match="no dev pairs"):
        teach_students(config, arms, few, judged.head(0), makers, tmp_path)
    drawn = read_parquet(tmp_path / "progressive-0" / "dev.parquet")
    assert drawn.completion.tolist() == samples.completion[: len(drawn)].tolist()


def test_scores_are_means_over_pairs_and_seeds() -> None:
    kinds = ["visual", "plain", "plain", "knowledge"]
    intents = ["plain", "plain", "negation", "slang"]
    gold = pd.DataFrame({"pair_id": list("abcd"), "query_id": list("wxyz"), "label": "L4", "kind": kinds})
    gold = gold.assign(intent=intents)
    assert subset_of(gold).tolist() == ["visual", "general", "hard", "hard"]
    right = {0: [2, 1, 0, 0], 1: [2, 2, 2, 0]}
    samples = pd.DataFrame(
        [
            {"system": "s", "pair_id": pair, "sample": n, "label": "L4" if n < count else "L1",
             "parse_kind": "ok", "tokens": 3, "seed": seed}
            for seed, counts in right.items()
            for pair, count in zip("abcd", counts, strict=True)
            for n in range(2)
        ]
    )  # fmt: skip
    table = student_table(samples, gold, 2, np.random.default_rng(0), 50)
    value = table.set_index(["subset", "metric"]).value
    assert value["all", "pass@1"] == (3 / 8 + 6 / 8) / 2
    assert value["all", "pass@2"] == (2 / 4 + 3 / 4) / 2
    assert value["visual", "pass@1"] == 1
    assert value["hard", "pass@1"] == (0 + 0.5) / 2
    one = table.set_index(["subset", "metric"]).loc[("all", "pass@1")]
    assert (one.lowest, one.highest, one.seeds, one.n) == (3 / 8, 6 / 8, 2, 4)
    worse = samples.assign(system="t", label=samples.label.where(samples.seed == 0, "L1"))
    gaps = student_gaps(pd.concat([samples, worse]), gold, np.random.default_rng(0), 50)
    (gap,) = gaps[gaps.subset == "all"].itertuples()
    assert (gap.system, gap.value, gap.n, gap.seeds) == ("t", -3 / 8, 4, 2)
    assert (gap.lowest, gap.highest) == (-6 / 8, 0)
    assert gap.low <= gap.value <= gap.high < 0
    assert gaps.subset.tolist() == list(SUBSETS)
    shown = beside_teachers(table, samples, pd.DataFrame({"all": {"s": 0.7}}))
    assert shown.loc["s", ("the teacher alone", "all")] == 0.7
    assert list(dict.fromkeys(shown.columns.get_level_values(0))) == [
        "pass@1", "pass@2", "parse rate", "lowest pass@1", "highest pass@1", "the teacher alone",
    ]  # fmt: skip
    assert shown.loc["s", ("highest pass@1", "all")] == 6 / 8
    alone = samples[samples.seed == 0]
    once = student_table(alone, gold, 2, np.random.default_rng(0), 50)
    assert "lowest pass@1" not in beside_teachers(once, alone, pd.DataFrame({"all": {"s": 0.7}}))
    assert [name for metric, name in shown.columns if metric == "pass@1"] == list(SUBSETS)
    first = student_table(samples[samples["sample"] == 0], gold, 1, np.random.default_rng(0), 50)
    assert first.metric.unique().tolist() == ["pass@1"], "one try is scored once"
    assert first.groupby("subset").size().max() == 1
