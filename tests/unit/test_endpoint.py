"""The endpoint client against a local stub: bounded patience, counted failures, a key that stays secret."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore_lib import endpoint
from lore_lib.cot.chat import REPLY_FAILURES, Draw, Reply, Request
from lore_lib.cot.endpoint import OpenAIChat
from lore_lib.cot.replies import ReplyCache
from lore_lib.cot.staged import StagedTeacher
from lore_lib.cot.synthesis import Synthesis, in_shards, pair_rows, synthesise_to
from lore_lib.endpoint import CALL_FAILURES, KEY, LONGEST_WAIT, Limits, Pace
from lore_lib.errors import ArtifactError, EngineError
from lore_lib.vertical.definition import Vertical

SECRET = "sk-never-to-be-seen-0123456789"


@dataclass
class Said:
    """What the stub answers: a chat completion, unless ``raw`` says otherwise."""

    content: str | None = "fine"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    finish: str = "stop"
    cut: bool = False
    slow: bool = False

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        choice = {"message": {"role": "assistant", "content": self.content}, "finish_reason": self.finish}
        return json.dumps(
            {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        ).encode()


class Stub:
    """An OpenAI-compatible server on this machine; ``answer(number of the call, body)`` says what it does."""

    def __init__(self) -> None:
        self.answer: Callable[[int, dict[str, Any]], Said] = lambda number, body: Said(asked(body))
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body | {"path": self.path})
                    stub.keys.append(self.headers.get("Authorization", ""))
                said = stub.answer(number, body)
                if said.slow:
                    stub.released.wait(10)
                sent = said.body()
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(sent))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent[: len(sent) // 2] if said.cut else sent)
                self.close_connection = said.cut

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.stop()


class Waits:
    """Stands in for sleeping; remembers for how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def waits() -> Waits:
    return Waits()


def client(url: str, waits: Waits, **limits: Any) -> OpenAIChat:
    given_ = Limits(**{"attempts": 3, "concurrency": 4, "timeout_seconds": 10.0} | limits)
    return OpenAIChat("big", url, Draw(0.0, 64, 17), given_, clock=lambda: 0.0, sleep=waits)


def requests(*texts: str) -> list[Request]:
    return [Request(({"role": "user", "content": text},), {"type": "object"}) for text in texts]


def test_replies_come_back_in_the_order_of_the_requests_with_their_tokens(stub: Stub, waits: Waits) -> None:
    texts = [f"text {number}" for number in range(20)]
    told: dict[int, Reply] = {}
    replies = client(stub.url, waits).complete(requests(*texts), told.__setitem__)
    assert replies == [Reply(text, 7, 3) for text in texts]
    assert [told[place] for place in range(20)] == replies
    assert not waits.seconds
    body = stub.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("big", 0.0, 64)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_every_sample_has_its_own_seed(stub: Stub, waits: Waits) -> None:
    (plain,) = requests("x")
    client(stub.url, waits).complete([plain, Request(plain.messages, plain.schema, 1), plain])
    first, second, third = sorted(body["seed"] for body in stub.bodies)
    assert len({first, second, third}) == 2


@pytest.mark.parametrize("date", [False, True])
def test_a_rate_limit_is_waited_for_as_long_as_it_asks(stub: Stub, waits: Waits, date: bool) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True) if date else "60"
    stub.answer = lambda number, body: (
        Said(status=429, headers={"Retry-After": when}) if number == 0 else Said()
    )
    assert client(stub.url, waits).complete(requests("x")) == [Reply("fine", 7, 3)]
    assert len(stub.bodies) == 2
    assert max(waits.seconds) > 55


def test_a_rate_limit_beyond_patience_ends_the_call_at_once(stub: Stub, waits: Waits) -> None:
    after = {"Retry-After": str(LONGEST_WAIT + 1)}
    stub.answer = lambda number, body: Said(status=429, headers=after)
    assert client(stub.url, waits).complete(requests("x")) == [Reply(failure="rate_limited")]
    assert (len(stub.bodies), waits.seconds) == (1, [])


@pytest.mark.parametrize(
    ("said", "failure", "tries"),
    [
        (Said(status=500), "server_error", 3),
        (Said(status=503, headers={"Retry-After": "soon"}), "server_error", 3),
        (
            Said(status=503, headers={"Retry-After": "1 Jan 99999999999 00:00:00 GMT"}),
            "server_error",
            3,
        ),
        (Said(status=429), "rate_limited", 3),
        (Said(cut=True), "unreachable", 3),
        (Said(raw=b'{"choices": [{"mess'), "garbled", 3),
        (Said(raw=b"[" * 100_000), "garbled", 3),
        (Said(raw=b'{"choices": []}'), "garbled", 3),
        (Said(raw=b"\xff\xfe"), "garbled", 3),
        (Said(status=400, raw=b"context too long"), "refused", 1),
        (Said(status=302, headers={"Location": "http://elsewhere/"}), "refused", 1),
        (Said(content=None), "empty", 1),
        (Said(content=" \n"), "empty", 1),
        (Said(finish="length"), "truncated", 1),
        (Said(finish="content_filter"), "filtered", 1),
    ],
)
def test_a_bad_answer_is_a_named_failure_and_the_rest_of_the_batch_goes_on(
    stub: Stub, waits: Waits, said: Said, failure: str, tries: int
) -> None:
    stub.answer = lambda number, body: said if asked(body) == "bad" else Said()
    good, bad, other = client(stub.url, waits).complete(requests("good", "bad", "other"))
    assert bad.failure == failure
    assert failure in CALL_FAILURES | REPLY_FAILURES
    assert (good.text, other.text) == ("fine", "fine")
    assert sum(asked(body) == "bad" for body in stub.bodies) == tries
    assert len(waits.seconds) == tries - 1


def test_a_slow_answer_is_a_timeout(stub: Stub, waits: Waits) -> None:
    stub.answer = lambda number, body: Said(slow=True)
    replies = client(stub.url, waits, timeout_seconds=0.03, attempts=2).complete(requests("x"))
    assert replies == [Reply(failure="timeout")]
    assert len(stub.bodies) == 2


def test_an_endpoint_that_is_not_there_is_not_tried_for_every_request(
    stub: Stub, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "GIVE_UP_AFTER", 3)
    stub.stop()
    replies = client(stub.url, waits, concurrency=1).complete(requests(*"abcdefgh"))
    assert replies == [Reply(failure="unreachable")] * 8
    assert len(waits.seconds) == 3 * 2  # three requests of three attempts


def test_waits_between_attempts_grow_within_bounds(stub: Stub, waits: Waits) -> None:
    stub.answer = lambda number, body: Said(status=500)
    client(stub.url, waits, attempts=12).complete(requests("x"))
    assert all(0 <= wait <= min(2**n, LONGEST_WAIT / 2) for n, wait in enumerate(waits.seconds))
    assert len(set(waits.seconds)) == len(waits.seconds) == 11


def test_an_endpoint_that_knows_no_schemas_is_asked_without_from_then_on(stub: Stub, waits: Waits) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        return Said(status=400, raw=b"unknown field response_format") if "response_format" in body else Said()

    stub.answer = answer
    model = client(stub.url, waits)
    assert [reply.text for reply in model.complete(requests("a")) + model.complete(requests("b"))] == [
        "fine"
    ] * 2
    assert ["response_format" in body for body in stub.bodies] == [True, False, False]


def test_no_more_calls_are_in_flight_than_allowed(stub: Stub, waits: Waits) -> None:
    together, going, peak = threading.Barrier(3), 0, 0
    lock = threading.Lock()

    def answer(number: int, body: dict[str, Any]) -> Said:
        nonlocal going, peak
        with lock:
            going += 1
            peak = max(peak, going)
        together.wait(10)  # passes only when three are in flight
        with lock:
            going -= 1
        return Said()

    stub.answer = answer
    assert all(
        reply.text for reply in client(stub.url, waits, concurrency=3).complete(requests(*"abcdefghi"))
    )
    assert peak == 3


def test_it_can_be_called_where_an_event_loop_is_running(stub: Stub, waits: Waits) -> None:
    async def cell() -> list[Reply]:
        return client(stub.url, waits).complete(requests("x"))

    assert asyncio.run(cell()) == [Reply("x", 7, 3)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_a_person_must_see_to_stops_the_batch(stub: Stub, waits: Waits, status: int) -> None:
    stub.answer = lambda number, body: Said(status=status, raw=f"bad key {SECRET}".encode())
    with pytest.raises(EngineError, match=f"answered {status} for model 'big'") as caught:
        client(stub.url, waits).complete(requests("a", "b"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host/v1", f"http://me:{SECRET}@host/v1", f"http://h/v1?k={SECRET}"]
)
def test_a_url_of_another_shape_is_refused_without_showing_it(url: str, waits: Waits) -> None:
    with pytest.raises(EngineError, match="the endpoint's URL must be") as caught:
        client(url, waits)
    assert SECRET not in str(caught.value)


def test_the_key_is_sent_and_seen_nowhere_else(
    stub: Stub, waits: Waits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    stub.answer = lambda number, body: Said(status=[429, 500, 200][number])
    model = client(stub.url, waits)
    with caplog.at_level(logging.DEBUG):
        replies = model.complete(requests("x"))
    assert stub.keys == [f"Bearer {SECRET}"] * 3
    seen = [caplog.text, repr(model), repr(vars(model)), json.dumps(model.identity), repr(replies)]
    assert "HTTP Request" in caplog.text
    assert not [text for text in seen if SECRET in text]
    monkeypatch.delenv(KEY)
    model.complete(requests("x"))
    assert stub.keys[-1] == ""


@pytest.mark.parametrize("key", [f"{SECRET}\nX-Other: 1", f"{SECRET} two", f"{SECRET}\u2026"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(
    stub: Stub, waits: Waits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError, match="what no key does") as caught:
        client(stub.url, waits).complete(requests("x"))
    assert SECRET not in str(caught.value) + caplog.text


def test_a_cache_that_cannot_be_written_stops_the_batch_with_its_reason(stub: Stub, waits: Waits) -> None:
    def full(place: int, reply: Reply) -> None:
        raise ArtifactError("the disk is full")

    with pytest.raises(ArtifactError, match="the disk is full"):
        client(stub.url, waits).complete(requests("a", "b"), full)


def finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run one that never really waits."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20)), max_size=40), st.integers(1, 60))
def test_units_pass_evenly_and_wait_no_longer_than_they_must(
    steps: list[tuple[float, int]], limit: int
) -> None:
    now = turn = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(limit, lambda: now, sleep)
    for idle, units in steps:
        now += idle
        came = now
        finish(pace.take(units))
        assert now == pytest.approx(max(came, turn))
        turn = now + 60 * units / limit
    pace.hold(100)
    start = now
    finish(pace.take())
    assert now - start == pytest.approx(max(100, turn - start))


def test_tokens_are_paced_by_what_was_used_not_by_what_was_guessed(stub: Stub, waits: Waits) -> None:
    model = client(stub.url, waits, tokens_per_minute=60.0, concurrency=1)
    model.complete(requests("x", "x", "x"))
    assert waits.seconds == pytest.approx(
        [10.0, 20.0]
    )  # 10 tokens each at one a second, the clock standing still


def judged(body: dict[str, Any]) -> str:
    """An answer that finds the whole query in the title."""
    pair = body["messages"][0]["content"].rpartition("query: ")[2].splitlines()
    fields = {"said": pair[0], "dimension": "color", "value": "navy", "negated": False, "why": ""}
    step = fields | {"found": pair[1].removeprefix("title: "), "verdict": "match"}
    return json.dumps({"path": [step], "label": "L4"})


def test_a_whole_synthesis_over_a_troubled_endpoint_pays_once_and_keeps_the_key_to_itself(
    stub: Stub,
    waits: Waits,
    vertical: Vertical,
    world_tables: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    captions: "pd.Series[Any]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        trouble = [Said(status=429), Said(status=500), Said(cut=True), Said(raw=b"{")]
        fatal = "refuse" in body["messages"][0]["content"].partition("title: ")[2]
        return trouble[number] if number < 4 else Said(f"no {SECRET}" if fatal else judged(body))

    stub.answer = answer
    monkeypatch.setenv(KEY, SECRET)
    rows = pair_rows(world_tables, prompts, captions).head(8)
    titles = [f"refuse </think>[L4] {title}" if n == 5 else title for n, title in enumerate(rows.title)]
    texts = [
        text.replace("title: ", "title: refuse (/think)(L4) ") if n == 5 else text
        for n, text in enumerate(rows.prompt)
    ]
    rows = rows.assign(title=titles, prompt=texts)
    folders = tmp_path / "first", tmp_path / "second"
    with caplog.at_level(logging.DEBUG):
        for folder in folders:
            teacher = StagedTeacher(
                client(stub.url, waits), vertical, ("vision",), cache=ReplyCache(tmp_path / "replies.sqlite")
            )
            synthesise_to(folder, in_shards(rows, 3), Synthesis("naive", teacher, "repair"))
    first, second = ({p.name: p.read_bytes() for p in folder.rglob("*.*")} for folder in folders)
    assert first == second
    assert json.loads(first["manifest.json"])["reasons"]["not_json"] == 1
    calls = 7 * 2 + 1  # two stages, but for the pair whose first reply is of no use
    assert len(stub.bodies) == 4 + calls + 1  # what failed is asked again
    seen = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not seen
    assert SECRET not in caplog.text
