"""The symbolic teacher: writes only what its evidence supports, and never reads the gold label.

It reads the query's words against the vertical's vocabulary (path construction) and the item's text against
each demand (path following). Each stage lifts one blindness:

* without ``knowledge`` a slang word stays an unknown word;
* without ``vision`` the colour is what the seller's text states, if anything;
* without ``rules`` it judges by everyday sense (see :func:`lore_lib.vertical.rules.judge`).

It is a stand-in for a large language model on machines without one: its accuracy per stage is a property of
its design, and every result that it touched says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lore_lib.completion import render
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.features.prompts import neutralise
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.rules import NOT_STATED, PURE_COTTON, judge
from lore_lib.vertical.schema import WORDS, Demand

STAGES: tuple[str, ...] = ("knowledge", "vision", "rules")
"""The progressive stages, in order. ``naive`` teaching uses none of them."""

_FILLERS = frozenset({"is", "there", "a", "?", "for"})


@dataclass(frozen=True)
class Trace:
    """One chain of thought as the teacher wrote it.

    Attributes:
        completion: the whole text, label included.
        label: the teacher's own verdict.
        mismatch: dimension named for L2.
        demands: what the teacher understood of the query.
        unknown: query words it could not place.
        found: evidence it quotes, one string per demand.
    """

    completion: str
    label: str
    mismatch: str
    demands: tuple[Demand, ...]
    unknown: tuple[str, ...]
    found: tuple[str, ...]


class SymbolicTeacher:
    """Writes traces with the given stages.

    Args:
        vertical: vocabularies and rules.
        stages: subset of :data:`STAGES`.
        knowledge: index, needed for the stage ``knowledge``.
    """

    name = "symbolic"

    def __init__(
        self, vertical: Vertical, stages: tuple[str, ...], knowledge: KnowledgeIndex | None = None
    ) -> None:
        if "knowledge" in stages and knowledge is None:
            raise ValueError("the stage 'knowledge' needs a KnowledgeIndex")
        self._vertical, self._stages, self._knowledge = vertical, frozenset(stages), knowledge
        self._dimension_of = {
            value: dimension
            for dimension in ("style", "audience", "brand", "material", "color", "category")
            for value in vertical.values(dimension)
        }

    def write(self, query_id: str, query: str, item: Mapping[Any, Any], picture: str | None) -> Trace:
        """Write the trace of one pair.

        Args:
            query_id: key of the query in the click log.
            query: its text.
            item: a row of ``items``; ``truth`` is not read.
            picture: what the captioner saw; used by the stage ``vision`` only.
        """
        demands, unknown = self._read_query(neutralise(query))
        if "knowledge" in self._stages and unknown and self._knowledge is not None:
            meanings = self._knowledge.explain(query_id, list(unknown), str(item["item_id"]))
            learned = [
                Demand(self._dimension_of[m], m, w) for w, m in meanings.items() if m in self._dimension_of
            ]
            demands = (*demands, *learned)
            unknown = tuple(word for word in unknown if meanings.get(word) not in self._dimension_of)
        stated = self.read_item(item)
        if "vision" in self._stages and picture:
            stated["color"] = picture
        return self._reason(demands, unknown, stated, neutralise(str(item["title"])))

    def _reason(
        self, demands: tuple[Demand, ...], unknown: tuple[str, ...], stated: dict[str, str], title: str
    ) -> Trace:
        need = [f"{d.surface} = {d.dimension} {d.value}" if self._learned(d) else _plain(d) for d in demands]
        lines = ["need: " + ", ".join([*need, *unknown])]
        level, mismatch, found = 4, "", []
        if demands:
            result = judge(self._vertical, demands, stated, "rules" in self._stages)
            level, mismatch = int(result.label[1]), result.mismatch
            for step in result.path:
                lines.append(f"{step.dimension} {step.demanded}: {step.found} {step.word}")
                found.append(step.found)
        for word in unknown:
            seen = word in title.split()
            lines.append(f"{word}: {word if seen else NOT_STATED} {WORDS[4 if seen else 3]}")
            level = min(level, 4 if seen else 3)
        completion = render(lines, f"L{level}", mismatch)
        return Trace(completion, f"L{level}", mismatch, demands, unknown, tuple(found))

    def _learned(self, demand: Demand) -> bool:
        return not demand.negated and demand.surface not in (demand.value, f"under {demand.value}")

    def _read_query(self, query: str) -> tuple[tuple[Demand, ...], tuple[str, ...]]:
        words = query.split()
        demands: list[Demand] = []
        unknown: list[str] = []
        at = 0
        while at < len(words):
            word, after = words[at], words[at + 1] if at + 1 < len(words) else ""
            if word == "under" and after.isdecimal():
                demands.append(Demand("price", after, f"under {after}"))
            elif word == "not" and after in self._vertical.family_of | self._vertical.materials:
                demands.append(Demand(self._dimension_of[after], after, f"not {after}", True))
            elif after == "dupe" and word in self._vertical.brands:
                demands.append(Demand("brand", word, f"{word} dupe", True))
            elif f"{word} {after}" == PURE_COTTON:
                demands.append(Demand("material", PURE_COTTON, PURE_COTTON))
            else:
                at -= 1
                if word in self._dimension_of:
                    demands.append(Demand(self._dimension_of[word], word, word))
                elif word not in _FILLERS:
                    unknown.append(word)
            at += 2
        return tuple(demands), tuple(unknown)

    def read_item(self, item: Mapping[Any, Any]) -> dict[str, str]:
        """Attributes that the item's title, CPV and price state; their text is untrusted."""
        said = {key: neutralise(str(value)) for key, value in json.loads(item["cpv"]).items()}
        cpv = {key: text for key, text in said.items() if text}
        stated: dict[str, str] = {
            key: cpv[key] for key in ("brand", "audience", "style", "color") if key in cpv
        }
        name, _, share = cpv.get("material", "").partition(" ")
        stated |= ({"material": name} if name else {}) | (
            {"material_share": share} if share.isdecimal() else {}
        )
        category = next((w for w in reversed(str(item["title"]).split()) if w in self._vertical.group_of), "")
        stated |= {"category": category} if category else {}
        return stated | {"price": f"{float(item['price']):g}"}


def _plain(demand: Demand) -> str:
    return f"{demand.dimension} {'not ' if demand.negated else ''}{demand.value}"
