"""A chat model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import anyio
import httpx

from lore_lib.cot.chat import Arrived, Draw, Message, Reply, Request, ignore, read_reply
from lore_lib.endpoint import Answer, CallFailed, Clock, Endpoint, Limits, Sleep

_IMAGE_TOKENS = 300  # of a picture, guessed before the endpoint says


class OpenAIChat:
    """``POST <url>/chat/completions``.

    Held to the request's JSON schema where the endpoint knows ``response_format``, else by the prompt alone.

    Args:
        model: name at the endpoint.
        url: up to and with ``/v1``.
        draw: how replies are drawn.
        limits: how hard the endpoint may be worked; none of them changes a reply.
        clock, sleep: in seconds.

    Raises:
        EngineError: a URL of another shape, or one that holds a password.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        url: str,
        draw: Draw,
        limits: Limits | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self._model, self._draw = model, draw
        self.identity = draw.identity(model)  # the same model at another address gives the same replies
        self._endpoint = Endpoint(url, "the endpoint's URL", limits, clock, sleep)
        self._structured = True

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`lore_lib.cot.chat.ChatModel`; ``arrived`` is called from another thread.

        Raises:
            EngineError: the endpoint wants another key, model or path.
        """

        async def ask(client: httpx.AsyncClient, place: int) -> Reply:
            return await self._ask(client, requests[place])

        return self._endpoint.batch(len(requests), ask, lambda failure: Reply(failure=failure), arrived)

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> Reply:
        structured = self._structured
        guess = sum(map(_size, request.messages)) + self._draw.max_tokens / 2
        body = self._body(request, structured)
        try:
            said = await self._endpoint.call(client, "chat/completions", Answer, body, guess)
        except CallFailed as error:
            if structured and _names_the_format(error.said):
                self._structured = False
                return await self._ask(client, request)
            raise
        choice, usage = said.choices[0], said.usage
        sizes = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return read_reply(choice.message.content or "", *sizes, choice.finish_reason)

    def _body(self, request: Request, structured: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in request.messages],
            "temperature": self._draw.temperature,
            "max_tokens": self._draw.max_tokens,
            "seed": self._draw.seed_of(request.sample),
        }
        if structured:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def _size(message: Message) -> float:
    """Tokens of a message, guessed."""
    if isinstance(message["content"], str):
        return len(message["content"]) / 4
    return sum(
        len(part["text"]) / 4 if part["type"] == "text" else _IMAGE_TOKENS for part in message["content"]
    )


def _names_the_format(text: str) -> bool:
    return any(word in text for word in ("response_format", "json_schema", "structured output"))
