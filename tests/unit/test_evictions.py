"""Eviction policies, and bounds that no policy may pass."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.serving.policies import (
    clairvoyant,
    clairvoyant_refill,
    compare,
    compare_on,
    policies,
    refilled,
    trace,
)
from lore_lib.serving.traffic import Chunk, ZipfMandelbrot

# libcachesim ends the process on caches of a few entries, so its policies have a test of their own below.
ANYWHERE = {name: policy for name, policy in policies().items() if name not in ("S3-FIFO", "SIEVE")}
traces = st.lists(st.integers(0, 12), min_size=1, max_size=150)


def best_hits(keys: tuple[int, ...], capacity: int) -> int:
    """Try everything: at each miss admit the key or not, and drop any of those held."""

    @cache
    def best(place: int, held: frozenset[int]) -> int:
        if place == len(keys):
            return 0
        key = keys[place]
        if key in held:
            return 1 + best(place + 1, held)
        rest = [held] if len(held) < capacity else [held - {old} for old in held]
        return max(best(place + 1, option) for option in (held, *(kept | {key} for kept in rest)))

    return best(0, frozenset())


@settings(max_examples=80)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.integers(1, 4))
def test_the_clairvoyant_is_the_best_there_can_be(keys: list[int], capacity: int) -> None:
    assert clairvoyant(np.array(keys), capacity).sum() == best_hits(tuple(keys), capacity)


@settings(max_examples=60)
@given(traces, st.integers(1, 8))
def test_no_policy_passes_the_clairvoyant(keys: list[int], capacity: int) -> None:
    bound = clairvoyant(np.array(keys), capacity).sum()
    for name, policy in ANYWHERE.items():
        assert policy(np.array(keys), capacity).sum() <= bound, name


@settings(max_examples=60)
@given(traces, st.integers(1, 8), st.integers(1, 40))
def test_no_offline_refill_passes_the_one_that_sees_the_future(
    keys: list[int], capacity: int, period: int
) -> None:
    array = np.array(keys)
    assert refilled(array, capacity, period).sum() <= clairvoyant_refill(array, capacity, period).sum()


def test_no_policy_passes_the_bound_on_longer_traces() -> None:
    rng = np.random.default_rng(0)
    keys = rng.choice(3000, 20_000, p=ZipfMandelbrot(0.9).shares(3000))
    table = compare(keys, 200, since=5000, period=2500).set_index("policy")
    assert set(policies()) <= set(table.index)
    demand = table.loc[[*policies(), "bound: clairvoyant (Belady)"], "of_bound"]
    assert demand.max() == demand["bound: clairvoyant (Belady)"] == 1
    hits = table["hit_ratio"]
    assert hits["offline refill"] < hits["bound: refill that knows the future"]
    assert hits["LRU"] > hits["FIFO"] > 0.1


def test_lru_and_lfu_by_hand() -> None:
    keys = np.array([1, 1, 2, 3, 1])
    assert policies()["LRU"](keys, 2).tolist() == [False, True, False, False, False]
    assert policies()["LFU"](keys, 2).tolist() == [False, True, False, False, True]
    assert clairvoyant(keys, 1).tolist() == [False, True, False, False, True]  # passes 2 and 3 by


def test_refill_keeps_the_most_asked_of_the_past_alone() -> None:
    keys = np.array([1, 1, 2, 3, 1, 2, 3, 3, 3, 1, 2, 3])
    assert refilled(keys, 1, 4).nonzero()[0].tolist() == [4, 8, 11]  # 1, then 3


def test_a_changed_item_is_another_key() -> None:
    none, pairs = np.empty(0, int), np.array([0, 1])
    chunks = [
        Chunk(0.0, np.zeros(2), pairs, pairs, pairs, none, none),
        Chunk(1.0, np.zeros(2), pairs, pairs, pairs, np.array([1]), none),
    ]
    assert trace(chunks, 2).tolist() == [0, 1, 0, 2]
    assert trace([], 2).tolist() == []


def test_the_planned_traffic_is_compared() -> None:
    config = ServingConfig(requests=8000, cache_pairs=100)
    table = compare_on(ZipfMandelbrot(1.0).shares(500), 2, config, np.random.default_rng(0))
    assert table["hit_ratio"].is_monotonic_decreasing
    assert table["hit_ratio"].between(0.05, 0.95).all()


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(DataError, match="capacity=0"):
        clairvoyant(np.array([1]), 0)
