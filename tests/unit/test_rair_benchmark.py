"""The three subsets, and the trivial judges."""

import numpy as np
import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.rair.baselines import LexicalOverlap, MajorityLabel, TfidfLogistic, baselines
from lore_lib.rair.benchmark import build_benchmark, count_benchmark


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    queries = pd.DataFrame(
        {"query_id": [f"q{i}" for i in range(40)], "intent": ["plain", "plain", "NC", "MA"] * 10}
    )
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(10)], "industry": ["home"] * 8 + ["bags"] * 2})
    pairs = pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(120)],
            "query_id": [f"q{i % 40}" for i in range(120)],
            "item_id": [f"i{i % 10}" for i in range(120)],
            "label": ["L1", "L2", "L3"] * 40,
            "kind": ["visual" if i % 6 == 0 else "plain" for i in range(120)],
            "split": ["train" if i < 20 else "test" for i in range(120)],
        }
    )
    return pairs, queries, items


def test_each_pair_has_the_subset_its_rule_says() -> None:
    benchmark = build_benchmark(*tables(), 1000, np.random.default_rng(0))
    assert len(benchmark) == 100
    assert benchmark["pair_id"].is_unique
    for row in benchmark.itertuples():
        expected = "visual" if row.kind == "visual" else "general" if row.intent == "plain" else "hard"
        assert row.subset == expected


def test_the_cap_binds_in_the_general_subset_only() -> None:
    free, capped = (build_benchmark(*tables(), cap, np.random.default_rng(0)) for cap in (1000, 5))
    general = capped[capped["subset"] == "general"]
    assert general["industry"].value_counts().to_dict() == {"home": 5, "bags": 5}
    assert (capped["subset"] == "hard").sum() == (free["subset"] == "hard").sum()
    again = build_benchmark(*tables(), 5, np.random.default_rng(0))
    pd.testing.assert_frame_equal(capped, again)
    assert capped["pair_id"].str[1:].astype(int).is_monotonic_increasing


def test_counts_add_up() -> None:
    benchmark = build_benchmark(*tables(), 1000, np.random.default_rng(0))
    counts = count_benchmark(benchmark).set_index("subset")
    assert counts.index.tolist() == ["general", "hard", "visual"]
    assert counts["pairs"].sum() == len(benchmark)
    assert (counts[["L1", "L2", "L3", "L4"]].sum(axis=1) == counts["pairs"]).all()
    assert counts.loc["hard", "relevant_share"] == pytest.approx(
        counts.loc["hard", "L3"] / counts.loc["hard", "pairs"]
    )


def test_unknown_ids_and_empty_tables_are_named() -> None:
    pairs, queries, items = tables()
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="10 test pairs name an unknown item_id, first i9"):
        build_benchmark(pairs, queries, items.iloc[:9], 5, rng)
    with pytest.raises(DataError, match="unknown query_id"):
        build_benchmark(pairs, queries.iloc[1:], items, 5, rng)
    with pytest.raises(DataError, match="none of 20 pairs has split test"):
        build_benchmark(pairs.iloc[:20], queries, items, 5, rng)
    with pytest.raises(DataError, match="pairs_per_industry=0"):
        build_benchmark(pairs, queries, items, 0, rng)


COLOURS, THINGS = ["red", "navy", "olive", "mint"], ["dress", "rug", "boots", "lamp"]


def texts(count: int, seed: int) -> pd.DataFrame:
    """L4: both words match; L2: the thing only; L1: neither."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in rng.choice(["L1", "L2", "L4"], count, p=[0.2, 0.3, 0.5]):
        colour, thing = rng.choice(4), rng.choice(4)
        other_colour, other_thing = (colour + rng.integers(1, 4)) % 4, (thing + rng.integers(1, 4)) % 4
        shown = {"L4": (colour, thing), "L2": (other_colour, thing), "L1": (other_colour, other_thing)}[label]
        item = f"new {COLOURS[shown[0]]} {THINGS[shown[1]]} fast shipping"
        rows.append({"query": f"{COLOURS[colour]} {THINGS[thing]}", "item_text": item, "label": label})
    return pd.DataFrame(rows)


def test_baselines_learn_what_they_can() -> None:
    train, test = texts(400, 0), texts(200, 1)
    share = {}
    for judge in baselines():
        predicted = judge.fit(train).predict(test[["query", "item_text"]])
        assert len(predicted) == 200
        assert set(predicted) <= {"L1", "L2", "L4"}
        share[judge.name] = np.mean(np.array(predicted) == test["label"])
    majority = (test["label"] == "L4").mean()
    assert share[MajorityLabel.name] == majority
    assert share[LexicalOverlap.name] > majority + 0.3
    assert share[TfidfLogistic.name] > majority + 0.2


def test_overlap_is_one_for_a_copy_and_nought_for_strangers() -> None:
    judge = LexicalOverlap().fit(texts(50, 0))
    frame = pd.DataFrame(
        {"query": ["red dress", "zzz", "red dress"], "item_text": ["red dress", "red dress", "ooo"]}
    )
    assert judge.overlap(frame).ravel().tolist() == [1, 0, 0]


def test_majority_breaks_ties_downwards() -> None:
    train = pd.DataFrame({"query": ["a", "a"], "item_text": ["b", "b"], "label": ["L4", "L2"]})
    assert MajorityLabel().fit(train).predict(train) == ["L2", "L2"]


def test_scripts_without_spaces_need_no_tokenizer() -> None:
    train = pd.DataFrame(
        {
            "query": ["红色连衣裙"] * 2,
            "item_text": ["新款红色连衣裙包邮", "电饭煲不粘锅"],
            "label": ["L4", "L1"],
        }
    )
    assert LexicalOverlap().fit(train).predict(train) == ["L4", "L1"]


def test_fitting_on_nothing_is_refused() -> None:
    for judge in baselines():
        with pytest.raises(DataError, match="query, item_text, label"):
            judge.fit(texts(3, 0).drop(columns="label"))
