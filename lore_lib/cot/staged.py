"""The staged teacher: a chat model asked in turns, each of which adds what the turn before could not know."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lore_lib.cot.answer import (
    Answer,
    Malformed,
    Prompts,
    answer_schema,
    load_prompts,
    read_answer,
    uncovered,
)
from lore_lib.cot.chat import ChatModel, Message, Reply, Request
from lore_lib.cot.replies import ReplyCache, ask_once
from lore_lib.cot.rules import rule_text, touched_rules
from lore_lib.cot.teacher import STAGES, Task, Trace, read_caption
from lore_lib.features.prompts import neutralise, render_prompt
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.schema import Demand

BARE = "naive"
"""The turn without evidence: all of ``naive`` teaching, and the first turn where there is no knowledge."""


@dataclass
class Usage:
    """What one stage has cost so far. Tokens are those paid for; of a failed attempt they are not known.

    Attributes:
        calls: requests that went to the model.
        cached: answered from the cache.
        failed: of the calls, those that gave no answer that can be read.
        prompt_tokens, completion_tokens: of the calls.
    """

    calls: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the unit of the prices, which are per million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass
class _Chain:
    """One sample of one task on its way through the stages."""

    task: Task
    sample: int
    messages: tuple[Message, ...] = ()
    answer: Answer | None = None
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class _Heard:
    """A reply, read: its answer, or why there is none."""

    reply: Reply
    answer: Answer | None
    failure: str


class StagedTeacher:
    """Asks a chat model stage by stage; the last answer becomes the trace.

    The model sees of the item what the student's prompt shows, without the picture. Then come, each as a turn
    of its own where it is among the stages: what merchants say about the query's words, of what the captioner
    saw the part that the demands of the answer before are about, and the rules that they touch. A stage that
    has nothing to add asks nothing. A failure at any stage ends the chain.

    Args:
        model: answers; its batches are all the tasks of a call, so a stage waits for its slowest reply.
        vertical: dimensions and rules.
        stages: subset of :data:`lore_lib.cot.teacher.STAGES`; none is ``naive`` teaching.
        prompts: what is asked; None takes the English ones.
        cache: keeps each good reply as it comes in.
        samples: chains per task; the trace is the first whose label more than half of them share.
    """

    def __init__(
        self,
        model: ChatModel,
        vertical: Vertical,
        stages: tuple[str, ...],
        prompts: Prompts | None = None,
        cache: ReplyCache | None = None,
        samples: int = 1,
    ) -> None:
        self.name = model.name
        self._model, self._vertical, self._samples = model, vertical, samples
        self._stages = tuple(stage for stage in STAGES if stage in stages)
        self._prompts = prompts or load_prompts()
        self._cache = cache
        self._rules = functools.lru_cache(maxsize=2**14)(self._touched)
        self._schema = answer_schema(tuple(vertical.dimensions))
        self.spent: dict[str, Usage] = defaultdict(Usage)

    @property
    def identity(self) -> dict[str, Any]:
        """Model, draw, stages, prompts, vertical and number of samples."""
        asked = self._prompts.model_dump_json() + self._vertical.model_dump_json()
        digest = hashlib.sha256(asked.encode()).hexdigest()
        own = {"teacher": self.name, "stages": list(self._stages), "samples": self._samples, "asked": digest}
        return own | self._model.identity

    def spending(self, prompt_price: float = 0.0, completion_price: float = 0.0) -> pd.DataFrame:
        """One row per stage: the fields of :class:`Usage`, and the cost by prices per million tokens."""
        rows = [
            {"stage": stage, **vars(usage), "cost": usage.cost(prompt_price, completion_price)}
            for stage, usage in self.spent.items()
        ]
        return pd.DataFrame(rows, columns=["stage", *vars(Usage()), "cost"])

    def teach(self, tasks: Sequence[Task]) -> list[Trace]:
        """One trace per task, in order.

        Raises:
            EngineError: the model cannot answer at all, such as for want of a key.
        """
        chains = [[_Chain(task, sample) for sample in range(self._samples)] for task in tasks]
        first = () if "knowledge" in self._stages else (BARE,)
        for stage in (*first, *self._stages):
            self._ask(stage, [chain for group in chains for chain in group if not chain.failure])
        return [self._trace(group) for group in chains]

    def _ask(self, stage: str, chains: list[_Chain]) -> None:
        asked = []
        for chain in chains:
            evidence = self._evidence(stage, chain)
            if evidence or chain.answer is None:
                text = self._prompts.turn(stage, evidence)
                text = text if chain.messages else f"{self._opening(chain.task)}\n\n{text}"
                chain.messages = (*chain.messages, {"role": "user", "content": text})
                asked.append(chain)
        for chain, heard in zip(asked, self._heard(stage, asked), strict=True):
            chain.prompt_tokens += heard.reply.prompt_tokens
            chain.completion_tokens += heard.reply.completion_tokens
            chain.answer, chain.failure = heard.answer, heard.failure
            if heard.answer:
                said = {"role": "assistant", "content": heard.answer.model_dump_json()}
                chain.messages = (*chain.messages, said)

    def _evidence(self, stage: str, chain: _Chain) -> list[str]:
        if stage == "knowledge":
            return list(chain.task.knowledge)
        if stage == "vision":
            return self._seen(chain)
        return self._rules(chain.answer.demands()) if stage == "rules" and chain.answer else []

    def _seen(self, chain: _Chain) -> list[str]:
        """Of the caption what the demands are about; what is no value of the vertical counts as that."""
        demanded = {demand.dimension for demand in chain.answer.demands()} if chain.answer else set()
        said = read_caption(self._vertical, chain.task.caption or "")
        return [f"{name}: {part}" if name else part for part, name in said if not name or name in demanded]

    def _touched(self, demands: tuple[Demand, ...]) -> list[str]:
        return [rule_text(rule) for rule in touched_rules(self._vertical, demands)]

    def _opening(self, task: Task) -> str:
        told = {section: values for section, values in task.shown.items() if section != "picture"}
        return self._prompts.open(self._vertical.dimensions, render_prompt(task.query, told, "full"))

    def _heard(self, stage: str, chains: list[_Chain]) -> list[_Heard]:
        """What the model says to each chain, from the cache where it said it before."""
        requests = [Request(chain.messages, self._schema, chain.sample) for chain in chains]
        heard = ask_once(
            self._model,
            requests,
            lambda place, reply: self._read(reply, chains[place].task),
            lambda one: not one.failure,
            self._cache,
        )
        usage = self.spent[stage]
        usage.cached += heard.known
        for one in (heard.read[place] for place in heard.asked):
            usage.calls += 1
            usage.failed += bool(one.failure)
            usage.prompt_tokens += one.reply.prompt_tokens
            usage.completion_tokens += one.reply.completion_tokens
        return heard.read

    def _read(self, reply: Reply, task: Task) -> _Heard:
        if reply.failure:
            return _Heard(reply, None, reply.failure)
        query, language = neutralise(task.query), self._prompts.language
        try:
            return _Heard(reply, read_answer(reply.text, query, self._vertical.dimensions, language), "")
        except Malformed as malformed:
            return _Heard(reply, None, malformed.failure)

    def _trace(self, group: list[_Chain]) -> Trace:
        """The chain that speaks for all samples."""
        read = sum(chain.prompt_tokens for chain in group)
        written = sum(chain.completion_tokens for chain in group)
        answers = [chain.answer for chain in group if chain.answer]
        if not answers:
            return Trace(failure=group[0].failure, prompt_tokens=read, completion_tokens=written)
        label, votes = Counter(answer.label for answer in answers).most_common(1)[0]
        if 2 * votes <= len(group):
            return Trace(failure="undecided", prompt_tokens=read, completion_tokens=written)
        answer = next(answer for answer in answers if answer.label == label)
        demands, query = answer.demands(), neutralise(group[0].task.query)
        return Trace(
            completion=answer.completion(),
            label=answer.label,
            mismatch=answer.mismatch,
            demands=demands,
            unknown=uncovered(query, [demand.surface for demand in demands], self._prompts.fillers),
            found=tuple(step.found for step in answer.path),
            prompt_tokens=read,
            completion_tokens=written,
        )
