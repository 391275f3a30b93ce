"""One request, answered for real: which judge, in what time, and what instead when one of them fails.

Head queries are looked up among the scores made offline, torso queries go to the student, tail queries to the
LLM; `router.route` says the same over arrays. Whatever fails, the student answers, and the answer says so: it
is marked `degraded`, with one of `REASONS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from lore_lib.config import ServiceConfig
from lore_lib.errors import DataError, LoreError
from lore_lib.features.packing import Packer
from lore_lib.features.prompts import item_sections, neutralise
from lore_lib.serving.catalogue import Catalogue
from lore_lib.serving.stores import Score, Store, StoreDown, score_key
from lore_lib.vertical.schema import LABELS, RELEVANT

REASONS: dict[str, str] = {
    "store_down": "the store of scores did not answer",
    "llm_down": "the LLM failed, or did so lately and is left alone for a while",
    "llm_slow": "the LLM did not answer within service.llm_timeout_ms",
    "llm_busy": "as many requests as service.llm_queue_limit were waiting for the LLM",
    "llm_unreadable": "the LLM's answer holds no label",
}
"""Why the student answered in another judge's place."""

FAILURES, REST_S = 5, 5.0  # so many failures in a row, and a part is left alone for so long

Result = TypeVar("Result")


class Overloaded(LoreError):
    """More requests wait than may; ask again in a moment."""


class UnknownItem(DataError):
    """The catalogue has no such item."""


class QueryCounter:
    """Names a query's stratum from requests of the past, and counts this one for the future.

    Requests are counted in windows. A stratum is read from finished windows only, never from the one under
    way; of these the newest weighs half, the one before a quarter, and so on, so that what was asked long ago
    fades and memory is bounded by the distinct queries of a few windows.

    Args:
        past: requests per window by query; more than none.
        head_share: share of the distinct queries of the past that are head, the most asked first.
        torso_share: the next share, torso. All others, and queries never seen, are tail.
        window: requests per window.

    Raises:
        DataError: no past, or no window.

    Example:
        >>> counter = QueryCounter({"dress": 80, "rug": 15, "oak shelf": 1}, 0.3, 0.3, window=100)
        >>> [counter.observe(query) for query in ("dress", "rug", "oak shelf", "never seen")]
        ['head', 'torso', 'tail', 'tail']
    """

    def __init__(self, past: dict[str, float], head_share: float, torso_share: float, window: int) -> None:
        if not past or window < 1:
            raise DataError(f"{len(past)} past queries, windows of {window} requests; give 1 or more of both")
        ranked = sorted(past.values(), reverse=True)
        self.head_at_least = _least(ranked, head_share)
        self.torso_at_least = min(self.head_at_least, _least(ranked, head_share + torso_share))
        self._past, self._window = dict(past), window
        self._now: dict[str, int] = {}
        self._seen = 0

    def observe(self, query: str) -> str:
        """The stratum of the query as the past has it; then this request is counted."""
        stratum = self.stratum(query)
        self._now[query] = self._now.get(query, 0) + 1
        self._seen += 1
        if self._seen >= self._window:
            self._turn()
        return stratum

    def stratum(self, query: str) -> str:
        """The stratum of the query, without counting."""
        count = self._past.get(query, 0.0)
        return "head" if count >= self.head_at_least else "torso" if count >= self.torso_at_least else "tail"

    def __len__(self) -> int:
        return len(self._past) + len(self._now)

    def _turn(self) -> None:
        queries = self._past.keys() | self._now.keys()
        mixed = {query: (self._past.get(query, 0.0) + self._now.get(query, 0)) / 2 for query in queries}
        self._past = {query: count for query, count in mixed.items() if count >= 0.25}
        self._now, self._seen = {}, 0


def _least(ranked: list[float], share: float) -> float:
    """The count of the last query within a share of the most asked."""
    place = int(np.ceil(share * len(ranked) - 1e-9))
    return ranked[place - 1] if place else np.inf


class Batcher(Generic[Result]):
    """Hands waiting requests to a worker thread, as many at once as have gathered while it was busy.

    Nobody waits for a batch to fill: alone, a request is worked on at once.

    Args:
        work: a batch of prompts to a result for each; one that is an exception is raised to who asked.
        most: prompts in a batch.
        queue_limit: prompts that may wait; beyond it `ask` raises `Overloaded`.
        workers: batches worked on at once.
    """

    def __init__(
        self,
        work: Callable[[Sequence[str]], Sequence[Result | Exception]],
        most: int,
        queue_limit: int,
        workers: int = 1,
    ) -> None:
        self._work, self._most, self._limit, self._workers = work, most, queue_limit, workers
        self._waiting: deque[tuple[str, asyncio.Future[Result]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    @property
    def waiting(self) -> int:
        """Prompts that no worker has taken yet."""
        return len(self._waiting)

    async def ask(self, prompt: str) -> Result:
        """The result for one prompt; whoever stops waiting leaves the queue."""
        if len(self._waiting) >= self._limit:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = prompt, future
        self._waiting.append(entry)
        self._start()
        try:
            return await future
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            raise

    def close(self) -> None:
        """Take no more work; what a thread is at is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._workers:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: list[tuple[str, asyncio.Future[Result]]]) -> None:
        prompts = [prompt for prompt, _ in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._threads, self._work, prompts)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # its request went away
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        except Exception as error:  # whatever a judge dies of, its requests must hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


class Breaker:
    """Leaves a part alone for a while once it has failed several times in a row.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._failures, self._until = clock, 0, -np.inf

    @property
    def open(self) -> bool:
        """True while the part is left alone; after that one failure is enough to leave it alone again."""
        return self._clock() < self._until

    def failed(self) -> None:
        """Count a failure."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._until = self._clock() + REST_S

    def worked(self) -> None:
        """Forget the failures."""
        self._failures = 0


@dataclass(frozen=True)
class Answer:
    """What one pair got.

    Attributes:
        label: L1 to L4.
        relevant: whether that is L3 or L4.
        probabilities: of L1..L4, from the student; None from the others.
        served_by: cache, student or llm.
        stratum: head, torso or tail.
        degraded: whether another judge should have answered.
        reason: key of `REASONS`; "" if not degraded.
        age_s: seconds since a cached score was made; None from the others.
        latency_ms: inside the service.
    """

    label: str
    relevant: bool
    probabilities: tuple[float, ...] | None
    served_by: str
    stratum: str
    degraded: bool
    reason: str
    age_s: float | None
    latency_ms: float


@dataclass(frozen=True)
class Prompts:
    """Writes what a judge reads.

    Attributes:
        llm: packer of the LLM's prompts.
        student: packer of the student's.
    """

    llm: Packer
    student: Packer


Probabilities = Callable[[Sequence[str]], Any]
Labels = Callable[[Sequence[str]], Sequence[str | Exception]]


class Service:
    """Answers pairs; use it inside one event loop.

    Args:
        catalogue: the items that may be asked for.
        prompts: writes the judges' prompts.
        counter: names strata.
        store: scores made offline, by `score_key`.
        judge: name of who made them, as in their keys.
        student: prompts to probabilities (prompts, 4).
        llm: prompts to labels, "" where it wrote none, an exception where it failed; None serves the tail by
            the student.
        limits: the section `service` of the config.
        clock: seconds since 1970, for the age of scores.
        release: called when the service closes, such as to end the LLM's processes.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        prompts: Prompts,
        counter: QueryCounter,
        store: Store,
        judge: str,
        student: Probabilities,
        llm: Labels | None,
        limits: ServiceConfig,
        clock: Callable[[], float] = time.time,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.catalogue, self.counter, self.store, self.judge = catalogue, counter, store, judge
        self._prompts, self._clock, self._release = prompts, clock, release
        self._llm_wait_s = limits.llm_timeout_ms / 1000
        self.student: Batcher[Any] = Batcher(student, limits.student_batch, limits.student_queue_limit)
        self.llm = Batcher(llm, limits.llm_batch, limits.llm_queue_limit, limits.llm_workers) if llm else None
        self.store_breaker, self.llm_breaker = Breaker(), Breaker()

    async def answer(self, query: str, item_id: str) -> Answer:
        """Judge one pair.

        Raises:
            UnknownItem: the catalogue has no such item.
            DataError: the query holds nothing, or is longer than the prompt's budget.
            Overloaded: even the student has too many waiting.
        """
        start = time.perf_counter()
        item = self.catalogue.find(item_id)
        if item is None:
            raise UnknownItem("the catalogue has no item of this item_id")
        asked = neutralise(query)
        if not asked:
            raise DataError("the query holds no text; write what the shopper asks for")
        stratum, reason = self.counter.observe(asked), ""
        label, served_by, age_s, shares = "", "student", None, None
        if stratum == "head":
            score, reason = await self._look_up(score_key(self.judge, asked, item_id, item.version))
            if score:
                label, served_by, age_s = score.label, "cache", max(0.0, self._clock() - score.scored_at)
        elif stratum == "tail" and self.llm:
            label, reason = await self._ask_llm(self.llm, self._write(self._prompts.llm, asked, item.fields))
            served_by = "llm" if label else "student"
        if not label:
            shares = await self.student.ask(self._write(self._prompts.student, asked, item.fields))
            label = LABELS[int(np.argmax(shares))]
        return Answer(
            label=label,
            relevant=label in RELEVANT,
            probabilities=None if shares is None else tuple(round(float(share), 4) for share in shares),
            served_by=served_by,
            stratum=stratum,
            degraded=bool(reason),
            reason=reason,
            age_s=age_s,
            latency_ms=round((time.perf_counter() - start) * 1000, 3),
        )

    async def fill(self, scores: pd.DataFrame) -> int:
        """Put scores made offline into the store; those of items that have changed or gone stay out.

        Args:
            scores: query, item_id, version (of the item as judged), label, scored_at (seconds since 1970).

        Returns:
            How many were put in.

        Raises:
            StoreDown: the store does not answer.
        """
        rows = {}
        for row in scores.itertuples(index=False):
            item = self.catalogue.find(str(row.item_id))
            if item and item.version == row.version and row.label:
                key = score_key(self.judge, neutralise(str(row.query)), str(row.item_id), item.version)
                rows[key] = Score(str(row.label), float(str(row.scored_at)))
        await self.store.put(rows)
        return len(rows)

    async def degraded(self) -> list[str]:
        """What does not work at the moment, as keys of `REASONS`."""
        try:
            await self.store.get([])
        except StoreDown:
            self.store_breaker.failed()
            return ["store_down"] + ["llm_down"] * self.llm_breaker.open
        return ["llm_down"] * self.llm_breaker.open

    async def close(self) -> None:
        """Let the judges and the store go."""
        self.student.close()
        if self.llm:
            self.llm.close()
        if self._release:
            self._release()
        await self.store.close()

    def _write(self, packer: Packer, query: str, fields: dict[str, Any]) -> str:
        picture = fields["picture"]
        return packer.pack([(0, 0)], [query], [item_sections(fields, picture)])[0].prompt

    async def _look_up(self, key: bytes) -> tuple[Score | None, str]:
        if self.store_breaker.open:
            return None, "store_down"
        try:
            (score,) = await self.store.get([key])
        except StoreDown:
            self.store_breaker.failed()
            return None, "store_down"
        self.store_breaker.worked()
        return score, ""

    async def _ask_llm(self, llm: Batcher[str], prompt: str) -> tuple[str, str]:
        if self.llm_breaker.open:
            return "", "llm_down"
        try:
            async with asyncio.timeout(self._llm_wait_s):
                label = await llm.ask(prompt)
        except Overloaded:
            return "", "llm_busy"
        except TimeoutError:
            self.llm_breaker.failed()
            return "", "llm_slow"
        except Exception:  # of any engine; the student answers, and the reason is counted
            self.llm_breaker.failed()
            return "", "llm_down"
        self.llm_breaker.worked()
        return label, "" if label else "llm_unreadable"
