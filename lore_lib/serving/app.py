"""The service over HTTP: what it takes, what it refuses and with which reason, and what it tells of itself.

Every refusal is JSON: {"error": {"reason": ..., "message": ...}}. It never repeats the text of a request.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from lore_lib.config import ServiceConfig
from lore_lib.errors import DataError, EngineError
from lore_lib.serving.service import Answer, Overloaded, Service, UnknownItem

RETRY_AFTER_S = 1
GUARDED = "/v1/"  # paths under limits; health and metrics must answer when all else is full
ITEM_ID_CHARACTERS = 128
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
START_S = 60.0  # a server that is not up by then will not come up

REFUSALS: dict[str, tuple[int, str]] = {
    "too_large": (413, "the body is larger than service.body_kib allows"),
    "overloaded": (503, "too many requests are at work; ask again in a moment"),
    "deadline": (503, "no answer within service.deadline_ms; ask again in a moment"),
}
"""What is refused before the request is read as one."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Metrics:
    """What Prometheus may collect; no text of a request becomes a label."""

    def __init__(self, service: Service, guard: "Guard") -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "lore_answers",
            "Pairs answered",
            ["served_by", "stratum", "reason"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lore_answer_seconds",
            "Time in the service per pair",
            ["served_by"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._age = Histogram(
            "lore_score_age_seconds",
            "Age of cached scores when served",
            buckets=(60, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600),
            registry=self.registry,
        )
        self.refused = Counter("lore_refused", "Requests refused", ["reason"], registry=self.registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "lore_in_flight": ("HTTP requests at work", lambda: guard.in_flight),
            "lore_student_waiting": ("Pairs waiting for the student", lambda: service.student.waiting),
            "lore_llm_waiting": (
                "Pairs waiting for the LLM",
                lambda: service.llm.waiting if service.llm else 0,
            ),
            "lore_queries_counted": ("Queries whose frequency is known", lambda: len(service.counter)),
        }
        for name, (told, read) in gauges.items():
            Gauge(name, told, registry=self.registry).set_function(read)

    def count(self, answer: Answer) -> None:
        """Take one answer."""
        self._answers.labels(answer.served_by, answer.stratum, answer.reason).inc()
        self._seconds.labels(answer.served_by).observe(answer.latency_ms / 1000)
        if answer.age_s is not None:
            self._age.observe(answer.age_s)


class Guard:
    """Limits around an app: requests at work, size of a body, time until an answer.

    Args:
        app: what is guarded.
        limits: of the config.
    """

    def __init__(self, app: App, limits: ServiceConfig) -> None:
        self.app, self._limits, self.in_flight = app, limits, 0
        self.refused: Callable[[str], None] = lambda reason: None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
        elif self.in_flight >= self._limits.in_flight:
            await self._refuse("overloaded", scope, receive, send)
        else:
            self.in_flight += 1
            try:
                await self._serve(scope, receive, send)
            finally:
                self.in_flight -= 1

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        begun = False

        async def noticed(message: Message) -> None:
            nonlocal begun
            if not begun:
                message["headers"] = [*message.get("headers", ()), (b"x-replica", str(os.getpid()).encode())]
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._limits.deadline_ms / 1000):
                body = await self._body(scope, receive)
                if body is None:
                    await self._refuse("too_large", scope, receive, noticed)
                else:
                    await self.app(scope, _said(body, receive), noticed)
        except TimeoutError:
            if begun:
                raise
            await self._refuse("deadline", scope, receive, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None as soon as it is seen to be too large."""
        most = self._limits.body_kib * 1024
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > most:
            return None
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > most:
                return None
        return b"".join(parts)

    async def _refuse(self, reason: str, scope: Message, receive: Receive, send: Send) -> None:
        self.refused(reason)
        status, message = REFUSALS[reason]
        headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {"connection": "close"}
        await _error(status, reason, message, headers)(scope, receive, send)


def _said(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, as the app expects to receive it."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _error(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"reason": reason, "message": message}}, status, headers)


def build_app(start: Callable[[], Awaitable[Service]], limits: ServiceConfig) -> Guard:
    """The ASGI application.

    Args:
        start: makes the service, once the event loop runs.
        limits: what is refused.
    """

    class Pair(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)

        query: Annotated[str, Field(min_length=1, max_length=limits.query_characters)]
        item_id: Annotated[str, Field(min_length=1, max_length=ITEM_ID_CHARACTERS)]

    class Batch(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)

        pairs: Annotated[list[Pair], Field(min_length=1, max_length=limits.batch_pairs)]

    held: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = held["service"] = await start()
        metrics = held["metrics"] = Metrics(service, guard)
        guard.refused = lambda reason: metrics.refused.labels(reason).inc()
        yield
        await held.pop("service").close()

    app = FastAPI(title="LORE relevance", lifespan=lifespan, docs_url=None, redoc_url=None)
    guard = Guard(app, limits)

    async def judge(pair: Pair) -> Answer:
        answer: Answer = await held["service"].answer(pair.query, pair.item_id)
        held["metrics"].count(answer)
        return answer

    async def judge_or_tell(pair: Pair) -> dict[str, Any]:
        try:
            return vars(await judge(pair))
        except DataError as error:
            return {"error": {"reason": _reason(error), "message": str(error)}}

    @app.post("/v1/relevance")
    async def relevance(pair: Pair) -> JSONResponse:
        return JSONResponse(vars(await judge(pair)))

    @app.post("/v1/relevance/batch")
    async def relevance_batch(batch: Batch) -> JSONResponse:
        return JSONResponse({"answers": await asyncio.gather(*map(judge_or_tell, batch.pairs))})

    @app.get("/healthz")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        service: Service | None = held.get("service")
        if service is None:
            return _error(503, "starting_or_stopping", "the service takes no requests", {"retry-after": "1"})
        return JSONResponse(
            {"status": "ready", "degraded": await service.degraded(), "items": len(service.catalogue)}
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(held["metrics"].registry), media_type=CONTENT_TYPE_LATEST)

    _explain_refusals(app, guard)
    return guard


def _explain_refusals(app: FastAPI, guard: Guard) -> None:
    """Every error of the app as JSON with its reason, counted where it is a refusal."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        guard.refused("malformed")
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]]
        return _error(422, "malformed", "; ".join(faults)[:1000])

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # a body that cannot even be read as text
            guard.refused("malformed")
            return _error(422, "malformed", "the body is not JSON in UTF-8")
        return _error(error.status_code, "no_such_call", str(error.detail))

    @app.exception_handler(DataError)
    async def unjudgeable(request: Request, error: DataError) -> JSONResponse:
        reason = _reason(error)
        guard.refused(reason)
        return _error(404 if reason == "unknown_item" else 422, reason, str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        guard.refused("overloaded")
        return _error(503, "overloaded", str(error), {"retry-after": str(RETRY_AFTER_S)})


def _reason(error: DataError) -> str:
    return "unknown_item" if isinstance(error, UnknownItem) else "unjudgeable"


def server(app: Guard, host: str = "127.0.0.1", port: int = 0, drain_s: float = 10) -> uvicorn.Server:
    """A server for the app; on SIGTERM or SIGINT it takes no more, finishes what is at work, and ends.

    Args:
        app: from `build_app`.
        host, port: to listen at; port 0 takes a free one.
        drain_s: seconds that requests at work may take when it stops.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            lifespan="on",
            log_level="warning",
            access_log=False,
            backlog=2048,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_s),
            server_header=False,
        )
    )


@contextmanager
def running(app: Guard) -> Iterator[str]:
    """Serve the app on a free port of this machine in a thread of its own; gives its URL.

    Raises:
        EngineError: it did not come up.
    """
    serving = server(app)

    def run() -> None:
        with suppress(SystemExit):  # its way of not starting
            serving.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_S
        while not serving.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise EngineError("the service did not start; see its log above")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
    finally:
        serving.should_exit = True
        thread.join(START_S)
