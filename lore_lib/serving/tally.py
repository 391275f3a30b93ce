"""Sums over any number of requests, and what follows from them: quality, latency, cost, staleness."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.rair.metrics import scores
from lore_lib.sampling.intervals import Floats, percentile_interval, resample_totals
from lore_lib.serving.population import UNREAD, Population
from lore_lib.serving.router import CACHE, LLM, Mask
from lore_lib.serving.strata import STRATA, Codes
from lore_lib.serving.traffic import Ints

MILLION = 1_000_000
HOUR_S = 3600
FASTEST_MS, SLOWEST_MS, RATIO = 1e-5, 1e7, 1.01  # latency cells: 10 ns to 3 hours, each 1 % wide
_CELLS = int(np.log(SLOWEST_MS / FASTEST_MS) / np.log(RATIO)) + 1
_EDGES = FASTEST_MS * RATIO ** np.arange(_CELLS + 1)
_SHAPE = (4, UNREAD + 1)  # gold x predicted
GOOD_PAGE = 0.5  # a page is rated Good or Mid when at least this share of what it shows is relevant
_RIGHT = (
    np.equal.outer([0, 0, 1, 1], [0, 0, 1, 1, -1]).astype(float).ravel()
)  # cells on the same side of L2|L3
QUALITY = ("acc@2", "macro_f1", "item_goodrate", "query_goodrate")


@dataclass(frozen=True)
class Served:
    """Requests answered, in the order in which that became certain: arrays of (requests,)."""

    time_s: Floats  # of arrival
    pair: Ints
    stratum: Codes
    misplaced: Mask  # by true popularity its stratum is another
    source: Ints  # the judged query it is a double of
    gold: Ints
    predicted: Ints  # 0..3, or UNREAD
    route: Codes  # who answered: CACHE, STUDENT or LLM
    fallback: Mask  # the LLM was asked and had no time
    latency_ms: Floats
    student_ms: Floats  # work done for it
    llm_ms: Floats  # likewise, its share of a batch
    stale: Mask  # answered from a score older than the last change of its item
    age_days: Floats  # of the score it was answered from, else 0


class Tally:
    """What many requests add up to; its size does not depend on their number.

    Quality is kept per judged query, so that intervals can resample those: a million simulated requests are
    no more evidence than the judged queries they repeat.
    """

    def __init__(self, population: Population) -> None:
        """Start with no request."""
        self._page, groups = population.page, len(STRATA) * population.sources
        self._sources = population.sources
        self._confusion = np.zeros(groups * _SHAPE[0] * _SHAPE[1], dtype=np.int64)
        self._routes = np.zeros(groups * 4, dtype=np.int64)  # cache, student, LLM, fallback
        self._latency = np.zeros(len(STRATA) * _CELLS, dtype=np.int64)
        self._sums = np.zeros((5, len(STRATA)))  # student ms, LLM ms, stale, age in days, misplaced
        self.seconds = self.worker_s = 0.0  # of traffic, and of LLM workers paid for meanwhile
        self.offline_pairs, self.offline_s = 0, 0.0  # scored for the cache, and the LLM's seconds for it

    def add(self, served: Served) -> None:
        """Add requests."""
        stratum = served.stratum.astype(np.int64)
        group = stratum * self._sources + served.source
        cell = (group * _SHAPE[0] + served.gold) * _SHAPE[1] + served.predicted
        self._confusion += np.bincount(cell, minlength=len(self._confusion))
        kind = np.where(served.fallback, 3, served.route)
        self._routes += np.bincount(group * 4 + kind, minlength=len(self._routes))
        place = (np.log(served.latency_ms / FASTEST_MS) / np.log(RATIO)).astype(np.int64)
        place = stratum * _CELLS + place.clip(0, _CELLS - 1)
        self._latency += np.bincount(place, minlength=len(self._latency))
        for row, values in enumerate(
            (served.student_ms, served.llm_ms, served.stale, served.age_days, served.misplaced)
        ):
            self._sums[row] += np.bincount(stratum, values, len(STRATA))

    @property
    def requests(self) -> int:
        """How many were added."""
        return int(self._routes.sum())

    def latency_quantile(self, level: float | Floats, stratum: int | None = None) -> Floats:
        """Milliseconds within which this share was answered, to 0.5 %; of one stratum, or of all."""
        counts = self._latency.reshape(len(STRATA), _CELLS)
        counts = counts.sum(axis=0) if stratum is None else counts[stratum]
        reached = np.cumsum(counts) / max(counts.sum(), 1)
        place = np.searchsorted(reached, np.asarray(level) - 1e-12)
        return np.asarray(np.sqrt(_EDGES[place] * _EDGES[place + 1]))

    def summary(self, config: ServingConfig, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
        """Quality, latency and cost per stratum and in all; each request counts once.

        - acc@2, macro_f1: as in `rair.metrics`, with the traffic as weight.
        - item_goodrate, query_goodrate: a request stands for a view of its query's page, which shows the
          pairs that the judge who answered calls relevant (L3, L4). Item: mean share of a page that truly is;
          query: share of pages of which at least half is (rated Good or Mid); an empty page counts 0 in both.
          After the definitions published by a sister team of the paper; the paper's own are not public.
        - share: of all requests; from_cache, from_student, from_llm: who answered; fallback: the LLM had no
          time, so the student did.
        - stale: answered from a score made before its item last changed; score_age_days: mean of served
          scores.
        - misplaced: true popularity would have put the query in another stratum.
        - gpu_s_per_million: LLM seconds per million of these requests, online; offline_gpu_s_per_million:
          for scoring the cache (head and all); money_per_million: both and the student's seconds at
          `gpu_price` and `cpu_price` an hour; rented_per_million: the same with the workers paid for
          whether busy or idle (all).

        Args:
            config: prices.
            resamples: bootstrap draws (over judged queries) behind the intervals; 0 leaves them NaN.
            rng: source of the draws.

        Returns:
            One row per stratum that had traffic, then "all"; quality with _low and _high, 95 %.

        Raises:
            DataError: no request was added.
        """
        if not self.requests:
            raise DataError("no request was served, so there is nothing to sum up; raise serving.requests.")
        rows = [
            self._row(name, [code], config, resamples, rng)
            for code, name in enumerate(STRATA)
            if self._latency.reshape(len(STRATA), _CELLS)[code].any()
        ]
        return pd.DataFrame([*rows, self._row("all", list(range(len(STRATA))), config, resamples, rng)])

    def good(self) -> Floats:
        """What adds up over requests: (strata, sources, 4): right by acc@2, by both GoodRates, all."""
        cells = self._confusion.reshape(len(STRATA), self._sources, -1)
        return np.stack(
            [
                np.column_stack([part @ _RIGHT, self._pages(routes)])
                for part, routes in zip(
                    cells, self._routes.reshape(len(STRATA), self._sources, 4), strict=True
                )
            ]
        )

    def _pages(self, routes: NDArray[np.int64]) -> Floats:
        """Requests x goodness of the page they saw, by item and by query, and all requests: (sources, 3)."""
        by_llm, count = routes[:, CACHE] + routes[:, LLM], routes.sum(axis=1)
        pages = [
            by_llm * page[0] + (count - by_llm) * page[1] for page in (self._page, self._page >= GOOD_PAGE)
        ]
        return np.column_stack([*pages, count]).astype(float)

    def _row(
        self, name: str, codes: list[int], config: ServingConfig, resamples: int, rng: np.random.Generator
    ) -> dict[str, float | str]:
        routes = self._routes.reshape(len(STRATA), self._sources, 4)[codes].sum(axis=0)
        count = int(routes.sum())
        answered = dict(zip(("cache", "student", "llm", "fallback"), routes.sum(axis=0) / count, strict=True))
        student_ms, llm_ms, stale, age, misplaced = self._sums[:, codes].sum(axis=1)
        offline_s = self.offline_s if 0 in codes else 0.0
        gpu_s, cpu_s = llm_ms / 1000, student_ms / 1000
        per = MILLION / count
        money = ((gpu_s + offline_s) * config.gpu_price + cpu_s * config.cpu_price) / HOUR_S
        rented = ((self.worker_s + offline_s) * config.gpu_price + cpu_s * config.cpu_price) / HOUR_S
        stratum = codes[0] if len(codes) == 1 else None
        p50, p95, p99 = self.latency_quantile(np.array([0.5, 0.95, 0.99]), stratum)
        return {
            "stratum": name,
            "requests": count,
            "share": count / self.requests,
            "from_cache": answered["cache"],
            "from_student": answered["student"] + answered["fallback"],
            "from_llm": answered["llm"],
            "fallback": answered["fallback"],
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            **self._quality(codes, routes, resamples, rng),
            "stale": stale / count,
            "score_age_days": age / max(answered["cache"] * count, 1),
            "misplaced": misplaced / count,
            "gpu_s_per_million": gpu_s * per,
            "offline_gpu_s_per_million": offline_s * per,
            "student_s_per_million": cpu_s * per,
            "money_per_million": money * per,
            "rented_per_million": rented * per if stratum is None else np.nan,
            "student_load": cpu_s / self.seconds if self.seconds else 0.0,
            "llm_load": gpu_s / self.worker_s if self.worker_s else 0.0,
        }

    def _quality(
        self, codes: list[int], routes: NDArray[np.int64], resamples: int, rng: np.random.Generator
    ) -> dict[str, float]:
        width = _SHAPE[0] * _SHAPE[1]
        matrices = self._confusion.reshape(len(STRATA), self._sources, width)[codes].sum(axis=0)
        totals = np.column_stack([matrices, self._pages(routes)]).astype(float)
        totals = totals[totals[:, -1] > 0]
        point = _quality_of(totals.sum(axis=0)[None])
        found = {name: float(value[0]) for name, value in point.items()}
        if len(totals) > 1 and resamples:
            draws = resample_totals(totals, resamples, rng)
            draws = draws[draws[:, -1] > 0]
            ends = {name: percentile_interval(value) for name, value in _quality_of(draws).items()}
        else:
            ends = dict.fromkeys(found, (np.nan, np.nan))
        for name, (low, high) in ends.items():
            found |= {f"{name}_low": low, f"{name}_high": high}
        return found


def _quality_of(totals: Floats) -> dict[str, Floats]:
    """The four measures from totals (..., 20 cells, item page, query page, requests)."""
    judged = scores(totals[..., :-3].reshape(*totals.shape[:-1], *_SHAPE))
    item, query, count = (totals[..., place] for place in (-3, -2, -1))
    values = (judged["acc@2"], judged["macro_f1"], item / count, query / count)
    return dict(zip(QUALITY, values, strict=True))


def contributions(before: Tally, after: Tally, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """What each stratum adds to the whole when one way of serving replaces another on the same requests.

    A stratum's part is its share of the traffic times the gain within it, so the parts sum to the whole gain.

    Args:
        before: the old way.
        after: the new one.
        resamples: bootstrap draws over judged queries, the same ones for both ways.
        rng: source of the draws.

    Returns:
        part (a stratum, or "all"), metric, value, low, high.
    """
    columns = ("acc@2", "item GoodRate", "query GoodRate")
    old, new = before.good(), after.good()
    count = new[..., -1].sum()
    gain = new[..., :-1] / count - old[..., :-1] / old[..., -1].sum()
    totals = np.concatenate([gain, gain.sum(axis=0)[None]]).swapaxes(0, 1)  # (sources, strata + 1, 3)
    flat = np.column_stack([totals.reshape(len(totals), -1), new[..., -1].sum(axis=0) / count])
    draws = resample_totals(flat, resamples, rng)
    draws = draws[:, :-1] / draws[:, -1:]
    places = [(part, metric) for part in (*STRATA, "all") for metric in columns]
    ends = [percentile_interval(column) for column in draws.T]
    return pd.DataFrame(
        {"part": part, "metric": metric, "value": value, "low": low, "high": high}
        for (part, metric), value, (low, high) in zip(places, flat[:, :-1].sum(axis=0), ends, strict=True)
    )
