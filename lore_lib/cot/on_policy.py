"""On-policy data: the student writes the chains, the teacher and the funnel verify them.

A student taught on another's words must learn to speak like that other. Taught on its own chains, those that
were found sound (rejection sampling: Yuan et al. 2023, arXiv 2308.01825), it is moved no further than it has
to be. Where none of its chains is sound, the teacher's stands in, which is the correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lore_lib.completion import parse
from lore_lib.cot.synthesis import Synthesis
from lore_lib.cot.teacher import Task, Trace

ARM = "on-policy"


def read_path(completion: str) -> dict[str, str]:
    """What a chain demands of the item -> the evidence it quotes; empty where there is no path.

    >>> read_path("<think>\\\\nneed: color navy\\\\ncolor navy: dark navy match\\\\n</think>\\\\n[L4]")
    {'color navy': 'dark navy'}
    """
    steps = [line.partition(": ") for line in parse(completion).reasoning.splitlines()]
    return {
        demand: said.partition("; ")[0].rpartition(" ")[0]
        for demand, colon, said in steps
        if colon and demand != "need"
    }


@dataclass(frozen=True)
class Verified:
    """Gives chains that were written before, one for each task, as traces for the funnel.

    What the teacher demands and the chain does not follow is an unknown word to the funnel: the chain is
    ``uncovered``.

    Attributes:
        completions: one per task.
        teachers: the teacher's chain for each, "" where it has none.
    """

    completions: Sequence[str]
    teachers: Sequence[str]
    name: str = "student"

    @property
    def identity(self) -> dict[str, Any]:
        """Its name: the chains themselves are no settings."""
        return {"teacher": self.name}

    def teach(self, tasks: Sequence[Task]) -> list[Trace]:
        """The chains, read."""
        return [
            self._trace(written, asked)
            for _, written, asked in zip(tasks, self.completions, self.teachers, strict=True)
        ]

    def _trace(self, written: str, asked: str) -> Trace:
        read, path, wanted = parse(written), read_path(written), read_path(asked)
        return Trace(
            completion=written,
            label=read.label,
            mismatch=read.mismatch,
            unknown=tuple(demand for demand in wanted if demand not in path),
            found=tuple(path.values()),
        )


def on_policy_traces(
    samples: pd.DataFrame, rows: pd.DataFrame, teacher: pd.DataFrame, synthesis: Synthesis
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training set of the on-policy arm.

    Args:
        samples: the student's, as :func:`lore_lib.sampling.engine.sample_pairs` gives them, every pair of
            ``rows`` as often as the others.
        rows: from :func:`lore_lib.cot.synthesis.pair_rows`.
        teacher: the teacher's traces of the same rows, in their order.
        synthesis: the teacher's; its funnel judges the student.

    Returns:
        The traces, one per row, with ``source`` "student" (its first sound chain), or "teacher" (the
        teacher's trace as it is); and the funnel's verdict on every sample (pair_id, sample, reason).
    """
    taught = teacher.set_index("pair_id").loc[rows["pair_id"]]
    chosen = taught.reset_index().assign(source="teacher")
    verdicts = []
    for number, drawn in samples.groupby("sample"):
        written = drawn.set_index("pair_id").completion.loc[rows["pair_id"]].tolist()
        judge = replace(synthesis, teacher=Verified(written, taught.completion.tolist()), disagreement="drop")
        judged = judge(rows).assign(source="student")
        verdicts.append(judged[["pair_id", "reason"]].assign(sample=number))
        better = judged.kept & (chosen.source == "teacher")
        chosen = chosen.where(~better, judged)
    return chosen.assign(arm=ARM), pd.concat(verdicts, ignore_index=True)
