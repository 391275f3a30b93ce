"""The one grammar of completions: write it, read it, name every way of being malformed.

A completion is ``<think>`` reasoning ``</think>`` and then the label in brackets; for L2 the label may
carry the dimension that failed: ``[L2-Color Mismatch]``. A direct answer has no reasoning block. The label
is read only after ``</think>``: a level named inside the reasoning is never taken as the answer.

The arm ``label_first`` turns it round: the label, then the reasoning that justifies it, and nothing after.
It has a reader of its own, so that no other arm is right by answering before it has thought.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lore_lib.vertical.schema import DIMENSIONS

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
LABEL_FIRST = "label_first"
"""The arm whose completions begin with the label."""

_ANSWER = re.compile(r"\[(L[1-4])(?:-([A-Za-z/ ]+) Mismatch)?\]")
_TITLES = {title: key for key, title in DIMENSIONS.items()}

PARSE_KINDS: dict[str, str] = {
    "ok": "one label after the reasoning",
    "empty": "no text at all",
    "unclosed_think": "reasoning was opened and never closed (often: cut at the token limit)",
    "repeated_think": "more than one reasoning block",
    "text_before_think": "text stands before the reasoning",
    "no_label": "no bracketed label after the reasoning",
    "several_labels": "more than one label after the reasoning",
    "text_around_label": "other text stands beside the label",
    "unknown_mismatch": "the bracket names no demand dimension",
    "mismatch_on_other_level": "a mismatch is named on a level other than L2",
}
"""Every parse kind and what it means; all but ``ok`` count as wrong answers."""


@dataclass(frozen=True)
class Parsed:
    """A read completion: ``label`` is "" unless ``kind`` is "ok"."""

    label: str
    mismatch: str
    reasoning: str
    kind: str


def render_answer(label: str, mismatch: str = "") -> str:
    """``render_answer("L2", "color")`` is ``[L2-Color Mismatch]``.

    >>> render_answer("L2", "color"), render_answer("L4")
    ('[L2-Color Mismatch]', '[L4]')
    """
    return f"[{label}-{DIMENSIONS[mismatch]} Mismatch]" if mismatch else f"[{label}]"


def render(reasoning: Sequence[str], label: str, mismatch: str = "") -> str:
    """A whole completion: the reasoning lines, then the label."""
    body = "\n".join(reasoning)
    return f"{THINK_OPEN}\n{body}\n{THINK_CLOSE}\n{render_answer(label, mismatch)}"


def parse(completion: str) -> Parsed:
    """Read a completion; never raises.

    >>> parse("<think>\\nL1? no\\n</think>\\n[L2-Color Mismatch]").label
    'L2'
    >>> parse("<think> [L4]").kind
    'unclosed_think'
    """
    text = completion.strip()
    if not text:
        return Parsed("", "", "", "empty")
    if text.count(THINK_OPEN) > 1 or text.count(THINK_CLOSE) > 1:
        return Parsed("", "", text, "repeated_think")
    reasoning = ""
    if THINK_OPEN in text or THINK_CLOSE in text:
        head, opened, rest = text.partition(THINK_OPEN)
        reasoning, closed, answer = rest.partition(THINK_CLOSE)
        if not opened or not closed:
            return Parsed("", "", text, "unclosed_think")
        if head.strip():
            return Parsed("", "", reasoning.strip(), "text_before_think")
        text, reasoning = answer.strip(), reasoning.strip()
    found = list(_ANSWER.finditer(text))
    if not found:
        return Parsed("", "", reasoning, "no_label")
    if len(found) > 1:
        return Parsed("", "", reasoning, "several_labels")
    label, title = found[0].group(1), found[0].group(2)
    if found[0].group(0) != text:
        return Parsed("", "", reasoning, "text_around_label")
    if title is not None and title not in _TITLES:
        return Parsed("", "", reasoning, "unknown_mismatch")
    if title is not None and label != "L2":
        return Parsed("", "", reasoning, "mismatch_on_other_level")
    return Parsed(label, _TITLES[title] if title else "", reasoning, "ok")


def label_first(completion: str) -> str:
    """A completion turned round: the label, then the reasoning.

    >>> label_first("<think>\\nL1? no\\n</think>\\n[L4]")
    '[L4]\\n<think>\\nL1? no\\n</think>'
    """
    reasoning, closed, answer = completion.rpartition(THINK_CLOSE)
    return f"{answer.strip()}\n{reasoning}{closed}" if closed else completion


def parse_label_first(completion: str) -> Parsed:
    """Read a completion of the arm ``label_first``; never raises.

    The label is what stands before ``<think>``; all else is as for :func:`parse`, so that a second label
    behind the reasoning is ``several_labels``, and reasoning cut at the token limit ``unclosed_think``.
    Without a label in front it is ``no_label``, whatever follows.

    >>> parse_label_first("[L4]\\n<think>\\nL1? no\\n</think>").label
    'L4'
    >>> parse_label_first("<think> L1? no </think> [L4]").kind
    'no_label'
    """
    head, opened, rest = completion.strip().partition(THINK_OPEN)
    if opened and not head.strip():
        return Parsed("", "", rest.partition(THINK_CLOSE)[0].strip(), "no_label")
    return parse(f"{opened}{rest}\n{head}")


def reader_of(system: str) -> Callable[[str], Parsed]:
    """How the completions of an arm are read."""
    return parse_label_first if system == LABEL_FIRST else parse
