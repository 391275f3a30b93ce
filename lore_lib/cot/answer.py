"""What a chat model must answer, how it is read, and how it becomes a completion."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from lore_lib.completion import render
from lore_lib.errors import ConfigError, nearest
from lore_lib.features.prompts import neutralise
from lore_lib.vertical.kinds import NOT_STATED
from lore_lib.vertical.schema import DIMENSIONS, WORDS, Demand

ANSWER_FAILURES: dict[str, str] = {
    "not_json": "the reply holds no JSON object",
    "wrong_schema": "its JSON has another shape, or names a dimension that the vertical lacks",
    "markup": "a tag, a bracket or a label stands inside the reasoning",
    "language": "the explanations are in another language",
    "illogical": "the label is not that of the worst verdict",
    "misquoted": "what the query is said to say does not stand in it",
    "undecided": "no label has more than half of the samples",
}
"""Why a reply makes no trace, beside ``chat.REPLY_FAILURES``."""

_LEVELS = {word: level for level, word in WORDS.items()}
_LABEL = re.compile(r"\bL[1-4]\b")
_THOUGHTS = re.compile(r"\A\s*(<think>.*?|[^{]*?)</think>", re.DOTALL)
_PUNCTUATION = ".,;:!?'\"()-/&+。，！？"
_ENOUGH_WORDS = 8
_UNBLANKED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_SLOT = re.compile(r"\{(dimensions|pair|evidence)\}")
_FOLDER = Path(__file__).parent / "prompts"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Frozen):
    """One demand, held against the item."""

    said: str
    dimension: str
    value: str
    negated: bool
    found: str
    verdict: Literal["match", "near", "conflict", "unrelated"]
    why: str


class Answer(_Frozen):
    """A whole answer: the path, and the label it ends in."""

    path: tuple[Step, ...] = Field(min_length=1)
    label: Literal["L1", "L2", "L3", "L4"]

    def demands(self) -> tuple[Demand, ...]:
        """What was understood of the query."""
        return tuple(Demand(step.dimension, step.value, step.said, step.negated) for step in self.path)

    @property
    def mismatch(self) -> str:
        """For L2 the first dimension in conflict, else ""."""
        failed = [step.dimension for step in self.path if step.verdict == WORDS[2]]
        return failed[0] if self.label == "L2" else ""

    def completion(self) -> str:
        """In the grammar of :mod:`lore_lib.completion`: what is needed, then a line per demand."""
        lines = ["need: " + ", ".join(map(_need, self.path))]
        for step in self.path:
            why = f"; {step.why}" if step.why else ""
            lines.append(f"{step.dimension} {_asked(step)}: {step.found} {step.verdict}{why}")
        return render(lines, self.label, self.mismatch)


def _asked(step: Step) -> str:
    return f"not {step.value}" if step.negated else step.value


def _need(step: Step) -> str:
    meant = f"{step.dimension} {_asked(step)}"
    plain = step.negated or step.said.casefold() == step.value.casefold()
    return meant if plain else f"{step.said} = {meant}"


@functools.cache
def answer_schema(dimensions: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema of an answer about a vertical with these dimensions."""
    schema = Answer.model_json_schema()
    schema["$defs"]["Step"]["properties"]["dimension"]["enum"] = list(dimensions)
    return schema


class Malformed(Exception):
    """A reply that makes no trace; ``failure`` is a key of ``ANSWER_FAILURES``."""

    def __init__(self, failure: str) -> None:
        super().__init__(ANSWER_FAILURES[failure])
        self.failure = failure


def read_answer(text: str, query: str, dimensions: Iterable[str], language: Language) -> Answer:
    """Read a reply; the demands come in the order of ``DIMENSIONS``.

    Args:
        text: the reply; what stands around its JSON object is passed over.
        query: neutralised.
        dimensions: those of the vertical.
        language: that the explanations must be in.

    Raises:
        Malformed: with the first reason found.
    """
    said = _THOUGHTS.sub("", text)
    start, end = said.find("{"), said.rfind("}")
    if start < 0 or end < start:
        raise Malformed("not_json")
    try:
        answer = Answer.model_validate_json(said[start : end + 1])
    except ValidationError as error:
        broken = any(item["type"] == "json_invalid" for item in error.errors(include_url=False))
        raise Malformed("not_json" if broken else "wrong_schema") from error
    steps = [_clean(step) for step in answer.path]
    known = set(dimensions)
    if not all(step.dimension in known and step.said and step.value for step in steps):
        raise Malformed("wrong_schema")
    if not language.is_that_of(" ".join(step.why for step in steps)):
        raise Malformed("language")
    if min(_LEVELS[step.verdict] for step in steps) != int(answer.label[1]):
        raise Malformed("illogical")
    if not all(quotes(step.said, query) for step in steps):
        raise Malformed("misquoted")
    order = list(DIMENSIONS)
    return Answer(path=tuple(sorted(steps, key=lambda step: order.index(step.dimension))), label=answer.label)


def _clean(step: Step) -> Step:
    texts = {name: " ".join(getattr(step, name).split()) for name in ("said", "value", "found", "why")}
    if any(neutralise(text) != text or _LABEL.search(text) for text in texts.values()):
        raise Malformed("markup")
    return step.model_copy(update=texts | {"found": texts["found"] or NOT_STATED})


def quotes(phrase: str, text: str) -> bool:
    """Whether the phrase stands in the text, as whole words and without regard to case.

    >>> quotes("cotton 80", "material Cotton 80"), quotes("red", "bordered"), quotes("红色", "一件红色连衣裙")
    (True, False, True)
    """
    phrase, text = phrase.casefold(), text.casefold()
    at = text.find(phrase)
    while at >= 0:
        if not _inside_word(text, at) and not _inside_word(text, at + len(phrase)):
            return True
        at = text.find(phrase, at + 1)
    return False


def uncovered(query: str, phrases: Iterable[str], fillers: Iterable[str]) -> tuple[str, ...]:
    """The words of a query that none of the phrases covers and that are no fillers.

    >>> uncovered("matcha dress for women", ["dress", "women"], ["for"])
    ('matcha',)
    """
    left = query.casefold()
    for phrase in sorted({phrase.casefold() for phrase in phrases}, key=len, reverse=True):
        at = left.find(phrase)
        while phrase and at >= 0:
            end = at + len(phrase)
            if not _inside_word(left, at) and not _inside_word(left, end):
                left = f"{left[:at]} {left[end:]}"
            at = left.find(phrase, at + 1)
    known = {word.casefold() for word in fillers}
    words = (word.strip(_PUNCTUATION) for word in left.split())
    return tuple(word for word in words if word and word not in known)


def _inside_word(text: str, cut: int) -> bool:
    """Whether a cut before this place would part a word; scripts without blanks may be cut anywhere."""
    around = text[max(0, cut - 1) : cut + 1]
    return 0 < cut < len(text) and around.isalnum() and not _UNBLANKED.search(around)


Words = Annotated[frozenset[str], PlainSerializer(sorted, return_type=list[str])]
"""Written down in one order, which that of a set is not from process to process."""


class Language(_Frozen):
    """How the language of explanations is told: by script, and by frequent words where several share it."""

    script: str
    words: Words = frozenset()

    def is_that_of(self, text: str) -> bool:
        """Whether a text is in it, as far as this can be told; one of a few words is taken for granted."""
        letters = [c for c in text if c.isalpha()]
        own = sum(unicodedata.name(c, "").startswith(self.script) for c in letters)
        if 2 * own < len(letters):
            return False
        found = [word.strip(_PUNCTUATION).casefold() for word in text.split()]
        return not self.words or len(found) < _ENOUGH_WORDS or not self.words.isdisjoint(found)


class Prompts(_Frozen):
    """What a staged teacher is asked. The fields are those of the YAML files, which ``en.yaml`` comments."""

    name: str
    version: int = Field(ge=1)
    opening: str
    stages: dict[str, str]
    nothing: str
    fillers: Words
    language: Language

    @model_validator(mode="after")
    def _slots_are_there(self) -> Prompts:
        wanted = {"naive": [], "knowledge": ["evidence"], "vision": ["evidence"], "rules": ["evidence"]}
        problems = [
            f"stages: unknown {name!r}; {nearest(name, wanted)}" for name in self.stages if name not in wanted
        ]
        problems += [f"stages: missing {name!r}" for name in wanted if name not in self.stages]
        texts = {"opening": (self.opening, ["dimensions", "pair"])}
        texts |= {
            f"stages.{name}": (text, wanted[name]) for name, text in self.stages.items() if name in wanted
        }
        for where, (text, slots) in texts.items():
            if sorted(_SLOT.findall(text)) != slots:
                need = ", ".join(f"{{{slot}}}" for slot in slots) or "none"
                problems.append(f"{where}: slots must be {need}, each once")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def open(self, dimensions: Iterable[str], pair: str) -> str:
        """The opening about one pair, whose text is neutralised."""
        return _fill(self.opening, {"dimensions": ", ".join(dimensions), "pair": pair})

    def turn(self, stage: str, evidence: Sequence[str]) -> str:
        """What a stage asks, given its evidence, which is neutralised here."""
        lines = [f"- {text}" for line in evidence if (text := neutralise(line))] or [self.nothing]
        return _fill(self.stages[stage], {"evidence": "\n".join(lines)})


def _fill(text: str, said: dict[str, str]) -> str:
    return _SLOT.sub(lambda slot: said[slot[1]], text)


@functools.cache
def load_prompts(name: str = "en") -> Prompts:
    """Bundled prompts.

    Raises:
        ConfigError: there are none of this name, or the file is not sound.
    """
    known = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no prompts {name!r}; {nearest(name, known)}, or read your own with read_prompts")
    return read_prompts(_FOLDER / f"{name}.yaml")


def read_prompts(path: Path) -> Prompts:
    """Read and check a file of prompts.

    Raises:
        ConfigError: every problem of the file.
    """
    try:
        return Prompts.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts {path}: not readable as YAML in UTF-8: {error}") from error
    except ValidationError as error:
        found = [
            (".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, "))
            for item in error.errors()
        ]
        lines = [f"{where}: {message}" if where else message for where, message in found]
        raise ConfigError(f"prompts {path}: {'; '.join(lines)}") from error
