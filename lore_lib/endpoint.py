"""An OpenAI-compatible server: worked concurrently, paced, and patient within bounds."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity import wait_random_exponential as backoff

from lore_lib.errors import EngineError, LoreError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key; a server without keys needs none."""

LONGEST_WAIT = 120.0
"""Seconds: a Retry-After beyond this ends the call instead of being waited for."""

GIVE_UP_AFTER = 100
"""Calls that failed in a row after which the rest of a batch is not tried: the endpoint is down."""

CALL_FAILURES: dict[str, str] = {
    "unreachable": "no connection to the endpoint, or it cut its answer, at every attempt",
    "timeout": "no answer in time, at every attempt",
    "rate_limited": "the endpoint asked for patience at every attempt, or for more than is had",
    "server_error": "the endpoint failed at every attempt",
    "garbled": "what the endpoint sent is not of its protocol, at every attempt",
    "refused": "the endpoint or engine refuses this request, such as one longer than its model reads",
}
"""Why there is no answer; another try later may help."""

_NEEDS_A_PERSON = {401: f"no or a wrong key: set {KEY}", 403: "not allowed", 404: "no such model or path"}
_PASSING = {408, 409, 425}

_tls = functools.cache(httpx.create_ssl_context)  # reading the certificates takes its time

Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]
Result = TypeVar("Result")
Read = TypeVar("Read", bound=BaseModel)


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


class CallFailed(Exception):
    """No answer came.

    Args:
        failure: key of ``CALL_FAILURES``.
        said: the body of a refusal.
    """

    def __init__(self, failure: str, said: str = "") -> None:
        super().__init__(failure)
        self.failure, self.said = failure, said


class _Again(CallFailed):
    """Another attempt may help; the endpoint asked to wait ``after`` seconds."""

    def __init__(self, failure: str, after: float = 0.0) -> None:
        super().__init__(failure)
        self.after = after


class _Said(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class Answer(BaseModel):
    """The part of a chat completion that is read."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class Endpoint:
    """A server that speaks the OpenAI protocol.

    The key is read from the environment for each batch; it is in no attribute, message or log.

    Args:
        url: up to and with ``/v1``.
        setting: where the URL comes from, for messages.
        limits: how hard it may be worked.
        clock, sleep: in seconds.

    Raises:
        EngineError: a URL of another shape, or one that holds a password.
    """

    def __init__(
        self,
        url: str,
        setting: str,
        limits: Limits | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self.url, self.limits = _checked(url, setting), limits or Limits()
        self._clock, self._sleep = clock, sleep
        self._requests = Pace(self.limits.requests_per_minute, clock, sleep)
        self._tokens = Pace(self.limits.tokens_per_minute, clock, sleep)
        self._backoff = backoff(multiplier=1, max=LONGEST_WAIT / 2)

    def batch(
        self,
        size: int,
        ask: Callable[[httpx.AsyncClient, int], Awaitable[Result]],
        failed: Callable[[str], Result],
        arrived: Callable[[int, Result], None],
    ) -> list[Result]:
        """``ask(client, place)`` for each place below ``size``, so many in flight as the limits allow.

        Args:
            size: how many calls.
            ask: makes one, by means of :meth:`call`.
            failed: what stands for a call that failed, by its failure.
            arrived: told of each result as it comes in; called from another thread.

        Returns:
            The results by place.

        Raises:
            LoreError: what ``ask`` or ``arrived`` raise, such as for want of a key; the rest is not tried.
        """
        with start_blocking_portal() as portal:  # a notebook has an event loop running already
            return portal.call(self._batch, size, ask, failed, arrived)

    async def _batch(
        self,
        size: int,
        ask: Callable[[httpx.AsyncClient, int], Awaitable[Result]],
        failed: Callable[[str], Result],
        arrived: Callable[[int, Result], None],
    ) -> list[Result]:
        results: dict[int, Result] = {}
        stopped: list[LoreError] = []
        in_a_row: list[str] = []
        slots = anyio.Semaphore(self.limits.concurrency)

        async def one(place: int) -> Result:
            async with slots:
                if len(in_a_row) >= GIVE_UP_AFTER:
                    return failed(in_a_row[-1])
                try:
                    result = await ask(client, place)
                except CallFailed as error:
                    in_a_row.append(error.failure)
                    return failed(error.failure)
            in_a_row.clear()
            return result

        async def call(place: int) -> None:
            try:
                results[place] = await one(place)
                arrived(place, results[place])
            except LoreError as error:  # a key that is refused, a cache that cannot be written
                stopped.append(error)
                group.cancel_scope.cancel()

        most = httpx.Limits(max_connections=self.limits.concurrency)
        async with (
            httpx.AsyncClient(headers=_authorisation(), timeout=None, limits=most, verify=_tls()) as client,
            anyio.create_task_group() as group,
        ):
            for place in range(size):
                group.start_soon(call, place)
        if stopped:
            raise stopped[0]
        return [results[place] for place in range(size)]

    async def call(
        self,
        client: httpx.AsyncClient,
        path: str,
        read: type[Read],
        body: dict[str, Any] | None = None,
        guess: float = 0,
    ) -> Read:
        """One answer, after as many attempts as the limits allow.

        Args:
            client: of the batch.
            path: below the URL.
            read: what the answer must be.
            body: what is posted; None to get.
            guess: tokens that will be read and written, as far as one can tell.

        Raises:
            CallFailed: there is no answer.
            EngineError: the endpoint wants another key, model or path.
        """
        attempts = AsyncRetrying(
            sleep=self._sleep,
            wait=self._wait,
            stop=stop_after_attempt(self.limits.attempts),
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        return await attempts(self._attempt, client, path, read, body, guess)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self._backoff(state) + (error.after if isinstance(error, _Again) else 0.0)

    async def _attempt(
        self,
        client: httpx.AsyncClient,
        path: str,
        read: type[Read],
        body: dict[str, Any] | None,
        guess: float,
    ) -> Read:
        await self._requests.take()
        await self._tokens.take(guess)
        method = "GET" if body is None else "POST"
        try:
            with anyio.fail_after(self.limits.timeout_seconds):
                response = await client.request(method, f"{self.url}/{path}", json=body)
        except TimeoutError as error:
            raise _Again("timeout") from error
        except httpx.RequestError as error:
            raise _Again("unreachable") from error
        if response.status_code != 200:
            self._refuse(response, (body or {}).get("model", path))
        try:
            answer = read.model_validate_json(response.content)
        except ValidationError as error:
            raise _Again("garbled") from error
        usage = getattr(answer, "usage", None)
        if usage:
            self._tokens.correct(usage.prompt_tokens + usage.completion_tokens - guess)
        return answer

    def _refuse(self, response: httpx.Response, asked: str) -> NoReturn:
        status = response.status_code
        if status in _NEEDS_A_PERSON:  # the body may quote the key
            raise EngineError(f"{self.url} answered {status} for model {asked!r}: {_NEEDS_A_PERSON[status]}")
        if status != 429 and status < 500 and status not in _PASSING:
            raise CallFailed("refused", response.text)
        failure = "rate_limited" if status == 429 else "server_error"
        after = _retry_after(response.headers.get("retry-after", ""))
        if after > LONGEST_WAIT:
            raise CallFailed(failure)
        self._requests.hold(after)
        raise _Again(failure, after)


def _checked(url: str, setting: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EngineError(f"{setting} cannot be read; give a URL such as http://localhost:8000/v1") from error
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query:
        raise EngineError(
            f"{setting} must be http(s)://host[:port]/path, such as http://localhost:8000/v1, without "
            f"password or query; a key belongs in the environment variable {KEY}"
        )
    return str(parts).rstrip("/")


def _authorisation() -> dict[str, str]:
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EngineError(f"{KEY} holds what no key does: blanks, or characters outside ASCII; set it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _retry_after(header: str) -> float:
    """Seconds to wait, from a number or a date; 0 where the header says nothing."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, OverflowError):  # a year that no calendar has
            return 0.0
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0
