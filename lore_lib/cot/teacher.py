"""Teachers: the interface of all of them, and the symbolic one.

A teacher gets tasks, which hold nothing of the gold label, and gives back traces in their order. The symbolic
teacher writes only what its evidence supports. It reads the query's words against the vertical's vocabulary
(path construction) and the item's text against each demand (path following). Each stage lifts one blindness:

* without ``knowledge`` a slang word stays an unknown word;
* without ``vision`` the colour is what the seller's text states, if anything;
* without ``rules`` it judges by everyday sense (see :func:`lore_lib.vertical.rules.judge`).

A demand is written by its meaning alone, not by the shopper's word: a small student can learn what a word
that it has never read means, but not how to spell it.

It is a stand-in for a large language model on machines without one: its accuracy per stage is a property of
its design, and every result that it touched says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lore_lib.completion import render
from lore_lib.cot.knowledge import KnowledgeIndex
from lore_lib.features.prompts import neutralise
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.kinds import JOIN, NOT_STATED, Limit
from lore_lib.vertical.rules import judge
from lore_lib.vertical.schema import WORDS, Demand

STAGES: tuple[str, ...] = ("knowledge", "vision", "rules")
"""The progressive stages, in order. ``naive`` teaching uses none of them."""

_FILLERS = frozenset({"is", "there", "a", "?"})


@dataclass(frozen=True)
class Task:
    """One pair to write about. Rules are not part of it: they follow from the demands that a teacher reads.

    Attributes:
        query_id: key of the query in the click log.
        query: its text.
        item: a row of ``items``; ``truth`` is not read.
        caption: what the captioner saw, for the stage ``vision``; None where it abstained.
        shown: section -> the item's values as the student's prompt shows them, neutralised.
        knowledge: retrieved texts, for the stage ``knowledge`` of a teacher without an index of its own.
    """

    query_id: str
    query: str
    item: Mapping[Any, Any]
    caption: str | None
    shown: Mapping[str, tuple[str, ...]]
    knowledge: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """One chain of thought as the teacher wrote it; only ``failure`` and the tokens when it could not.

    Attributes:
        completion: the whole text, label included.
        label: the teacher's own verdict.
        mismatch: dimension named for L2.
        demands: what the teacher understood of the query.
        unknown: query words it could not place.
        found: evidence it quotes, one string per demand.
        failure: "", or why there is no trace (a key of ``endpoint.CALL_FAILURES`` or
            ``answer.ANSWER_FAILURES``).
        prompt_tokens: read by the model over all stages and samples, answers from the cache included.
        completion_tokens: written by it.
    """

    completion: str = ""
    label: str = ""
    mismatch: str = ""
    demands: tuple[Demand, ...] = ()
    unknown: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Teacher(Protocol):
    """Writes traces. One that fails on a task says so in the trace; it never raises for one task's sake."""

    @property
    def name(self) -> str:
        """Engine, as in ``cot.teacher``."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its traces, beside the tasks; JSON values, no secrets."""

    def teach(self, tasks: Sequence[Task]) -> list[Trace]:
        """One trace per task, in order."""


class SymbolicTeacher:
    """Writes traces with the given stages. Capitals do not matter: "Navy Dress" is a navy dress.

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
            value: name
            for name, kind in vertical.dimensions.items()
            if not isinstance(kind, Limit)
            for value in kind.demands()
        }
        negations = vertical.world.negations if vertical.world else {}
        denials = [
            Demand(name, value, template.replace("{}", value), True)
            for name, template in negations.items()
            for value in {*vertical.values(name), *vertical.dimensions[name].negatable()}
        ]
        plain = [Demand(name, value, value) for value, name in self._dimension_of.items()]
        self._phrases = {demand.surface.casefold(): demand for demand in (*denials, *plain)}
        self._spelled = {  # casefolded -> as the vertical writes it
            name: {value.casefold(): value for value in (*kind.demands(), *kind.found())}
            for name, kind in vertical.dimensions.items()
            if not isinstance(kind, Limit)
        }
        back = vertical.world.back if vertical.world else {}
        self._fillers = _FILLERS.union(
            *(back[name].replace("{}", " ").split() for name in back if name != "price")
        )
        self._longest = max(len(phrase.split()) for phrase in self._phrases)

    @property
    def identity(self) -> dict[str, Any]:
        """The vertical's words and rules, and the stages."""
        digest = hashlib.sha256(self._vertical.model_dump_json().encode()).hexdigest()
        return {"teacher": self.name, "stages": sorted(self._stages), "vertical": digest}

    def teach(self, tasks: Sequence[Task]) -> list[Trace]:
        """One trace per task, in order."""
        return [self.write(task.query_id, task.query, task.item, task.caption) for task in tasks]

    def write(self, query_id: str, query: str, item: Mapping[Any, Any], picture: str | None) -> Trace:
        """Write the trace of one pair.

        Args:
            query_id: key of the query in the click log.
            query: its text.
            item: a row of ``items``; ``truth`` is not read.
            picture: what the captioner saw; used by the stage ``vision`` only.
        """
        demands, unknown = self.read_query(neutralise(query))
        if "knowledge" in self._stages and unknown and self._knowledge is not None:
            learned = self._learn(query_id, unknown, str(item["item_id"]))
            unknown = tuple(word for word in unknown if word not in {d.surface for d in learned})
            if len(unknown) > 1:  # slang of several words ("morning C evening A")
                phrase = self._learn(query_id, (" ".join(unknown),), str(item["item_id"]))
                learned, unknown = (*learned, *phrase), () if phrase else unknown
            demands = (*demands, *learned)
        stated = self.read_item(item)
        if "vision" in self._stages and picture:
            stated |= {name: value for value, name in read_caption(self._vertical, picture) if name}
        return self._reason(demands, unknown, stated, neutralise(str(item["title"])))

    def _reason(
        self, demands: tuple[Demand, ...], unknown: tuple[str, ...], stated: dict[str, str], title: str
    ) -> Trace:
        lines = ["need: " + ", ".join([*map(_plain, demands), *unknown])]
        level, mismatch, found = 4, "", []
        if demands:
            result = judge(self._vertical, demands, stated, "rules" in self._stages)
            level, mismatch = int(result.label[1]), result.mismatch
            for step in result.path:
                lines.append(f"{step.dimension} {step.demanded}: {step.found} {step.word}")
                found.append(step.found)
        for word in unknown:
            seen = word.casefold() in title.casefold().split()
            lines.append(f"{word}: {word if seen else NOT_STATED} {WORDS[4 if seen else 3]}")
            level = min(level, 4 if seen else 3)
        completion = render(lines, f"L{level}", mismatch)
        return Trace(completion, f"L{level}", mismatch, demands, unknown, tuple(found))

    def _learn(self, query_id: str, surfaces: tuple[str, ...], item_id: str) -> tuple[Demand, ...]:
        """What selling points say slang demands; every part of their untrusted meaning must be known."""
        assert self._knowledge is not None
        meanings = self._knowledge.explain(query_id, list(surfaces), item_id)
        return tuple(
            Demand(self._dimension_of[value], value, surface)
            for surface, meaning in meanings.items()
            if all(value in self._dimension_of for value in meaning.split(JOIN))
            for value in meaning.split(JOIN)
        )

    def read_query(self, query: str) -> tuple[tuple[Demand, ...], tuple[str, ...]]:
        """The demands that the words of a neutralised query state, and the words that it cannot place."""
        words = query.split()
        demands: list[Demand] = []
        unknown: list[str] = []
        at = 0
        while at < len(words):
            word, after = words[at], words[at + 1] if at + 1 < len(words) else ""
            size, phrase = self._longest_phrase(words[at:])
            if word.casefold() == "under" and after.isdecimal():
                demands.append(Demand("price", after, f"under {after}"))
                size = 2
            elif phrase:
                demands.append(phrase)
            elif not self._is_filler(word):
                unknown.append(word)
            at += size
        return tuple(demands), tuple(unknown)

    def _is_filler(self, word: str) -> bool:
        """A lone capital is a name rather than an article: the A of "evening A"."""
        return word in self._fillers or (len(word) > 1 and word.casefold() in self._fillers)

    def _longest_phrase(self, words: list[str]) -> tuple[int, Demand | None]:
        for size in range(min(self._longest, len(words)), 0, -1):
            if demand := self._phrases.get(" ".join(words[:size]).casefold()):
                return size, demand
        return 1, None

    def read_item(self, item: Mapping[Any, Any]) -> dict[str, str]:
        """Attributes that the item's title, CPV and price state; their text is untrusted."""
        said = {key: neutralise(str(value)) for key, value in json.loads(item["cpv"]).items()}
        stated: dict[str, str] = {}
        for name, kind in self._vertical.dimensions.items():
            if name in said and name not in ("category", "price") and said[name]:
                value = self._spelled.get(name, {}).get(said[name].casefold(), said[name])
                stated |= kind.attributes(name, value)
        named = (self._spelled["category"].get(w.casefold()) for w in reversed(str(item["title"]).split()))
        category = next(filter(None, named), "")
        stated |= {"category": category} if category else {}
        price = float(item["price"])
        return stated | ({"price": f"{price:g}"} if price > 0 else {})  # 0: not stated


def read_caption(vertical: Vertical, caption: str) -> list[tuple[str, str]]:
    """What a caption says, and the dimension that each part is a value of ("" for none)."""
    known = {value: name for name in vertical.pictured for value in vertical.values(name)}
    return [(part, known.get(part, "")) for part in caption.split(", ") if part]


def _plain(demand: Demand) -> str:
    return f"{demand.dimension} {'not ' if demand.negated else ''}{demand.value}"
