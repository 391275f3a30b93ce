"""Replies kept on disk by what was asked, so that a killed run pays for no call twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lore_lib.artifacts import make_folder
from lore_lib.cot.chat import ChatModel, Reply, Request
from lore_lib.endpoint import CALL_FAILURES
from lore_lib.errors import ArtifactError, EngineError

Read = TypeVar("Read")

_CREATE = (
    "CREATE TABLE IF NOT EXISTS replies "
    "(key BLOB PRIMARY KEY, text TEXT, prompt_tokens INTEGER, completion_tokens INTEGER) WITHOUT ROWID"
)


def request_key(identity: dict[str, Any], request: Request) -> bytes:
    """Sha256 of all that decides a reply: the model and how it is drawn, the messages, the schema."""
    asked = [identity, [dict(message) for message in request.messages], request.schema, request.sample]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


class ReplyCache:
    """A SQLite file (write-ahead log), safe for several threads and processes. Who puts failures in is wrong.

    Each reply is on its way to the disk when :meth:`put` returns; a killed process loses none. One file takes
    about a kilobyte per reply: past some ten million pairs give each worker its own.

    Args:
        path: the file; made if absent.

    Raises:
        ArtifactError: the file is no such cache. It is never deleted: it may hold what was paid for.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path, self._lock = path, threading.Lock()
        try:
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute(_CREATE)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def get(self, key: bytes) -> Reply | None:
        """The reply to a request, None where it is not known."""
        rows = self._run("SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?", key)
        return Reply(*rows[0]) if rows else None

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a good reply; of several to one request the last stays."""
        sizes = reply.prompt_tokens, reply.completion_tokens
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", key, reply.text, *sizes)

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM replies")[0][0])

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._base.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> ArtifactError:
        fix = "free the disk or move the file away, and run again; it may hold replies that were paid for"
        return ArtifactError(f"the cache of replies {self._path} cannot be used: {error}. Fix: {fix}.")


@dataclass(frozen=True)
class Heard(Generic[Read]):
    """What came back for a batch of requests.

    Attributes:
        read: of each request, in order.
        asked: places of the requests that the model was asked; of equal ones the first.
        known: how many others the cache answered; of equal ones the first counts.
    """

    read: list[Read]
    asked: list[int]
    known: int


def ask_once(
    model: ChatModel,
    requests: Sequence[Request],
    read: Callable[[int, Reply], Read],
    sound: Callable[[Read], bool],
    cache: ReplyCache | None = None,
) -> Heard[Read]:
    """Read a reply to each request: from the cache where it is known, and equal requests are asked once.

    Args:
        model: is asked the others.
        requests: what to ask.
        read: what a reply to the request at a place says.
        sound: whether a reply that says so may be kept; one from the cache that is not sound is asked anew.
        cache: keeps the sound ones, each as it comes in.

    Raises:
        EngineError: the model cannot answer at all, such as for want of a key.
    """
    keys = [request_key(model.identity, request) for request in requests]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    heard: dict[bytes, Read] = {}
    for key, place in first.items():
        old = None if cache is None else cache.get(key)
        if old and sound(said := read(place, old)):
            heard[key] = said
    missing = sorted((place, key) for key, place in first.items() if key not in heard)

    def arrived(number: int, reply: Reply) -> None:
        place, key = missing[number]
        heard[key] = read(place, reply)
        if cache is not None and sound(heard[key]):
            cache.put(key, reply)

    if missing:
        model.complete([requests[place] for place, _ in missing], arrived)
    return Heard([heard[key] for key in keys], [place for place, _ in missing], len(first) - len(missing))


def complete_cached(
    model: ChatModel, requests: Sequence[Request], cache: ReplyCache | None = None
) -> list[Reply]:
    """One reply per request, see :func:`ask_once`; a reply with a failure is never kept.

    Raises:
        EngineError: calls did not get through. Those that did are in the cache: running again goes on from
            there.
    """
    heard = ask_once(model, requests, lambda _, reply: reply, lambda reply: not reply.failure, cache)
    failures = [heard.read[place].failure for place in heard.asked]
    if lost := [failure for failure in failures if failure in CALL_FAILURES]:
        raise EngineError(
            f"{len(lost)} of {len(failures)} calls of {model.name} did not get through; first: {lost[0]} "
            f"({CALL_FAILURES[lost[0]]}). Run again: what was answered is kept"
        )
    return heard.read
