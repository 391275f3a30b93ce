"""pass@k, majority vote and the per-pair summary."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.errors import DataError
from lore_lib.sampling.pass_at_k import (
    effects_table,
    expected_chance_pass_at_k,
    majority_vote,
    parse_failures,
    pass_at_k,
    summarise,
)

CASES = json.loads((Path(__file__).parents[1] / "cases" / "pass_at_k.json").read_text())


def samples_of(labels: dict[str, list[str]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "system": "s",
                "pair_id": pair,
                "sample": number,
                "label": label,
                "parse_kind": "ok" if label else "no_label",
                "tokens": 10 + number,
            }
            for pair, row in labels.items()
            for number, label in enumerate(row)
        ]
    )


GOLD = pd.DataFrame({"pair_id": ["a", "b", "c"], "query_id": ["q1", "q1", "q2"], "label": ["L4", "L2", "L1"]})


@pytest.mark.parametrize("case", CASES["pass_at_k"], ids=lambda case: case["why"])
def test_pass_at_k_worked_by_hand(case: dict[str, float]) -> None:
    assert pass_at_k(case["n"], case["c"], int(case["k"])) == pytest.approx(case["value"], abs=1e-12)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_exact_combinatorics(drawn: tuple[int, int, int]) -> None:
    n, c, k = drawn
    assert float(pass_at_k(n, c, k)) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)


@given(st.integers(2, 30), st.integers(1, 29))
def test_pass_at_k_grows_with_k_and_with_c(n: int, k: int) -> None:
    k = min(k, n - 1)
    c = np.arange(n + 1)
    assert (np.diff(pass_at_k(n, c, k)) >= -1e-12).all()
    assert (pass_at_k(n, c, k + 1) >= pass_at_k(n, c, k) - 1e-12).all()


def test_pass_at_k_is_the_mean_of_any_right_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    right = np.array([1, 0, 0, 1, 0, 0])
    draws = np.array([right[rng.permutation(6)[:3]].any() for _ in range(20_000)])
    assert float(pass_at_k(6, 2, 3)) == pytest.approx(draws.mean(), abs=0.015)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(DataError):
        pass_at_k(n, c, k)


def test_chance_line_is_what_a_guesser_gets() -> None:
    right = np.random.default_rng(0).integers(0, 4, (20_000, 8)) == 0
    assert expected_chance_pass_at_k(8) == pytest.approx(right.any(axis=1).mean(), abs=0.01)
    assert expected_chance_pass_at_k(1, labels=2) == 0.5


@pytest.mark.parametrize("case", CASES["vote"], ids=lambda case: "+".join(case["labels"]))
def test_majority_vote_by_hand(case: dict[str, list[str]]) -> None:
    assert majority_vote(samples_of({"a": case["labels"]})).to_dict() == {"a": case["vote"]}


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["L1", "L2", "L3", "L4", ""]), min_size=1, max_size=9), st.randoms())
def test_majority_vote_does_not_depend_on_order(labels: list[str], random) -> None:  # type: ignore[no-untyped-def]
    mixed = random.sample(labels, len(labels))
    assert majority_vote(samples_of({"a": labels}))["a"] == majority_vote(samples_of({"a": mixed}))["a"]


def test_summarise_by_hand() -> None:
    samples = samples_of({"b": ["L2", "L2", "L2", "L2"], "a": ["L4", "", "L3", "L3"]})
    table = summarise(samples, GOLD, k=2).set_index("pair_id")
    assert table.index.tolist() == ["a", "b"]
    assert table["correct"].tolist() == [1, 4]
    assert table["pass_at_1"].tolist() == [0.25, 1.0]
    assert table["pass_at_k"].tolist() == [0.5, 1.0]
    assert table["vote_correct"].tolist() == [False, True]
    assert table["parse_rate"].tolist() == [0.75, 1.0]
    assert table["mean_tokens"].tolist() == [11.5, 11.5]
    assert table["query_id"].tolist() == ["q1", "q1"]


def test_summarise_uses_each_pairs_own_n() -> None:
    """lighteval once took n from the first sample and scored 2 right of 4 as if of 8."""
    table = summarise(samples_of({"a": ["L4"] * 8, "b": ["L2", "L2", "L1", "L1"]}), GOLD, k=2)
    assert table.loc[1, "n"] == 4
    assert table.loc[1, "pass_at_k"] == pytest.approx(5 / 6)


def test_a_lucky_label_in_an_unparsable_sample_is_wrong() -> None:
    table = summarise(samples_of({"a": ["", ""]}), GOLD, k=2)
    assert (table.loc[0, "pass_at_k"], table.loc[0, "vote_correct"], table.loc[0, "parse_rate"]) == (
        0,
        False,
        0,
    )


def test_summarise_leaves_its_inputs_alone_and_ignores_row_order() -> None:
    samples = samples_of({"a": ["L4", "L3"], "b": ["L2", ""]})
    before = samples.copy(deep=True)
    shuffled = samples.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(summarise(samples, GOLD, 1), summarise(shuffled, GOLD, 1))
    pd.testing.assert_frame_equal(samples, before)


def test_summarise_names_the_pair_that_lacks_samples() -> None:
    with pytest.raises(DataError, match=r"k=4.*first b \(n=2\)"):
        summarise(samples_of({"a": ["L4"] * 4, "b": ["L2"] * 2}), GOLD, k=4)


def test_summarise_refuses_mixed_systems_unknown_pairs_and_nothing() -> None:
    samples = samples_of({"a": ["L4", "L4"]})
    with pytest.raises(DataError, match="one system at a time"):
        summarise(pd.concat([samples, samples.assign(system="t")]), GOLD, k=1)
    with pytest.raises(DataError, match="no gold label, first z"):
        summarise(samples_of({"z": ["L4"]}), GOLD, k=1)
    with pytest.raises(DataError, match="stands twice in gold"):
        summarise(samples, pd.concat([GOLD, GOLD]), k=1)
    with pytest.raises(DataError, match="no samples"):
        summarise(samples.iloc[:0], GOLD, k=1)


def test_parse_failures_are_counted_by_kind() -> None:
    samples = samples_of({"a": ["L4", "", "", "L1"]})
    samples.loc[2, "parse_kind"] = "unclosed_think"
    more = pd.concat([samples, samples_of({"b": ["", ""]}).assign(system="t")])
    assert parse_failures(more).to_dict("records") == [
        {"system": "s", "parse_kind": "no_label", "count": 1, "share": 0.25},
        {"system": "s", "parse_kind": "unclosed_think", "count": 1, "share": 0.25},
        {"system": "t", "parse_kind": "no_label", "count": 2, "share": 1.0},
    ]
    assert parse_failures(samples_of({"a": ["L4"]})).empty


def test_the_table_of_effects_has_a_row_per_system_and_metric_with_its_chance() -> None:
    right = {"a": ["L4", "L4"], "b": ["L2", "L3"], "c": ["L3", "L1"]}
    wrong = {"a": ["L1", ""], "b": ["L1", "L1"], "c": ["L4", "L4"]}
    samples = pd.concat([samples_of(right).assign(system="good"), samples_of(wrong).assign(system="bad")])
    table = effects_table(samples, GOLD, 2, 50, np.random.default_rng(0)).set_index(["system", "metric"])
    assert table.value.to_dict() == {
        ("good", "pass@1"): 2 / 3, ("good", "vote"): 1.0, ("good", "pass@2"): 1.0,
        ("bad", "pass@1"): 0.0, ("bad", "vote"): 0.0, ("bad", "pass@2"): 0.0,
    }  # fmt: skip
    assert table.chance["good"].round(4).tolist()[::2] == [0.25, 0.4375]
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert table.loc["bad"].parse_rate.tolist() == pytest.approx([5 / 6] * 3)
    once = effects_table(samples[samples["sample"] == 0], GOLD, 1, 50, np.random.default_rng(0))
    assert once.metric.tolist() == ["pass@1", "vote"] * 2, "one try is scored once"
