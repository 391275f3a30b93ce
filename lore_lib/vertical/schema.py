"""Words of the task: the four labels, the 18 demand dimensions, demands and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

LABELS: tuple[str, ...] = ("L1", "L2", "L3", "L4")
"""L1 irrelevant category, L2 attribute conflict or related category, L3 partial, L4 full match."""

RELEVANT: frozenset[str] = frozenset({"L3", "L4"})

DIMENSIONS: dict[str, str] = {
    "category": "Category",
    "brand": "Brand",
    "model": "Model",
    "ip": "IP",
    "store": "Store",
    "audience": "Audience",
    "price": "Price",
    "function": "Function",
    "component": "Main/Accessory",
    "bundle": "Bundle",
    "season": "Season",
    "year": "Year",
    "material": "Material",
    "specification": "Specification",
    "color": "Color",
    "style": "Style",
    "style_detail": "Style Detail",
    "special": "Special Attribute",
}
"""Key -> title of the 18 demand dimensions (reconstructed from the 18 named rule sets of RAIR's L2 rules)."""

INTENTS: dict[str, str] = {
    "plain": "plain",
    "DJ": "domain jargon",
    "ER": "entity relation",
    "SS": "solution seeking",
    "QA": "product question",
    "NC": "negative constraint",
    "MA": "multi-attribute",
}
"""RAIR's six hard intents, and plain queries."""

KINDS: tuple[str, ...] = ("plain", "knowledge", "visual", "boundary")
"""What a pair needs beyond reading its text: nothing, the lexicon, the picture, or a threshold rule."""

WORDS: dict[int, str] = {4: "match", 3: "near", 2: "conflict", 1: "unrelated"}
"""The word for each level in a chain of thought."""


class Demand(NamedTuple):
    """One requirement of a query.

    Attributes:
        dimension: key of ``DIMENSIONS``.
        value: the canonical value asked for ("navy", "40"), after resolving slang.
        surface: the words in the query that express it ("matcha" for mint).
        negated: True for "not leather".
    """

    dimension: str
    value: str
    surface: str
    negated: bool = False


@dataclass(frozen=True)
class Verdict:
    """How an item meets one demand.

    Attributes:
        dimension: key of ``DIMENSIONS``.
        demanded: the value asked for, after "not" where it is unwanted.
        found: the evidence, "none" where the item states nothing.
        relation: of the found value to the plain one demanded, a key of ``kinds.RELATIONS``.
        level: the level it allows, 1-4.
        rule: id of the rule that fired.
        reason: of that rule.
    """

    dimension: str
    demanded: str
    found: str
    relation: str
    level: int
    rule: str
    reason: str

    @property
    def word(self) -> str:
        """The word for the level in a chain of thought."""
        return WORDS[self.level]


def dump_demands(demands: Iterable[Demand]) -> str:
    """Demands as the JSON list stored in ``queries.demands``."""
    return json.dumps([demand._asdict() for demand in demands])


def load_demands(text: str) -> tuple[Demand, ...]:
    """Inverse of :func:`dump_demands`."""
    return tuple(Demand(**row) for row in json.loads(text))


Attributes = Mapping[str, str]
"""What is known of an item, dimension -> value; ``<dimension>_share`` holds the percentage of a value that
makes up only a part of the item ("92" for cotton 92). A missing key means "not stated"."""
