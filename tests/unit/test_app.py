"""The service over HTTP, on a real socket of this machine."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from lore_lib.config import ServiceConfig
from lore_lib.errors import EngineError
from lore_lib.features.packing import Packer
from lore_lib.features.template import load_template
from lore_lib.serving.app import build_app, running
from lore_lib.serving.catalogue import Catalogue
from lore_lib.serving.load import LONGEST_S, replay, replay_apart, summary
from lore_lib.serving.service import Prompts, QueryCounter, Service
from lore_lib.serving.stores import SqliteStore

FIELDS = {"cpv": "{}", "skus": "[]", "shop": "Moss", "price": 20.0, "selling_points": ""}
ITEMS = pd.DataFrame([{"item_id": f"i{i}", "title": f"red dress {i}", **FIELDS} for i in range(8)])
PAST = {"head dress": 80.0, "torso rug": 15.0, "tail shelf": 1.0}
Serving = Callable[..., AbstractContextManager[str]]


def l3(prompts: Sequence[str]) -> Any:
    return np.tile([0.1, 0.2, 0.6, 0.1], (len(prompts), 1))


def l4(prompts: Sequence[str]) -> list[str]:
    return ["L4"] * len(prompts)


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    @contextmanager
    def serve(student: Any = l3, llm: Any = l4, **limits: Any) -> Iterator[str]:
        config = ServiceConfig(**limits)
        catalogue, nano = Catalogue(ITEMS, pd.Series(dtype=object)), Packer(load_template("nano"), "mid")
        scored = ITEMS[["item_id"]].assign(query="head dress", label="L1", scored_at=time.time())
        scored["version"] = catalogue.versions(scored["item_id"])

        async def start() -> Service:
            store = SqliteStore(tmp_path / "s.sqlite", 3600)
            counter = QueryCounter(PAST, 0.3, 0.3, 10**6)
            service = Service(catalogue, Prompts(nano, nano), counter, store, "judge", student, llm, config)
            await service.fill(scored)
            return service

        with running(build_app(start, config)) as url:
            yield url

    return serve


def post(url: str, path: str = "/v1/relevance", **body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=30)


def test_a_pair_is_answered(serving: Serving) -> None:
    with serving() as url:
        told = post(url, query="head dress", item_id="i1")
        assert told.status_code == 200
        answer = told.json()
        told = [answer[name] for name in ("label", "relevant", "served_by", "stratum", "degraded", "reason")]
        assert told == ["L1", False, "cache", "head", False, ""]
        assert post(url, query="torso rug", item_id="i1").json()["probabilities"] == [0.1, 0.2, 0.6, 0.1]
        assert post(url, query="oak", item_id="i1").json()["served_by"] == "llm"


def test_a_batch_answers_each_pair_or_says_why_not(serving: Serving) -> None:
    pairs = [{"query": "head dress", "item_id": "i1"}, {"query": "head dress", "item_id": "gone"}]
    with serving() as url:
        first, second = post(url, "/v1/relevance/batch", pairs=pairs).json()["answers"]
        assert first["label"] == "L1"
        assert second["error"]["reason"] == "unknown_item"


def test_health_readiness_and_metrics(serving: Serving) -> None:
    with serving() as url:
        assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "degraded": [], "items": 8}
        post(url, query="head dress", item_id="i1")
        post(url, query="<script>alert(1)</script>", item_id="i1")
        post(url, query="x", item_id="gone")
        text = httpx.get(f"{url}/metrics").text
        assert 'lore_answers_total{reason="",served_by="cache",stratum="head"} 1.0' in text
        assert 'lore_refused_total{reason="unknown_item"} 1.0' in text
        assert "lore_score_age_seconds_count 1.0" in text
        assert "lore_in_flight 0.0" in text
        assert "script" not in text


MALFORMED: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"{", 422, "malformed"),
    "no body": (b"", 422, "malformed"),
    "a list": (b"[]", 422, "malformed"),
    "no item": ({"query": "x"}, 422, "malformed"),
    "a number": ({"query": 7, "item_id": "i1"}, 422, "malformed"),
    "an extra field": ({"query": "x", "item_id": "i1", "label": "L4"}, 422, "malformed"),
    "an empty query": ({"query": "", "item_id": "i1"}, 422, "malformed"),
    "a blank query": ({"query": " \n ", "item_id": "i1"}, 422, "unjudgeable"),
    "a long query": ({"query": "x" * 600, "item_id": "i1"}, 422, "malformed"),
    "an unknown item": ({"query": "x", "item_id": "gone"}, 404, "unknown_item"),
    "half a character": (b'{"query": "\\ud800", "item_id": "i1"}', 422, "malformed"),
    "not UTF-8": (b'{"query": "\xff", "item_id": "i1"}', 422, "malformed"),
    "deep": (b"[" * 20_000, 422, "malformed"),
    "too large": (b"x" * 70_000, 413, "too_large"),
}


def test_what_is_malformed_is_refused_with_a_reason_and_not_repeated(serving: Serving) -> None:
    with serving(student_queue_limit=5) as url:
        for name, (body, status, reason) in MALFORMED.items():
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            told = httpx.post(
                f"{url}/v1/relevance", content=data, headers={"content-type": "application/json"}
            )
            assert told.status_code == status, (name, told.text)
            assert told.json()["error"]["reason"] == reason, name
            assert told.json()["error"]["message"], name
            assert "xxxx" not in told.text, name
        many = [{"query": "x", "item_id": "i1"}] * 65
        assert post(url, "/v1/relevance/batch", pairs=many).status_code == 422
        assert post(url, "/v1/relevance/batch", pairs=[]).status_code == 422
        assert httpx.get(f"{url}/v1/relevance").status_code == 405
        assert httpx.get(f"{url}/nowhere").status_code == 404
        assert post(url, query="head dress", item_id="i1").status_code == 200, "and it goes on"


def test_a_body_of_untold_length_is_cut_off(serving: Serving) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1024

    with serving() as url:
        assert httpx.post(f"{url}/v1/relevance", content=endless()).status_code == 413


def test_a_body_that_never_comes_meets_the_deadline(serving: Serving) -> None:
    with serving(deadline_ms=300, llm_timeout_ms=100) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"POST /v1/relevance HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            assert b" 503 " in slow.recv(1000).split(b"\r\n")[0]


def test_a_service_that_is_too_slow_says_so(serving: Serving) -> None:
    released = threading.Event()

    def stuck(prompts: Sequence[str]) -> Any:
        released.wait(10)
        return l3(prompts)

    with serving(student=stuck, deadline_ms=200, llm_timeout_ms=100) as url:
        told = post(url, query="torso rug", item_id="i1")
        released.set()
        assert told.status_code == 503
        assert told.json()["error"]["reason"] == "deadline"
        assert told.headers["retry-after"] == "1"


def ask_at_once(url: str, count: int, query: str = "torso rug") -> pd.DataFrame:
    trace = pd.DataFrame({"time_s": 0.0, "query": query, "item_id": [f"i{i % 8}" for i in range(count)]})
    return asyncio.run(replay(url, trace, connections=count))


def test_a_full_house_is_told_to_come_back(serving: Serving) -> None:
    def slow(prompts: Sequence[str]) -> Any:
        time.sleep(0.3)
        return l3(prompts)

    with serving(student=slow, in_flight=4) as url:
        answers = ask_at_once(url, 12)
        assert set(answers["status"]) == {200, 503}
        assert answers["status"].eq(200).sum() >= 4
        assert set(answers.loc[answers["status"] == 503, "reason"]) == {"overloaded"}
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert post(url, query="torso rug", item_id="i1").status_code == 200


def test_a_thousand_clients_at_once_are_answered_or_refused(serving: Serving) -> None:
    with serving(in_flight=400, deadline_ms=20_000) as url:
        answers = ask_at_once(url, 1000)
        assert len(answers) == 1000
        assert set(answers["status"]) <= {200, 503}
        assert answers["status"].eq(200).sum() >= 400
        assert set(answers.loc[answers["status"] == 200, "label"]) == {"L3"}
        assert post(url, query="head dress", item_id="i1").json()["label"] == "L1"


def test_what_is_at_work_is_finished_when_it_stops(serving: Serving) -> None:
    begun = threading.Event()

    def slow(prompts: Sequence[str]) -> Any:
        begun.set()
        time.sleep(0.4)
        return l3(prompts)

    told: list[httpx.Response] = []
    with serving(student=slow) as url:
        asked = threading.Thread(target=lambda: told.append(post(url, query="torso rug", item_id="i1")))
        asked.start()
        assert begun.wait(10)
    asked.join(10)
    assert told[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        post(url, query="torso rug", item_id="i1")


def test_a_service_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    async def start() -> Service:
        raise RuntimeError("no student")

    with pytest.raises(EngineError, match="did not start"), running(build_app(start, ServiceConfig())):
        pass


def trace(count: int, gap_s: float) -> pd.DataFrame:
    return pd.DataFrame({"time_s": np.arange(count) * gap_s, "query": "torso rug", "item_id": "i1"})


def test_the_load_is_open_loop(serving: Serving) -> None:
    """A stall counts against every request that should have been asked during it."""

    def stalls(prompts: Sequence[str], first: list[bool] = [True]) -> Any:  # noqa: B006
        if first.pop() if first else False:
            time.sleep(0.5)
        return l3(prompts)

    with serving(student=stalls) as url:
        answers = asyncio.run(replay(url, trace(20, 0.02)))
    waited = answers["latency_ms"].to_numpy()
    assert (answers["status"] == 200).all()
    assert (waited[:15] > 100).all(), "all of those were due while it stalled"
    assert waited[:5].mean() - waited[10:15].mean() > 100, "who was due 200 ms later waited less"
    assert (answers["late_ms"] < 400).all(), "none of them waited to be asked"


def test_the_load_in_a_process_of_its_own(serving: Serving) -> None:
    with serving() as url:
        answers = replay_apart(url, trace(10, 0.01), in_turn=3)
        told = summary(answers)
    assert answers["served_by"].tolist() == ["student"] * 10
    assert answers["time_s"].tolist()[:4] == pytest.approx([0, 0, 0, 0.03])
    assert told["requests"] == 10
    assert told["hit_rate"] == told["refused"] == told["degraded"] == 0
    assert told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"]


def test_a_service_that_is_not_there_is_counted_not_raised() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    answers = asyncio.run(replay(url, trace(3, 0.01)))
    assert answers["status"].tolist() == [0, 0, 0]
    with pytest.raises(Exception, match="none of 3 requests"):
        summary(answers)


@pytest.mark.parametrize(
    "wrong",
    [
        trace(0, 1),
        trace(3, 1).drop(columns="query"),
        trace(3, 1)[::-1],
        trace(2, LONGEST_S + 1),
        trace(2, np.nan),
    ],
    ids=["empty", "no query", "falling", "too long", "no time"],
)
def test_what_is_no_trace_is_refused(wrong: pd.DataFrame) -> None:
    with pytest.raises(Exception, match="time_s"):
        asyncio.run(replay("http://127.0.0.1:1", wrong))
