"""Which scores a full cache should keep: eviction policies of kept libraries, and bounds that see the future.

A key is a pair and the version of its item, so a changed item is a new key and its old score dead weight.
All take a trace of keys and say of each request whether it was a hit; a miss brings its key in, where the
policy admits it.
"""

import heapq
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import cachetools
import numpy as np
import pandas as pd
import theine
from numba import njit

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.router import Mask
from lore_lib.serving.strata import DecayedCounts
from lore_lib.serving.traffic import Chunk, Ints, request_stream

Policy = Callable[[Ints, int], Mask]


def trace(chunks: Iterable[Chunk], pairs: int) -> Ints:
    """The keys that a stream asks for, (requests,), numbered by pair and version.

    Args:
        chunks: the stream.
        pairs: how many there are.
    """
    version, asked = np.zeros(pairs, dtype=np.int64), []
    for chunk in chunks:
        version[np.union1d(chunk.changed, chunk.replaced)] += 1
        asked.append(chunk.pair + pairs * version[chunk.pair])
    return np.unique(np.concatenate([*asked, np.empty(0, dtype=np.int64)]), return_inverse=True)[1]


def policies() -> dict[str, Policy]:
    """Every policy by name; S3-FIFO and SIEVE need the extra `cachesim`."""
    found: dict[str, Policy] = {
        "FIFO": _mapping(cachetools.FIFOCache),
        "LRU": _mapping(cachetools.LRUCache),
        "LFU": _mapping(cachetools.LFUCache),
        "W-TinyLFU": _w_tiny_lfu,
    }
    if find_spec("libcachesim"):
        found |= {"S3-FIFO": _libcachesim("S3FIFO"), "SIEVE": _libcachesim("Sieve")}
    return found


def clairvoyant(keys: Ints, capacity: int) -> Mask:
    """The most hits that any policy can have which fills its cache on misses (Belady 1966, with bypass).

    A miss takes the place of the key that is asked for again last, unless it is that key itself.

    Raises:
        DataError: capacity below 1.
    """
    if capacity < 1:
        raise DataError(f"capacity={capacity}; a cache holds 1 or more.")
    return np.asarray(_clairvoyant(np.asarray(keys, dtype=np.int64), capacity))


def refilled(keys: Ints, capacity: int, period: int, half_life: float = 4.0) -> Mask:
    """A cache filled offline: every `period` requests it takes the most asked keys of the decayed past.

    Args:
        keys: (requests,) of the trace, from 0.
        capacity: keys that fit.
        period: requests between two refills.
        half_life: of a count, in periods.
    """
    counts, hits = DecayedCounts(_distinct(keys), half_life), []
    for start in range(0, len(keys), period):
        past = counts.estimate()
        held = np.zeros(len(past), dtype=bool)
        held[np.argsort(-past, kind="stable")[:capacity]] = True
        part = keys[start : start + period]
        hits.append((held & (past > 0))[part])
        counts.age(1.0)
        counts.add(part)
    return np.concatenate([*hits, np.empty(0, dtype=bool)])


def clairvoyant_refill(keys: Ints, capacity: int, period: int) -> Mask:
    """The most hits of a cache filled every `period` requests with keys seen before, then left alone.

    It may beat `clairvoyant`, which pays a miss to bring a key back, and may fall below it, which acts at
    every request.
    """
    seen, hits = np.zeros(_distinct(keys), dtype=bool), []
    for start in range(0, len(keys), period):
        part = keys[start : start + period]
        coming = np.bincount(part, minlength=len(seen)) * seen
        held = np.zeros(len(seen), dtype=bool)
        held[np.argsort(-coming, kind="stable")[:capacity]] = True
        hits.append((held & seen)[part])
        seen[part] = True
    return np.concatenate([*hits, np.empty(0, dtype=bool)])


def compare_on(
    shares: Floats, pairs_per_query: int, config: ServingConfig, rng: np.random.Generator
) -> pd.DataFrame:
    """`compare` on three days of the planned traffic, the first to warm up, with the planned cache.

    Args:
        shares: (queries,) of the traffic by rank.
        pairs_per_query: of every query.
        config: the plan; a day has an eighth of its requests, at least 1,000.
        rng: source of the traffic.
    """
    day, each = max(config.requests // 8, 1000), np.full(len(shares), pairs_per_query)
    stream = request_stream(shares, each, config, 3 * day, 1.0, float(day), rng)
    keys, period = trace(stream, int(each.sum())), max(round(day / config.refills_per_day), 1)
    return compare(keys, max(config.cache_pairs, 1), since=day, period=period)


def compare(keys: Ints, capacity: int, since: int, period: int) -> pd.DataFrame:
    """Hit ratio of every policy and bound on one trace.

    Args:
        keys: (requests,) of the trace.
        capacity: keys that fit.
        since: the first requests, as many as these, warm up and do not count.
        period: requests between two offline refills.

    Returns:
        policy, hit_ratio, of_bound (share of the clairvoyant's hits), best first.
    """
    ways: dict[str, Policy] = {
        **policies(),
        "offline refill": lambda keys, size: refilled(keys, size, period),
        "bound: refill that knows the future": lambda keys, size: clairvoyant_refill(keys, size, period),
    }
    hits = pd.Series({name: float(way(keys, capacity)[since:].mean()) for name, way in ways.items()})
    # What the warm-up leaves behind is anybody's choice: so ask for all of it once, and let the bound choose.
    known = np.unique(keys[:since])
    best = clairvoyant(np.concatenate([known, keys[since:]]), capacity)[len(known) :]
    hits["bound: clairvoyant (Belady)"] = float(best.mean())
    table = pd.DataFrame({"hit_ratio": hits, "of_bound": hits / hits["bound: clairvoyant (Belady)"]})
    return table.rename_axis("policy").sort_values("hit_ratio", ascending=False).reset_index()


def _distinct(keys: Ints) -> int:
    return int(keys.max(initial=-1)) + 1


def _mapping(kind: Callable[[int], Any]) -> Policy:
    def hits(keys: Ints, capacity: int) -> Mask:
        cache, found = kind(capacity), np.zeros(len(keys), dtype=bool)
        for place, key in enumerate(keys.tolist()):
            found[place] = cache.get(key) is not None  # a look that counts as a use
            if not found[place]:
                cache[key] = True
        return found

    return hits


def _w_tiny_lfu(keys: Ints, capacity: int) -> Mask:
    cache: theine.Cache[int, bool] = theine.Cache(capacity)
    found = np.zeros(len(keys), dtype=bool)
    for place, key in enumerate(keys.tolist()):
        found[place] = cache.get(key)[1]
        if not found[place]:
            cache.set(key, True)
    cache.close()
    return found


def _libcachesim(name: str) -> Policy:
    def hits(keys: Ints, capacity: int) -> Mask:
        import libcachesim

        cache, request = getattr(libcachesim, name)(cache_size=capacity), libcachesim.Request()
        request.obj_size = 1
        found = np.zeros(len(keys), dtype=bool)
        for place, key in enumerate(keys.tolist()):
            request.obj_id = key
            found[place] = cache.get(request)
        return found

    return hits


@njit(cache=True)  # type: ignore[untyped-decorator]
def _clairvoyant(keys: Ints, capacity: int) -> Mask:
    count = len(keys)
    again, last = np.empty(count, np.int64), np.full(keys.max() + 1 if count else 0, count)
    for place in range(count - 1, -1, -1):
        again[place], last[keys[place]] = last[keys[place]], place
    hits, held = (
        np.zeros(count, np.bool_),
        np.full(len(last), -1),
    )  # held: when asked for next, or -1
    farthest = [0]  # a heap of minus the next use; entries that `held` no longer knows are passed over
    farthest.clear()
    size = 0
    for place in range(count):
        key, soon = keys[place], again[place]
        hits[place] = held[key] >= 0
        if soon == count:  # never again: its place is free
            size -= hits[place]
            held[key] = -1
            continue
        if not hits[place] and size == capacity:
            while farthest and held[keys[-farthest[0]]] != -farthest[0]:
                heapq.heappop(farthest)
            if -farthest[0] < soon:
                continue
            held[keys[-heapq.heappop(farthest)]] = -1
            size -= 1
        size += not hits[place]
        held[key] = soon
        heapq.heappush(farthest, -soon)
    return hits
