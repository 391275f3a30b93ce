"""Where scores wait to be served: SQLite in a file, Redis or Valkey by URL.

A score is found by a key that holds all it depends on: who judged, the query, the item and the item's
version. So an item that changes, or a new judge, leaves the old scores behind unread. Beyond that a score has
an age, and what is older than the store's limit is a miss. What is read is checked: a value that was damaged,
or that stands under a foreign key, is a miss as well.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from lore_lib.errors import ConfigError, EngineError
from lore_lib.vertical.schema import LABELS

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEY_BYTES, SUM_BYTES = 16, 4
PUT_ROWS = 1000  # scores written at a time
SQLITE_WAIT_S = 0.05  # for another process that is writing; beyond it the store counts as down
REDIS_WAIT_S = 0.25  # for a connection, and for an answer

Clock = Callable[[], float]


class StoreDown(EngineError):
    """The store did not answer; whoever asked goes on without it."""


class Score(NamedTuple):
    """A label and when it was given, in seconds since 1970."""

    label: str
    scored_at: float


def score_key(judge: str, query: str, item_id: str, version: str) -> bytes:
    """The name of a score: 16 bytes that change with any of the four.

    >>> score_key("j", "ab", "c", "1") == score_key("j", "a", "bc", "1")
    False
    """
    parts = (part.encode() for part in (judge, query, item_id, version))
    told = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return blake2b(told, digest_size=KEY_BYTES).digest()


def encode(key: bytes, score: Score) -> bytes:
    """A score as it is stored: label, time, and a sum over both and the key."""
    told = f"{score.label} {score.scored_at:.0f}".encode()
    return told + b" " + _sum(key, told)


def decode(key: bytes, stored: bytes | None, oldest: float) -> Score | None:
    """What `encode` wrote; None for nothing, for what is older than `oldest`, and for anything else."""
    if not stored:
        return None
    told, _, proof = stored.rpartition(b" ")
    label, _, moment = told.decode("ascii", "replace").partition(" ")
    if label not in LABELS or not moment.isdigit() or proof != _sum(key, told):
        return None
    return Score(label, float(moment)) if float(moment) >= oldest else None


def _sum(key: bytes, told: bytes) -> bytes:
    return blake2b(told, key=key, digest_size=SUM_BYTES).hexdigest().encode()


class Store(Protocol):
    """Scores by key. Every call raises `StoreDown` where the store does not answer."""

    @property
    def name(self) -> str:
        """Where it is, without any password."""

    async def get(self, keys: Sequence[bytes]) -> list[Score | None]:
        """The fresh score of each key, None where there is none; no keys just see whether it answers."""

    async def put(self, scores: Mapping[bytes, Score]) -> None:
        """Write scores, over older ones of the same key."""

    async def close(self) -> None:
        """Let go of the store; the scores stay."""


class SqliteStore:
    """Scores in one file, for one machine.

    Looked up where the event loop runs: a lookup takes microseconds, less than handing it to a thread. A file
    that is damaged is set aside as <name>.damaged and a new one begun: scores can be made again.

    Args:
        path: of the file; made where absent.
        ttl_s: seconds after which a score is a miss.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, ttl_s: float, clock: Clock = time.time) -> None:
        self._path, self._ttl_s, self._clock = path, ttl_s, clock
        self._open: tuple[sqlite3.Connection, int] | None = None

    @property
    def name(self) -> str:
        """The file."""
        return f"sqlite {self._path.name}"

    async def get(self, keys: Sequence[bytes]) -> list[Score | None]:
        """See `Store`."""
        oldest = self._clock() - self._ttl_s
        find = "SELECT value FROM scores WHERE key = ?"
        try:
            connection = self._connection()
            found = [connection.execute(find, (key,)).fetchone() for key in keys]
        except (sqlite3.Error, OSError) as error:
            raise self._down(error) from error
        return [
            decode(key, _bytes(row[0]) if row else None, oldest) for key, row in zip(keys, found, strict=True)
        ]

    async def put(self, scores: Mapping[bytes, Score]) -> None:
        """See `Store`; scores too old to be served are deleted on the way."""
        rows = [(key, encode(key, score), score.scored_at) for key, score in scores.items()]
        try:
            connection = self._connection()
            with connection:
                connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
                connection.execute("DELETE FROM scores WHERE scored_at < ?", (self._clock() - self._ttl_s,))
        except (sqlite3.Error, OSError) as error:
            raise self._down(error) from error

    async def close(self) -> None:
        """See `Store`."""
        if self._open:
            with suppress(sqlite3.Error):
                self._open[0].close()
        self._open = None

    def _connection(self) -> sqlite3.Connection:
        """The open file; opened anew after an error, and when another file has taken its place."""
        if self._open and self._path.exists() and self._path.stat().st_ino == self._open[1]:
            return self._open[0]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = self._begin()
        except sqlite3.OperationalError:  # locked, or not to be opened: nothing is known against the file
            raise
        except sqlite3.DatabaseError:
            self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
            for beside in ("-wal", "-shm"):
                self._path.with_name(self._path.name + beside).unlink(missing_ok=True)
            connection = self._begin()
        self._open = connection, self._path.stat().st_ino
        return connection

    def _begin(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=SQLITE_WAIT_S)
        try:
            connection.execute("PRAGMA journal_mode = WAL")  # a writer does not hold up those who read
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores"
                " (key BLOB PRIMARY KEY, value BLOB, scored_at REAL) WITHOUT ROWID"
            )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _down(self, error: Exception) -> StoreDown:
        if self._open:
            with suppress(sqlite3.Error):
                self._open[0].close()
        self._open = None
        return StoreDown(f"{self.name}: {error}")


class RedisStore:
    """Scores in Redis or Valkey, for many machines; needs the extra ``serve``.

    Args:
        url: redis://[[user]:password@]host[:port][/number], or rediss:// for TLS.
        ttl_s: seconds after which a score is a miss; the server then forgets it.
        clock: seconds since 1970.
    """

    def __init__(self, url: str, ttl_s: float, clock: Clock = time.time) -> None:
        from redis.asyncio import Redis

        self._ttl_s, self._clock = ttl_s, clock
        self._client: Redis = Redis.from_url(
            url, socket_timeout=REDIS_WAIT_S, socket_connect_timeout=REDIS_WAIT_S, retry=None
        )
        parts = urlsplit(url)
        self._name = f"{parts.scheme} {parts.hostname}:{parts.port or 6379}"

    @property
    def name(self) -> str:
        """Host and port; the password stays out of every message."""
        return self._name

    async def get(self, keys: Sequence[bytes]) -> list[Score | None]:
        """See `Store`."""
        from redis.exceptions import RedisError

        oldest = self._clock() - self._ttl_s
        try:
            found = await self._client.mget([_named(key) for key in keys]) if keys else []
            if not keys:
                await self._client.ping()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreDown(f"{self.name}: {type(error).__name__}") from error
        return [decode(key, _bytes(value), oldest) for key, value in zip(keys, found, strict=True)]

    async def put(self, scores: Mapping[bytes, Score]) -> None:
        """See `Store`; a score that is too old already is not sent."""
        from redis.exceptions import RedisError

        now = self._clock()
        rows = [(key, score, self._ttl_s - (now - score.scored_at)) for key, score in scores.items()]
        rows = [row for row in rows if row[2] >= 1]
        try:
            for start in range(0, len(rows), PUT_ROWS):
                async with self._client.pipeline(transaction=False) as pipe:
                    for key, score, left_s in rows[start : start + PUT_ROWS]:
                        pipe.set(_named(key), encode(key, score), ex=int(left_s))
                    await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreDown(f"{self.name}: {type(error).__name__}") from error

    async def close(self) -> None:
        """See `Store`."""
        await self._client.aclose()


def _named(key: bytes) -> bytes:
    return b"lore:" + key


def _bytes(value: object) -> bytes | None:
    """What a store gave back; a text or number that somebody else put there is no score."""
    return value if isinstance(value, bytes) else None


def open_store(url: str, ttl_s: float) -> Store:
    """The store at a URL: sqlite:///<path> (four slashes for an absolute one), redis:// or rediss:// or valkey://.

    Raises:
        ConfigError: another scheme, no path, or no host.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite" and len(parts.path) > 1:
        return SqliteStore(Path(parts.path[1:]), ttl_s)
    if parts.scheme in ("redis", "rediss", "valkey") and parts.hostname:
        try:
            return RedisStore(url.replace("valkey://", "redis://", 1), ttl_s)
        except ValueError as error:  # a port or a database that is no number
            raise ConfigError(f"a store's URL cannot be read: {error}; give redis://host:6379/0") from error
    raise ConfigError(
        f"a store's URL begins with {parts.scheme or 'no scheme'!r}; "
        "give sqlite:///scores.sqlite, redis://host:6379/0 or valkey://host:6379/0"
    )
