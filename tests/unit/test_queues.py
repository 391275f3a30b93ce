"""The LLM's queue: by hand, beside an independent one, by theory, and both implementations side by side."""

import heapq
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.errors import DataError
from lore_lib.serving.queues import (
    REFUSED,
    SERVED,
    TIMED_OUT,
    WAITING,
    Outcome,
    Pool,
    erlang_c_wait,
    serve_in_arrays,
    serve_in_simpy,
)

CASES = json.loads((Path(__file__).parents[1] / "cases" / "queue.json").read_text())
WAYS = pytest.mark.parametrize("serve", [serve_in_simpy, serve_in_arrays])

pools = st.builds(
    Pool,
    workers=st.integers(1, 4),
    queue_limit=st.integers(1, 9),
    batch=st.integers(1, 5),
    batch_cost=st.floats(0, 1),
    timeout_s=st.sampled_from([np.inf, 3.0, 0.7]),
    outages=st.sampled_from([(), ((20.0, 35.0), (60.0, 61.5))]),
)


def same(one: Outcome, other: Outcome) -> None:
    assert one.status.tolist() == other.status.tolist()
    np.testing.assert_allclose(one.finish_s, other.finish_s, atol=1e-7)
    np.testing.assert_allclose(one.busy_s, other.busy_s, atol=1e-9)


def draw(seed: int, workers: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1.0, count)), rng.exponential(1.3 * workers, count)


def queue_by_heap(arrivals: np.ndarray, service: np.ndarray, workers: int, limit: int) -> np.ndarray:
    """A plain queue told another way: the earliest free worker takes the earliest waiting request."""
    free, starts, latency = [0.0] * workers, [], np.full(len(arrivals), np.nan)
    for i, now in enumerate(arrivals):
        starts = [start for start in starts if start > now]  # those still waiting
        if len(starts) >= limit:
            continue
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + service[i])
        latency[i] = start + service[i] - now
        if start > now:
            starts.append(start)
    return latency


@WAYS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_queue_worked_by_hand(case: dict[str, list[float]], serve: object) -> None:
    arrivals = np.array(case["arrivals_s"], dtype=float)
    pool = Pool(case["workers"], case["queue_limit"])  # type: ignore[arg-type]
    found = serve(arrivals, np.array(case["service_s"], dtype=float), pool)  # type: ignore[operator]
    for latency, status, finish, arrival in zip(case["latency_s"], *found[:2], arrivals, strict=True):
        assert status == (REFUSED if latency is None else SERVED)
        assert finish - arrival == pytest.approx(latency or 0)


@WAYS
def test_batches_timeouts_and_outages_by_hand(serve: object) -> None:
    arrivals, work = np.array([0.0, 1, 1.9, 3]), np.full(4, 2.0)
    run = lambda **rules: serve(arrivals, work, Pool(workers=1, queue_limit=9, **rules))  # type: ignore[operator] # noqa: E731
    batched = run(batch=3, batch_cost=0.5)  # at 2 wait the second and third: 2 x 1.5 s for both
    assert batched.finish_s == pytest.approx([2, 5, 5, 7])
    assert batched.busy_s == pytest.approx([2, 1.5, 1.5, 2])
    hurried = run(timeout_s=1.5)  # at 4 the third has waited 2.1 s: gone at 3.4; the fourth waited 1 s
    assert hurried.status.tolist() == [SERVED, SERVED, TIMED_OUT, SERVED]
    assert hurried.finish_s == pytest.approx([2, 4, 3.4, 6])
    down = run(outages=((1.5, 10.0),))  # the first ends; the second waits for 10; the others are refused
    assert down.status.tolist() == [SERVED, SERVED, REFUSED, REFUSED]
    assert down.finish_s == pytest.approx([2, 12, 1.9, 3])


@settings(max_examples=60)
@given(st.integers(0, 10_000), pools)
def test_arrays_agree_with_simpy(seed: int, pool: Pool) -> None:
    arrivals, service = draw(seed, pool.workers)
    same(serve_in_simpy(arrivals, service, pool), serve_in_arrays(arrivals, service, pool))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
def test_plain_queue_equals_an_independent_one(seed: int, workers: int, limit: int) -> None:
    arrivals, service = draw(seed, workers)
    found = serve_in_arrays(arrivals, service, Pool(workers, limit))
    latency = np.where(found.status == SERVED, found.finish_s - arrivals, np.nan)
    np.testing.assert_allclose(latency, queue_by_heap(arrivals, service, workers, limit), atol=1e-7)


@settings(max_examples=40)
@given(st.integers(0, 10_000), pools, st.integers(1, 60))
def test_a_pass_cut_in_parts_gives_the_same(seed: int, pool: Pool, size: int) -> None:
    arrivals, service = draw(seed, pool.workers)
    free, held = np.zeros(pool.workers), np.empty(0, dtype=int)
    whole = serve_in_arrays(arrivals, service, pool)
    parts = Outcome(np.zeros(200, np.int8), np.full(200, np.nan), np.zeros(200))
    for start in range(0, 200, size):
        rows = np.concatenate([held, np.arange(start, min(start + size, 200))])
        until = arrivals[rows[-1]] if start + size < 200 else np.inf
        found = serve_in_arrays(arrivals[rows], service[rows], pool, free, len(held), until)
        for kept, new in zip(parts, found, strict=True):
            kept[rows] = new
        held = rows[found.status == WAITING]
    assert not len(held)
    same(whole, parts)


@pytest.mark.parametrize(("workers", "rate"), [(1, 0.6), (3, 2.2), (8, 6.5)])
def test_mean_wait_agrees_with_erlang_c(workers: int, rate: float) -> None:
    rng = np.random.default_rng(7)
    arrivals, service = np.cumsum(rng.exponential(1 / rate, 300_000)), rng.exponential(1.0, 300_000)
    found = serve_in_arrays(arrivals, service, Pool(workers, 10**9))
    assert (found.finish_s - arrivals - service).mean() == pytest.approx(
        erlang_c_wait(rate, 1.0, workers), rel=0.06
    )


def test_erlang_c_by_hand() -> None:
    assert erlang_c_wait(0.5, 1.0, 1) == pytest.approx(1)  # load / (1 - load)
    assert erlang_c_wait(1.0, 1.0, 2) == pytest.approx(1 / 3)  # a third must wait, 1 / (2 - 1) each
    with pytest.raises(DataError, match="without end"):
        erlang_c_wait(2.0, 1.0, 2)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"workers": 0}, "workers=0"),
        ({"queue_limit": -1}, "queue_limit=-1"),
        ({"batch": 0}, "batch=0"),
        ({"batch_cost": 1.5}, "batch_cost=1.5"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": np.nan}, "timeout_s=nan"),
        ({"outages": ((3.0, 1.0),)}, "outages"),
    ],
)
def test_a_pool_that_cannot_serve_is_refused(rules: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Pool(**{"workers": 1, "queue_limit": 1, **rules})  # type: ignore[arg-type]
