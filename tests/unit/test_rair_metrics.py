"""acc@4, acc@2, macro-F1, kappa and parse rate, against hand-worked cases and scikit-learn on raw labels."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from lore_lib.errors import DataError
from lore_lib.rair.metrics import (
    METRICS,
    align,
    class_report,
    compare,
    confusion,
    evaluate,
    evaluate_by,
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
    f1 = f1_score(gold, predicted, labels=list(LABELS), average="macro", zero_division=0)
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
    same = compare(a, a, 50, np.random.default_rng(0))
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
