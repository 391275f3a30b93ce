"""Rewards: pure functions of one completion, with a breakdown; TRL adapters at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lore_lib.completion import THINK_OPEN, parse
from lore_lib.errors import DataError
from lore_lib.vertical.schema import LABELS, RELEVANT

EXACT, SAME_SIDE, WRONG = 1.0, 0.3, 0.0
"""Outcome: the gold label; another label on its side of the L2 | L3 boundary; anything else."""


@dataclass(frozen=True)
class Reward:
    """Parts of one completion's reward; ``total`` is their sum.

    Attributes:
        outcome: EXACT, SAME_SIDE or WRONG.
        format: the format weight when the completion parses and holds a reasoning block, else 0.
        parse_kind: see :data:`lore_lib.completion.PARSE_KINDS`.
    """

    outcome: float
    format: float
    parse_kind: str

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.outcome + self.format


def reward(completion: str, label: str, format_weight: float = 0.1) -> Reward:
    """Score one completion against the gold label.

    >>> reward("<think>\\nx\\n</think>\\n[L4]", "L4").total
    1.1
    >>> reward("<think>\\nx\\n</think>\\n[L3]", "L4").outcome
    0.3
    >>> reward("[L4] [L4]", "L4").total
    0.0
    """
    read = parse(completion)
    if read.kind != "ok":
        return Reward(WRONG, 0.0, read.kind)
    same_side = (read.label in RELEVANT) == (label in RELEVANT)
    outcome = EXACT if read.label == label else SAME_SIDE if same_side else WRONG
    return Reward(outcome, format_weight if THINK_OPEN in completion and read.reasoning else 0.0, "ok")


def prove_rewards(traces: pd.DataFrame, format_weight: float = 0.1) -> pd.DataFrame:
    """Check the grader on a whole training set before it trains anything.

    Args:
        traces: columns pair_id, completion (right and well-formed) and label.
        format_weight: as in training.

    Returns:
        One row per (gold, stated label): the total each earns, constant over the set.

    Raises:
        DataError: no traces; a gold completion earns less than full marks, or a completion with another
            label earns as much.
    """
    if traces.empty:
        raise DataError("no traces to prove the rewards on; look at the reasons in 02_cot_synthesis")
    full = EXACT + format_weight
    for row in traces.itertuples():
        for stated in LABELS:
            text = str(row.completion).rpartition("\n")[0] + f"\n[{stated}]"
            total = reward(text, str(row.label), format_weight).total
            if (stated == row.label) != (total == full):
                raise DataError(
                    f"pair {row.pair_id!r}: gold {row.label}, stated {stated} earns {total}, full is {full}"
                )
        if reward(str(row.completion), str(row.label), format_weight).total != full:
            raise DataError(f"pair {row.pair_id!r}: its gold completion does not earn full marks ({full})")
    body = "<think>\nx\n</think>\n"
    rows = [
        {"gold": g, "stated": s, "total": reward(f"{body}[{s}]", g, format_weight).total}
        for g in LABELS
        for s in LABELS
    ]
    return pd.DataFrame(rows)


def outcome_reward(completions: Sequence[str], label: Sequence[str], **_: Any) -> list[float]:
    """TRL reward function: the outcome part."""
    return [reward(c, gold).outcome for c, gold in zip(completions, label, strict=True)]


def format_reward(completions: Sequence[str], label: Sequence[str], **_: Any) -> list[float]:
    """TRL reward function: 1 where the format is right; TRL multiplies it by its weight."""
    return [reward(c, gold, 1.0).format for c, gold in zip(completions, label, strict=True)]
