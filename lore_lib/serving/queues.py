"""The queue before the LLM: workers that take waiting requests in batches, a limit, a timeout, outages.

Three ways to the same answer, each a check on the others: `serve_in_simpy` says the rules as processes,
`serve_in_arrays` computes them in one compiled pass, and `erlang_c_wait` is the theory where there is one.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simpy
from numba import njit
from numpy.typing import NDArray

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats

WAITING, SERVED, REFUSED, TIMED_OUT = range(4)  # what became of a request


@dataclass(frozen=True)
class Pool:
    """LLM workers behind one first-come-first-served queue.

    A free worker takes at once what waits, up to `batch` requests. The batch takes as long as its longest
    member alone, times 1 + batch_cost x (members - 1): 0 is batching for free, 1 no gain over one by one.
    """

    workers: int
    queue_limit: int  # a request that finds this many waiting is refused
    batch: int = 1  # most requests of one batch
    batch_cost: float = 0.0  # what each further member adds, as a share of the longest
    timeout_s: float = np.inf  # a request that has waited longer than this leaves
    outages: tuple[tuple[float, float], ...] = ()  # (from, to) seconds: arrivals are refused, nothing starts

    def __post_init__(self) -> None:
        """Refuse a pool that cannot serve.

        Raises:
            DataError: names the field, what was found and the rule.
        """
        for name in ("workers", "queue_limit", "batch"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)}; a pool needs 1 or more.")
        if not 0 <= self.batch_cost <= 1:
            raise DataError(f"batch_cost={self.batch_cost}; it lies between 0 (free) and 1 (one by one).")
        if not self.timeout_s > 0:
            raise DataError(f"timeout_s={self.timeout_s}; give seconds above 0, or inf for none.")
        flat = [moment for outage in self.outages for moment in outage]
        if flat != sorted(flat) or not np.isfinite(flat).all():
            raise DataError(f"outages={self.outages}; give (from, to) pairs of seconds that rise.")


class Outcome(NamedTuple):
    """What became of each request, arrays of (requests,)."""

    status: NDArray[np.int8]  # SERVED, REFUSED, TIMED_OUT, or WAITING when `until` came first
    finish_s: Floats  # when it was answered, or gave up; NaN while waiting
    busy_s: Floats  # its share of its batch's worker seconds; 0 unless served


def erlang_c_wait(arrivals_per_second: float, service_s: float, workers: int) -> float:
    """Mean wait in an M/M/c queue without limit, seconds (Erlang 1917).

    Args:
        arrivals_per_second: of Poisson arrivals.
        service_s: mean of exponential service times.
        workers: servers.

    Raises:
        DataError: the load is 1 or more, so that the queue has no mean.

    Example:
        >>> round(erlang_c_wait(0.5, service_s=1.0, workers=1), 6)  # load / (1 - load)
        1.0
    """
    load = arrivals_per_second * service_s
    if load >= workers:
        raise DataError(f"{load:g} workers' work arrives for {workers}; the queue grows without end.")
    blocked = 1.0  # Erlang B by recursion: no factorial overflows
    for count in range(1, workers + 1):
        blocked = load * blocked / (count + load * blocked)
    waits = blocked / (1 - load / workers * (1 - blocked))
    return waits * service_s / (workers - load)


def serve_in_simpy(arrivals_s: Floats, service_s: Floats, pool: Pool) -> Outcome:
    """Serve every request, told as simpy processes: the arrivals, and one process per worker.

    Args:
        arrivals_s: (requests,) rising arrival times.
        service_s: (requests,) seconds of work of each alone.
        pool: the rules.
    """
    world = simpy.Environment()
    waiting: deque[int] = deque()
    idle: list[simpy.Event] = []
    status = np.zeros(len(arrivals_s), dtype=np.int8)
    finish, busy = np.full(len(arrivals_s), np.nan), np.zeros(len(arrivals_s))
    arrivals, services = arrivals_s.tolist(), service_s.tolist()

    def leave() -> None:
        while waiting and arrivals[waiting[0]] + pool.timeout_s < world.now:
            gone = waiting.popleft()
            status[gone], finish[gone] = TIMED_OUT, arrivals[gone] + pool.timeout_s

    def back_up() -> float:
        return next((end for start, end in pool.outages if start <= world.now < end), world.now)

    def work() -> Generator[simpy.Event, Any, None]:
        while True:
            leave()
            if not waiting:
                idle.append(world.event())
                yield idle[-1]
            elif (end := back_up()) > world.now:
                yield world.timeout(end - world.now)
            else:
                batch = [waiting.popleft() for _ in range(min(pool.batch, len(waiting)))]
                alone = max(services[member] for member in batch)
                duration = alone * (1 + pool.batch_cost * (len(batch) - 1))
                yield world.timeout(duration)
                status[batch], finish[batch], busy[batch] = SERVED, world.now, duration / len(batch)

    def arrive() -> Generator[simpy.Event, Any, None]:
        for number, moment in enumerate(arrivals):
            yield world.timeout(max(0.0, moment - world.now))
            leave()
            if len(waiting) >= pool.queue_limit or back_up() > world.now:
                status[number], finish[number] = REFUSED, world.now
                continue
            waiting.append(number)
            if idle:
                idle.pop().succeed()

    for _ in range(pool.workers):
        world.process(work())
    world.process(arrive())
    world.run()
    return Outcome(status, finish, busy)


def serve_in_arrays(
    arrivals_s: Floats,
    service_s: Floats,
    pool: Pool,
    free_s: Floats | None = None,
    held: int = 0,
    until: float = np.inf,
) -> Outcome:
    """The same rules in one compiled pass, which can stop at a moment and go on from there.

    Args:
        arrivals_s: (requests,) rising arrival times.
        service_s: (requests,) seconds of work of each alone.
        pool: the rules.
        free_s: (workers,) when each worker is free again; changed in place. None: all are free now.
        held: how many requests, the first ones, were waiting when the last pass stopped.
        until: batches that would start later do not; what they would serve is left WAITING.
    """
    outages = np.array(pool.outages, dtype=float).reshape(-1, 2)
    free = np.zeros(pool.workers) if free_s is None else free_s
    rules = (pool.batch, pool.batch_cost, pool.queue_limit, pool.timeout_s)
    return Outcome(*_serve(arrivals_s, service_s, free, held, until, outages, *rules))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _serve(
    arrivals: Floats,
    service: Floats,
    free: Floats,
    held: int,
    until: float,
    outages: Floats,
    batch: int,
    batch_cost: float,
    queue_limit: int,
    timeout: float,
) -> tuple[NDArray[np.int8], Floats, Floats]:
    count = len(arrivals)
    status = np.zeros(count, dtype=np.int8)
    finish, busy = np.full(count, np.nan), np.zeros(count)
    queue = np.empty(count, dtype=np.int64)  # accepted requests; those from `head` to `tail` wait
    queue[:held] = np.arange(held)
    head, tail = 0, held
    for number in range(held, count + 1):
        now = arrivals[number] if number < count else until
        while head < tail:
            worker = np.argmin(free)
            start = max(free[worker], arrivals[queue[head]])
            for outage in range(len(outages)):
                if outages[outage, 0] <= start < outages[outage, 1]:
                    start = outages[outage, 1]
            if arrivals[queue[head]] + timeout < min(start, now):
                status[queue[head]], finish[queue[head]] = TIMED_OUT, arrivals[queue[head]] + timeout
                head += 1
                continue
            if start > now:
                break
            members = min(batch, tail - head)
            duration = service[queue[head : head + members]].max() * (1 + batch_cost * (members - 1))
            for member in queue[head : head + members]:
                status[member], finish[member], busy[member] = SERVED, start + duration, duration / members
            head += members
            free[worker] = start + duration
        if number == count:
            break
        down = False
        for outage in range(len(outages)):
            down |= outages[outage, 0] <= now < outages[outage, 1]
        if down or tail - head >= queue_limit:
            status[number], finish[number] = REFUSED, now
        else:
            queue[tail] = number
            tail += 1
    return status, finish, busy
