"""Traffic, frequency strata, cache, router and the queue simulation."""

import heapq
import json
from math import factorial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lore_lib.errors import DataError
from lore_lib.serving.cache import ScoreCache, head_pairs
from lore_lib.serving.router import POLICIES, route
from lore_lib.serving.simulate import ServiceTimes, llm_latency, simulate, student_utilisation, summarise
from lore_lib.serving.strata import frequency_strata, past_counts, stratum_of
from lore_lib.serving.traffic import CHUNK_REQUESTS, arrival_rate, popularity, request_stream

CASES = json.loads((Path(__file__).parents[1] / "cases" / "queue.json").read_text())
LABELS = ["L1", "L2", "L3", "L4"]


def erlang_c_wait(arrivals_per_second: float, mean_service_s: float, workers: int) -> float:
    """Mean wait in M/M/c, seconds (Erlang C)."""
    load = arrivals_per_second * mean_service_s
    top = load**workers / factorial(workers) * workers / (workers - load)
    waits = top / (sum(load**i / factorial(i) for i in range(workers)) + top)
    return waits * mean_service_s / (workers - load)


def queue_by_heap(arrivals: np.ndarray, service: np.ndarray, workers: int, limit: int) -> np.ndarray:
    """The same queue without simpy: the earliest free worker takes the earliest waiting request."""
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_queue_worked_by_hand(case: dict[str, list[float]]) -> None:
    found = llm_latency(
        np.array(case["arrivals_s"]), np.array(case["service_s"]), case["workers"], case["queue_limit"]
    )  # type: ignore[arg-type]
    expected = np.array([np.nan if value is None else value for value in case["latency_s"]])
    np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
def test_queue_equals_an_independent_one(seed: int, workers: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    arrivals, service = np.cumsum(rng.exponential(1.0, 120)), rng.exponential(1.5 * workers, 120)
    found = llm_latency(arrivals, service, workers, limit)
    np.testing.assert_allclose(found, queue_by_heap(arrivals, service, workers, limit), atol=1e-6)


@pytest.mark.parametrize(("workers", "rate"), [(1, 0.6), (3, 2.2)])
def test_mean_wait_agrees_with_erlang_c(workers: int, rate: float) -> None:
    rng = np.random.default_rng(7)
    arrivals, service = np.cumsum(rng.exponential(1 / rate, 40_000)), rng.exponential(1.0, 40_000)
    wait = (llm_latency(arrivals, service, workers, 10**9) - service).mean()
    assert wait == pytest.approx(erlang_c_wait(rate, 1.0, workers), rel=0.12)


def test_popularity_by_frequency_and_by_law() -> None:
    queries = pd.DataFrame({"query_id": ["b", "a", "c"], "frequency": [5, 5, 90]})
    assert popularity(queries).to_dict() == {"c": 0.9, "a": 0.05, "b": 0.05}
    zipf = popularity(queries, exponent=1.0)
    assert zipf.index.tolist() == ["c", "a", "b"]
    assert zipf.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    flat = popularity(queries, exponent=1.0, shift=2.0)
    assert flat.tolist() == pytest.approx(np.array([1 / 3, 1 / 4, 1 / 5]) / sum([1 / 3, 1 / 4, 1 / 5]))


def test_popularity_refuses_bad_counts() -> None:
    for frequency in ([0, 0], [-1, 2]):
        with pytest.raises(DataError, match="frequencies"):
            popularity(pd.DataFrame({"query_id": ["a", "b"], "frequency": frequency}))
    with pytest.raises(DataError, match="stand twice"):
        popularity(pd.DataFrame({"query_id": ["a", "a"], "frequency": [1, 1]}))


@settings(max_examples=10)
@given(st.floats(0.2, 0.8), st.floats(0.1, 1.0), st.integers(1, 4))
def test_arrivals_load_the_workers_as_asked(utilisation: float, share: float, workers: int) -> None:
    rate = arrival_rate(utilisation, share, 0.2, workers)
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1 / rate, 20_000))
    busy_s = rng.exponential(0.2, 20_000)[rng.random(20_000) < share].sum()
    assert busy_s / times[-1] / workers == pytest.approx(utilisation, rel=0.1)


def test_arrivals_need_somebody_to_serve() -> None:
    with pytest.raises(DataError, match="no query is tail"):
        arrival_rate(0.7, 0.0, 0.2, 3)


def test_stream_follows_popularity_rate_and_pairs() -> None:
    pairs = pd.DataFrame({"query_id": ["b", "a", "b", "c", "b"]})
    shares = pd.Series([0.7, 0.2, 0.1], index=["b", "a", "c"])
    chunks = list(request_stream(shares, pairs, 50.0, CHUNK_REQUESTS + 1000, np.random.default_rng(0)))
    assert [len(chunk) for chunk in chunks] == [CHUNK_REQUESTS, 1000]
    requests = pd.concat(chunks, ignore_index=True)
    assert requests["time_s"].is_monotonic_increasing
    assert len(requests) / requests["time_s"].iloc[-1] == pytest.approx(50, rel=0.02)
    gaps = np.diff(requests["time_s"])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    counts = np.bincount(requests["pair"], minlength=5) / len(requests)
    assert counts == pytest.approx([0.7 / 3, 0.2, 0.7 / 3, 0.1, 0.7 / 3], abs=0.01)


def test_stream_refuses_a_query_without_pairs() -> None:
    with pytest.raises(DataError, match="first z"):
        list(
            request_stream(
                pd.Series([1.0], index=["z"]),
                pd.DataFrame({"query_id": ["a"]}),
                1,
                1,
                np.random.default_rng(0),
            )
        )


def test_past_counts_add_chunks_up() -> None:
    pairs = pd.DataFrame({"query_id": ["a", "b", "a", "c"]})
    chunks = [pd.DataFrame({"pair": [0, 2, 1]}), pd.DataFrame({"pair": [2, 1]})]
    assert past_counts(chunks, pairs).to_dict() == {"a": 3, "b": 2}


@example(100, 7, 0)  # 0.07 * 100 is 7.000000000000001
@given(st.integers(1, 300), st.integers(0, 100), st.integers(0, 100))
def test_strata_are_shares_of_distinct_queries(count: int, head: int, torso: int) -> None:
    torso = min(torso, 100 - head)
    past = pd.Series(np.arange(count, 0, -1), index=[f"q{i}" for i in range(count)])
    strata = frequency_strata(past, head / 100, torso / 100)
    names = strata.tolist()
    assert names == sorted(names, key=["head", "torso", "tail"].index)
    assert names.count("head") == -(-head * count // 100)
    assert names.count("head") + names.count("torso") == -(-(head + torso) * count // 100)


def test_a_query_the_past_never_saw_is_tail_however_hot_it_is_today() -> None:
    strata = frequency_strata(pd.Series([9, 1], index=["old", "rare"]), 0.5, 0.0)
    assert stratum_of(pd.Series(["new", "new", "old"]), strata).tolist() == ["tail", "tail", "head"]


def test_strata_refuse_unordered_or_empty_counts() -> None:
    for counts in ([], [1, 2]):
        with pytest.raises(DataError, match="most asked first"):
            frequency_strata(pd.Series(counts, index=list("ab")[: len(counts)], dtype=int), 0.1, 0.1)


def test_cache_holds_what_the_past_showed_of_head_queries() -> None:
    log = pd.DataFrame({"query_id": ["h", "h", "h", "t"], "item_id": ["1", "2", "1", "1"]})
    hot = head_pairs(log, pd.Series({"h": "head", "t": "tail"}))
    assert hot.to_dict("records") == [{"query_id": "h", "item_id": "1"}, {"query_id": "h", "item_id": "2"}]
    cache = ScoreCache(hot.assign(label=["L4", "L1"]))
    assert len(cache) == 2
    asked = pd.DataFrame({"query_id": ["h", "t", "h", "h"], "item_id": ["2", "1", "3", "1"]})
    assert cache.lookup(asked).tolist() == ["L1", "", "", "L4"]
    empty = ScoreCache(hot.iloc[:0].assign(label=pd.Series(dtype=str)))
    assert empty.lookup(asked).tolist() == [""] * 4
    with pytest.raises(DataError, match="stand twice"):
        ScoreCache(pd.DataFrame({"query_id": ["h", "h"], "item_id": ["1", "1"], "label": ["L1", "L4"]}))


def test_routes_of_every_policy() -> None:
    strata = np.array(["head", "head", "torso", "torso", "tail", "tail"])
    cached = np.array([True, False, True, False, True, False])
    routes = {policy: route(policy, strata, cached).tolist() for policy in POLICIES}
    assert routes == {
        "stratified": ["cache", "student", "student", "student", "llm", "llm"],
        "cache + student": ["cache", "student", "student", "student", "student", "student"],
        "all student": ["student"] * 6,
        "all LLM": ["llm"] * 6,
    }
    with pytest.raises(DataError, match="did you mean 'all LLM'"):
        route("all LM", strata, cached)


@pytest.fixture(scope="module")
def world() -> dict[str, object]:
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        {"query_id": np.repeat([f"q{i:03}" for i in range(100)], 3), "item_id": ["x", "y", "z"] * 100}
    )
    pairs["label"] = rng.choice(LABELS, 300)
    for judge, skill in (("llm_label", 0.9), ("student_label", 0.6)):
        pairs[judge] = np.where(rng.random(300) < skill, pairs["label"], rng.choice(LABELS, 300))
    queries = pd.DataFrame({"query_id": pairs["query_id"].unique(), "frequency": 1000 // np.arange(1, 101)})
    shares = popularity(queries)
    warm_up = pd.concat(request_stream(shares, pairs, 20, 3000, np.random.default_rng(1)))
    strata = frequency_strata(past_counts([warm_up], pairs), 0.05, 0.2)
    hot = head_pairs(pairs.iloc[warm_up["pair"]], strata)
    cache = ScoreCache(
        hot.merge(pairs, on=["query_id", "item_id"])[["query_id", "item_id", "llm_label"]].rename(
            columns={"llm_label": "label"}
        )
    )
    requests = pd.concat(request_stream(shares, pairs, 20, 4000, np.random.default_rng(2)), ignore_index=True)
    times = ServiceTimes(np.array([0.02]), np.array([3.0, 5.0]), np.array([100.0, 300.0]))
    return {"requests": requests, "pairs": pairs, "strata": strata, "cache": cache, "times": times}


def served(world: dict[str, object], policy: str, workers: int = 4, limit: int = 8) -> pd.DataFrame:
    return simulate(
        **world, policy=policy, llm_workers=workers, llm_queue_limit=limit, rng=np.random.default_rng(3)
    )  # type: ignore[arg-type]


def test_stratified_simulation_serves_each_stratum_as_routed(world: dict[str, object]) -> None:
    frame = served(world, "stratified")
    assert len(frame) == 4000
    assert set(frame.loc[frame["served_by"] == "cache", "stratum"]) == {"head"}
    assert set(frame.loc[frame["stratum"] == "torso", "served_by"]) == {"student"}
    tail = frame[frame["stratum"] == "tail"]
    assert (tail["fallback"] == (tail["served_by"] == "student")).all()
    assert not frame.loc[frame["stratum"] != "tail", "fallback"].any()
    assert (frame["latency_ms"] >= frame["busy_ms"] - 1e-6).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_served_labels_are_those_of_the_judge_that_answered(world: dict[str, object], policy: str) -> None:
    """Falling back once wrote "student" into an array of three-letter words, and no label came out."""
    frame, pairs = served(world, policy, workers=1, limit=2), world["pairs"]
    assert set(frame["served_by"]) <= {"cache", "student", "llm"}
    assert (frame["predicted"] != "").all()
    asked = pairs.iloc[world["requests"]["pair"]].reset_index(drop=True)  # type: ignore[index,attr-defined]
    expected = np.where(frame["served_by"] == "student", asked["student_label"], asked["llm_label"])
    assert (frame["predicted"] == expected).all()
    assert (frame["gold"] == asked["label"]).all()


def test_a_full_queue_falls_back_to_the_student_and_bounds_the_wait(world: dict[str, object]) -> None:
    frame = served(world, "all LLM", workers=1, limit=3)
    assert 0.5 < frame["fallback"].mean() < 0.95
    assert frame.loc[frame["fallback"], "latency_ms"].max() <= 5
    assert frame["latency_ms"].max() <= 300 * 5  # itself, one in service, three waiting
    assert not served(world, "all LLM", workers=1000)["fallback"].any()


def test_summary_weights_quality_by_traffic_and_adds_up(world: dict[str, object]) -> None:
    frame = served(world, "stratified")
    table = summarise(frame, 50, np.random.default_rng(0)).set_index("stratum")
    assert table.index.tolist() == ["head", "torso", "tail", "all"]
    parts = table.drop(index="all")
    assert parts["share"].sum() == pytest.approx(1)
    for column in (
        "hit_rate",
        "fallback_share",
        "acc@2",
        "llm_seconds_per_million",
        "student_seconds_per_million",
    ):
        assert (parts[column] * parts["share"]).sum() == pytest.approx(table.loc["all", column])
    f1 = f1_score(frame["gold"], frame["predicted"], labels=LABELS, average="macro", zero_division=0)
    assert table.loc["all", "macro_f1"] == pytest.approx(f1)
    assert table.loc["all", "p95_ms"] == pytest.approx(np.percentile(frame["latency_ms"], 95))
    assert (table["acc@2_low"] <= table["acc@2"]).all()
    assert (table["acc@2"] <= table["acc@2_high"]).all()
    assert table.loc["torso", "llm_seconds_per_million"] == 0
    llm = frame[frame["served_by"] == "llm"]
    assert table.loc["all", "llm_seconds_per_million"] == pytest.approx(llm["busy_ms"].sum() / 1000 * 250)


def test_policies_trade_quality_for_cost_as_they_should(world: dict[str, object]) -> None:
    rows = {
        policy: summarise(served(world, policy, workers=1000), 20, np.random.default_rng(0))
        .set_index("stratum")
        .loc["all"]
        for policy in POLICIES
    }
    assert rows["all LLM"]["acc@2"] > rows["stratified"]["acc@2"] > rows["all student"]["acc@2"]
    cost = [
        rows[policy]["llm_seconds_per_million"]
        for policy in ("all student", "cache + student", "stratified", "all LLM")
    ]
    assert cost[0] == cost[1] == 0 < cost[2] < cost[3]
    assert rows["all LLM"]["p50_ms"] > rows["all student"]["p50_ms"]


def test_the_run_is_reproducible_and_leaves_its_inputs_alone(world: dict[str, object]) -> None:
    before = world["pairs"].copy(deep=True)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(served(world, "stratified"), served(world, "stratified"))
    pd.testing.assert_frame_equal(before, world["pairs"])  # type: ignore[call-overload]


def test_student_utilisation_by_hand() -> None:
    frame = pd.DataFrame({"served_by": ["student", "llm", "student"], "busy_ms": [500.0, 900.0, 1500.0]})
    assert student_utilisation(frame, pd.DataFrame({"time_s": [1.0, 3.0, 11.0]})) == pytest.approx(0.2)


def test_service_times_must_be_measured() -> None:
    one = np.array([1.0])
    for bad in (np.array([]), np.array([0.0]), np.array([np.nan])):
        with pytest.raises(DataError, match="llm_ms"):
            ServiceTimes(one, one, bad)
