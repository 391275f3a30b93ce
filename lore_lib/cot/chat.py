"""Chat models as the staged teacher sees them: a batch of conversations in, one reply for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from lore_lib.rng import derive_seed

if TYPE_CHECKING:
    from lore_lib.sampling.engine import HfEngine

REPLY_FAILURES: dict[str, str] = {
    "truncated": "the reply was cut at the token limit",
    "filtered": "the endpoint's content filter held the reply back",
    "empty": "the reply holds no text",
}
"""Why a reply is of no use."""

Message = Mapping[str, str]
"""``role`` (user or assistant) and ``content``."""


@dataclass(frozen=True)
class Draw:
    """How replies are drawn.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: longer replies are cut, and so fail as "truncated".
        seed: root of the draws; each sample of a request has its own.
    """

    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 17

    def seed_of(self, sample: int) -> int:
        """The seed of one sample."""
        return derive_seed(self.seed, "teacher", sample)


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        messages: the conversation, which ends with the user's turn.
        schema: JSON schema of the reply, for models that can be held to one.
        sample: number of the draw, for several replies to the same messages.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """Its text and size; ``failure`` is "" or a key of ``endpoint.CALL_FAILURES`` or ``REPLY_FAILURES``."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str = ""


def read_reply(text: str, prompt_tokens: int, completion_tokens: int, finish_reason: str | None) -> Reply:
    """A reply with the failure that its text and finish reason tell of."""
    failure = {"length": "truncated", "content_filter": "filtered"}.get(finish_reason or "", "")
    return Reply(text, prompt_tokens, completion_tokens, failure or ("" if text.strip() else "empty"))


Arrived = Callable[[int, Reply], None]
"""Told of each reply as it comes in, by its place in the batch."""


def ignore(place: int, reply: Reply) -> None:
    """Nobody waits for single replies."""


class ChatModel(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """Engine, as in ``cot.teacher``."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a reply, beside the request: model and draw; JSON values, no secrets."""

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """One reply per request, in order; a failed call is a reply with its failure.

        Raises:
            EngineError: no request can succeed, such as for want of a key.
        """


class HfChat:
    """A local transformers model.

    Args:
        engine: samples.
        model: its name, for the identity.
        draw: how replies are drawn.
        batch: conversations decoded at once.
    """

    name = "hf"

    def __init__(self, engine: HfEngine, model: str, draw: Draw, batch: int = 16) -> None:
        self._engine, self._model, self._draw, self._batch = engine, model, draw, batch

    @property
    def identity(self) -> dict[str, Any]:
        """Model and draw."""
        return {"model": self._model, **asdict(self._draw)}

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`ChatModel`; the schema is not enforced."""
        replies: list[Reply] = [Reply()] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: requests[i].sample)
        for sample, group in groupby(order, key=lambda i: requests[i].sample):
            places = list(group)
            for start in range(0, len(places), self._batch):
                part = places[start : start + self._batch]
                for i, reply in zip(part, self._drawn([requests[i] for i in part], sample), strict=True):
                    replies[i] = reply
                    arrived(i, reply)
        return replies

    def _drawn(self, requests: list[Request], sample: int) -> list[Reply]:
        from lore_lib.sampling.engine import Sampling

        tokenizer = self._engine.tokenizer
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in request.messages],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for request in requests
        ]
        sampling = Sampling(
            n=1,
            temperature=self._draw.temperature,
            max_completion_tokens=self._draw.max_tokens,
            batch_completions=self._batch,
            seed=self._draw.seed_of(sample),
        )
        drawn = self._engine.draw(texts, sampling)
        asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            read_reply(
                tokenizer.decode(tokens, skip_special_tokens=True),
                len(ids),
                len(tokens),
                "stop" if tokens[-1:] == [tokenizer.eos_token_id] else "length",
            )
            for ids, (tokens,) in zip(asked, drawn, strict=True)
        ]


class VllmChat:
    """An offline vLLM engine; needs the extra ``vllm``.

    Args:
        model: folder or hub name.
        draw: how replies are drawn.
        batch: conversations given to the engine at once; those of a batch that a kill cuts are drawn anew.
        engine: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.
    """

    name = "vllm"

    def __init__(self, model: str, draw: Draw, batch: int = 1024, **engine: Any) -> None:
        from vllm import LLM

        self._llm = LLM(model=model, **engine)
        self._model, self._draw, self._batch = model, draw, batch

    @property
    def identity(self) -> dict[str, Any]:
        """Model and draw."""
        return {"model": self._model, **asdict(self._draw)}

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`ChatModel`; the schema is enforced."""
        replies: list[Reply] = []
        for start in range(0, len(requests), self._batch):
            part = requests[start : start + self._batch]
            conversations = [[dict(message) for message in request.messages] for request in part]
            for output in self._llm.chat(conversations, [self._how(r) for r in part], use_tqdm=False):
                said = output.outputs[0]
                sizes = len(output.prompt_token_ids), len(said.token_ids)
                replies.append(read_reply(said.text, *sizes, said.finish_reason))
                arrived(len(replies) - 1, replies[-1])
        return replies

    def _how(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        return SamplingParams(
            temperature=self._draw.temperature,
            max_tokens=self._draw.max_tokens,
            seed=self._draw.seed_of(request.sample),
            structured_outputs=StructuredOutputsParams(json=dict(request.schema)),
        )
