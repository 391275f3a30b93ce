"""The grader: gold earns full marks over a whole train set, all else less, and faults have stated scores."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore_lib.completion import parse, render_answer
from lore_lib.config import Outcome
from lore_lib.cot.synthesis import synthesise
from lore_lib.errors import DataError
from lore_lib.training.rewards import (
    Grading,
    best_hack,
    habits,
    hacks,
    outcome,
    overlong,
    prove_rewards,
    reward,
    reward_functions,
    training_progress,
)
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
    return rows[rows.kept].assign(tokens=40)


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


@given(
    st.one_of(st.text(max_size=60), st.sampled_from(LABELS).map(lambda label: f"{THINK}[{label}]")),
    st.sampled_from(LABELS),
    st.sampled_from(get_args(Outcome)),
    st.floats(0.1, 1),
    st.floats(0, 1),
)
def test_any_text_earns_between_nothing_and_full_marks(
    text: str, gold: str, kind: Outcome, start: float, progress: float
) -> None:
    scored = reward(text, gold, Grading(kind, start), progress=progress)
    full = start + (1 - start) * progress
    assert 0 <= scored.outcome <= full
    assert (scored.outcome == full) == (parse(text).label == gold)


def test_what_a_wrong_label_is_worth_worked_by_hand() -> None:
    worth = {kind: [round(outcome(stated, "L4", kind), 3) for stated in LABELS] for kind in get_args(Outcome)}
    assert worth == {
        "exact": [0, 0, 0, 1],
        "same_side": [0, 0, 0.3, 1],
        "ordinal": [0, 0.333, 0.667, 1],
    }
    # across the boundary of L2 and L3 the side counts for nothing and the distance for much
    assert (outcome("L3", "L2", "same_side"), round(outcome("L3", "L2", "ordinal"), 3)) == (0, 0.667)


def test_the_outcome_grows_in_a_straight_line_and_format_does_not() -> None:
    grading = Grading(outcome_start=0.4)
    earned = [reward(f"{THINK}[L4]", "L4", grading, progress=progress) for progress in (0, 0.5, 1)]
    assert [one.outcome for one in earned] == pytest.approx([0.4, 0.7, 1.0])
    assert {one.format for one in earned} == {0.1}
    assert [training_progress(SimpleNamespace(global_step=step, max_steps=8)) for step in (0, 2)] == [0, 0.25]


def test_length_costs_nothing_up_to_three_quarters_of_the_limit() -> None:
    assert [overlong(tokens, 80) for tokens in (0, 60, 70, 80, 90)] == [0, 0, -0.5, -1, -1]
    grading = Grading(length_weight=0.2, max_tokens=80)
    assert reward(f"{THINK}[L4]", "L4", grading, 70).total == pytest.approx(1.1 - 0.1)
    assert reward("<think> cut at the limit", "L4", grading, 80).total == -0.2


def test_no_policy_that_ignores_the_pair_earns_much() -> None:
    table = hacks(["L1", "L2", "L3", "L4"] * 5).set_index("policy").reward
    # one label for all: right for a quarter, on the right side for another, always well-formed
    assert table["always L4"] == pytest.approx(0.25 + 0.25 * 0.3 + 0.1)
    assert table["always L1, no reasoning"] == table["always L1, empty reasoning"] == pytest.approx(0.325)
    assert table["every label at once"] == 0
    assert table["labels stuffed into the reasoning"] == table["always L1"]
    skewed = hacks(["L4"] * 9 + ["L1"]).set_index("policy").reward
    assert skewed["always L4"] == pytest.approx(0.9 + 0.1), "a pool of one label invites it"


def test_habits_worked_by_hand() -> None:
    texts = [
        f"{THINK}[L4]",
        f"{THINK}[L3]",
        "[L4]",
        "nothing",
        "<think>\nL1, L2 or L4\n</think>\n[L4]",
        "<think>\nL1 L3 L3, XL2 L42\n</think>\n[L1]",  # two labels, one of them twice
        "<think> L1 L2 L3 L4",  # cut
    ]
    assert habits(texts, ["L4"] * 7, Grading(outcome_start=0.5)) == pytest.approx(
        {
            "drawn_reward": (1.1 + 0.4 + 1 + 0 + 1.1 + 0.1 + 0) / 7,  # as at the end of training
            "parse_rate": 5 / 7,
            "top_label_share": 3 / 5,
            "no_reasoning_share": 1 / 7,
            "stuffed_share": 2 / 7,
        }
    )
    assert habits(["x"], ["L4"], Grading())["top_label_share"] == 0


def test_a_hacking_policy_earns_what_the_table_of_hacks_says() -> None:
    gold = ["L1", "L4", "L4", "L3"]
    always = habits([f"{THINK}[L4]"] * 4, gold, Grading())
    assert always["drawn_reward"] == pytest.approx(best_hack(gold)) == pytest.approx(0.5 + 0.25 * 0.3 + 0.1)
    table = hacks(gold).set_index("policy")
    stuffed = table.completion["labels stuffed into the reasoning"]
    assert habits([stuffed], ["L4"], Grading())["stuffed_share"] == 1


@pytest.mark.parametrize("kind", get_args(Outcome))
def test_gold_is_proven_under_every_outcome_and_at_both_ends_of_training(
    traces: pd.DataFrame, kind: Outcome
) -> None:
    table = prove_rewards(traces.head(40), Grading(kind, 0.2)).pivot(
        index="gold", columns="stated", values="total"
    )
    assert np.diag(table) == pytest.approx([1.1] * 4)


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


@pytest.mark.parametrize(
    ("weight", "fits", "more"),
    [(0.1, 84, 114), (0.0, 112, 113)],
    ids=["from three quarters of the limit on length costs", "over the limit it is cut"],
)
def test_a_gold_chain_that_is_too_long_is_named_with_the_limit_that_would_do(
    traces: pd.DataFrame, weight: float, fits: int, more: int
) -> None:
    rows, grading = traces.head(20).assign(tokens=fits), Grading(length_weight=weight, max_tokens=112)
    prove_rewards(rows, grading)
    long = rows.assign(tokens=[fits] * 7 + [fits + 1] + [fits] * 12)
    told = rf"1 of 20 .* more than {fits} .*pair '{long.pair_id.iloc[7]}' .*max_completion_tokens={more}$"
    with pytest.raises(DataError, match=told):
        prove_rewards(long, grading)
    prove_rewards(long, Grading(length_weight=weight, max_tokens=more))


def test_an_empty_set_proves_nothing(traces: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no traces"):
        prove_rewards(traces.head(0))


def test_an_arm_that_does_not_reason_first_is_refused_with_one_that_does(traces: pd.DataFrame) -> None:
    turned = traces.head(4).assign(
        completion=traces.label.map(lambda label: f"[{label}]\n<think>\nx\n</think>")
    )
    with pytest.raises(DataError, match="begin with an arm that writes so"):
        prove_rewards(turned)


def test_an_unknown_gold_label_is_refused(traces: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="gold completion does not earn full marks"):
        prove_rewards(corrupted(traces, f"{THINK}{render_answer('L4')}", "L5"))


def test_trl_gets_the_parts_in_the_order_of_its_completions_and_logs_what_was_drawn() -> None:
    completions = [f"{THINK}[L4]", f"{THINK}[L3]", "[L4]", "nothing"]
    gold, logged = ["L4", "L4", "L4", "L4"], {}
    parts = reward_functions(Grading(outcome_start=0.5, max_tokens=80))
    assert [part.__name__ for part in parts] == ["outcome_reward", "format_reward", "length_reward"]
    first, second, third = parts
    state = SimpleNamespace(global_step=0, max_steps=4)
    asked = {"label": gold, "trainer_state": state, "log_metric": logged.__setitem__}
    assert first(completions, **asked, drawn=[{"refill_share": 0.5}] * 4) == [0.5, 0.15, 0.5, 0.0]
    assert logged == pytest.approx(
        {
            "outcome": (1 + 0.3 + 1) / 4,  # as it would be at the end of training
            "refill_share": 0.5,
        }
    )
    assert second(completions, label=gold, completion_ids=[]) == [1.0, 1.0, 0.0, 0.0]
    assert third(completion_ids=[[0] * 9, [0] * 80], label=gold) == [0.0, -1.0]
    with pytest.raises(ValueError, match="shorter"):
        first(completions, **(asked | {"label": gold[:3]}))
