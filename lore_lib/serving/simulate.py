"""A day of traffic in seconds: discrete-event simulation of the LLM workers, vectorised cache and student.

Latencies are drawn from service times measured beforehand, so the result is as true as those are. What is not
modelled: batching inside an LLM worker (measure service times at the concurrency you will run), queueing
    before the cache and the student (watch `student_utilisation`), network time, and cached scores growing
    stale.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import simpy

from lore_lib.errors import DataError
from lore_lib.rair.metrics import evaluate
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.cache import ScoreCache
from lore_lib.serving.router import route
from lore_lib.serving.strata import STRATA, stratum_of

MILLION = 1_000_000


@dataclass(frozen=True)
class ServiceTimes:
    """Measured milliseconds per request, one array of samples per judge; each request draws one at random."""

    cache_ms: Floats
    student_ms: Floats
    llm_ms: Floats

    def __post_init__(self) -> None:
        """Refuse what cannot be a duration.

        Raises:
            DataError: an array is empty or holds something else than positive numbers.
        """
        for name, samples in vars(self).items():
            if len(samples) == 0 or not (np.isfinite(samples) & (samples > 0)).all():
                raise DataError(f"{name} holds {len(samples)} samples; measure 1 or more, all positive.")


def simulate(
    requests: pd.DataFrame,
    pairs: pd.DataFrame,
    strata: pd.Series,
    cache: ScoreCache,
    policy: str,
    times: ServiceTimes,
    llm_workers: int,
    llm_queue_limit: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Serve every request under one routing policy.

    Args:
        requests: time_s (rising), pair (row number in `pairs`).
        pairs: query_id, item_id, label (gold), llm_label, student_label ("" when not parsed).
        strata: stratum by query_id from a past log.
        cache: the offline scores.
        policy: one of `router.POLICIES`.
        times: measured service times.
        llm_workers: LLM requests served at once.
        llm_queue_limit: a request that finds this many waiting is answered by the student at once.
        rng: source of the drawn service times.

    Returns:
        One row per request: query_id, stratum, gold, predicted, served_by ("cache" | "student" | "llm"),
        fallback (bool), latency_ms, busy_ms (work done for it, without waiting).
    """
    asked = pairs.iloc[requests["pair"].to_numpy()].reset_index(drop=True)
    cached_label = cache.lookup(pairs)[requests["pair"].to_numpy()]
    stratum = stratum_of(asked["query_id"], strata)
    routed = route(policy, stratum, cached_label != "")

    busy = {
        "cache": rng.choice(times.cache_ms, len(asked)),
        "student": rng.choice(times.student_ms, len(asked)),
        "llm": rng.choice(times.llm_ms, len(asked)),
    }
    queued = np.flatnonzero(routed == "llm")
    waited = llm_latency(
        requests["time_s"].to_numpy(dtype=float)[queued],
        busy["llm"][queued] / 1000,
        llm_workers,
        llm_queue_limit,
    )
    llm_ms = np.full(len(asked), np.nan)
    llm_ms[queued] = waited * 1000
    fallback = (routed == "llm") & np.isnan(llm_ms)
    served_by = np.where(fallback, "student", routed)
    judges = [served_by == judge for judge in busy]
    return pd.DataFrame(
        {
            "query_id": asked["query_id"],
            "stratum": stratum,
            "gold": asked["label"],
            "predicted": np.select(
                judges, [cached_label, asked["student_label"], asked["llm_label"]], default=""
            ),
            "served_by": served_by,
            "fallback": fallback,
            "latency_ms": np.select(judges, [busy["cache"], busy["student"], llm_ms]),
            "busy_ms": np.select(judges, list(busy.values())),
        }
    )


def llm_latency(arrivals_s: Floats, service_s: Floats, workers: int, queue_limit: int) -> Floats:
    """First come, first served by `workers` servers behind one bounded queue (simpy).

    Args:
        arrivals_s: (requests,) rising arrival times.
        service_s: (requests,) service times.
        workers: servers.
        queue_limit: requests that may wait; one that finds the queue full is refused.

    Returns:
        (requests,) seconds from arrival to answer, NaN where refused.
    """
    world = simpy.Environment()
    servers = simpy.Resource(world, capacity=workers)
    latency = np.full(len(arrivals_s), np.nan)

    def serve(number: int) -> Generator[simpy.Event, Any, None]:
        with servers.request() as turn:
            yield turn
            yield world.timeout(service_s[number])
        latency[number] = world.now - arrivals_s[number]

    def arrive() -> Generator[simpy.Event, Any, None]:
        for number, moment in enumerate(arrivals_s):
            yield world.timeout(max(0.0, moment - world.now))
            if len(servers.queue) < queue_limit:
                world.process(serve(number))

    world.process(arrive())
    world.run()
    return latency


def summarise(served: pd.DataFrame, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """Cost, speed and quality per stratum and in all; each request counts once, so traffic is the weight.

    Args:
        served: what `simulate` returns.
        resamples: bootstrap draws (over queries) behind the intervals.

    Returns:
        One row per stratum that had traffic, then "all": stratum, requests, share, hit_rate (answered from
        the cache), fallback_share (meant for the LLM, answered by the student), p50_ms, p95_ms, p99_ms,
        acc@2, acc@2_low, acc@2_high, macro_f1, macro_f1_low, macro_f1_high, and llm_seconds_per_million,
        student_seconds_per_million (busy seconds online; the LLM's are GPU-seconds when it runs on a GPU.
        Scoring the cache offline is not in them: add its pairs x mean LLM seconds).
    """
    rows = []
    for name in (*STRATA, "all"):
        part = served if name == "all" else served[served["stratum"] == name]
        if len(part):
            rows.append(
                {
                    "stratum": name,
                    "requests": len(part),
                    "share": len(part) / len(served),
                    **_row(part, resamples, rng),
                }
            )
    return pd.DataFrame(rows)


def student_utilisation(served: pd.DataFrame, requests: pd.DataFrame) -> float:
    """Busy seconds of the student per second of traffic; near 1 and above, one student would queue."""
    span_s = float(requests["time_s"].iloc[-1] - requests["time_s"].iloc[0])
    return float(served.loc[served["served_by"] == "student", "busy_ms"].sum() / 1000 / span_s)


def _row(part: pd.DataFrame, resamples: int, rng: np.random.Generator) -> dict[str, float]:
    quality = evaluate(part, resamples, rng).set_index("metric")
    row = {
        "hit_rate": float((part["served_by"] == "cache").mean()),
        "fallback_share": float(part["fallback"].mean()),
        **{f"p{p}_ms": float(np.percentile(part["latency_ms"], p)) for p in (50, 95, 99)},
    }
    for metric in ("acc@2", "macro_f1"):
        for column, name in (("value", metric), ("low", f"{metric}_low"), ("high", f"{metric}_high")):
            row[name] = float(quality[column].loc[metric])
    for judge in ("llm", "student"):
        busy_s = part.loc[part["served_by"] == judge, "busy_ms"].sum() / 1000
        row[f"{judge}_seconds_per_million"] = float(busy_s / len(part) * MILLION)
    return row
