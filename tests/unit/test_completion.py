"""The grammar of completions: every fault is named, and what is written is read back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore_lib.completion import (
    PARSE_KINDS,
    THINK_CLOSE,
    THINK_OPEN,
    label_first,
    parse,
    parse_label_first,
    reader_of,
    render,
    render_answer,
)
from lore_lib.vertical.schema import DIMENSIONS, LABELS

CASES = json.loads((Path(__file__).parents[1] / "cases" / "completions.json").read_text(encoding="utf-8"))[
    "cases"
]
LINES = st.lists(st.text(st.characters(exclude_characters="\r\n<>", exclude_categories=["Cs"])), max_size=4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_completion_worked_by_hand(case: dict[str, str]) -> None:
    read = parse(case["text"])
    assert (read.kind, read.label, read.mismatch) == (
        case["kind"],
        case.get("label", ""),
        case.get("mismatch", ""),
    )


def test_the_cases_cover_every_kind() -> None:
    assert {case["kind"] for case in CASES} == set(PARSE_KINDS)


@given(st.text(max_size=80))
def test_any_text_parses_to_one_known_kind_and_a_label_only_when_ok(text: str) -> None:
    read = parse(text)
    assert read.kind in PARSE_KINDS
    assert (read.label in LABELS) == (read.kind == "ok")
    assert read.kind == "ok" or not read.mismatch


@given(
    st.lists(
        st.sampled_from([THINK_OPEN, THINK_CLOSE, "[L1]", "[L4]", "[L2-Color Mismatch]", "x", "\n"]),
        max_size=7,
    )
)
def test_pieces_of_the_grammar_in_any_order_are_judged_by_what_stands_after_the_reasoning(
    pieces: list[str],
) -> None:
    text = "".join(pieces)
    read = parse(text)
    if read.kind == "ok":
        answer = text.rpartition(THINK_CLOSE)[2].strip()
        assert answer == render_answer(read.label, read.mismatch)


@given(LINES, st.sampled_from(LABELS), st.sampled_from(list(DIMENSIONS)))
def test_what_is_rendered_is_read_back(lines: list[str], label: str, dimension: str) -> None:
    mismatch = dimension if label == "L2" else ""
    read = parse(render(lines, label, mismatch))
    assert (read.kind, read.label, read.mismatch) == ("ok", label, mismatch)
    assert read.reasoning == "\n".join(lines).strip()
    direct = parse(render_answer(label, mismatch))
    assert (direct.kind, direct.label, direct.mismatch) == ("ok", label, mismatch)


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("[L4]\n<think>\nwhy\n</think>", "ok", "L4"),
        ("[L2-Color Mismatch]\n<think>[L4] no</think>", "ok", "L2"),
        ("[L4]", "ok", "L4"),
        ("<think>why</think>[L4]", "no_label", ""),
        ("<think>[L4]</think>", "no_label", ""),
        ("[L4]<think>why</think>[L4]", "several_labels", ""),
        ("[L4]<think>why</think> sure", "text_around_label", ""),
        ("so [L4]<think>why</think>", "text_around_label", ""),
        ("[L4]<think>why", "unclosed_think", ""),
        ("[L4]<think>a</think><think>b</think>", "repeated_think", ""),
        ("[L4-Color Mismatch]<think>why</think>", "mismatch_on_other_level", ""),
        ("", "empty", ""),
    ],
)
def test_the_label_first_arm_has_a_reading_of_its_own(text: str, kind: str, label: str) -> None:
    read = parse_label_first(text)
    assert (read.kind, read.label) == (kind, label)


def test_no_other_arm_may_answer_before_it_has_thought() -> None:
    assert reader_of("progressive")("[L4]\n<think>\nwhy\n</think>").kind == "text_before_think"
    assert reader_of("label_first")("[L4]\n<think>\nwhy\n</think>").kind == "ok"


@given(LINES, st.sampled_from(LABELS))
def test_a_completion_turned_round_keeps_its_reasoning_and_label(lines: list[str], label: str) -> None:
    whole = render(lines, label)
    turned = parse_label_first(label_first(whole))
    assert turned == parse(whole)
    assert label_first(f"[{label}]") == f"[{label}]"
