"""The funnel: every reason can be reached, repairing keeps the reasoning, dropping keeps nothing."""

from typing import Any

import pandas as pd
import pytest

from lore_lib.completion import parse, render_answer
from lore_lib.cot.synthesis import ARM_STAGES, REASONS, funnel, synthesise
from lore_lib.cot.teacher import SymbolicTeacher, Trace
from lore_lib.features.build import build_prompts
from lore_lib.vertical.definition import Vertical

Tables = dict[str, pd.DataFrame]


class Synthesis:
    """Everything but the arm, bound once."""

    def __init__(self, tables: Tables, prompts: pd.DataFrame, captions: "pd.Series[str]", vertical: Vertical):
        self.tables, self.captions, self.vertical = tables, captions, vertical
        self.prompts = prompts[prompts.split == "train"]

    def __call__(
        self, arm: str, disagreement: str = "drop", max_words: int = 90, **changes: Any
    ) -> pd.DataFrame:
        tables, prompts = changes.get("tables", self.tables), changes.get("prompts", self.prompts)
        return synthesise(arm, tables, prompts, self.captions, self.vertical, 5, 3, disagreement, max_words)


@pytest.fixture(scope="module")
def made(
    world_tables: Tables, prompts: pd.DataFrame, captions: "pd.Series[str]", vertical: Vertical
) -> Synthesis:
    return Synthesis(world_tables, prompts, captions, vertical)


def test_the_direct_arm_is_the_gold_label_alone(made: Synthesis) -> None:
    rows = made("direct")
    mismatch = made.tables["pairs"].set_index("pair_id").mismatch
    assert rows.completion.tolist() == [
        render_answer(str(row.label), mismatch[str(row.pair_id)]) for row in rows.itertuples()
    ]
    assert set(rows.reason) == {"accepted"}


def test_no_prompts_make_a_frame_with_the_same_columns(made: Synthesis) -> None:
    whole, none = made("progressive"), made("progressive", prompts=made.prompts.head(0))
    assert none.columns.tolist() == whole.columns.tolist()
    assert none[none.kept].columns.tolist() == whole.columns.tolist()


def test_each_stage_makes_the_teacher_agree_more_often_and_all_of_them_nearly_always(made: Synthesis) -> None:
    agreement = {arm: float((rows := made(arm)).teacher_label.eq(rows.label).mean()) for arm in ARM_STAGES}
    values = list(agreement.values())
    assert values == sorted(values)
    assert values[0] < 0.7
    assert values[-1] > 0.97


def test_accepted_traces_state_the_gold_label_and_quote_only_their_prompt(made: Synthesis) -> None:
    rows = made("progressive")
    assert (rows[rows.reason == "accepted"].teacher_label == rows[rows.reason == "accepted"].label).all()
    for row in rows[rows.kept].itertuples():
        assert parse(str(row.completion)).label == row.label
        for line in parse(str(row.completion)).reasoning.split("\n")[1:]:
            found = line.partition(": ")[2].rpartition(" ")[0]
            assert found == "none" or all(word in str(row.prompt) for word in found.split())


def test_a_disagreeing_trace_is_repaired_or_dropped(made: Synthesis) -> None:
    dropped, repaired = made("naive", "drop"), made("naive", "repair")
    lost = dropped.reason == "disagrees"
    assert lost.sum() > 20
    assert not dropped.kept[lost].any()
    assert (repaired.reason[lost] == "repaired").all()
    assert repaired.kept[lost].all()
    mismatch = made.tables["pairs"].set_index("pair_id").mismatch
    for before, after in zip(dropped[lost].itertuples(), repaired[lost].itertuples(), strict=True):
        old, new = parse(str(before.completion)), parse(str(after.completion))
        assert new.reasoning == old.reasoning
        assert (new.label, new.mismatch) == (after.label, mismatch[str(after.pair_id)])
        assert old.label == str(before.teacher_label) != str(before.label)
    assert dropped[~lost].equals(repaired[~lost])


def test_an_unexplained_word_is_uncovered_only_where_knowledge_was_asked_for(made: Synthesis) -> None:
    mute = made.tables | {"items": made.tables["items"].assign(selling_points="")}
    rows = made("knowledge", tables=mute)
    slang = (
        made.tables["queries"]
        .set_index("query_id")["query"]
        .map(lambda text: bool(set(text.split()) & set(made.vertical.lexicon)))
    )
    asked = made.prompts.query_id.map(slang).to_numpy()
    assert set(rows.reason[asked]) == {"uncovered"}
    assert "uncovered" not in set(rows.reason[~asked]) | set(made("naive", tables=mute).reason)


def test_evidence_that_the_prompt_does_not_show_is_invented(made: Synthesis) -> None:
    short = build_prompts(made.tables, made.captions, "short")
    rows = made("progressive", prompts=short[short.split == "train"])
    assert (rows.reason == "invented").mean() > 0.5


def test_a_trace_over_the_bound_is_too_long(made: Synthesis) -> None:
    longest = max(len(text.split()) for text in made("progressive").completion)
    assert set(made("progressive", max_words=longest).reason) == {"accepted"}
    assert "too_long" in set(made("progressive", max_words=longest - 1).reason)
    assert set(made("progressive", max_words=3).reason) == {"too_long"}


def test_a_malformed_trace_is_rejected_even_where_the_label_could_be_repaired(
    made: Synthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Trace("<think>\nneed\n[L4]", "L4", "", (), (), ())
    monkeypatch.setattr(SymbolicTeacher, "write", lambda *_: broken)
    rows = made("naive", "repair")
    assert set(rows.reason) == {"malformed"}
    assert not rows.kept.any()


def test_the_funnel_counts_every_trace_once_and_shows_every_reason(made: Synthesis) -> None:
    rows = pd.concat([made("direct"), made("naive", "repair"), made("progressive")])
    table = funnel(rows)
    assert table.groupby("arm", sort=False).reason.agg(list).tolist() == [list(REASONS)] * 3
    assert table.groupby("arm").traces.sum().tolist() == [len(made.prompts)] * 3
