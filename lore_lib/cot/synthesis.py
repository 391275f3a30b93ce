"""Synthesis of one arm of training data: teach every train pair; the funnel accepts, repairs or rejects."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from lore_lib.completion import parse, render_answer
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.cot.teacher import STAGES, SymbolicTeacher, Trace
from lore_lib.vertical.definition import Vertical

ARM_STAGES: dict[str, tuple[str, ...]] = {
    "naive": (),
    "knowledge": ("knowledge",),
    "knowledge+vision": ("knowledge", "vision"),
    "progressive": STAGES,
}
"""Arm -> the stages its teacher has. ``direct`` has no teacher."""

REASONS: dict[str, str] = {
    "accepted": "kept as written",
    "repaired": "reasoning kept, gold label put in place of the teacher's",
    "disagrees": "the teacher's verdict is not the gold label",
    "uncovered": "a word of the query is explained by no demand",
    "invented": "quoted evidence stands nowhere in the prompt",
    "malformed": "the completion does not parse",
    "too_long": "more words than the bound",
}
"""What the funnel may say of a trace."""


TRACE_COLUMNS = [
    "pair_id", "arm", "prompt", "completion", "label", "teacher_label", "kept", "reason"
]  # fmt: skip


def synthesise(
    arm: str, tables: dict[str, pd.DataFrame], prompts: pd.DataFrame, captions: pd.Series, vertical: Vertical,
    top_clicked: int, selling_points: int, disagreement: str, max_words: int = 90,
) -> pd.DataFrame:  # fmt: skip
    """Teacher traces for every row of ``prompts``, with the funnel's verdict on each.

    Args:
        arm: "direct" (label alone) or a key of :data:`ARM_STAGES`.
        tables: ``queries``, ``items``, ``pairs`` and ``clicks``.
        prompts: train rows of the features stage.
        captions: item_id -> what the picture shows.
        vertical: vocabularies and rules.
        top_clicked: clicked items read per query; selling_points: items BM25 may add.
        disagreement: "repair" puts the gold label behind reasoning that ends elsewhere, "drop" rejects the
            trace.
        max_words: longest completion kept, in white-space words.

    Returns:
        Frame with pair_id, arm, prompt, completion, label, teacher_label, kept (bool), reason (key of
        ``REASONS``).
    """
    mismatches = dict(zip(tables["pairs"].pair_id, tables["pairs"].mismatch, strict=True))
    rows = []
    queries = dict(zip(tables["queries"].query_id, tables["queries"]["query"], strict=True))
    items = {row["item_id"]: row for row in tables["items"].to_dict("records")}
    teacher = None
    if arm != "direct":
        index = KnowledgeIndex(tables["items"], tables["clicks"], top_clicked, selling_points)
        teacher = SymbolicTeacher(vertical, ARM_STAGES[arm], index)
    for row in prompts.to_dict("records"):
        gold = render_answer(row["label"], mismatches[row["pair_id"]])
        completion, teacher_label, reason = gold, row["label"], "accepted"
        if teacher is not None:
            item = items[row["item_id"]]
            trace = teacher.write(row["query_id"], queries[row["query_id"]], item, captions[row["item_id"]])
            completion, teacher_label = trace.completion, trace.label
            covered = "knowledge" not in ARM_STAGES[arm] or not trace.unknown
            reason = _verdict(trace, row["prompt"], row["label"], covered, max_words)
            if reason == "disagrees" and disagreement == "repair":
                head, _, _ = completion.rpartition("\n")
                completion, reason = f"{head}\n{gold}", "repaired"
        rows.append(
            {"pair_id": row["pair_id"], "arm": arm, "prompt": row["prompt"], "completion": completion,
             "label": row["label"], "teacher_label": teacher_label,
             "kept": reason in ("accepted", "repaired"), "reason": reason}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=TRACE_COLUMNS).astype({"kept": bool})


def _verdict(trace: Trace, prompt: str, label: str, covered: bool, max_words: int) -> str:
    if parse(trace.completion).kind != "ok":
        return "malformed"
    if len(trace.completion.split()) > max_words:
        return "too_long"
    if not covered:
        return "uncovered"
    if any(word not in prompt for found in trace.found if found != "none" for word in found.split()):
        return "invented"
    return "accepted" if trace.label == label else "disagrees"


def funnel(traces: pd.DataFrame) -> pd.DataFrame:
    """Count of traces per arm and reason, in the order of :data:`REASONS`."""
    counts = Counter(zip(traces.arm, traces.reason, strict=True))
    rows = [
        {"arm": arm, "reason": reason, "traces": counts[(arm, reason)]}
        for arm in traces.arm.unique()
        for reason in REASONS
    ]
    return pd.DataFrame(rows)
