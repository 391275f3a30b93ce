"""Request traffic: which queries are popular, when their requests arrive, and what changes meanwhile."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats

Ints = NDArray[np.int64]
CHUNK_REQUESTS = 65_536  # requests made at a time, about, so that a long log never sits in memory whole
STEPS_PER_DAY = 24  # moments a day at which popularity drifts and items change, at least
MINUTES = 1440  # of a day: the grain of the arrival rate


@dataclass(frozen=True)
class ZipfMandelbrot:
    """Popularity by rank: a query of rank r (from 1) is asked in proportion to (r + shift) ** -exponent."""

    exponent: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no law.

        Raises:
            DataError: exponent not above 0, or shift not above -1.
        """
        if not (0 < self.exponent < np.inf and -1 < self.shift < np.inf):
            raise DataError(f"exponent={self.exponent} must be above 0 and shift={self.shift} above -1.")

    def shares(self, queries: int) -> Floats:
        """Share of the traffic of each rank, (queries,), summing to 1.

        Example:
            >>> ZipfMandelbrot(1.0).shares(2).round(3).tolist()
            [0.667, 0.333]
        """
        weights = (np.arange(1, queries + 1) + self.shift) ** -self.exponent
        return np.asarray(weights / weights.sum())


class ZipfFit(NamedTuple):
    """A law fitted to a log, and how far to trust it."""

    law: ZipfMandelbrot
    exponent_interval: tuple[float, float]  # 95 %, from the Fisher information
    shift_interval: tuple[float, float]
    ranks: int  # how many ranks were fitted
    misfit: float  # largest gap between the fitted and the counted cumulative share (Kolmogorov-Smirnov)


def fit_zipf(counts: pd.Series | NDArray[np.generic], least: int = 10) -> ZipfFit:
    """Zipf-Mandelbrot by maximum likelihood over the ranks of a query log.

    Ranks asked fewer than `least` times are left out and the likelihood is conditional on the others: ranks
    are sorted by the very counts that they explain, and for rare queries that order is noise which bends
    the law (Pilgrim & Hills 2021, "Bias in Zipf's law estimators"). The interval takes requests as
    independent draws; bursts make a real log noisier than that.

    Args:
        counts: requests per query, any order.
        least: fewest requests of a rank that is fitted.

    Raises:
        DataError: fewer than 3 queries were asked `least` times, so that two numbers cannot be fitted.
    """
    asked = np.sort(np.asarray(counts, dtype=float))[::-1]
    if not np.isfinite(asked).all() or (asked < 0).any():
        raise DataError("a query log has counts that are negative or not finite; count the log again.")
    asked = asked[asked >= least]
    if len(asked) < 3 or asked[0] == asked[-1]:
        raise DataError(
            f"{len(asked)} queries were asked {least} times or more, and not all alike is needed of 3; "
            "give a longer log, lower `least`, or set serving.zipf_exponent."
        )
    total, ranks = asked.sum(), np.arange(1, len(asked) + 1)

    def loss(at: Floats) -> tuple[float, Floats]:
        weights, slopes = _log_weights(at, ranks)
        top = weights.max()
        shares = np.exp(weights - top)
        shares /= shares.sum()
        logs = np.log(np.maximum(shares, 1e-300))
        return float(-(asked @ logs) / total), np.asarray(slopes @ (shares - asked / total))

    found = minimize(
        loss, np.array([1.0, 0.5]), jac=True, method="L-BFGS-B", bounds=[(0.01, 20), (-0.99, 1e5)]
    )
    law = ZipfMandelbrot(*map(float, found.x))
    shares, (_, slopes) = law.shares(len(asked)), _log_weights(found.x, ranks)
    centred = slopes - (slopes @ shares)[:, None]
    spread = norm.ppf(0.975) * np.sqrt(np.diag(np.linalg.pinv(total * (centred * shares) @ centred.T)))
    gaps = np.abs(np.cumsum(shares) - np.cumsum(asked) / total)
    low, high = found.x - spread, found.x + spread
    return ZipfFit(law, (low[0], high[0]), (low[1], high[1]), len(asked), float(gaps.max()))


def law_of(log: pd.Series, config: ServingConfig) -> tuple[ZipfMandelbrot, str]:
    """The law that the config names, or the one fitted to a log, and how it came about in words.

    Args:
        log: requests per query.
        config: zipf_exponent (None: fit), zipf_shift.

    Raises:
        DataError: as in `fit_zipf`.
    """
    if config.zipf_exponent is not None:
        law = ZipfMandelbrot(config.zipf_exponent, config.zipf_shift)
        return law, f"s = {law.exponent:g}, q = {law.shift:g}, as set"
    fit = fit_zipf(log)
    (low, high), (least, most) = fit.exponent_interval, fit.shift_interval
    exponent = f"s = {fit.law.exponent:.3f} [{low:.3f}, {high:.3f}]"
    shift = f"q = {fit.law.shift:.2f} [{least:.2f}, {most:.2f}]"
    return fit.law, f"{exponent}, {shift}, fitted to {fit.ranks} queries of the log, misfit {fit.misfit:.3f}"


def _log_weights(at: Floats, ranks: Ints) -> tuple[Floats, Floats]:
    """Log weights of the ranks and their slopes by (exponent, shift): (ranks,), (2, ranks)."""
    exponent, shift = at
    logs = np.log(ranks + shift)
    return -exponent * logs, np.stack([-logs, -exponent / (ranks + shift)])


def popularity(queries: pd.DataFrame, law: ZipfMandelbrot | None = None) -> pd.Series:
    """Share of the traffic that each query draws.

    Args:
        queries: query_id, frequency (how often it was asked; at least 0).
        law: None takes the given frequencies as they are. A law keeps only their ranking (ties by query_id).

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
    shares = frequency / frequency.sum() if law is None else law.shares(len(ranked))
    return pd.Series(shares, index=pd.Index(ranked["query_id"]), name="share")


def arrival_rate(utilisation: float, share: float, service_s: float, workers: float) -> float:
    """Requests per second of all traffic at which the workers of a part of it are busy so much of the time.

    Utilisation is offered work per second and worker: rate x share x service / workers.

    Args:
        utilisation: wanted; at 1 and above a queue only grows.
        share: share of the requests that reach the workers, in (0, 1].
        service_s: mean seconds of work for one of them.
        workers: servers, times what batching gains.

    Raises:
        DataError: no request reaches the workers, so every rate would do.

    Example:
        >>> arrival_rate(0.5, share=0.25, service_s=2.0, workers=4)
        4.0
    """
    if not share > 0:
        raise DataError("no query is tail, so no load follows; lower serving.head_share or torso_share.")
    return utilisation * workers / (share * service_s)


class Chunk(NamedTuple):
    """A stretch of the stream, which may hold no request. What changed, changed at its beginning."""

    begin_s: float
    time_s: Floats  # (requests,) rising
    rank: Ints  # (requests,) standing of the query by true popularity at that time, from 0
    query: Ints  # (requests,)
    pair: Ints  # (requests,) its pairs are numbered on from `first[query]`
    changed: Ints  # pairs whose item changed (price, stock, text): an older score of it may be wrong
    replaced: Ints  # pairs whose item vanished and gave way to a new one, never seen before


def request_stream(
    shares: Floats,
    pairs_per_query: Ints,
    config: ServingConfig,
    requests: int,
    per_second: float,
    day_s: float,
    rng: np.random.Generator,
) -> Iterator[Chunk]:
    """Open-loop requests in bounded memory.

    Arrivals are Poisson with a rate that swings over the day (lowest at its start, highest at noon) and is
    multiplied by `burst_factor` in bursts, whose additional requests are all for one random query. At least
    once an hour `drift_per_day` x queries swap places with others, and pairs change or are replaced.

    Args:
        shares: (queries,) of the traffic by rank; query number = rank at the start.
        pairs_per_query: (queries,) at least 1.
        config: daily_swing, bursts_per_day, burst_factor, burst_minutes, drift_per_day,
            changed_per_day, replaced_per_day.
        requests: how many to make, however long that takes.
        per_second: mean rate of a day without bursts.
        day_s: seconds of a day. A shorter day squeezes all that happens daily into fewer requests, while
            queues still see seconds.

    Raises:
        DataError: no query, a query without pair, shares that are not, or a rate or day not above 0.
    """
    if len(shares) == 0 or len(shares) != len(pairs_per_query) or (pairs_per_query < 1).any():
        raise DataError(
            f"{len(shares)} queries have traffic and {int((pairs_per_query >= 1).sum())} have pairs; "
            "give each of 1 or more queries a pair, or drop it."
        )
    if not (shares >= 0).all() or not np.isclose(shares.sum(), 1):
        raise DataError(f"shares sum to {shares.sum():g}; they must be 0 or more and sum to 1.")
    if not (0 < per_second < np.inf and 0 < day_s < np.inf):
        raise DataError(f"per_second={per_second:g}, day_s={day_s:g}; both must be finite and above 0.")
    first = np.concatenate([[0], np.cumsum(pairs_per_query)])
    at_rank, edges = np.arange(len(shares)), np.cumsum(shares) / np.sum(shares)
    busiest = per_second * (1 + config.daily_swing) * max(1.0, config.burst_factor)
    steps = max(STEPS_PER_DAY, int(np.ceil(day_s * busiest / CHUNK_REQUESTS)))
    step_s = day_s / steps
    grid = np.linspace(0, step_s, 1 + max(1, round(MINUTES * step_s / day_s)))
    burst_until, burst_rank, left, number = 0.0, 0, requests, 0
    while left > 0:
        begin, part = number / steps * day_s, step_s / day_s  # a day begins when the one before has ended
        if number and len(at_rank) > 1:
            _swap(at_rank, rng.poisson(config.drift_per_day * part * len(shares) / 2), rng)
        changed, replaced = (
            np.unique(rng.integers(first[-1], size=rng.poisson(per_day * part * first[-1])))
            for per_day in (config.changed_per_day, config.replaced_per_day)
        )
        middles = begin + (grid[:-1] + grid[1:]) / 2
        rate = per_second * (1 - config.daily_swing * np.cos(2 * np.pi * middles / day_s))
        if rng.poisson(config.bursts_per_day * part):
            burst_until = begin + config.burst_minutes / MINUTES * day_s
            burst_rank = int(rng.integers(len(shares)))
        bursting = middles < burst_until
        rate *= np.where(bursting, config.burst_factor, 1.0)
        expected = np.concatenate([[0], np.cumsum(rate * np.diff(grid))])
        count = int(rng.poisson(expected[-1]))
        gaps = np.cumsum(rng.exponential(size=count + 1))
        size = min(count, left)
        time = begin + np.interp(gaps[:size] / gaps[-1] * expected[-1], expected, grid)
        rank = np.searchsorted(edges, rng.random(size), side="right").clip(max=len(shares) - 1)
        if bursting.any():
            extra = (time < burst_until) & (rng.random(size) < 1 - 1 / config.burst_factor)
            rank[extra] = burst_rank
        query = at_rank[rank]
        pair = first[query] + (rng.random(size) * pairs_per_query[query]).astype(np.int64)
        yield Chunk(begin, time, rank, query, pair, changed, replaced)
        left, number = left - size, number + 1


def _swap(order: Ints, count: int, rng: np.random.Generator) -> None:
    """Let so many random places exchange what they hold with so many others, in place."""
    places = rng.permutation(len(order))[: 2 * min(int(count), len(order) // 2)]
    order[places] = order[places[::-1]]
