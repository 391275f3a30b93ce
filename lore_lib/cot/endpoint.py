"""A chat model behind an OpenAI-compatible endpoint: concurrent, paced, and patient within bounds."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity import wait_random_exponential as backoff

from lore_lib.cot.chat import CALL_FAILURES, Arrived, Draw, Message, Reply, Request, ignore, read_reply
from lore_lib.errors import EngineError, LoreError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key; a server without keys needs none."""

LONGEST_WAIT = 120.0
"""Seconds: a Retry-After beyond this ends the call instead of being waited for."""

GIVE_UP_AFTER = 100
"""Calls that failed in a row after which the rest of a batch is not tried: the endpoint is down."""

_IMAGE_TOKENS = 300  # of a picture, guessed before the endpoint says
_NEEDS_A_PERSON = {401: f"no or a wrong key: set {KEY}", 403: "not allowed", 404: "no such model or path"}
_PASSING = {408, 409, 425}

_tls = functools.cache(httpx.create_ssl_context)  # reading the certificates takes its time

Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """How hard an endpoint may be worked; none of them changes a reply.

    Attributes:
        concurrency: calls in flight.
        requests_per_minute: calls started.
        tokens_per_minute: tokens read and written; estimated before a call, corrected after it.
        timeout_seconds: for one attempt, from the request's first byte to the answer's last.
        attempts: tries per call.
    """

    concurrency: int = 32
    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    timeout_seconds: float = 120.0
    attempts: int = 6


class Pace:
    """Lets units pass evenly, at most so many a minute, without bursts (a leaky bucket).

    Args:
        per_minute: units a minute; infinity lets all pass.
        clock, sleep: in seconds.
    """

    def __init__(self, per_minute: float, clock: Clock, sleep: Sleep) -> None:
        self._seconds, self._clock, self._sleep = 60 / per_minute, clock, sleep
        self._next = -math.inf

    async def take(self, units: float = 1) -> None:
        """Wait for the turn of these units."""
        now = self._clock()
        turn = max(now, self._next)
        self._next = turn + units * self._seconds
        if turn > now:
            await self._sleep(turn - now)

    def correct(self, units: float) -> None:
        """Units taken too few (positive) or too many (negative)."""
        self._next += units * self._seconds

    def hold(self, seconds: float) -> None:
        """Let nothing pass for a while."""
        self._next = max(self._next, self._clock() + seconds)


class _Again(Exception):
    """Another attempt may help.

    Args:
        failure: key of ``CALL_FAILURES``.
        after: seconds the endpoint asked to wait.
    """

    def __init__(self, failure: str, after: float = 0.0) -> None:
        super().__init__(failure)
        self.failure, self.after = failure, after


class _Said(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Answer(BaseModel):
    """The part of a chat completion that is read."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class OpenAIChat:
    """``POST <url>/chat/completions``.

    Held to the request's JSON schema where the endpoint knows ``response_format``, else by the prompt alone.
    The key is read from the environment for each batch; it is in no attribute, message or log.

    Args:
        model: name at the endpoint.
        url: up to and with ``/v1``.
        draw: how replies are drawn.
        limits: how hard the endpoint may be worked.
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
        self._model, self._draw, self._limits = model, draw, limits or Limits()
        self._url = _checked(url)
        self._clock, self._sleep = clock, sleep
        self._requests = Pace(self._limits.requests_per_minute, clock, sleep)
        self._tokens = Pace(self._limits.tokens_per_minute, clock, sleep)
        self._backoff = backoff(multiplier=1, max=LONGEST_WAIT / 2)
        self._structured = True

    @property
    def identity(self) -> dict[str, Any]:
        """Model and draw; the same model at another address gives the same replies."""
        return {"model": self._model, **asdict(self._draw)}

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`lore_lib.cot.chat.ChatModel`; ``arrived`` is called from another thread.

        Raises:
            EngineError: the endpoint wants another key, model or path.
        """
        with start_blocking_portal() as portal:  # a notebook has an event loop running already
            return portal.call(self._complete, requests, arrived)

    async def _complete(self, requests: Sequence[Request], arrived: Arrived) -> list[Reply]:
        replies: list[Reply] = [Reply()] * len(requests)
        stopped: list[LoreError] = []
        in_a_row: list[str] = []
        slots = anyio.Semaphore(self._limits.concurrency)

        async def call(place: int) -> None:
            try:
                async with slots:
                    down = len(in_a_row) >= GIVE_UP_AFTER
                    reply = Reply(failure=in_a_row[-1]) if down else await self._ask(client, requests[place])
                replies[place] = reply
                arrived(place, reply)
            except LoreError as error:  # a key that is refused, a cache that cannot be written
                stopped.append(error)
                group.cancel_scope.cancel()
                return
            if reply.failure in CALL_FAILURES:
                in_a_row.append(reply.failure)
            else:
                in_a_row.clear()

        most = httpx.Limits(max_connections=self._limits.concurrency)
        async with (
            httpx.AsyncClient(headers=_authorisation(), timeout=None, limits=most, verify=_tls()) as client,
            anyio.create_task_group() as group,
        ):
            for place in range(len(requests)):
                group.start_soon(call, place)
        if stopped:
            raise stopped[0]
        return replies

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> Reply:
        attempts = AsyncRetrying(
            sleep=self._sleep,
            wait=self._wait,
            stop=stop_after_attempt(self._limits.attempts),
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            return await attempts(self._attempt, client, request)
        except _Again as error:
            return Reply(failure=error.failure)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self._backoff(state) + (error.after if isinstance(error, _Again) else 0.0)

    async def _attempt(self, client: httpx.AsyncClient, request: Request) -> Reply:
        structured = self._structured
        body = self._body(request, structured)
        guess = sum(map(_size, request.messages)) + self._draw.max_tokens / 2
        await self._requests.take()
        await self._tokens.take(guess)
        try:
            with anyio.fail_after(self._limits.timeout_seconds):
                response = await client.post(f"{self._url}/chat/completions", json=body)
        except TimeoutError as error:
            raise _Again("timeout") from error
        except httpx.RequestError as error:
            raise _Again("unreachable") from error
        if response.status_code == 200:
            return self._read(response, guess)
        if structured and response.status_code in (400, 422) and _names_the_format(response.text):
            self._structured = False
            return await self._attempt(client, request)
        return self._failed(response)

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

    def _read(self, response: httpx.Response, guess: float) -> Reply:
        try:
            said = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise _Again("garbled") from error
        usage = said.usage or _Usage()
        if said.usage:
            self._tokens.correct(usage.prompt_tokens + usage.completion_tokens - guess)
        choice = said.choices[0]
        sizes = usage.prompt_tokens, usage.completion_tokens
        return read_reply(choice.message.content or "", *sizes, choice.finish_reason)

    def _failed(self, response: httpx.Response) -> Reply:
        status = response.status_code
        if status in _NEEDS_A_PERSON:  # the body may quote the key
            raise EngineError(
                f"{self._url} answered {status} for model {self._model!r}: {_NEEDS_A_PERSON[status]}"
            )
        if status != 429 and status < 500 and status not in _PASSING:
            return Reply(failure="refused")
        failure = "rate_limited" if status == 429 else "server_error"
        after = _retry_after(response.headers.get("retry-after", ""))
        if after > LONGEST_WAIT:
            return Reply(failure=failure)
        self._requests.hold(after)
        raise _Again(failure, after)


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EngineError(
            "the endpoint's URL cannot be read; give one such as http://localhost:8000/v1"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query:
        raise EngineError(
            "the endpoint's URL must be http(s)://host[:port]/path, such as http://localhost:8000/v1, "
            f"without password or query; a key belongs in the environment variable {KEY}"
        )
    return str(parts).rstrip("/")


def _size(message: Message) -> float:
    """Tokens of a message, guessed."""
    if isinstance(message["content"], str):
        return len(message["content"]) / 4
    return sum(
        len(part["text"]) / 4 if part["type"] == "text" else _IMAGE_TOKENS for part in message["content"]
    )


def _authorisation() -> dict[str, str]:
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EngineError(f"{KEY} holds what no key does: blanks, or characters outside ASCII; set it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _names_the_format(text: str) -> bool:
    return any(word in text for word in ("response_format", "json_schema", "structured output"))


def _retry_after(header: str) -> float:
    """Seconds to wait, from a number or a date; 0 where the header says nothing."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0
