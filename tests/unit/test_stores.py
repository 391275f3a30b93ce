"""Stores of scores: SQLite in a file, and a real Redis or Valkey server where one is installed."""

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore_lib.errors import ConfigError
from lore_lib.serving.stores import (
    RedisStore,
    Score,
    SqliteStore,
    Store,
    StoreDown,
    decode,
    encode,
    open_store,
    score_key,
)

KEY, OTHER = score_key("judge", "red dress", "i1", "v1"), score_key("judge", "red dress", "i1", "v2")
NOW = 1_000_000.0


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_a_key_changes_with_everything_a_score_depends_on() -> None:
    parts = ["judge", "red dress", "i1", "v1"]
    changed = [score_key(*(part + "x" * (i == j) for j, part in enumerate(parts))) for i in range(4)]
    assert len({KEY, *changed}) == 5
    assert score_key("a", "bc", "", "d") != score_key("a", "b", "c", "d")


@given(st.sampled_from(["L1", "L2", "L3", "L4"]), st.integers(0, 2**33))
def test_a_score_is_read_as_it_was_written(label: str, moment: int) -> None:
    assert decode(KEY, encode(KEY, Score(label, moment)), 0) == Score(label, moment)


@given(st.integers(0, 100), st.integers(1, 255))
def test_a_damaged_score_is_a_miss(place: int, flip: int) -> None:
    stored = bytearray(encode(KEY, Score("L4", NOW)))
    stored[place % len(stored)] ^= flip
    assert decode(KEY, bytes(stored), 0) is None


@pytest.mark.parametrize(
    "stored", [None, b"", b"L4", b"L4 1", b"L9 1 00000000", b"\xff \xfe \xfd", b"L4 nan 1"]
)
def test_what_is_no_score_is_a_miss(stored: bytes | None) -> None:
    assert decode(KEY, stored, 0) is None


def test_a_score_under_a_foreign_key_is_a_miss() -> None:
    assert decode(OTHER, encode(KEY, Score("L4", NOW)), 0) is None


class Stores:
    """Makes stores of one kind over the same scores."""

    def __init__(self, make: Callable[[float, Callable[[], float]], Store]) -> None:
        self.make = make


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A server of its own, on a free port, that keeps nothing."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    assert binary, (
        "install redis-server or valkey-server (apt-get install redis-server), or leave the mark out"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 20
        while True:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    if request.param == "sqlite":
        return Stores(lambda ttl, clock: SqliteStore(tmp_path / "scores.sqlite", ttl, clock))
    url = request.getfixturevalue("redis_url")
    return Stores(lambda ttl, clock: RedisStore(url, ttl, clock))


def test_scores_are_kept_found_and_replaced(stores: Stores) -> None:
    async def work() -> None:
        store = stores.make(60, lambda: NOW)
        key, missing = score_key("kept", "q", "i", "v"), score_key("kept", "q", "i", "other")
        assert await store.get([]) == []
        await store.put({})
        await store.put({key: Score("L2", NOW - 5)})
        await store.put({key: Score("L4", NOW - 1)})
        assert await store.get([missing, key]) == [None, Score("L4", NOW - 1)]
        await store.close()
        again = stores.make(60, lambda: NOW)  # another process, or the next day
        assert await again.get([key]) == [Score("L4", NOW - 1)]
        await again.close()

    run(work())


def test_a_score_older_than_the_limit_is_a_miss(stores: Stores) -> None:
    async def work() -> None:
        key, old = score_key("ttl", "q", "i", "v"), score_key("ttl", "q", "i", "old")
        store = stores.make(60, lambda: NOW)
        await store.put({key: Score("L4", NOW), old: Score("L4", NOW - 61)})
        assert await store.get([key, old]) == [Score("L4", NOW), None]
        assert await stores.make(60, lambda: NOW + 60).get([key]) == [Score("L4", NOW)]
        assert await stores.make(60, lambda: NOW + 61).get([key]) == [None]
        await store.close()

    run(work())


def test_many_scores_at_once(stores: Stores) -> None:
    async def work() -> None:
        store = stores.make(60, lambda: NOW)
        scores = {score_key("many", "q", str(i), "v"): Score("L3", NOW) for i in range(2500)}
        await store.put(scores)
        assert await store.get(list(scores)) == [Score("L3", NOW)] * 2500
        await store.close()

    run(work())


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"this is no database" * 100)

    async def work() -> None:
        store = SqliteStore(path, 60, lambda: NOW)
        assert await store.get([KEY]) == [None]
        await store.put({KEY: Score("L4", NOW)})
        assert await store.get([KEY]) == [Score("L4", NOW)]
        await store.close()

    run(work())
    assert path.with_name("scores.sqlite.damaged").read_bytes().startswith(b"this is no")


def test_a_file_that_vanishes_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.sqlite"

    async def work() -> None:
        store = SqliteStore(path, 60, lambda: NOW)
        await store.put({KEY: Score("L4", NOW)})
        shutil.rmtree(path.parent)
        assert await store.get([KEY]) == [None]
        await store.put({KEY: Score("L1", NOW)})
        assert await store.get([KEY]) == [Score("L1", NOW)]
        await store.close()

    run(work())


def test_a_file_that_cannot_be_opened_is_down_and_named(tmp_path: Path) -> None:
    (tmp_path / "scores.sqlite").mkdir()
    with pytest.raises(StoreDown, match=r"sqlite scores\.sqlite"):
        run(SqliteStore(tmp_path / "scores.sqlite", 60).get([KEY]))


def test_a_locked_file_is_down_for_writing_not_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"

    async def work() -> None:
        store = SqliteStore(path, 60, lambda: NOW)
        await store.put({KEY: Score("L4", NOW)})
        with sqlite3.connect(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreDown, match="locked"):
                await store.put({OTHER: Score("L4", NOW)})
            assert await store.get([KEY]) == [Score("L4", NOW)]
            other.rollback()
        await store.put({OTHER: Score("L4", NOW)})
        await store.close()

    run(work())


def test_an_old_score_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    clock = [NOW]

    async def work() -> None:
        store = SqliteStore(path, 60, lambda: clock[0])
        await store.put({KEY: Score("L4", NOW)})
        clock[0] = NOW + 100
        await store.put({OTHER: Score("L4", NOW + 100)})
        await store.close()

    run(work())
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT key FROM scores").fetchall() == [(OTHER,)]


@pytest.mark.redis
def test_foreign_values_in_redis_are_misses(redis_url: str) -> None:
    async def work() -> None:
        store = RedisStore(redis_url, 60, lambda: NOW)
        await store._client.set(b"lore:" + KEY, b"L4")
        await store._client.lpush(b"lore:" + OTHER, b"a list")
        assert await store.get([KEY, OTHER]) == [None, None]
        await store.close()

    run(work())


@pytest.mark.redis
def test_redis_forgets_what_is_too_old(redis_url: str) -> None:
    async def work() -> None:
        store = RedisStore(redis_url, 100, lambda: NOW)
        key = score_key("forgets", "q", "i", "v")
        await store.put({key: Score("L4", NOW - 40)})
        assert 50 <= await store._client.ttl(b"lore:" + key) <= 60
        await store.close()

    run(work())


def test_a_server_that_is_gone_is_down_at_once_and_keeps_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def work() -> None:
        store = open_store(f"redis://:s3cret@127.0.0.1:{port}/0", 60)
        start = time.monotonic()
        for call in (store.get([KEY]), store.get([]), store.put({KEY: Score("L4", time.time())})):
            with pytest.raises(StoreDown) as caught:
                await call
            assert "s3cret" not in str(caught.value)
            assert f"127.0.0.1:{port}" in str(caught.value)
        assert time.monotonic() - start < 5
        await store.close()

    run(work())


def test_a_server_that_hangs_is_down_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        async def work() -> None:
            store = open_store(f"valkey://127.0.0.1:{silent.getsockname()[1]}", 60)
            with pytest.raises(StoreDown):
                await asyncio.wait_for(store.get([KEY]), 5)
            await store.close()

        run(work())


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "mysql://h/x", "redis://", "scores.sqlite"])
def test_another_url_is_refused_with_the_ones_there_are(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_store(url, 60)


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        open_store("redis://host:abc/0", 60)


def test_the_path_of_a_url_is_relative_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(open_store("sqlite:///here.sqlite", 60).put({}))
    run(open_store(f"sqlite:///{tmp_path}/there.sqlite", 60).put({}))
    assert (tmp_path / "here.sqlite").is_file()
    assert (tmp_path / "there.sqlite").is_file()
