"""The funnel: every reason can be reached, repairing keeps the reasoning, dropping keeps nothing; shards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lore_lib.completion import parse, render_answer
from lore_lib.cot.synthesis import (
    ARM_STAGES,
    REASONS,
    Synthesis,
    funnel,
    in_shards,
    pair_rows,
    read_traces,
    synthesise,
    synthesise_to,
)
from lore_lib.cot.teacher import SymbolicTeacher, Task, Trace
from lore_lib.errors import ArtifactError, DataError, EngineError
from lore_lib.features.build import build_prompts
from lore_lib.features.template import load_template
from lore_lib.vertical.definition import Vertical

Tables = dict[str, pd.DataFrame]


class Made:
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
def made(world_tables: Tables, prompts: pd.DataFrame, captions: "pd.Series[str]", vertical: Vertical) -> Made:
    return Made(world_tables, prompts, captions, vertical)


def test_the_direct_arm_is_the_gold_label_alone(made: Made) -> None:
    rows = made("direct")
    mismatch = made.tables["pairs"].set_index("pair_id").mismatch
    assert rows.completion.tolist() == [
        render_answer(str(row.label), mismatch[str(row.pair_id)]) for row in rows.itertuples()
    ]
    assert set(rows.reason) == {"accepted"}


def test_no_prompts_make_a_frame_with_the_same_columns(made: Made) -> None:
    whole, none = made("progressive"), made("progressive", prompts=made.prompts.head(0))
    assert none.columns.tolist() == whole.columns.tolist()
    assert none[none.kept].columns.tolist() == whole.columns.tolist()


def test_each_stage_makes_the_teacher_agree_more_often_and_all_of_them_nearly_always(made: Made) -> None:
    agreement = {arm: float((rows := made(arm)).teacher_label.eq(rows.label).mean()) for arm in ARM_STAGES}
    values = list(agreement.values())
    assert values == sorted(values)
    assert values[0] < 0.7
    assert values[-1] > 0.97


def test_accepted_traces_state_the_gold_label_and_quote_only_their_prompt(made: Made) -> None:
    rows = made("progressive")
    assert (rows[rows.reason == "accepted"].teacher_label == rows[rows.reason == "accepted"].label).all()
    for row in rows[rows.kept].itertuples():
        assert parse(str(row.completion)).label == row.label
        for line in parse(str(row.completion)).reasoning.split("\n")[1:]:
            found = line.partition(": ")[2].rpartition(" ")[0]
            assert found == "none" or found in str(row.prompt)


def test_a_disagreeing_trace_is_repaired_or_dropped(made: Made) -> None:
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


def test_an_unexplained_word_is_uncovered_only_where_knowledge_was_asked_for(made: Made) -> None:
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


def test_evidence_that_the_prompt_does_not_show_is_invented(made: Made) -> None:
    short = build_prompts(made.tables, made.captions, "short")
    rows = made("progressive", prompts=short[short.split == "train"])
    assert (rows.reason == "invented").mean() > 0.5


def test_words_of_the_instructions_and_of_the_query_are_no_evidence(made: Made) -> None:
    english = build_prompts(made.tables, made.captions, "short", template=load_template("en"))
    rows = pair_rows(made.tables, english[english.split == "train"], made.captions)
    row = rows[rows["query"].str.contains("navy")].iloc[:1].assign(title="dress", prompt="", picture=None)
    asked = english.prompt.iloc[0].partition("The pair to judge")[0] + "Query: navy dress\nTitle: dress"
    assert "Main" in asked
    for found in ("navy", "Main", "none", "dress"):
        teacher = Parrot(
            Trace(f"<think>\nneed\n</think>\n[{row.label.iloc[0]}]", row.label.iloc[0], found=(found,))
        )
        (reason,) = Synthesis("naive", teacher, "drop")(row.assign(prompt=asked)).reason
        assert reason == ("accepted" if found in ("none", "dress") else "invented")


def test_a_trace_over_the_bound_is_too_long(made: Made) -> None:
    longest = max(len(text.split()) for text in made("progressive").completion)
    assert set(made("progressive", max_words=longest).reason) == {"accepted"}
    assert "too_long" in set(made("progressive", max_words=longest - 1).reason)
    assert set(made("progressive", max_words=3).reason) == {"too_long"}


def test_a_malformed_trace_is_rejected_even_where_the_label_could_be_repaired(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Trace("<think>\nneed\n[L4]", "L4", "", (), (), ())
    monkeypatch.setattr(SymbolicTeacher, "write", lambda *_: broken)
    rows = made("naive", "repair")
    assert set(rows.reason) == {"malformed"}
    assert not rows.kept.any()


def test_the_funnel_counts_every_trace_once_and_shows_every_reason(made: Made) -> None:
    rows = pd.concat([made("direct"), made("naive", "repair"), made("progressive")])
    table = funnel(rows)
    assert table.groupby("arm", sort=False).reason.agg(list).tolist() == [list(REASONS)] * 3
    assert table.groupby("arm").traces.sum().tolist() == [len(made.prompts)] * 3


class Parrot:
    """A teacher that says the same of every task."""

    name = "parrot"

    def __init__(self, *traces: Trace) -> None:
        self.traces = traces
        self.tasks: list[Task] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"teacher": self.name}

    def teach(self, tasks: Sequence[Task]) -> list[Trace]:
        self.tasks += tasks
        return [self.traces[place % len(self.traces)] for place in range(len(tasks))]


def test_a_teacher_gets_nothing_of_the_label_and_fails_by_name(made: Made) -> None:
    rows = pair_rows(made.tables, made.prompts.head(4), made.captions)
    parrot = Parrot(Trace(failure="timeout", prompt_tokens=5))
    frame = Synthesis("naive", parrot, "repair")(rows)
    assert frame.reason.eq("timeout").all()
    assert not frame.kept.any()
    assert frame.prompt_tokens.sum() == 20
    lies = Parrot(Trace(failure="timeout"))
    Synthesis("naive", lies, "repair")(rows.assign(label="L1", mismatch=""))
    shown = [(t.query, t.caption, t.shown, t.knowledge, t.item["title"]) for t in parrot.tasks]
    assert shown == [(t.query, t.caption, t.shown, t.knowledge, t.item["title"]) for t in lies.tasks]
    assert not {"label", "mismatch", "truth"} & set(parrot.tasks[0].item)


def test_the_same_prompt_and_completion_are_kept_once(made: Made, naive: Synthesis) -> None:
    rows = pair_rows(made.tables, made.prompts.head(3), made.captions)
    twice = pd.concat([rows, rows.assign(pair_id=rows.pair_id + "-again")])
    frame = naive(twice)
    assert frame.kept.tolist() == [True] * 3 + [False] * 3
    assert frame.reason.tolist()[3:] == ["duplicate"] * 3


def test_the_direct_arm_needs_no_pictures(made: Made) -> None:
    rows = pair_rows(made.tables, made.prompts.head(3), None)
    assert Synthesis("direct", None, "drop")(rows).kept.all()


def test_a_prompt_of_an_unknown_item_is_counted_and_named(made: Made) -> None:
    odd = made.prompts.head(3).assign(item_id=["x", "y", made.prompts.item_id.iloc[2]])
    with pytest.raises(DataError, match="2 prompts name an unknown item_id; first: 'x'"):
        pair_rows(made.tables, odd, made.captions)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def rows(made: Made) -> pd.DataFrame:
    return pair_rows(made.tables, made.prompts.head(40), made.captions)


@pytest.fixture(scope="module")
def naive(made: Made) -> Synthesis:
    return Synthesis("naive", SymbolicTeacher(made.vertical, ()), "repair")


def test_shards_hold_what_one_frame_would(
    made: Made, rows: pd.DataFrame, naive: Synthesis, tmp_path: Path
) -> None:
    synthesise_to(tmp_path, in_shards(rows, 16), naive)
    assert [len(pq.read_table(path)) for path in sorted((tmp_path / "traces").iterdir())] == [16, 16, 8]
    whole = made("naive", "repair", prompts=made.prompts.head(40))
    pd.testing.assert_frame_equal(read_traces(tmp_path), whole, check_dtype=False)


class Killed(BaseException):
    """Stands in for a kill."""


STEPS = 2 * (2 * 3 + 1)
"""Before and after: three shards written, three put in place, the manifest put in place."""


@pytest.fixture(scope="module")
def whole(rows: pd.DataFrame, naive: Synthesis, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    synthesise_to(folder, in_shards(rows.head(9), 3), naive)
    return tree(folder)


@pytest.mark.parametrize("moment", range(STEPS))
def test_killed_at_any_write_and_resumed_the_folder_is_the_same_to_the_byte(
    rows: pd.DataFrame, naive: Synthesis, whole: dict[str, bytes], tmp_path: Path, moment: int
) -> None:
    steps = 0

    def deadly(real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > moment:
                raise Killed
            done = real(*args, **more)
            steps += 1
            if steps > moment:
                raise Killed
            return done

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lore_lib.cot.synthesis.pq.write_table", deadly(pq.write_table))
        patch.setattr(Path, "replace", deadly(Path.replace))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a kill tidies nothing
        with pytest.raises(Killed):
            synthesise_to(tmp_path, in_shards(rows.head(9), 3), naive)
    assert (tmp_path / "manifest.json").exists() is (moment == STEPS - 1)
    for folder in (tmp_path, tmp_path / "traces"):  # of a process with another number
        (folder / ".00001.parquet.4711.part").write_bytes(b"PAR1")
    synthesise_to(tmp_path, in_shards(rows.head(9), 3), naive)
    assert tree(tmp_path) == whole


def test_finished_shards_are_not_written_again_unless_something_changed(
    rows: pd.DataFrame, naive: Synthesis, tmp_path: Path
) -> None:
    label = rows.label.iloc[0]
    parrot = Parrot(Trace(f"<think>\nneed\n</think>\n[{label}]", label))
    synthesis = replace(naive, teacher=parrot)
    synthesise_to(tmp_path, in_shards(rows, 10), synthesis)
    synthesise_to(tmp_path, in_shards(rows, 10), synthesis)
    assert len(parrot.tasks) == 40
    changed = rows.assign(prompt=rows.prompt.where(rows.index != 25, rows.prompt + " "))
    synthesise_to(tmp_path, in_shards(changed, 10), synthesis)
    assert len(parrot.tasks) == 50
    synthesise_to(tmp_path, in_shards(rows.head(20), 10), replace(synthesis, max_words=5))
    assert len(parrot.tasks) == 70
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == ["00000.parquet", "00001.parquet"]
    (tmp_path / "traces" / "00001.parquet").write_bytes(b"PAR1 cut")
    synthesise_to(tmp_path, in_shards(rows.head(20), 10), replace(synthesis, max_words=5))
    assert len(read_traces(tmp_path)) == 20


def test_an_outage_stops_the_run_before_it_is_written_down(
    rows: pd.DataFrame, naive: Synthesis, tmp_path: Path
) -> None:
    label = rows.label.iloc[0]
    fine, down = Trace(f"<think>\nneed\n</think>\n[{label}]", label), Trace(failure="unreachable")
    shards = list(in_shards(rows, 10))
    synthesise_to(tmp_path, shards[:1], replace(naive, teacher=Parrot(fine, down)))
    with pytest.raises(
        EngineError, match=r"7 of the 10 pairs of 00001\.parquet got no reply \(unreachable 7\)"
    ):
        synthesise_to(tmp_path, shards, replace(naive, teacher=Parrot(down, fine, down)))
    with pytest.raises(ArtifactError, match="was interrupted"):
        read_traces(tmp_path)
