"""Speed and memory of the serving simulation, its queue, the eviction policies, and the frontier over seeds.

    python benchmarks/bench_serving.py [--largest 100000000]

``no queue`` routes between cache and student and is the whole simulation: arrivals, popularity, drift,
changes, strata, cache, answers, sums. ``stratified`` has the LLM's queue as well. ``pandas, per request``
keeps one row of each request instead of sums. The queue is an M/M/3 at 80 % load, told by simpy and
computed in arrays; the wait that theory expects stands beside. ``ways.py`` says what is measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from ways import print_table, sizes_asked

from lore_lib.config import ServingConfig
from lore_lib.rng import generator
from lore_lib.serving import policies
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.population import Population, doubles
from lore_lib.serving.queues import Pool, erlang_c_wait, serve_in_arrays, serve_in_simpy
from lore_lib.serving.simulate import Pace, Server, simulate
from lore_lib.serving.study import Study
from lore_lib.serving.sweep import changed
from lore_lib.serving.tally import Served
from lore_lib.serving.traffic import ZipfMandelbrot, request_stream

QUERIES, PAIRS = 100_000, 4
LAW = ZipfMandelbrot(1.0, 2.0)
SIMULATED = {
    "pandas, per request": "cache + student",
    "no queue": "cache + student",
    "stratified": "stratified",
}
LARGEST_KEPT = 1_000_000  # rows of the plain way
QUEUES = {"simpy": serve_in_simpy, "arrays": serve_in_arrays}
QUEUE = Pool(workers=3, queue_limit=10**9)
SKILL = {"llm_label": 0.86, "student_label": 0.72}  # accuracy of the judges that stand in
RATE = 300.0


def judged() -> pd.DataFrame:
    rng, labels = generator(17, "judged"), ["L1", "L2", "L3", "L4"]
    pairs = pd.DataFrame(
        {"query_id": np.repeat(np.arange(100), PAIRS).astype(str), "label": rng.choice(labels, 400)}
    )
    pairs["item_id"] = np.arange(400).astype(str)
    for name, skill in SKILL.items():
        right = rng.random(400) < skill
        pairs[name] = np.where(right, pairs["label"], rng.choice(labels, 400))
    pairs["student_confidence"] = np.where(right, 0.6, 0.4) + rng.random(400) * 0.4
    return pairs


def stand_in_times() -> ServiceTimes:
    rng = generator(17, "times")
    return ServiceTimes(np.full(9, 0.02), rng.gamma(20, 0.25, 200), rng.gamma(16, 2.0, 200), "made up")


def keep_rows(people: Population, config: ServingConfig) -> pd.DataFrame:
    day_s, shares = config.requests / config.days / RATE, LAW.shares(QUERIES)
    server = Server(people, "cache + student", config, stand_in_times(), day_s, generator(0, "service"))
    total = round(config.requests * (1 + 1 / config.days))
    chunks = request_stream(
        shares, people.pairs_per_query, config, total, RATE, day_s, generator(0, "traffic")
    )
    rows = [
        pd.DataFrame(vars(served)) for chunk in chunks if isinstance(served := server.answer(chunk), Served)
    ]
    return pd.concat(rows).groupby("stratum")["latency_ms"].quantile([0.5, 0.95, 0.99])


def prepare_simulation(way: str, size: int) -> Callable[[], object]:
    people = doubles(judged(), QUERIES, generator(0, "doubles"))
    config = ServingConfig(requests=size, queries=QUERIES, cache_pairs=10_000, llm_workers=4)
    warm = changed(config, requests=2000)
    run = functools.partial(simulate, people, LAW.shares(QUERIES), SIMULATED[way])
    run(config=warm, times=stand_in_times(), seed=0, at=Pace(RATE, 500 / RATE))  # compiles
    if way == "pandas, per request":
        return functools.partial(keep_rows, people, config)
    at = Pace(RATE, size / config.days / RATE)
    return functools.partial(run, config=config, times=stand_in_times(), seed=0, at=at)


def prepare_queue(way: str, size: int) -> Callable[[], object]:
    rng = generator(17, "queue", size)
    arrivals, work = np.cumsum(rng.exponential(1 / 2.4, size)), rng.exponential(1.0, size)
    QUEUES[way](arrivals[:10], work[:10], QUEUE)
    return functools.partial(QUEUES[way], arrivals, work, QUEUE)


def check_queues(size: int) -> None:
    rng = generator(17, "queue", size)
    arrivals, work = np.cumsum(rng.exponential(1 / 2.4, size)), rng.exponential(1.0, size)
    found = {name: serve(arrivals, work, QUEUE).finish_s for name, serve in QUEUES.items()}
    gap = np.abs(found["simpy"] - found["arrays"]).max()
    wait = (found["arrays"] - arrivals - work).mean()
    theory = erlang_c_wait(2.4, 1, 3)
    print(f"{size:,} jobs: largest difference {gap:.1e} s; mean wait {wait:.3f}, theory {theory:.3f}")


def compare_policies(requests: int = 1_000_000, keys: int = 200_000) -> None:
    rng = generator(17, "evictions")
    trace = rng.choice(keys, requests, p=ZipfMandelbrot(1.0).shares(keys))
    print(f"\nstill traffic: {requests:,} requests, {keys:,} keys, Zipf 1.0, room for 5 %, a fifth warms up")
    print(policies.compare(trace, keys // 20, requests // 5, requests // 20).round(4).to_string(index=False))
    for name, policy in {**policies.policies(), "bound": policies.clairvoyant}.items():
        start = time.process_time()
        policy(trace, keys // 20)
        print(f"{name:12}{requests / (time.process_time() - start):>12,.0f} requests/s")
    print("\nplanned traffic (swing, bursts, drift, changed and new items), room for 2,000 of 80,000")
    config = ServingConfig(requests=8 * requests // 3)
    print(policies.compare_on(LAW.shares(20_000), PAIRS, config, rng).round(4).to_string(index=False))


def show_frontier() -> None:
    study = Study(judged(), LAW, ServingConfig(seeds=tuple(range(10))), stand_in_times(), 17)
    start = time.process_time()
    table = study.frontier()
    columns = ["way", "value", "low", "high", "money_per_million", "p95_ms", "p99_ms", "from_llm", "fallback"]
    print(f"\nfrontier, 10 seeds, judges that are right {SKILL}: {time.process_time() - start:.0f} CPU s")
    print(table[columns].round(3).to_string(index=False))
    print(study.trouble()[["macro_f1", "p95_ms", "fallback", "stale", "misplaced"]].round(3).to_string())


if __name__ == "__main__":
    sizes = [size for size in sizes_asked(__doc__) if size >= 10_000]
    print_table(
        ["pandas, per request"], [s for s in sizes if s <= LARGEST_KEPT], prepare_simulation, "requests"
    )
    print_table(["no queue", "stratified"], sizes, prepare_simulation, "requests")
    print_table(QUEUES, [size for size in sizes if size <= LARGEST_KEPT], prepare_queue, "jobs")
    check_queues(100_000)
    compare_policies()
    show_frontier()
