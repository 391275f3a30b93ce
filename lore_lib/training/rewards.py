"""Rewards: pure functions of one completion, with a breakdown; what TRL calls stands at the end.

The paper names a format and an outcome reward and a *progressive* scaling of the outcome part; its formula
and weights are not public, so the numbers here are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lore_lib.completion import THINK_OPEN, parse, render_answer
from lore_lib.config import Outcome
from lore_lib.errors import DataError
from lore_lib.vertical.schema import LABELS, RELEVANT

SAME_SIDE = 0.3
"""What another label on the gold label's side of the L2 | L3 boundary is worth."""
SOFT_LIMIT = 0.75
"""Share of the token limit from which a completion counts as long."""
STUFFED = 3
"""Labels named in the reasoning from which a completion counts as stuffed with them."""


@dataclass(frozen=True)
class Grading:
    """The stated choices behind a reward.

    Attributes:
        outcome: what a wrong label is worth. "exact": nothing; "same_side": `SAME_SIDE` on the gold label's
            side of the L2 | L3 boundary; "ordinal": 1 - distance / 3, so L3 for L4 earns two thirds.
        outcome_start: weight of the outcome part when training begins; it grows in a straight line to 1.
        format_weight: earned when the completion parses and reasons.
        length_weight: lost by a completion at the token limit; nothing is lost up to `SOFT_LIMIT` of it, and
            proportionally in between (the overlong punishment of DAPO, arXiv 2503.14476, equation 13).
        max_tokens: the token limit.
    """

    outcome: Outcome = "same_side"
    outcome_start: float = 1.0
    format_weight: float = 0.1
    length_weight: float = 0.0
    max_tokens: int = 168

    def outcome_weight(self, progress: float) -> float:
        """Weight of the outcome part at a share of training, from 0 to 1.

        >>> Grading(outcome_start=0.5).outcome_weight(0.5)
        0.75
        """
        return self.outcome_start + (1 - self.outcome_start) * progress


@dataclass(frozen=True)
class Reward:
    """Parts of one completion's reward, weighted; ``total`` is their sum.

    Attributes:
        outcome: of the label.
        format: the format weight when the completion parses and holds reasoning, else 0.
        length: 0, or less for a long completion.
        parse_kind: see :data:`lore_lib.completion.PARSE_KINDS`.
        stated: the label the completion states, "" when it does not parse.
    """

    outcome: float
    format: float
    length: float
    parse_kind: str
    stated: str

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.outcome + self.format + self.length


def outcome(stated: str, label: str, kind: Outcome = "same_side") -> float:
    """What stating one label is worth where another is right, from 0 to 1.

    >>> [outcome("L3", "L4", kind) for kind in ("exact", "same_side", "ordinal")]
    [0.0, 0.3, 0.6666666666666667]
    """
    if stated == label:
        return 1.0
    if kind == "ordinal":
        return 1 - abs(LABELS.index(stated) - LABELS.index(label)) / (len(LABELS) - 1)
    same_side = (stated in RELEVANT) == (label in RELEVANT)
    return SAME_SIDE if kind == "same_side" and same_side else 0.0


def overlong(tokens: int, max_tokens: int) -> float:
    """0 for a completion up to `SOFT_LIMIT` of the limit, -1 at the limit, a straight line between.

    >>> [overlong(tokens, 100) for tokens in (75, 80, 100)]
    [0.0, -0.2, -1.0]
    """
    soft = SOFT_LIMIT * max_tokens
    return min(0.0, max(-1.0, (soft - tokens) / (max_tokens - soft)))


def reward(
    completion: str, label: str, grading: Grading = Grading(), tokens: int = 0, progress: float = 1.0
) -> Reward:
    """Score one completion against the gold label.

    Args:
        completion: its text.
        label: the gold label.
        grading: the stated choices.
        tokens: its length; 0 where no length is to be scored.
        progress: share of training done, which scales the outcome part.

    >>> reward("<think>\\nx\\n</think>\\n[L4]", "L4").total
    1.1
    >>> reward("<think>\\nx\\n</think>\\n[L3]", "L4").outcome
    0.3
    >>> reward("[L4] [L4]", "L4").total
    0.0
    """
    read = parse(completion)
    length = grading.length_weight * overlong(tokens, grading.max_tokens)
    if read.kind != "ok":
        return Reward(0.0, 0.0, length, read.kind, "")
    earned = grading.outcome_weight(progress) * outcome(read.label, label, grading.outcome)
    form = grading.format_weight if THINK_OPEN in completion and read.reasoning else 0.0
    return Reward(earned, form, length, "ok", read.label)


def with_tokens(traces: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """The traces with the length of each completion, the end token included, in a column ``tokens``."""
    ids = tokenizer(traces.completion.tolist(), add_special_tokens=False)["input_ids"]
    return traces.assign(tokens=[len(one) + 1 for one in ids])


def prove_rewards(traces: pd.DataFrame, grading: Grading = Grading()) -> pd.DataFrame:
    """Check the grader on a whole training set before it trains anything.

    Args:
        traces: columns pair_id, completion (right and well-formed), tokens (see `with_tokens`) and label.
        grading: as in training; it is proven for the start and for the end of training.

    Returns:
        One row per (gold, stated label): the total each earns at the end of training, constant over the set.

    Raises:
        DataError: no traces; a gold completion earns less than full marks or loses some for its length, or a
            completion with another label earns as much.
    """
    if traces.empty:
        raise DataError("no traces to prove the rewards on; look at the reasons in 02_cot_synthesis")
    free = int((SOFT_LIMIT if grading.length_weight else 1) * grading.max_tokens)
    long = traces[traces.tokens > free].sort_values("tokens")
    if len(long):
        pair, most = long.pair_id.iloc[-1], int(long.tokens.iloc[-1])
        raise DataError(
            f"{len(long)} of {len(traces)} gold completions have more than {free} tokens, so that they lose "
            f"marks for length or are cut; the longest is of pair {pair!r} with {most}. Use "
            f"--set sampling.max_completion_tokens={math.ceil(most * grading.max_tokens / free)}"
        )
    for progress in (0.0, 1.0):
        full = grading.outcome_weight(progress) + grading.format_weight
        for row in traces.itertuples():
            completion, label, tokens = str(row.completion), str(row.label), int(str(row.tokens))
            if reward(completion, label, grading, tokens, progress).total != full:
                raise DataError(
                    f"pair {row.pair_id!r}: its gold completion does not earn full marks ({full}), which are "
                    "for reasoning between think tags and then one label; begin with an arm that writes so, "
                    "naive or progressive"
                )
            for stated in LABELS:
                text = completion.rpartition("\n")[0] + f"\n[{stated}]"
                total = reward(text, label, grading, tokens, progress).total
                if (stated == label) != (total == full) or total > full:
                    raise DataError(
                        f"pair {row.pair_id!r}: gold {label}, stated {stated} earns {total}, full is {full}"
                    )
    body = "<think>\nx\n</think>\n"
    rows = [
        {"gold": g, "stated": s, "total": reward(f"{body}[{s}]", g, grading).total}
        for g in LABELS
        for s in LABELS
    ]
    return pd.DataFrame(rows)


def hacks(labels: Iterable[str], grading: Grading = Grading()) -> pd.DataFrame:
    """What policies that do not look at the pair would earn on these gold labels.

    Args:
        labels: gold labels of the pairs trained on.
        grading: as in training.

    Returns:
        Columns policy, completion and reward (mean over the labels): one label for everything, the commonest
        label without reasoning or with an empty one, and all labels at once. A policy that learns must earn
        more than the best of them.
    """
    gold = list(labels)
    commonest = pd.Series(gold).mode()[0]
    body = "<think>\nx\n</think>\n"
    policies = {f"always {label}": f"{body}[{label}]" for label in LABELS} | {
        f"always {commonest}, no reasoning": render_answer(commonest),
        f"always {commonest}, empty reasoning": f"<think>\n</think>\n[{commonest}]",
        "every label at once": body + " ".join(f"[{label}]" for label in LABELS),
        "labels stuffed into the reasoning": f"<think>\n{' '.join(LABELS)}\n</think>\n[{commonest}]",
    }
    rows = [
        (name, text, float(np.mean([reward(text, label, grading).total for label in gold])))
        for name, text in policies.items()
    ]
    return pd.DataFrame(rows, columns=["policy", "completion", "reward"])


def best_hack(labels: Iterable[str], grading: Grading = Grading()) -> float:
    """What the best of the `hacks` earns: a policy that reads its pairs earns more."""
    return float(hacks(labels, grading).reward.max())


def habits(completions: Sequence[str], labels: Sequence[str], grading: Grading) -> dict[str, float]:
    """What tells a hacked reward from an earned one, of completions that were not chosen by their rewards.

    Args:
        completions: their texts.
        labels: the gold label of each.
        grading: as in training.

    Returns:
        ``drawn_reward``, the mean at the end of training and without the length part, as of `hacks`; and
        shares: ``parse_rate``, ``no_reasoning_share``, ``stuffed_share`` (whose reasoning names `STUFFED`
        labels or more) of all completions, ``top_label_share`` (the label stated most often) of those that
        parse, 0 where none does.

    >>> habits(["<think>\\nL1 L2 L4\\n</think>\\n[L4]", "[L4]"], ["L4", "L1"], Grading())["stuffed_share"]
    0.5
    """
    unscaled = Grading(grading.outcome, format_weight=1.0)
    scored = [reward(text, label, unscaled) for text, label in zip(completions, labels, strict=True)]
    stated = pd.Series([one.stated for one in scored if one.stated], dtype=str)
    named = [len(set(re.findall(r"\bL[1-4]\b", parse(text).reasoning))) for text in completions]
    return {
        "drawn_reward": float(np.mean([one.outcome + grading.format_weight * one.format for one in scored])),
        "parse_rate": len(stated) / len(scored),
        "top_label_share": float(stated.value_counts(normalize=True).max()) if len(stated) else 0.0,
        "no_reasoning_share": float(np.mean([one.stated != "" and not one.format for one in scored])),
        "stuffed_share": float(np.mean([count >= STUFFED for count in named])),
    }


def reward_functions(grading: Grading) -> list[Callable[..., list[float]]]:
    """The parts as TRL reward functions: the outcome times its growing weight, the others unweighted.

    The outcome function also logs the outcome without its weight, and what the rollout says it drew.
    """

    def outcome_reward(
        completions: Sequence[str],
        label: Sequence[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        drawn: Sequence[Mapping[str, float]] = ({},),
        **_: Any,
    ) -> list[float]:
        unscaled = Grading(grading.outcome, format_weight=1.0)
        scored = [reward(text, gold, unscaled) for text, gold in zip(completions, label, strict=True)]
        log_metric("outcome", float(np.mean([one.outcome for one in scored])))
        for name, value in drawn[0].items():
            log_metric(name, value)
        weight = grading.outcome_weight(training_progress(trainer_state))
        return [weight * one.outcome for one in scored]

    def format_reward(completions: Sequence[str], label: Sequence[str], **_: Any) -> list[float]:
        one = Grading(grading.outcome, format_weight=1.0)
        return [reward(text, gold, one).format for text, gold in zip(completions, label, strict=True)]

    def length_reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [overlong(len(ids), grading.max_tokens) for ids in completion_ids]

    return [outcome_reward, format_reward, length_reward]


def training_progress(state: Any) -> float:
    """Share of the optimiser steps that are done, from the trainer's state."""
    return float(state.global_step / max(1, state.max_steps))
