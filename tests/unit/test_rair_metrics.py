"""acc@4, acc@2, macro-F1, kappa and parse rate, against hand-worked cases and scikit-learn on raw labels."""

import importlib
import json
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests

from lore_lib.errors import DataError
from lore_lib.rair.metrics import (
    METRICS,
    align,
    bootstrap_p,
    class_report,
    compare,
    compare_all,
    confusion,
    detectable,
    evaluate,
    evaluate_by,
    evaluate_slices,
    power_table,
    queries_needed,
    readable,
    score_table,
    scores,
)
from lore_lib.vertical.schema import LABELS

CASES = json.loads((Path(__file__).parents[1] / "cases" / "rair_metrics.json").read_text())
FARTHEST = {"L1": "L4", "L2": "L4", "L3": "L1", "L4": "L1"}
RELEVANT = ("L3", "L4")


def judged_of(gold: list[str], predicted: list[str], per_query: int = 2) -> pd.DataFrame:
    count = len(gold)
    return pd.DataFrame(
        {
            "pair_id": [f"p{i:05}" for i in range(count)],
            "query_id": [f"q{i // per_query:05}" for i in range(count)],
            "gold": gold,
            "predicted": predicted,
        }
    )


def made_up(count: int = 400, skill: float = 0.6, seed: int = 0, per_query: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(99).choice(LABELS, count, p=[0.1, 0.4, 0.2, 0.3])
    noise = rng.choice([*LABELS, ""], count)
    return judged_of(gold.tolist(), np.where(rng.random(count) < skill, gold, noise).tolist(), per_query)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"][:40])
def test_scores_worked_by_hand(case: dict[str, list[str]]) -> None:
    found = {name: float(value) for name, value in scores(confusion(case["gold"], case["predicted"])).items()}
    assert found == pytest.approx(case["scores"], abs=1e-12)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""])),
        min_size=1,
        max_size=40,
    )
)
def test_scores_equal_sklearn_on_raw_labels(rows: list[tuple[str, str]]) -> None:
    gold, predicted = ([row[side] for row in rows] for side in (0, 1))
    found = scores(confusion(gold, predicted))
    assert found["acc@4"] == pytest.approx(accuracy_score(gold, predicted))
    side = [[label in RELEVANT if label else None for label in column] for column in (gold, predicted)]
    assert found["acc@2"] == pytest.approx(np.mean([a == b for a, b in zip(*side, strict=True)]))
    there = sorted(set(gold))
    f1 = f1_score(gold, predicted, labels=there, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    placed = [b or FARTHEST[a] for a, b in rows]
    if len({*gold, *placed}) > 1:
        kappa = cohen_kappa_score(gold, placed, labels=list(LABELS), weights="quadratic")
        assert found["kappa"] == pytest.approx(kappa, abs=1e-9)


def test_confusion_refuses_unknown_labels() -> None:
    for gold, predicted in ((["L5"], ["L1"]), ([""], ["L1"]), (["L1"], ["relevant"])):
        with pytest.raises(DataError, match="outside"):
            confusion(gold, predicted)


def test_evaluate_reports_value_interval_and_counts() -> None:
    judged = made_up()
    table = evaluate(judged, 500, np.random.default_rng(0)).set_index("metric")
    assert table.index.tolist() == list(METRICS)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table["low"]["macro_f1"] < table["high"]["macro_f1"]
    assert (table["n"] == 400).all()
    assert (table["queries"] == 100).all()


def test_interval_equals_a_bootstrap_that_resamples_rows_of_whole_queries() -> None:
    """The slow way: draw queries, gather their rows, let scikit-learn score them."""
    judged = made_up()
    rng = np.random.default_rng(1)
    groups = [part for _, part in judged.groupby("query_id")]
    slow = []
    for _ in range(120):
        drawn = pd.concat([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        slow.append(
            f1_score(drawn["gold"], drawn["predicted"], labels=list(LABELS), average="macro", zero_division=0)
        )
    row = evaluate(judged, 4000, np.random.default_rng(2)).set_index("metric").loc["macro_f1"]
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)


def test_evaluate_does_not_depend_on_row_order() -> None:
    judged = made_up()
    shuffled = judged.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        evaluate(judged, 100, np.random.default_rng(0)), evaluate(shuffled, 100, np.random.default_rng(0))
    )


def test_evaluate_by_slices_like_filtering() -> None:
    judged = made_up().assign(subset=lambda t: np.where(t.index < 240, "hard", "general"))
    table = evaluate_by(judged, "subset", 50, np.random.default_rng(0))
    assert table.columns[0] == "subset"
    assert table["subset"].unique().tolist() == ["general", "hard"]
    alone = evaluate(judged[judged["subset"] == "hard"], 50, np.random.default_rng(0))
    assert table.loc[table["subset"] == "hard", "value"].tolist() == alone["value"].tolist()


def test_a_single_query_has_no_interval_and_no_rows_is_refused() -> None:
    judged = judged_of(["L1", "L4"], ["L1", "L4"])
    table = evaluate(judged, 50, np.random.default_rng(0))
    assert table["low"].isna().all()
    with pytest.raises(DataError, match="no pairs"):
        evaluate(judged.iloc[:0], 50, np.random.default_rng(0))
    with pytest.raises(DataError, match="no pairs to judge by gold"):
        evaluate_by(judged.iloc[:0], "gold", 50, np.random.default_rng(0))


def test_class_report_counts_unparsable_answers_as_missed() -> None:
    table = class_report(judged_of(["L4", "L4", "L1"], ["L4", "", "L4"])).set_index("label")
    assert table.loc["L4", ["precision", "recall", "support"]].tolist() == [0.5, 0.5, 2]
    assert table.loc["L2", ["f1", "support"]].tolist() == [0, 0]


GOLD = pd.DataFrame(
    {"pair_id": ["a", "b"], "query_id": ["q", "q"], "label": ["L1", "L4"], "subset": ["hard", "hard"]}
)


def test_align_keeps_gold_order_and_columns() -> None:
    judged = align(pd.DataFrame({"pair_id": ["b", "a"], "label": ["L4", ""]}), GOLD)
    assert judged.to_dict("list") == {
        "pair_id": ["a", "b"],
        "query_id": ["q", "q"],
        "gold": ["L1", "L4"],
        "subset": ["hard", "hard"],
        "predicted": ["", "L4"],
    }


@pytest.mark.parametrize(
    ("pair_ids", "labels", "message"),
    [
        (["a"], ["L1"], r"1 pairs have no prediction.*: b"),
        (["a", "b", "z"], ["L1", "L1", "L1"], r"1 predicted pairs are not in gold.*: z"),
        (["a", "b", "b"], ["L1", "L1", "L1"], r"1 pairs stand twice in predictions: b"),
        (["a", "b"], ["L1", "maybe"], r"1 predicted labels are neither.*: maybe"),
    ],
)
def test_align_refuses_and_names(pair_ids: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        align(pd.DataFrame({"pair_id": pair_ids, "label": labels}), GOLD)


def test_align_refuses_bad_gold() -> None:
    answers = pd.DataFrame({"pair_id": ["a", "b"], "label": ["L1", "L4"]})
    with pytest.raises(DataError, match="stand twice in gold"):
        align(answers, pd.concat([GOLD, GOLD]))
    with pytest.raises(DataError, match=r"none of L1..L4"):
        align(answers, GOLD.assign(label=["L1", "4"]))


def test_compare_is_antisymmetric_and_zero_against_itself() -> None:
    a, b = made_up(skill=0.7, seed=1), made_up(skill=0.4, seed=2)
    ab, ba = (compare(x, y, 300, np.random.default_rng(0)).set_index("metric") for x, y in ((a, b), (b, a)))
    assert ab["difference"].tolist() == pytest.approx((-ba["difference"]).tolist())
    assert ab["low"].tolist() == pytest.approx((-ba["high"]).tolist())
    assert ab.loc["macro_f1", "low"] > 0
    assert ab["p_bootstrap"].tolist() == ba["p_bootstrap"].tolist()
    same = compare(a, a, 50, np.random.default_rng(0))
    assert (same["p_bootstrap"] == 1).all()
    assert same[["difference", "low", "high"]].to_numpy().tolist() == [[0, 0, 0]] * len(METRICS)
    assert same["p_value"].dropna().tolist() == [1, 1]


def test_compare_pairs_by_id_and_its_p_value_is_the_sign_test() -> None:
    a, b = made_up(skill=0.7, seed=1), made_up(skill=0.6, seed=2)
    table = compare(a, b.sample(frac=1, random_state=0), 50, np.random.default_rng(0)).set_index("metric")
    right_a, right_b = (t["gold"] == t["predicted"] for t in (a, b))
    assert table.loc["acc@4", "difference"] == pytest.approx(right_a.mean() - right_b.mean())
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    assert table.loc["acc@4", "p_value"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


def test_compare_refuses_different_pairs() -> None:
    a = made_up(40)
    with pytest.raises(DataError, match="judged by one system only: p00039"):
        compare(a, a.iloc[:39], 10, np.random.default_rng(0))


@settings(max_examples=10)
@given(st.sampled_from(list(permutations(range(4)))))
def test_a_perfect_judge_scores_one_in_any_order(order: tuple[int, ...]) -> None:
    gold = [LABELS[i] for i in order] * 2
    found = scores(confusion(gold, gold))
    assert json.dumps(found) == json.dumps(dict.fromkeys(METRICS, 1.0)), "plain numbers"


def plain_scores(gold: list[str], predicted: list[str]) -> dict[str, float]:
    """The definitions written out again, without a matrix."""
    pairs, count = Counter(zip(gold, predicted, strict=True)), len(gold)
    f1 = []
    for label in LABELS:
        said = sum(n for (_, p), n in pairs.items() if p == label)
        asked = sum(n for (g, _), n in pairs.items() if g == label)
        if asked:
            f1.append(2 * pairs[label, label] / (said + asked))
    return {
        "acc@4": sum(n for (g, p), n in pairs.items() if g == p) / count,
        "acc@2": sum(n for (g, p), n in pairs.items() if p and (g in RELEVANT) == (p in RELEVANT)) / count,
        "macro_f1": sum(f1) / len(f1),
        "parse_rate": sum(n for (_, p), n in pairs.items() if p) / count,
    }


def test_a_million_labels_score_as_three_other_programs_score_them() -> None:
    rng = np.random.default_rng(0)
    gold = np.array(LABELS)[rng.choice(4, 10**6, p=[0.2, 0.3, 0.1, 0.4])]
    said = np.array([*LABELS, ""])[rng.choice(5, 10**6, p=[0.25, 0.25, 0.2, 0.28, 0.02])]
    said = np.where(rng.random(10**6) < 0.5, gold, said)
    matrix = confusion(gold, said)
    found = scores(matrix)
    plain = plain_scores(gold.tolist(), said.tolist())
    assert {name: float(found[name]) for name in plain} == pytest.approx(plain, abs=1e-12)
    codes = {label: at for at, label in enumerate([*LABELS, ""])}
    numbers = [pd.Series(column).map(codes).to_numpy() for column in (gold, said)]
    f1 = f1_score(*numbers, labels=range(4), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)
    assert found["acc@4"] == pytest.approx(accuracy_score(*numbers), abs=1e-12)
    square = matrix[:, :4].astype(float)
    square[[0, 1], 3] += matrix[[0, 1], 4]
    square[[2, 3], 0] += matrix[[2, 3], 4]
    weights = np.square(np.subtract.outer(np.arange(4), np.arange(4))).astype(float)
    kappa = cohens_kappa(square, weights=weights, return_results=False)
    assert found["kappa"] == pytest.approx(kappa, abs=1e-9)


def test_the_bootstrap_finds_no_difference_as_often_as_it_says() -> None:
    """Two equally good judges on 100 sets of pairs: p below .2 in about a fifth of them."""
    low = 0
    for seed in range(100):
        a, b = made_up(120, 0.6, 3 * seed + 1), made_up(120, 0.6, 3 * seed + 2)
        table = compare(a, b, 100, np.random.default_rng(seed)).set_index("metric")
        low += table.loc["acc@4", "p_bootstrap"] < 0.2
    assert 8 <= low <= 34  # .2 +- 3.5 standard errors


def test_bootstrap_p_counts_the_far_side() -> None:
    assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.zeros(999)) == 1
    assert bootstrap_p(np.array([-1.0, 1.0])) == 1


def test_many_comparisons_are_corrected_together() -> None:
    judged = {
        name: made_up(200, skill, seed)
        for seed, (name, skill) in enumerate({"a": 0.3, "b": 0.5, "c": 0.52}.items())
    }
    table = compare_all(judged, [("a", "b"), ("b", "c")], 500, np.random.default_rng(0))
    assert table["step"].tolist() == ["a -> b"] * 2 + ["b -> c"] * 2
    assert table["metric"].tolist() == ["acc@4", "acc@2"] * 2
    assert table["difference"][0] == pytest.approx(
        (judged["b"].gold == judged["b"].predicted).mean()
        - (judged["a"].gold == judged["a"].predicted).mean()
    )
    for column, method in (("p_holm", "holm"), ("p_fdr", "fdr_bh")):
        assert table[column].tolist() == multipletests(table["p_bootstrap"], method=method)[1].tolist()
    assert (table["p_bootstrap"] <= table["p_fdr"]).all()
    assert (table["p_fdr"] <= table["p_holm"]).all()
    with pytest.raises(DataError, match="no two systems"):
        compare_all(judged, [], 10, np.random.default_rng(0))


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    """Draw estimates around it; count those beyond 1.96 standard errors."""
    error = 0.02
    drawn = np.random.default_rng(0).normal(detectable(error), error, 20_000)
    assert (np.abs(drawn) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)
    assert queries_needed(100, detectable(error), detectable(error / 2)) == 400


def test_the_power_table_leaves_out_systems_that_answer_alike() -> None:
    a, b = made_up(seed=1), made_up(skill=0.4, seed=2)
    tested = compare_all(
        {"a": a, "b": b, "twin": b}, [("a", "b"), ("b", "twin")], 500, np.random.default_rng(0)
    )
    table = power_table(tested, wanted=0.01).set_index("metric")
    assert table["step"].tolist() == ["a -> b"] * 2
    width = tested["high"][0] - tested["low"][0]
    assert table.loc["acc@4", "least_detectable"] == pytest.approx(2.8016 * width / 3.92, rel=1e-3)
    assert table.loc["acc@4", "queries_needed"] > table.loc["acc@4", "queries"]


def test_tables_for_reading() -> None:
    judged = made_up().assign(subset=lambda t: np.where(t.index < 240, "hard", "general"), intent="plain")
    table = score_table(judged, 50, np.random.default_rng(0))
    assert table["subset"].unique().tolist() == ["all", "general", "hard"]
    cells = readable(table[table.subset == "all"].assign(system="mine"))
    assert cells.columns.tolist() == list(METRICS)
    value, low, high = table.iloc[0][["value", "low", "high"]]
    assert cells.loc["mine", "acc@4"] == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    bare = readable(table[table.subset == "all"].assign(system="mine", low=np.nan, high=np.nan))
    assert bare.loc["mine", "acc@4"] == f"{value:.3f}"
    slices = evaluate_slices(judged, ["subset", "intent"], 20, np.random.default_rng(0))
    assert slices[["by", "slice"]].drop_duplicates().values.tolist() == [
        ["subset", "general"],
        ["subset", "hard"],
        ["intent", "plain"],
    ]


def test_both_ways_of_the_bench_give_like_intervals(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench = importlib.import_module("bench_rair")
    slow, quick = (bench.prepare(way, 4000)() for way in bench.WAYS)
    quick = quick.set_index("metric").loc[["acc@4", "acc@2", "macro_f1", "kappa"]]
    assert pytest.approx(slow, abs=0.02) == quick[["low", "high"]].to_numpy().T


def test_the_reckoned_cost_grows_with_what_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench = importlib.import_module("bench_rair")
    short, long = bench.official_cost(completion_tokens=8), bench.official_cost(completion_tokens=400)
    assert short["reading (hours)"] == long["reading (hours)"]
    assert long["writing (hours)"] > 50 * short["writing (hours)"]
    assert short["prompt tokens (million)"] == pytest.approx(54_539 * 800 / 1e6)
