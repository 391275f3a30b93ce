"""Request traffic: which queries are popular, and when their requests arrive."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lore_lib.errors import DataError

CHUNK_REQUESTS = 65_536  # requests made at a time, so that a long log never sits in memory whole


def popularity(queries: pd.DataFrame, exponent: float | None = None, shift: float = 0.0) -> pd.Series:
    """Share of the traffic that each query draws.

    Args:
        queries: query_id, frequency (how often it was asked; at least 0).
        exponent: None takes the given frequencies as they are. A number keeps their ranking only and gives
            rank r (from 1; ties by query_id) a Zipf-Mandelbrot weight (r + shift) ** -exponent.
        shift: flattens the head of that law; 0 is Zipf's.

    Returns:
        Shares by query_id that sum to 1, most popular first.

    Raises:
        DataError: a query stands twice, or no frequency is positive.

    Example:
        >>> popularity(pd.DataFrame({"query_id": ["a", "b"], "frequency": [3, 9]})).to_dict()
        {'b': 0.75, 'a': 0.25}
    """
    if queries["query_id"].duplicated().any():
        raise DataError(
            f"{int(queries['query_id'].duplicated().sum())} queries stand twice; keep one row of each."
        )
    ranked = queries.sort_values(["frequency", "query_id"], ascending=[False, True])
    frequency = ranked["frequency"].to_numpy(dtype=float)
    if not (frequency >= 0).all() or not frequency.sum() > 0:
        raise DataError("frequencies must be 0 or more and not all 0; count the query log again.")
    weights = frequency if exponent is None else (np.arange(1, len(ranked) + 1) + shift) ** -exponent
    return pd.Series(weights / weights.sum(), index=pd.Index(ranked["query_id"]), name="share")


def arrival_rate(utilisation: float, share: float, service_s: float, workers: int) -> float:
    """Requests per second of all traffic at which the workers of a part of it are busy so much of the time.

    Utilisation is offered work per second and worker: rate x share x service / workers.

    Args:
        utilisation: wanted; at 1 and above a queue only grows.
        share: share of the requests that reach the workers, in (0, 1].
        service_s: mean seconds of work for one of them.
        workers: servers.

    Raises:
        DataError: no request reaches the workers, so every rate would do.

    Example:
        >>> arrival_rate(0.5, share=0.25, service_s=2.0, workers=4)
        4.0
    """
    if not share > 0:
        raise DataError("no query is tail, so no load follows; lower serving.head_share or torso_share.")
    return utilisation * workers / (share * service_s)


def request_stream(
    shares: pd.Series,
    pairs: pd.DataFrame,
    arrivals_per_second: float,
    requests: int,
    rng: np.random.Generator,
) -> Iterator[pd.DataFrame]:
    """Open-loop requests: Poisson arrivals, a query by popularity, and any one of its pairs.

    Args:
        shares: by query_id, as `popularity` gives them.
        pairs: query_id of every pair that may be asked for.
        arrivals_per_second: mean arrival rate.
        requests: how many to make.

    Yields:
        Chunks of at most CHUNK_REQUESTS rows: time_s (rising), pair (row number in `pairs`).

    Raises:
        DataError: a query of `shares` has no pair.
    """
    by_query = np.argsort(pairs["query_id"].to_numpy(dtype=str), kind="stable")
    names, first, count = np.unique(
        pairs["query_id"].to_numpy(dtype=str)[by_query], return_index=True, return_counts=True
    )
    place = pd.Index(names).get_indexer(pd.Index(shares.index.to_numpy(dtype=str)))
    if (place < 0).any():
        lost = shares.index[place < 0]
        raise DataError(
            f"{len(lost)} queries have traffic but no pair, first {lost[0]}; drop them or add pairs."
        )
    edges = np.cumsum(shares.to_numpy(dtype=float))
    now = 0.0
    for start in range(0, requests, CHUNK_REQUESTS):
        size = min(CHUNK_REQUESTS, requests - start)
        times = now + np.cumsum(rng.exponential(1 / arrivals_per_second, size))
        query = place[np.searchsorted(edges / edges[-1], rng.random(size), side="right")]
        pair = by_query[first[query] + (rng.random(size) * count[query]).astype(int)]
        now = float(times[-1])
        yield pd.DataFrame({"time_s": times, "pair": pair})
