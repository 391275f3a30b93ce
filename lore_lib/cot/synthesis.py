"""Synthesis of one arm of training data: teach every train pair; the funnel accepts, repairs or rejects."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lore_lib.artifacts import MANIFEST, PART_SUFFIX, atomic_write, atomic_write_json, file_sha256
from lore_lib.completion import parse, render_answer
from lore_lib.cot.answer import ANSWER_FAILURES, quotes
from lore_lib.cot.chat import REPLY_FAILURES
from lore_lib.cot.knowledge import Ask, KnowledgeIndex, held_out_items
from lore_lib.cot.teacher import STAGES, SymbolicTeacher, Task, Teacher, Trace
from lore_lib.endpoint import CALL_FAILURES
from lore_lib.errors import ArtifactError, DataError, EngineError
from lore_lib.features.prompts import item_sections, neutralise
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.kinds import NOT_STATED

ARM_STAGES: dict[str, tuple[str, ...]] = {
    "naive": (),
    "knowledge": ("knowledge",),
    "knowledge+vision": ("knowledge", "vision"),
    "progressive": STAGES,
}
"""Arm -> the stages its teacher has, each one more than the arm before. ``direct`` has no teacher."""

WITHOUT: dict[str, tuple[str, ...]] = {
    f"without {left_out}": tuple(stage for stage in STAGES if stage != left_out) for left_out in STAGES
}
"""Arm -> all stages but one: what is a stage worth when the others are there?"""

STAGES_OF: dict[str, tuple[str, ...]] = ARM_STAGES | WITHOUT
"""Arm -> its teacher's stages, for every arm that has a teacher."""

REASONS: dict[str, str] = {
    "accepted": "kept as written",
    "repaired": "reasoning kept, gold label put in place of the teacher's",
    "disagrees": "the teacher's verdict is not the gold label",
    "uncovered": "a word of the query is explained by no demand",
    "invented": "quoted evidence stands nowhere in what the prompt shows of the item",
    "malformed": "the completion does not parse",
    "too_long": "more words than the bound",
    "duplicate": "the same prompt and completion stand among the kept ones already",
    **CALL_FAILURES,
    **REPLY_FAILURES,
    **ANSWER_FAILURES,
}
"""What the funnel may say of a trace."""

TRACE_COLUMNS = [
    "pair_id", "arm", "prompt", "completion", "label", "teacher_label", "kept", "reason", "prompt_tokens",
    "completion_tokens",
]  # fmt: skip

_ITEM_FIELDS = ["item_id", "title", "cpv", "skus", "shop", "price", "selling_points"]
_TYPES = {"kept": pa.bool_(), "prompt_tokens": pa.int64(), "completion_tokens": pa.int64()}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in TRACE_COLUMNS])
_KEY = b"lore.key"
_FAILED_SHARE = 0.5


@dataclass(frozen=True)
class Synthesis:
    """How one arm is written: rows of pairs in, rows of traces out, nothing remembered between calls.

    Attributes:
        arm: "direct" (label alone) or a key of :data:`STAGES_OF`.
        teacher: None for "direct".
        disagreement: "repair" puts the gold label behind reasoning that ends elsewhere, "drop" rejects the
            trace.
        max_words: longest completion kept, in white-space words.
        knowledge: retrieves texts for a teacher that has no index of its own.
    """

    arm: str
    teacher: Teacher | None
    disagreement: Literal["repair", "drop"]
    max_words: int = 90
    knowledge: KnowledgeIndex | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the traces, beside the rows and the index; JSON values, no secrets."""
        return {
            "arm": self.arm,
            "teacher": None if self.teacher is None else self.teacher.identity,
            "disagreement": self.disagreement,
            "max_words": self.max_words,
        }

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Traces for rows as :func:`pair_rows` makes them, in their order; columns ``TRACE_COLUMNS``.

        ``kept`` is bool, ``reason`` a key of ``REASONS``; a failed trace has no completion. Duplicates are
        looked for among these rows; the direct arm has no funnel.
        """
        records = rows.to_dict("records")
        if self.teacher is None:
            gold = [Trace(render_answer(row["label"], row["mismatch"]), row["label"]) for row in records]
            return self._frame(records, gold, ["accepted"] * len(gold))
        tasks = [self._task(*one) for one in zip(records, self._told(records), strict=True)]
        traces = self.teacher.teach(tasks)
        reasons = [
            trace.failure or self._verdict(trace, task, row["label"])
            for trace, task, row in zip(traces, tasks, records, strict=True)
        ]
        frame = self._frame(records, traces, reasons)
        again = frame.kept & frame.duplicated(["kept", "prompt", "completion"])
        return frame.assign(kept=frame.kept & ~again, reason=frame.reason.mask(again, "duplicate"))

    def _told(self, records: list[dict[Any, Any]]) -> list[list[str]]:
        """What merchants say about the words of each pair's query, without the judged item's own word."""
        if self.knowledge is None or "knowledge" not in STAGES_OF[self.arm]:
            return [[] for _ in records]
        return self.knowledge.evidence_many(
            [Ask(row["query_id"], neutralise(row["query"]).split(), row["item_id"]) for row in records]
        )

    def _task(self, row: dict[Any, Any], told: list[str]) -> Task:
        sections = item_sections(row, row["picture"])
        shown = {
            name: kept
            for name, values in sections.items()
            if (kept := tuple(value for value in values if value in row["prompt"]))
        }
        item = {name: row[name] for name in _ITEM_FIELDS}
        return Task(row["query_id"], row["query"], item, row["picture"], shown, tuple(told))

    def _frame(self, records: list[dict[Any, Any]], traces: list[Trace], reasons: list[str]) -> pd.DataFrame:
        rows = zip(records, traces, reasons, strict=True)
        return pd.DataFrame([self._row(*row) for row in rows], columns=TRACE_COLUMNS).astype({"kept": bool})

    def _row(self, row: dict[Any, Any], trace: Trace, reason: str) -> dict[str, Any]:
        completion = trace.completion
        if reason == "disagrees" and self.disagreement == "repair":
            head, _, _ = completion.rpartition("\n")
            completion, reason = f"{head}\n{render_answer(row['label'], row['mismatch'])}", "repaired"
        return {
            "pair_id": row["pair_id"],
            "arm": self.arm,
            "prompt": row["prompt"],
            "completion": completion,
            "label": row["label"],
            "teacher_label": trace.label,
            "kept": reason in ("accepted", "repaired"),
            "reason": reason,
            "prompt_tokens": trace.prompt_tokens,
            "completion_tokens": trace.completion_tokens,
        }

    def _verdict(self, trace: Trace, task: Task, label: str) -> str:
        if parse(trace.completion).kind != "ok":
            return "malformed"
        if len(trace.completion.split()) > self.max_words:
            return "too_long"
        if trace.unknown and "knowledge" in STAGES_OF[self.arm]:
            return "uncovered"
        evidence = _evidence(task)
        if not all(found == NOT_STATED or quotes(found, evidence) for found in trace.found):
            return "invented"
        return "accepted" if trace.label == label else "disagrees"


def _evidence(task: Task) -> str:
    """What may be quoted of the item: what the student sees of it, a line for each value.

    The query is left out: else any demand could be met by quoting itself.
    """
    lines = [value for values in task.shown.values() for value in values]
    if "price" in task.shown:
        lines.append(f"{float(task.item['price']):g}")  # 42.5 for 42.50
    return "\n".join(lines)


def pair_rows(
    tables: dict[str, pd.DataFrame], prompts: pd.DataFrame, captions: pd.Series | None
) -> pd.DataFrame:
    """All that a synthesis needs to know of each pair, in the order of ``prompts``.

    Args:
        tables: ``queries``, ``items`` and ``pairs``.
        prompts: train rows of the features stage.
        captions: item_id -> what the picture shows; None where nobody looks.

    Returns:
        Frame with pair_id, query_id, item_id, prompt, label (gold), mismatch (gold), query, picture and the
        item's fields.

    Raises:
        DataError: a prompt names an unknown pair, query or item, or one without a caption entry.
    """
    rows = prompts[["pair_id", "query_id", "item_id", "prompt", "label"]]
    items = tables["items"][_ITEM_FIELDS]
    if captions is None:
        items = items.assign(picture=None)
    else:
        seen = pd.DataFrame({"item_id": captions.index, "picture": captions.to_numpy()})
        items = items.merge(seen, on="item_id", validate="one_to_one")
    parts = {
        "pair_id": tables["pairs"][["pair_id", "mismatch"]],
        "query_id": tables["queries"][["query_id", "query"]],
        "item_id": items,
    }
    for key, part in parts.items():
        if not rows[key].isin(part[key]).all():
            lost = rows[~rows[key].isin(part[key])]
            raise DataError(f"{len(lost)} prompts name an unknown {key}; first: {lost[key].iloc[0]!r}")
        rows = rows.merge(part, on=key, how="left", validate="many_to_one")
    return rows.assign(picture=rows.picture.astype(object).where(rows.picture.notna(), None))


def in_shards(rows: pd.DataFrame, pairs: int) -> Iterator[pd.DataFrame]:
    """Cut rows into frames of so many pairs."""
    return (rows.iloc[start : start + pairs] for start in range(0, len(rows), pairs))


def synthesise(
    arm: str,
    tables: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    captions: pd.Series | None,
    vertical: Vertical,
    top_clicked: int,
    selling_points: int,
    disagreement: Literal["repair", "drop"],
    max_words: int = 90,
) -> pd.DataFrame:
    """The symbolic teacher's traces for every row of ``prompts``, with the funnel's verdict on each.

    Args:
        arm: "direct" (label alone) or a key of :data:`STAGES_OF`.
        tables: ``queries``, ``items``, ``pairs`` and ``clicks``.
        prompts: train rows of the features stage.
        captions: as for :func:`pair_rows`.
        vertical: vocabularies and rules.
        top_clicked: clicked items read per query; selling_points: items BM25 may add.
        disagreement, max_words: see :class:`Synthesis`.

    Returns:
        Frame with the columns of ``TRACE_COLUMNS``.
    """
    teacher = None
    if arm != "direct":
        held_out = held_out_items(tables["pairs"])
        index = KnowledgeIndex(tables["items"], tables["clicks"], top_clicked, selling_points, held_out)
        teacher = SymbolicTeacher(vertical, STAGES_OF[arm], index)
    return Synthesis(arm, teacher, disagreement, max_words)(pair_rows(tables, prompts, captions))


def synthesise_to(folder: Path, shards: Iterable[pd.DataFrame], synthesis: Synthesis) -> Path:
    """Write the traces of a stream of rows as Parquet shards, then a manifest.

    ``folder/traces/00000.parquet`` and so on hold one shard each and appear whole; ``folder/manifest.json``
    comes last. Run again after a kill, shards of the same rows and settings are kept, and the result is the
    same to the byte as long as the replies are (what a sampling model has said is in its cache).

    Args:
        folder: of this synthesis alone.
        shards: frames as :func:`pair_rows` makes them, one at a time in memory.
        synthesis: writes one.

    Returns:
        The manifest's path.

    Raises:
        EngineError: more than half of a shard's calls failed. Nothing is lost: finished shards stay, and so
            do the replies in the teacher's cache.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    written = [write_shard(folder, number, rows, synthesis) for number, rows in enumerate(shards)]
    return finish_shards(folder, len(written), synthesis.identity)


def write_shard(folder: Path, number: int, rows: pd.DataFrame, synthesis: Synthesis) -> Path:
    """Write one shard's traces, unless those of the same rows and settings are there; returns its path.

    Raises:
        EngineError: more than half of its calls failed; it is then not written.
    """
    path = _shard(folder, number)
    if not is_written(folder, number, rows, synthesis):
        traces = synthesis(rows)
        _refuse_outage(traces, path)
        table = pa.Table.from_pandas(traces, _SCHEMA, preserve_index=False)
        table = table.replace_schema_metadata({_KEY: _shard_key(synthesis.identity, rows)})
        atomic_write(path, lambda part: pq.write_table(table, part))
    return path


def is_written(folder: Path, number: int, rows: pd.DataFrame, synthesis: Synthesis) -> bool:
    """Whether a shard's traces, of the same rows and settings, are there."""
    return _written_key(_shard(folder, number)) == _shard_key(synthesis.identity, rows)


def _shard(folder: Path, number: int) -> Path:
    return folder / "traces" / f"{number:05d}.parquet"


def finish_shards(folder: Path, shards: int, identity: dict[str, Any]) -> Path:
    """Count what ``shards`` written shards hold, remove what else lies there, and write the manifest.

    Args:
        folder: of the synthesis.
        shards: how many there are, numbered from 0.
        identity: of the synthesis.
    """
    reasons: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    files: dict[str, dict[str, Any]] = {}
    for path in (_shard(folder, number) for number in range(shards)):
        done = pq.read_table(path, columns=["reason", "prompt_tokens", "completion_tokens"]).to_pandas()
        reasons.update(done.reason)
        tokens.update({name: int(done[name].sum()) for name in ("prompt_tokens", "completion_tokens")})
        files[path.name] = {"rows": len(done), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    written_before = (folder / "traces").glob("*.parquet")
    for left in (*written_before, *folder.rglob(f".*{PART_SUFFIX}")):
        if left.name not in files:
            left.unlink()  # of a longer run before this one, or of a kill
    counted = {reason: reasons[reason] for reason in REASONS if reasons[reason]}
    written = {"synthesis": identity, "reasons": counted, "tokens": dict(tokens), "shards": files}
    return atomic_write_json(folder / MANIFEST, written)


def read_traces(folder: Path) -> pd.DataFrame:
    """All traces of a finished synthesis.

    Raises:
        ArtifactError: it is not finished.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"no {MANIFEST} in {folder}: the synthesis has not run, or was interrupted; run it again"
        )
    return pd.read_parquet(folder / "traces")


def _shard_key(identity: dict[str, Any], rows: pd.DataFrame) -> bytes:
    digest = hashlib.sha256(json.dumps([identity, list(rows.columns)], sort_keys=True).encode())
    digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return digest.hexdigest().encode()


def _written_key(path: Path) -> bytes:
    """The key of a shard that is there already."""
    if not path.is_file():
        return b""
    try:
        return bytes((pq.read_schema(path).metadata or {}).get(_KEY, b""))
    except pa.ArrowInvalid:
        return b""


def _refuse_outage(traces: pd.DataFrame, path: Path) -> None:
    failed = traces.reason[traces.reason.isin(list(CALL_FAILURES))]
    if len(failed) > _FAILED_SHARE * len(traces):
        counts = ", ".join(f"{reason} {count}" for reason, count in failed.value_counts().items())
        raise EngineError(
            f"{len(failed)} of the {len(traces)} pairs of {path.name} got no reply ({counts}), so it is not "
            "written. See to the endpoint and run again: finished shards and cached replies are kept"
        )


def funnel(traces: pd.DataFrame) -> pd.DataFrame:
    """Count of traces per arm and reason, in the order of :data:`REASONS`."""
    counts = Counter(zip(traces.arm, traces.reason, strict=True))
    rows = [
        {"arm": arm, "reason": reason, "traces": counts[(arm, reason)]}
        for arm in traces.arm.unique()
        for reason in REASONS
    ]
    return pd.DataFrame(rows)
