"""Days of traffic in seconds: requests stream through strata, cache, router and the LLM's queue.

Service times are drawn from those measured beforehand, so the result is as true as those are. What is not
modelled: queueing before the cache and the student (watch `student_load`), network time, and the seconds
that a student takes before it hands an unsure request on to the LLM's queue (they are added to its latency).
"""

from math import ceil
from typing import Any, NamedTuple

import numpy as np

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.cache import OfflineScores
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.population import UNREAD, Population
from lore_lib.serving.queues import REFUSED, SERVED, TIMED_OUT, WAITING, Pool, serve_in_arrays
from lore_lib.serving.router import ASK_CACHE, ASK_LLM, CACHE, LLM, STUDENT, route
from lore_lib.serving.strata import HEAD, TORSO, Codes, Counter, CountMin, DecayedCounts, stratify
from lore_lib.serving.tally import Served, Tally
from lore_lib.serving.traffic import Chunk, arrival_rate, request_stream

WARM_UP_DAYS = 1.0  # requests that are only counted, so that strata and cache have a past


class Pace(NamedTuple):
    """How fast requests come, and how long a day is."""

    per_second: float
    day_s: float


def pace(config: ServingConfig, shares: Floats, times: ServiceTimes) -> Pace:
    """The rate at which the tail alone keeps the LLM's workers busy as much as `config.llm_utilisation` says.

    The tail is what strata leave to it half way through, of as many distinct queries as are expected by then.
    So a slow machine gets less traffic and no longer queue, and two machines compare. The day is as long as
    it takes for `config.requests` to fill `config.days`.

    Raises:
        DataError: no query is tail.
    """
    asked = config.requests / config.days * (WARM_UP_DAYS + config.days / 2)
    seen = -np.expm1(asked * np.log1p(-np.minimum(shares, 1 - 1e-12))).sum()  # distinct queries, expected
    tail = shares[ceil((config.head_share + config.torso_share) * seen - 1e-9) :].sum()
    work_s = times.llm_ms.mean() * config.llm_slowdown / 1000
    rate = arrival_rate(config.llm_utilisation, float(tail), work_s, config.llm_workers)
    return Pace(rate, config.requests / config.days / rate)


class Server:
    """Cache, student and LLM behind one router, fed chunk by chunk.

    Memory holds one chunk, the queue and the state of each pair. Whoever wants each request and not their
    sums reads what `answer` returns.
    """

    def __init__(
        self,
        population: Population,
        policy: str,
        config: ServingConfig,
        times: ServiceTimes,
        day_s: float,
        rng: np.random.Generator,
    ) -> None:
        """Start with an empty cache and no past.

        Args:
            population: whom the requests ask about.
            policy: one of `router.POLICIES`.
            config: every knob.
            times: measured service times.
            day_s: seconds of a day, as of the stream.
            rng: source of service times, changes and noise.
        """
        self._population, self._policy, self._config = population, policy, config
        self._times, self._day_s, self._rng = times, day_s, rng
        pairs, queries = len(population.row), len(population.source)
        self._content = population.row.copy()  # the judged row that each pair shows now
        self._changed_day = np.full(pairs, -np.inf)
        self._query_counts, self._pair_counts = (_counter(config, keys, rng) for keys in (queries, pairs))
        self._scores = OfflineScores(pairs, config.cache_pairs, config.ttl_days)
        self._pool = Pool(
            workers=config.llm_workers,
            queue_limit=config.llm_queue_limit,
            batch=config.llm_batch,
            batch_cost=config.llm_batch_cost,
            timeout_s=config.llm_timeout_s,
            outages=tuple(
                ((WARM_UP_DAYS + start) * day_s, (WARM_UP_DAYS + end) * day_s)
                for start, end in config.llm_outages
            ),
        )
        self._free_s = np.zeros(config.llm_workers)
        self._held: dict[str, Any] = {}  # requests that wait from one chunk to the next
        self._strata: Codes | None = None  # none in the warm-up
        self._day, self._next_refill = 0.0, WARM_UP_DAYS
        self.begin_s = self.end_s = 0.0  # of what was served
        self.offline_pairs = 0  # pairs scored by refills

    def answer(self, chunk: Chunk) -> Served | None:
        """Take a chunk in; give back what was answered meanwhile. None in the warm-up, which only counts."""
        day = chunk.begin_s / self._day_s
        self._change(chunk, day)
        if day >= self._next_refill - 1e-9:
            if self._strata is None:
                self.begin_s = chunk.begin_s
            self._refill(day)
        self._query_counts.add(chunk.query)
        self._pair_counts.add(chunk.pair)
        if self._strata is None or not len(chunk.time_s):
            return None
        self.end_s = float(chunk.time_s[-1])
        return self._serve(self._look_up(chunk, self._strata), self.end_s)

    def close(self) -> Served | None:
        """Answer those that still wait."""
        return self._serve(self._held, np.inf) if len(self._held.get("time_s", ())) else None

    def _change(self, chunk: Chunk, day: float) -> None:
        """Let time pass, and items change and vanish."""
        moved = np.concatenate([chunk.changed, chunk.replaced])
        self._content[moved] = self._population.another_row(moved, self._content[moved], self._rng)
        self._changed_day[moved] = day
        self._scores.invalidate(moved if self._config.invalidate else chunk.replaced)
        self._pair_counts.forget(chunk.replaced)
        for counts in (self._query_counts, self._pair_counts):
            counts.age(day - self._day)
        self._day = day

    def _refill(self, day: float) -> None:
        """Decide strata from past counts, and score for the cache what is head now."""
        config, per_query = self._config, self._population.pairs_per_query
        counts = self._query_counts.estimate()
        if config.frequency_noise:
            counts *= self._rng.lognormal(0, config.frequency_noise, len(counts))
        self._strata = stratify(counts, config.head_share, config.torso_share)
        self._next_refill = day + 1 / config.refills_per_day
        if self._policy in ASK_CACHE:
            readable = self._population.answers[0][self._content] != UNREAD
            demand = self._pair_counts.estimate()
            demand[~(np.repeat(self._strata == HEAD, per_query) & readable)] = 0
            ahead = 1 / config.refills_per_day
            self.offline_pairs += self._scores.refill(demand, config.admit_count, self._content, day, ahead)

    def _look_up(self, chunk: Chunk, strata: Codes) -> dict[str, Any]:
        """All that is known of each request before the LLM's queue, the route among it."""
        population, pair, day = self._population, chunk.pair, chunk.time_s / self._day_s
        heads, torsos = ((strata <= code).sum() for code in (HEAD, TORSO))
        stratum, row, scored = strata[chunk.query], self._content[pair], self._scores.scored[pair]
        llm_label, student_label = population.answers[:, row]
        route_to = route(
            self._policy,
            stratum,
            self._scores.valid(pair, day),
            population.confidence[row] < self._config.escalate_below,
            self._rng.random(len(pair)),
            self._config.random_llm_share,
        )
        work_s = np.zeros(len(pair))
        llm = route_to == LLM
        work_s[llm] = self._rng.choice(self._times.llm_ms, int(llm.sum())) * self._config.llm_slowdown / 1000
        return {
            "time_s": chunk.time_s,
            "pair": pair,
            "stratum": stratum,
            "misplaced": stratum != (chunk.rank >= heads).astype(np.int8) + (chunk.rank >= torsos),
            "source": population.source[chunk.query],
            "gold": population.gold[row],
            "llm_label": llm_label,
            "student_label": student_label,
            "cached_label": population.answers[0][self._scores.content[pair]],
            "stale": scored < self._changed_day[pair],
            "age_days": day - scored,
            "route": route_to,
            "llm_s": work_s,
            "cache_ms": self._rng.choice(self._times.cache_ms, len(pair)),
            "student_ms": self._rng.choice(self._times.student_ms, len(pair)),
        }

    def _serve(self, asked: dict[str, Any], until: float) -> Served:
        """Answer what can be by then: all of cache and student, and what has left the LLM's queue."""
        waiting = len(self._held.get("time_s", ()))
        if waiting and asked is not self._held:
            asked = {name: np.concatenate([self._held[name], asked[name]]) for name in asked}
        queued = np.flatnonzero(asked["route"] == LLM)
        status = np.full(len(asked["route"]), SERVED, dtype=np.int8)
        finish_s, busy_s = asked["time_s"].copy(), np.zeros(len(status))
        status[queued], finish_s[queued], busy_s[queued] = serve_in_arrays(
            asked["time_s"][queued], asked["llm_s"][queued], self._pool, self._free_s, waiting, until
        )
        left = status == WAITING
        self._held = {name: values[left] for name, values in asked.items()}
        if left.any():
            asked = {name: values[~left] for name, values in asked.items()}
            status, finish_s, busy_s = status[~left], finish_s[~left], busy_s[~left]
        fallback = (status == REFUSED) | (status == TIMED_OUT)
        answered = np.where(fallback, STUDENT, asked["route"])
        by_cache, by_llm = answered == CACHE, answered == LLM
        worked = ~by_cache if self._policy == "confidence" else answered == STUDENT
        student_ms = np.where(worked, asked["student_ms"], 0.0)
        queue_ms = (finish_s - asked["time_s"]) * 1000
        labels = [asked["cached_label"], asked["llm_label"]]
        return Served(
            time_s=asked["time_s"],
            pair=asked["pair"],
            stratum=asked["stratum"],
            misplaced=asked["misplaced"],
            source=asked["source"],
            gold=asked["gold"],
            predicted=np.select([by_cache, by_llm], labels, asked["student_label"]),
            route=answered.astype(np.int8),
            fallback=fallback,
            latency_ms=queue_ms + np.where(by_cache, asked["cache_ms"], student_ms),
            student_ms=student_ms,
            llm_ms=busy_s * 1000,
            stale=by_cache & asked["stale"],
            age_days=np.where(by_cache, asked["age_days"], 0.0),
        )


def simulate(
    population: Population,
    shares: Floats,
    policy: str,
    config: ServingConfig,
    times: ServiceTimes,
    seed: int,
    at: Pace | None = None,
) -> Tally:
    """Serve about `config.requests` under one routing policy and add them up.

    Args:
        population: the queries, most popular first.
        shares: (queries,) of the traffic by rank.
        policy: one of `router.POLICIES`.
        config: every knob.
        times: measured service times.
        seed: the same seed brings the same requests to every policy.
        at: the rate; None: as `pace` says.

    Raises:
        DataError: nothing came after the warm-up, or as in `request_stream`.
    """
    rate = at or pace(config, shares, times)
    total = round(config.requests * (1 + WARM_UP_DAYS / config.days))
    stream = request_stream(
        shares, population.pairs_per_query, config, total, *rate, generator(seed, "traffic")
    )
    server = Server(population, policy, config, times, rate.day_s, generator(seed, "service"))
    tally = Tally(population)
    for chunk in stream:
        if served := server.answer(chunk):
            tally.add(served)
    if served := server.close():
        tally.add(served)
    if not tally.requests:
        raise DataError(f"no request came after the warm-up of {WARM_UP_DAYS:g} day; raise serving.requests.")
    batch = config.llm_batch
    batched = (1 + config.llm_batch_cost * (batch - 1)) / batch
    tally.offline_pairs = server.offline_pairs
    tally.offline_s = server.offline_pairs * times.llm_ms.mean() / 1000 * batched
    tally.seconds = server.end_s - server.begin_s
    tally.worker_s = tally.seconds * config.llm_workers if policy in ASK_LLM else 0.0
    return tally


def _counter(config: ServingConfig, keys: int, rng: np.random.Generator) -> Counter:
    if config.sketch_width:
        return CountMin(keys, config.memory_days, config.sketch_width, rng)
    return DecayedCounts(keys, config.memory_days)
