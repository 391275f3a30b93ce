"""Read the completions of one pair: what they share is grey, and each goes its own way in colour.

Completions may quote what strangers wrote, or be trained to write what they like. They reach the page through
one template that escapes every value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from ipywidgets import HTML, BoundedIntText, Dropdown, HBox, Label, VBox

from lore_lib.errors import DataError, nearest
from lore_lib.vertical.schema import LABELS
from lore_lib.viz.pages import PAGES

ALL = "all"
COLOURS = {"": "#555555", "L1": "#A63D00", "L2": "#8A6100", "L3": "#00629B", "L4": "#00694C"}
"""Of a completion's own way, by its label; all dark enough to be read on white."""

_TEMPLATE = PAGES.get_template("parting.html.j2")


@dataclass(frozen=True)
class Parted:
    """A completion in three parts: all share the first, some other one shares the second, none the third."""

    shared: str
    together: str
    alone: str


def part(texts: Sequence[str]) -> list[Parted]:
    """Where each text leaves all the others, and where it leaves the last of them; by whole words.

    Equal texts never part, so that the second part holds all that is left.

    >>> part(["a b c", "a b d", "a x"])[0]
    Parted(shared='a ', together='b ', alone='c')
    """
    words = [re.findall(r"\s*\S+\s*", text) or ([text] if text else []) for text in texts]
    common = [[_common(mine, other) for other in words] for mine in words]
    parted = []
    for place, mine in enumerate(words):
        others = [length for other, length in enumerate(common[place]) if other != place]
        first, last = (min(others), max(others)) if others else (0, 0)
        parted.append(Parted(*("".join(mine[a:b]) for a, b in ((0, first), (first, last), (last, None)))))
    return parted


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def completions_card(samples: pd.DataFrame, prompts: pd.DataFrame, pair_id: str, system: str) -> str:
    """All completions of one system for one pair as HTML with every value escaped; equal ones stand once.

    Args:
        samples: columns system, pair_id, completion, label, parse_kind, tokens.
        prompts: columns pair_id, prompt, label (the gold one).
        pair_id: which pair.
        system: which system.

    Raises:
        DataError: no such pair (the nearest is named), or none of its completions by that system.
    """
    rows = samples[(samples.pair_id == pair_id) & (samples.system == system)].sort_values(
        ["label", "completion"]
    )
    asked = prompts[prompts.pair_id == pair_id]
    if rows.empty or asked.empty:
        known = samples.pair_id[samples.system == system].drop_duplicates().head(1000)
        raise DataError(f"no completions of {system!r} for pair {pair_id!r}; {nearest(pair_id, known)}")
    one, times = asked.iloc[0], rows.completion.value_counts()
    unlike = rows.drop_duplicates("completion")
    return _TEMPLATE.render(
        pair_id=pair_id,
        system=system,
        prompt=one.prompt,
        gold=one.label,
        right=int((rows.label == one.label).sum()),
        drawn=len(rows),
        rows=list(zip(unlike.itertuples(), part(unlike.completion.tolist()), strict=True)),
        times=times,
        colours=COLOURS,
    )


def completions_browser(samples: pd.DataFrame, prompts: pd.DataFrame) -> VBox:
    """A live reader of completions: choose a system, a gold label and how many are right, and step through.

    It needs a running kernel; for readers without one, show a :func:`completions_card` beside it.

    Args:
        samples, prompts: as for :func:`completions_card`.
    """
    gold = prompts.set_index("pair_id").label
    known = samples[samples.pair_id.isin(gold.index)].assign(gold=lambda rows: rows.pair_id.map(gold))
    counted = (
        known.assign(right=known.label == known.gold)
        .groupby(["system", "pair_id"], sort=False)
        .agg(gold=("gold", "first"), right=("right", "sum"))
        .reset_index()
    )
    system = Dropdown(description="system", options=list(counted.system.unique()))
    label = Dropdown(description="gold", options=[ALL, *LABELS])
    right = Dropdown(description="right", options=[ALL, *sorted(counted.right.unique().tolist())])
    place, count, card = BoundedIntText(value=1, min=1, description="pair"), Label(), HTML()
    found: list[str] = []

    def show(_: Any = None) -> None:
        count.value = f"of {len(found)}"
        card.value = (
            completions_card(known, prompts, found[place.value - 1], system.value)
            if found
            else "no such pair"
        )

    def choose(_: Any = None) -> None:
        wanted = counted.system == system.value
        for column, box in (("gold", label), ("right", right)):
            wanted &= (counted[column] == box.value) | (box.value == ALL)
        found[:] = counted.pair_id[wanted]
        place.max = max(len(found), 1)
        place.value = 1
        show()

    for box in (system, label, right):
        box.observe(choose, "value")
    place.observe(show, "value")
    choose()
    return VBox([HBox([system, label, right]), HBox([place, count]), card])
