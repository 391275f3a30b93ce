"""Which of RAIR's six hard intents a query has: by rules where a vertical says its words, by a chat model
elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lore_lib.config import Config
from lore_lib.cot.chat import ChatModel, Draw, Reply, Request
from lore_lib.cot.endpoint import OpenAIChat
from lore_lib.cot.replies import ReplyCache, complete_cached
from lore_lib.features.prompts import neutralise
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.kinds import Limit
from lore_lib.vertical.schema import INTENTS

MANY_DEMANDS = 4
"""Dimensions that a query of several hard constraints (MA) names."""

REPLY_TOKENS = 256
"""Room for one sentence and a code; a longer reply is cut and fails."""

FAILED = ""
"""The intent of a query that the chat model did not classify in the words it was asked for."""


class RuleIntents:
    """Reads the words of a query against a vertical's own: exact for its generated queries, and quick.

    The first that applies: a negation (ER where a brand is refused, which asks for its substitute; else NC),
    slang (SS before DJ), a question mark (QA), four dimensions or more (MA); else plain.

    Args:
        vertical: vocabularies, lexicon and, from its world, how its shoppers negate.
    """

    def __init__(self, vertical: Vertical) -> None:
        world = vertical.world
        negations = world.negations if world else {}
        back = world.back if world else {}
        self._denied = {
            name: [f" {said.replace('{}', value)} " for value in _askable(vertical, name)]
            for name, said in negations.items()
        }
        self._slang = {f" {surface} ": entry.intent for surface, entry in vertical.lexicon.items()}
        named = {
            f" {_limit(value, back.get(name, ''), kind)} ": name
            for name, kind in vertical.dimensions.items()
            for value in kind.demands()
        }
        self._named = sorted(named.items(), key=lambda phrase: (-len(phrase[0]), phrase[0]))

    def classify(self, queries: Sequence[str]) -> list[str]:
        """Key of ``INTENTS`` per query."""
        return [self._intent(f" {neutralise(query)} ") for query in queries]

    def _intent(self, text: str) -> str:
        denied = {name for name, phrases in self._denied.items() if any(phrase in text for phrase in phrases)}
        if denied:
            return "ER" if "brand" in denied else "NC"
        slang = {intent for surface, intent in self._slang.items() if surface in text}
        if slang:
            return "SS" if "SS" in slang else "DJ"
        if text.rstrip().endswith(("?", "？")):
            return "QA"
        return "MA" if len(self._dimensions(text)) >= MANY_DEMANDS else "plain"

    def _dimensions(self, text: str) -> set[str]:
        """Dimensions that the words name; the longest phrase takes its words ("Yumbo official" names no
        brand)."""
        found = set()
        for phrase, name in self._named:
            if phrase in text:
                found.add(name)
                text = text.replace(phrase, "  ")
        return found


def _askable(vertical: Vertical, dimension: str) -> set[str]:
    kind = vertical.dimensions[dimension]
    return {*kind.demands(), *kind.negatable()}


def _limit(value: str, said: str, kind: object) -> str:
    return said.replace("{}", value) if said and isinstance(kind, Limit) else value


class IntentPrompt(BaseModel):
    """The wording of the question, from ``prompts/intent_<language>.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    version: int
    question: str
    intents: Mapping[str, str]


@functools.cache
def load_intent_prompt(language: str = "en") -> IntentPrompt:
    """The bundled wording."""
    path = Path(__file__).parent / "prompts" / f"intent_{language}.yaml"
    return IntentPrompt.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


class _Said(BaseModel):
    """The JSON object that a chat model answers with."""

    model_config = ConfigDict(extra="forbid", strict=True)
    why: str
    intent: str = Field(min_length=1)


def answer_schema(codes: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema of the answer, for models that can be held to one."""
    schema = _Said.model_json_schema()
    schema["properties"]["intent"] = {"type": "string", "enum": list(codes)}
    return schema


class ChatIntents:
    """Asks a chat model for each distinct query, and believes only an answer in the form asked for.

    A reply must be one JSON object, ``{"why": ..., "intent": one of the codes}``, with nothing before, after
    or beside it; anything else is ``FAILED`` and counted under its reason, never guessed at.

    Args:
        model: answers.
        prompt: None takes the English wording.
        cache: keeps each good reply, so that a killed run asks no query twice.
    """

    def __init__(
        self, model: ChatModel, prompt: IntentPrompt | None = None, cache: ReplyCache | None = None
    ) -> None:
        self._model, self._cache = model, cache
        self._prompt = prompt or load_intent_prompt()
        self._schema = answer_schema(tuple(self._prompt.intents))
        self.failures: dict[str, int] = {}

    def classify(self, queries: Sequence[str]) -> list[str]:
        """Key of ``INTENTS`` per query, ``FAILED`` where the reply cannot be read.

        Raises:
            EngineError: calls did not get through; those that did are in the cache.
        """
        distinct = list(dict.fromkeys(queries))
        requests = [Request(self._messages(query), self._schema) for query in distinct]
        replies = complete_cached(self._model, requests, self._cache)
        known = dict(zip(distinct, map(self._read, replies), strict=True))
        return [known[query] for query in queries]

    def _messages(self, query: str) -> tuple[dict[str, str], ...]:
        codes = "\n".join(f"- {code}: {meaning}" for code, meaning in self._prompt.intents.items())
        text = self._prompt.question.replace("{intents}", codes).replace("{query}", neutralise(query))
        return ({"role": "user", "content": text},)

    def _read(self, reply: Reply) -> str:
        failure, found = reply.failure, FAILED
        if not failure:
            try:
                found = _Said.model_validate_json(reply.text.strip()).intent
            except ValidationError:
                failure = "malformed"
            if found not in (*self._prompt.intents, FAILED):
                found, failure = FAILED, "unknown_intent"
        if failure:
            self.failures[failure] = self.failures.get(failure, 0) + 1
        return found


def agreement(found: Sequence[str], told: Sequence[str]) -> pd.DataFrame:
    """Counts of the intents that a classifier found (columns) against those that are told (rows)."""
    order = list(INTENTS)
    table: pd.DataFrame = pd.crosstab(pd.Series(told, name="told"), pd.Series(found, name="found"))
    return table.reindex(
        index=[i for i in order if i in table.index],
        columns=[i for i in [*order, FAILED] if i in table.columns],
        fill_value=0,
    )


def intents_of(classifier: RuleIntents | ChatIntents, queries: pd.DataFrame) -> pd.DataFrame:
    """The queries table with its column ``intent`` replaced by what a classifier says.

    What it could not read counts as ``plain``: it stays out of *hard*, but may enter *general*. Where
    ``ChatIntents.failures`` counts more than a few, ask again before you build.
    """
    found = classifier.classify(queries["query"].tolist())
    return queries.assign(intent=[intent or "plain" for intent in found])


def open_intents(config: Config, vertical: Vertical, cache: Path) -> RuleIntents | ChatIntents | None:
    """The classifier of ``rair.intents``; None where the queries keep what their table tells.

    Args:
        config: says which, and where its endpoint is.
        vertical: words, for the rules.
        cache: file that keeps the model's good replies.
    """
    named = config.rair
    if named.intents == "told":
        return None
    if named.intents == "rules":
        return RuleIntents(vertical)
    draw = Draw(max_tokens=REPLY_TOKENS, seed=config.seed)
    return ChatIntents(OpenAIChat(named.intents_model, named.intents_url, draw), cache=ReplyCache(cache))
