"""The grader: gold earns full marks over a whole train set, all else less, and faults have stated scores."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore_lib.completion import parse, render_answer
from lore_lib.cot.synthesis import synthesise
from lore_lib.errors import DataError
from lore_lib.training.rewards import format_reward, outcome_reward, prove_rewards, reward
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import LABELS

CASES = json.loads((Path(__file__).parents[1] / "cases" / "completions.json").read_text(encoding="utf-8"))[
    "cases"
]
THINK = "<think>\nx\n</think>\n"


@pytest.fixture(scope="module")
def traces(
    world_tables: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    captions: "pd.Series[str]",
    vertical: Vertical,
) -> pd.DataFrame:
    train = prompts[prompts.split == "train"]
    rows = synthesise("progressive", world_tables, train, captions, vertical, 5, 3, "drop")
    return rows[rows.kept]


def test_gold_earns_full_marks_over_a_whole_train_set_and_every_other_label_less(
    traces: pd.DataFrame,
) -> None:
    assert len(traces) > 200
    for row in traces.itertuples():
        full = reward(str(row.completion), str(row.label))
        assert (full.outcome, full.format, full.parse_kind) == (1.0, 0.1, "ok")
        for other in set(LABELS) - {row.label}:
            stated = str(row.completion).rpartition("\n")[0] + f"\n[{other}]"
            assert reward(stated, str(row.label)).total < full.total
    table = prove_rewards(traces)
    assert len(table) == 16


def test_the_table_of_totals_worked_by_hand(traces: pd.DataFrame) -> None:
    totals = prove_rewards(traces).pivot_table(index="gold", columns="stated", values="total")
    expected = np.array(
        [
            [1.1, 0.4, 0.1, 0.1],  # gold L1: the right label; L2 on its side; the others only parse
            [0.4, 1.1, 0.1, 0.1],
            [0.1, 0.1, 1.1, 0.4],
            [0.1, 0.1, 0.4, 1.1],
        ]
    )
    assert totals.to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
@pytest.mark.parametrize("gold", LABELS)
def test_a_malformed_completion_earns_nothing_whatever_the_gold(case: dict[str, str], gold: str) -> None:
    scored = reward(case["text"], gold)
    assert scored.parse_kind == case["kind"]
    if case["kind"] != "ok":
        assert (scored.outcome, scored.format, scored.total) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("completion", "gold", "outcome", "form"),
    [
        (f"{THINK}[L4]", "L4", 1.0, 0.1),
        (f"{THINK}[L3]", "L4", 0.3, 0.1),
        (f"{THINK}[L2]", "L4", 0.0, 0.1),
        (f"{THINK}[L1]", "L2", 0.3, 0.1),
        (f"{THINK}[L2-Color Mismatch]", "L2", 1.0, 0.1),
        (f"{THINK}[L2-Price Mismatch]", "L2", 1.0, 0.1),  # the named dimension is not scored
        ("[L4]", "L4", 1.0, 0.0),  # right, but without reasoning
        ("<think>\n\n</think>\n[L4]", "L4", 1.0, 0.0),  # empty reasoning is none
        (f"{THINK}[L4] [L4]", "L4", 0.0, 0.0),
        (f"{THINK}[L1] [L2] [L3] [L4]", "L4", 0.0, 0.0),  # naming every label does not pay
    ],
)
def test_completion_scored_by_hand(completion: str, gold: str, outcome: float, form: float) -> None:
    scored = reward(completion, gold)
    assert (scored.outcome, scored.format) == (outcome, form)
    assert scored.total == outcome + form


@given(st.text(max_size=60), st.sampled_from(LABELS), st.floats(0, 1))
def test_any_text_earns_between_nothing_and_full_marks(text: str, gold: str, weight: float) -> None:
    scored = reward(text, gold, weight)
    assert 0 <= scored.total <= 1 + weight
    assert (scored.outcome == 1.0) == (parse(text).label == gold)


def corrupted(traces: pd.DataFrame, completion: str, label: str = "L4") -> pd.DataFrame:
    rows = traces.head(20).copy()
    rows.loc[rows.index[7], ["completion", "label"]] = [completion, label]
    return rows


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("<think>\nx\n</think>\n[L1]", "another label"),
        ("<think>\nx\n[L4]", "never closed"),
        ("[L4]", "no reasoning"),
        ("<think>\nx\n</think>\nthe label is [L4]", "words beside the label"),
        ("", "empty"),
    ],
)
def test_a_corrupted_set_is_refused_with_the_pair_at_fault(
    traces: pd.DataFrame, completion: str, why: str
) -> None:
    rows = corrupted(traces, completion)
    with pytest.raises(DataError, match=f"pair '{rows.pair_id.iloc[7]}'"):
        prove_rewards(rows)


def test_an_empty_set_proves_nothing(traces: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no traces"):
        prove_rewards(traces.head(0))


def test_an_unknown_gold_label_is_refused(traces: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="gold completion does not earn full marks"):
        prove_rewards(corrupted(traces, f"{THINK}{render_answer('L4')}", "L5"))


def test_trl_gets_the_parts_in_the_order_of_its_completions() -> None:
    completions = [f"{THINK}[L4]", f"{THINK}[L3]", "[L4]", "nothing"]
    gold = ["L4", "L4", "L4", "L4"]
    assert outcome_reward(completions, label=gold, prompts=gold, trainer_state=None) == [1.0, 0.3, 1.0, 0.0]
    assert format_reward(completions, label=gold, completion_ids=[]) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="shorter"):
        outcome_reward(completions, label=gold[:3])
