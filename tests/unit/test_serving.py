"""Strata, router, cache, service times, doubles, and the simulation that puts them together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lore_lib.config import ServingConfig, load_config
from lore_lib.errors import ConfigError, DataError
from lore_lib.serving.cache import OfflineScores
from lore_lib.serving.latency import ServiceTimes, read_times, write_times
from lore_lib.serving.population import UNREAD, Population, as_they_are, doubles
from lore_lib.serving.presets import read_preset
from lore_lib.serving.queues import erlang_c_wait
from lore_lib.serving.router import ASK_CACHE, ASK_LLM, CACHE, LLM, POLICIES, ROUTES, STUDENT, route
from lore_lib.serving.simulate import Pace, Server, pace, simulate
from lore_lib.serving.strata import HEAD, STRATA, TAIL, TORSO, CountMin, DecayedCounts, stratify
from lore_lib.serving.study import Study, overview
from lore_lib.serving.sweep import changed, over_seeds
from lore_lib.serving.tally import Served, Tally, contributions
from lore_lib.serving.traffic import Chunk, ZipfMandelbrot, request_stream

LABELS = ["L1", "L2", "L3", "L4"]
LAW = ZipfMandelbrot(1.0)
TIMES = ServiceTimes(np.array([0.02]), np.array([3.0, 5.0]), np.array([100.0, 300.0]), "a test")
SMALL = ServingConfig(requests=6000, queries=300, days=2.0, cache_pairs=300, head_share=0.05, seeds=(0, 1))
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    rng, names = RNG(0), [f"q{i:02}" for i in range(40)]
    pairs = pd.DataFrame({"query_id": np.repeat(names, 3), "item_id": ["x", "y", "z"] * 40})
    pairs["label"] = rng.choice(LABELS, 120)
    sure = rng.random(120)
    for judge, skill in (("llm_label", 0.9), ("student_label", 0.6)):
        pairs[judge] = np.where(rng.random(120) < skill, pairs["label"], rng.choice(LABELS, 120))
    pairs["student_confidence"] = np.where(pairs["student_label"] == pairs["label"], 0.4 + sure / 2, sure / 2)
    return pairs


@pytest.fixture(scope="module")
def people(judged: pd.DataFrame) -> Population:
    return doubles(judged, SMALL.queries, RNG(1))


def run(people: Population, policy: str = "stratified", seed: int = 0, **settings: Any) -> tuple[Tally, Any]:
    """A run at a fixed rate, and its summary by stratum."""
    config = changed(SMALL, **settings)
    at = Pace(4.0, config.requests / config.days / 4.0)
    tally = simulate(people, LAW.shares(config.queries), policy, config, TIMES, seed, at)
    return tally, tally.summary(config, 50, RNG(0)).set_index("stratum")


def answers(people: Population, policy: str, **settings: Any) -> dict[str, np.ndarray]:
    """Every request of such a run."""
    config = changed(SMALL, **settings)
    server = Server(people, policy, config, TIMES, 750.0, RNG(3))
    shares, pairs = LAW.shares(config.queries), people.pairs_per_query
    chunks = request_stream(shares, pairs, config, 9000, 4.0, 750.0, RNG(2))
    parts = [server.answer(chunk) for chunk in chunks] + [server.close()]
    return {
        name: np.concatenate([getattr(part, name) for part in parts if part])
        for name in Served.__dataclass_fields__
    }


# Strata


def test_decayed_counts_halve_and_forget() -> None:
    counts = DecayedCounts(3, half_life=2.0)
    counts.add(np.array([0, 0, 2]))
    counts.age(2.0)
    counts.add(np.array([1]))
    assert counts.estimate().tolist() == [1, 1, 0.5]
    counts.forget(np.array([0]))
    assert counts.estimate().tolist() == [0, 1, 0.5]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(8, 400))
def test_a_sketch_never_counts_too_little_and_seldom_much_too_much(seed: int, width: int) -> None:
    rng = RNG(seed)
    keys = rng.choice(500, 3000, p=LAW.shares(500))
    sketch, exact = CountMin(500, 1.0, width, rng), DecayedCounts(500, 1.0)
    for counts in (sketch, exact):
        counts.add(keys[:1000])
        counts.age(0.5)
        counts.add(keys[1000:])
    excess = sketch.estimate() - exact.estimate()
    assert excess.min() >= -1e-9
    assert (excess > np.e / width * exact.estimate().sum()).mean() < 0.1  # e^-4 = 2 % expected


@example(100, 7, 0)  # 0.07 * 100 is 7.000000000000001
@given(st.integers(1, 300), st.integers(0, 100), st.integers(0, 100))
def test_strata_are_shares_of_the_distinct_queries_seen(count: int, head: int, torso: int) -> None:
    torso = min(torso, 100 - head)
    counts = np.concatenate([RNG(count).permutation(np.arange(1, count + 1)), np.zeros(5)])
    codes = stratify(counts, head / 100, torso / 100)
    assert (codes == HEAD).sum() == -(-head * count // 100)
    assert (codes <= TORSO).sum() == -(-(head + torso) * count // 100)
    assert (codes[-5:] == TAIL).all()  # never seen
    assert (np.diff(codes[np.argsort(-counts, kind="stable")]) >= 0).all()


def test_strata_refuse_an_empty_past_and_absurd_shares() -> None:
    for counts in (np.array([]), np.zeros(3)):
        with pytest.raises(DataError, match="past log is empty"):
            stratify(counts, 0.1, 0.1)
    for shares in ((-0.1, 0.1), (0.8, 0.3), (np.nan, 0.1)):
        with pytest.raises(DataError, match="at most 1 together"):
            stratify(np.ones(3), *shares)


# Router


def test_routes_of_every_policy() -> None:
    strata, cached = np.array([0, 0, 1, 1, 2, 2], np.int8), np.array([True, False, True, False, True, False])
    unsure, chance = np.array([True, True, False, False, True, False]), np.array([0.1, 0.9] * 3)
    found = {
        policy: [ROUTES[code] for code in route(policy, strata, cached, unsure, chance, 0.5)]
        for policy in POLICIES
    }
    assert found == {
        "stratified": ["cache", "student", "student", "student", "llm", "llm"],
        "cache + student": ["cache", "student", "student", "student", "student", "student"],
        "cache + LLM": ["cache", "llm", "llm", "llm", "llm", "llm"],
        "confidence": ["cache", "llm", "student", "student", "llm", "student"],
        "random": ["llm", "student"] * 3,
        "all student": ["student"] * 6,
        "all LLM": ["llm"] * 6,
    }
    for policy, routes in found.items():
        assert ("cache" in routes) == (policy in ASK_CACHE)
        assert ("llm" in routes) == (policy in ASK_LLM)
    with pytest.raises(DataError, match="did you mean 'all LLM'"):
        route("all LM", strata, cached, unsure, chance, 0.5)


# Cache


def test_scores_age_are_invalidated_and_give_way() -> None:
    scores, shows = OfflineScores(pairs=4, capacity=2, ttl=2.0), np.array([10, 11, 12, 13])
    pairs = np.arange(4)
    assert scores.refill(np.array([5.0, 9, 1, 0]), 1.0, shows, now=0.0, ahead=0.5) == 2
    assert scores.valid(pairs, 1.0).tolist() == [True, True, False, False]
    assert scores.valid(pairs, 2.5).tolist() == [False] * 4
    scores.invalidate(np.array([1]))
    assert scores.valid(pairs, 1.0).tolist() == [True, False, False, False]
    assert scores.refill(np.array([0.0, 9, 8, 0]), 1.0, shows, now=1.0, ahead=0.5) == 2  # 0 gives way
    assert scores.valid(pairs, 1.0).tolist() == [False, True, True, False]
    assert scores.refill(np.array([0.0, 9, 8, 0]), 1.0, shows, now=1.2, ahead=0.5) == 0  # young enough
    assert scores.refill(np.array([0.0, 9, 8, 0]), 1.0, shows, now=2.8, ahead=0.5) == 2  # would die before
    assert scores.refill(np.array([0.5, 0.5, 0, 0]), 1.0, shows, now=3.0, ahead=0.5) == 0  # not admitted
    assert not scores.valid(pairs, 3.0).any()


def test_a_cache_without_room_holds_nothing() -> None:
    scores = OfflineScores(2, 0, 1.0)
    assert scores.refill(np.ones(2), 0.0, np.arange(2), 0.0, 0.1) == 0


# Service times


def test_times_are_kept_with_their_hardware_and_read_back(tmp_path: Path) -> None:
    rng = RNG(0)
    times = ServiceTimes(rng.gamma(2, 0.01, 500), rng.gamma(9, 1, 500), rng.gamma(20, 9, 500), "one core")
    again = read_times(write_times(times, tmp_path / "times.json"))
    assert again.hardware == "one core"
    for name, samples in times.samples().items():
        levels = [0.05, 0.5, 0.95, 1]
        assert np.quantile(again.samples()[name], levels) == pytest.approx(
            np.quantile(samples, levels), rel=0.05
        )
    with pytest.raises(DataError, match="hardware"):
        write_times(replace(times, hardware=""), tmp_path / "none.json")


def test_times_must_be_measured() -> None:
    one = np.array([1.0])
    for bad in (np.array([]), np.array([0.0]), np.array([np.nan]), np.array([-1.0])):
        with pytest.raises(DataError, match="llm_ms"):
            ServiceTimes(one, one, bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hardware": ""}, "hardware"),
        ({"llm_ms": {"edges_ms": [1, 2], "counts": [0]}}, "not all 0"),
        ({"llm_ms": {"edges_ms": [2, 1], "counts": [5]}}, "rising"),
        ({"llm_ms": {"edges_ms": [1, 2, 3], "counts": [5]}}, "one edge more"),
        ({"llm_ms": 7}, "llm_ms"),
        ({"gpu": 1}, "gpu"),
    ],
)
def test_a_broken_file_of_times_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cell = {"edges_ms": [1.0, 2.0], "counts": [3]}
    whole = {"hardware": "x", "cache_ms": cell, "student_ms": cell, "llm_ms": cell} | change
    (tmp_path / "times.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match=words):
        read_times(tmp_path / "times.json")


def test_no_times_and_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no service times"):
        read_times(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"hardware": ')
    with pytest.raises(DataError, match=r"cut\.json"):
        read_times(tmp_path / "cut.json")


# Doubles


def test_doubles_repeat_the_judged_equally_often(judged: pd.DataFrame) -> None:
    people = doubles(judged, 100, RNG(0))
    assert set(np.bincount(people.source)) <= {2, 3}
    assert (people.pairs_per_query == 3).all()
    assert (np.repeat(people.source, 3) == people.row // 3).all()
    rows = people.another_row(np.arange(300), people.row, RNG(1))
    assert (rows != people.row).all()
    assert (rows // 3 == people.row // 3).all()


def test_the_judged_themselves_keep_their_popularity(judged: pd.DataFrame) -> None:
    shares = pd.Series([0.7, 0.3], index=["q09", "q02"])
    assert as_they_are(judged, shares).source.tolist() == [9, 2]
    with pytest.raises(DataError, match="first zz"):
        as_they_are(judged, pd.Series([1.0], index=["zz"]))


def test_pages_by_hand() -> None:
    pairs = pd.DataFrame({"query_id": ["b", "a", "a", "a"], "item_id": list("wxyz")})
    pairs["label"] = ["L4", "L4", "L1", "L3"]
    pairs["llm_label"] = ["L1", "L3", "L4", ""]  # shows nothing of b; x and y of a, of which x is good
    pairs["student_label"] = ["L3", "L4", "L1", "L3"]
    people = doubles(pairs, 2, RNG(0))
    assert people.page.tolist() == [[0.5, 0], [1, 1]]
    assert people.answers[0].tolist() == [2, 3, UNREAD, 0]


def test_bad_judged_pairs_are_named(judged: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="lack student_label"):
        doubles(judged.drop(columns="student_label"), 5, RNG(0))
    with pytest.raises(DataError, match="no judged pair"):
        doubles(judged.iloc[:0], 5, RNG(0))
    with pytest.raises(DataError, match="1 judged pairs stand twice"):
        doubles(pd.concat([judged, judged.head(1)]), 5, RNG(0))
    with pytest.raises(DataError, match="label: found ''"):
        doubles(judged.assign(label=""), 5, RNG(0))
    with pytest.raises(DataError, match="queries=0"):
        doubles(judged, 0, RNG(0))


# The simulation


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_by_whom_the_policy_says(people: Population, policy: str) -> None:
    found = answers(people, policy, replaced_per_day=0.0, changed_per_day=0.0)
    strata, routes, fallback = found["stratum"], found["route"], found["fallback"]
    assert len(routes) == pytest.approx(6000, rel=0.1)
    assert (strata[routes == CACHE] == HEAD).all()
    assert (routes[fallback] == STUDENT).all()
    if policy == "stratified":
        assert set(routes[strata == TORSO]) == {STUDENT}
        assert ((routes == LLM) | fallback)[strata == TAIL].all()
        assert not fallback[strata != TAIL].any()
    if policy not in ASK_LLM:
        assert not found["llm_ms"].any()
    row = people.row[found["pair"]]  # nothing changes, so a pair shows what it showed at the start
    assert (found["gold"] == people.gold[row]).all()
    expected = np.where(routes == STUDENT, people.answers[1][row], people.answers[0][row])
    assert (found["predicted"] == expected).all()
    assert (found["latency_ms"] >= found["llm_ms"] - 1e-6).all()
    assert not found["stale"].any()


def test_answers_do_not_depend_on_how_the_stream_is_cut(people: Population) -> None:
    """Waiting requests are carried from chunk to chunk; batches and timeouts must not notice."""
    config = changed(SMALL, llm_workers=1, llm_timeout_s=1.0, changed_per_day=0.0, replaced_per_day=0.0)
    times = replace(TIMES, student_ms=np.array([3.0]), llm_ms=np.array([700.0]))
    shares, columns = LAW.shares(300), ("time_s", "rank", "query", "pair")
    chunks = list(request_stream(shares, people.pairs_per_query, config, 6000, 4.0, 750.0, RNG(2)))
    results = []
    for parts in (1, 7):
        server, served = Server(people, "stratified", config, times, 750.0, RNG(3)), []
        for chunk in chunks:
            for rows in np.array_split(np.arange(len(chunk.time_s)), parts):
                part = chunk._replace(**{name: getattr(chunk, name)[rows] for name in columns})
                served.append(server.answer(part))
        served.append(server.close())
        found = {
            name: np.concatenate([getattr(part, name) for part in served if part])
            for name in ("time_s", "latency_ms", "fallback")
        }
        results.append(pd.DataFrame(found).sort_values("time_s", ignore_index=True))
    assert results[0]["fallback"].any()
    slow = results[0]["latency_ms"] > 100  # those that met the queue
    assert slow.sum() > 100
    pd.testing.assert_frame_equal(results[0][slow], results[1][slow])


def test_the_summary_adds_up_and_agrees_with_the_requests(people: Population) -> None:
    found = answers(people, "stratified")
    tally = Tally(people)
    tally.add(Served(**found))
    table = tally.summary(SMALL, 50, RNG(0)).set_index("stratum")
    assert table.index.tolist() == [*STRATA, "all"]
    parts = table.drop(index="all")
    assert parts["share"].sum() == pytest.approx(1)
    for column in ("from_cache", "fallback", "acc@2", "item_goodrate", "gpu_s_per_million", "misplaced"):
        assert (parts[column] * parts["share"]).sum() == pytest.approx(table.loc["all", column]), column
    f1 = f1_score(found["gold"], found["predicted"], labels=range(4), average="macro", zero_division=0)
    assert table.loc["all", "macro_f1"] == pytest.approx(f1)
    right = (found["gold"] >= 2) == (found["predicted"] >= 2)
    assert table.loc["all", "acc@2"] == pytest.approx(right.mean())
    page = people.page[(found["route"] == STUDENT).astype(int), found["source"]]
    assert table.loc["all", "item_goodrate"] == pytest.approx(page.mean())
    assert table.loc["all", "query_goodrate"] == pytest.approx((page >= 0.5).mean())
    for column, level in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99)):
        exact = np.percentile(found["latency_ms"], level, method="inverted_cdf")
        assert table.loc["all", column] == pytest.approx(exact, rel=0.011)
    assert table.loc["all", "gpu_s_per_million"] == pytest.approx(found["llm_ms"].mean() * 1000)
    for metric in ("acc@2", "macro_f1", "item_goodrate", "query_goodrate"):
        assert (table[f"{metric}_low"] <= table[metric]).all()
        assert (table[metric] <= table[f"{metric}_high"]).all()


def test_policies_trade_quality_for_cost_as_they_should(people: Population) -> None:
    rows = {policy: run(people, policy, llm_workers=60)[1].loc["all"] for policy in POLICIES}
    good = [rows[name]["acc@2"] for name in ("all LLM", "stratified", "cache + student", "all student")]
    assert good == sorted(good, reverse=True)
    dear_first = ("all LLM", "cache + LLM", "stratified", "all student")
    spent = [rows[name]["gpu_s_per_million"] for name in dear_first]
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] == 0
    assert rows["all student"]["rented_per_million"] == rows["all student"]["money_per_million"] < 1
    assert rows["all LLM"]["offline_gpu_s_per_million"] == 0 < rows["stratified"]["offline_gpu_s_per_million"]
    chosen, random = (
        run(people, name, llm_workers=60, escalate_below=0.3, random_llm_share=0.3)[1].loc["all"]
        for name in ("confidence", "random")
    )
    assert chosen["acc@2"] > random["acc@2"]  # this student knows when it is wrong


def test_the_queue_in_the_simulation_waits_as_theory_says(people: Population) -> None:
    calm = {"daily_swing": 0.0, "bursts_per_day": 0.0, "llm_batch": 1, "llm_queue_limit": 10**6}
    config = changed(SMALL, requests=60_000, llm_workers=3, llm_timeout_s=1e9, **calm)
    times = replace(TIMES, llm_ms=RNG(0).exponential(500.0, 20_000))
    at = Pace(4.5, config.requests / config.days / 4.5)
    tally = simulate(people, LAW.shares(300), "all LLM", config, times, 0, at)
    mean_ms = np.mean(tally.latency_quantile(np.linspace(0, 1, 4001)[1:-1]))
    theory = 500 + 1000 * erlang_c_wait(4.5, float(times.llm_ms.mean()) / 1000, 3)
    assert mean_ms == pytest.approx(theory, rel=0.06)
    assert tally.summary(config, 0, RNG(0)).iloc[-1]["llm_load"] == pytest.approx(0.75, rel=0.04)


def test_a_full_queue_a_timeout_and_an_outage_fall_back_to_the_student(people: Population) -> None:
    assert not run(people, "all LLM", llm_workers=60)[1].loc["all", "fallback"]
    for trouble in ({"llm_queue_limit": 1}, {"llm_timeout_s": 0.05}, {"llm_slowdown": 30.0}):
        table = run(people, "all LLM", llm_workers=1, llm_batch=1, **trouble)[1].loc["all"]
        assert 0.05 < table["fallback"] < 0.99, trouble
        assert table["from_llm"] + table["from_student"] == pytest.approx(1)
    down = run(people, "all LLM", llm_workers=60, llm_outages=((0.0, 3.0),))[1].loc["all"]
    assert down["fallback"] == 1
    assert down["p99_ms"] < 6
    assert down["gpu_s_per_million"] == 0
    even = {"daily_swing": 0.0, "bursts_per_day": 0.0, "llm_workers": 60}
    half = run(people, "all LLM", llm_outages=((0.0, 1.0),), **even)[1]
    assert half.loc["all", "fallback"] == pytest.approx(0.5, abs=0.06)


def test_changed_items_are_dropped_or_served_stale(people: Population) -> None:
    kept, fresh = (
        run(people, changed_per_day=1.0, invalidate=invalidate, ttl_days=9.0)[1].loc["head"]
        for invalidate in (False, True)
    )
    assert fresh["stale"] == 0 < 0.1 < kept["stale"]
    assert fresh["from_cache"] < kept["from_cache"]
    assert fresh["acc@2"] > kept["acc@2"]
    only = {"changed_per_day": 0.0, "replaced_per_day": 1.0}
    gone = run(people, **only, invalidate=False, ttl_days=9.0)[1].loc["head"]
    assert gone["stale"] == 0  # another pair, so another key
    assert gone["from_cache"] < kept["from_cache"]


def test_a_shorter_life_makes_scores_younger_and_offline_work_dearer(people: Population) -> None:
    long, short = (run(people, ttl_days=days)[1].loc["all"] for days in (9.0, 0.3))
    assert short["score_age_days"] < long["score_age_days"] < 3
    assert short["offline_gpu_s_per_million"] > 1.5 * long["offline_gpu_s_per_million"] > 0


def test_a_small_cache_hits_less(people: Population) -> None:
    hits = [run(people, cache_pairs=size)[1].loc["all", "from_cache"] for size in (0, 5, 300)]
    assert hits[0] == 0 < hits[1] < hits[2]


def test_wrong_frequencies_misplace_queries(people: Population) -> None:
    noise = [run(people, frequency_noise=sigma)[1].loc["all", "misplaced"] for sigma in (0.0, 1.0, 3.0)]
    assert noise[0] < noise[1] < noise[2]
    sketch = [run(people, sketch_width=width)[1].loc["all", "misplaced"] for width in (4000, 20)]
    assert sketch[0] == pytest.approx(noise[0], abs=0.03)
    assert sketch[1] > noise[0] + 0.05
    still, moving = (
        run(people, drift_per_day=drift, requests=20_000)[1].loc["all", "misplaced"] for drift in (0.0, 2.0)
    )
    assert moving > still + 0.05


def test_strata_know_nothing_of_the_traffic_they_meet(people: Population) -> None:
    """Queries that are first asked after a refill are tail until the next one, however hot they are."""
    server = Server(people, "all student", changed(SMALL, refills_per_day=1.0), TIMES, 100.0, RNG(0))
    none, first = np.empty(0, int), people.first

    def chunk(begin: float, query: int) -> Chunk:
        asked = np.full(50, query)
        time = np.linspace(begin, begin + 10, 50)
        return Chunk(begin, time, asked, asked, first[asked], none, none)

    assert server.answer(chunk(0.0, 7)) is None  # the warm-up
    hot = server.answer(chunk(100.0, 7))
    new = server.answer(chunk(150.0, 9))
    server.answer(chunk(180.0, 9))
    later = server.answer(chunk(201.0, 9))
    assert hot is not None
    assert set(hot.stratum) == {HEAD}
    assert new is not None
    assert set(new.stratum) == {TAIL}
    assert later is not None
    assert set(later.stratum) == {HEAD}


def test_the_pace_keeps_the_llm_as_busy_as_planned(people: Population) -> None:
    config = changed(SMALL, requests=40_000, llm_workers=2, daily_swing=0, bursts_per_day=0, llm_batch=1)
    for wanted in (0.3, 0.6):
        plan = changed(config, llm_utilisation=wanted)
        tally = simulate(people, LAW.shares(300), "stratified", plan, TIMES, 0)
        assert tally.summary(plan, 0, RNG(0)).iloc[-1]["llm_load"] == pytest.approx(wanted, rel=0.25)
    with pytest.raises(DataError, match="no query is tail"):
        pace(changed(config, head_share=0.5, torso_share=0.5), LAW.shares(300), TIMES)


def test_the_same_seed_gives_the_same_days_and_policies_meet_the_same_requests(people: Population) -> None:
    one, again, other = (run(people, seed=seed)[1] for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert one.loc["all", "acc@2"] != other.loc["all", "acc@2"]
    shares = {policy: run(people, policy)[1]["requests"].tolist() for policy in POLICIES}
    assert len(set(map(tuple, shares.values()))) == 1


def test_one_query_and_one_request_are_served(judged: pd.DataFrame) -> None:
    lone = doubles(judged.head(3), 1, RNG(0))
    config = changed(SMALL, requests=200, queries=1, head_share=1.0, torso_share=0.0)
    tally = simulate(lone, np.ones(1), "stratified", config, TIMES, 0, Pace(1.0, 100.0))
    table = tally.summary(config, 50, RNG(0)).set_index("stratum")
    assert table.index.tolist() == ["head", "all"]
    assert np.isnan(table.loc["all", "acc@2_low"])  # of one judged query nothing is known beyond it
    brief = changed(config, requests=1, days=0.001)
    with pytest.raises(DataError, match=r"raise serving\.requests"):
        simulate(lone, np.ones(1), "stratified", brief, TIMES, 0, Pace(1.0, 1e6))


def test_contributions_sum_to_the_whole(people: Population) -> None:
    before, after = run(people, "all student")[0], run(people)[0]
    table = contributions(before, after, 200, RNG(0)).set_index(["part", "metric"])
    for metric in ("acc@2", "item GoodRate", "query GoodRate"):
        parts = sum(table.loc[(part, metric), "value"] for part in STRATA)
        assert parts == pytest.approx(table.loc[("all", metric), "value"])
    gain = run(people)[1].loc["all", "acc@2"] - run(people, "all student")[1].loc["all", "acc@2"]
    assert table.loc[("all", "acc@2"), "value"] == pytest.approx(gain)
    assert table.loc[("head", "acc@2"), "value"] > 0
    assert table.loc[("torso", "acc@2"), "value"] == pytest.approx(0, abs=0.01)  # the student in both
    nothing = contributions(after, after, 50, RNG(0))
    assert not nothing[["value", "low", "high"]].to_numpy().any()


# Settings, sweeps, presets


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("head_share", -0.1),
        ("torso_share", 0.99),
        ("zipf_exponent", 0.0),
        ("ttl_days", 0.0),
        ("requests", 0),
        ("llm_timeout_s", -1.0),
        ("daily_swing", 1.0),
        ("burst_factor", 0.5),
        ("seeds", []),
        ("llm_outages", [[2.0, 1.0]]),
    ],
)
def test_absurd_settings_are_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"serving.*{setting}|{setting}"):
        load_config("smoke", overrides={f"serving.{setting}": value})


def test_over_seeds_by_hand() -> None:
    rows = pd.DataFrame({"way": [*"aaab"], "policy": "p", "seed": [0, 1, 2, 0], "hits": [1.0, 2, 3, 9]})
    table = over_seeds(rows).set_index("way")
    assert table.loc["a", ["value", "low", "high", "seeds"]].tolist() == pytest.approx(
        [2, 2 - 4.30265 / np.sqrt(3), 2 + 4.30265 / np.sqrt(3), 3], rel=1e-4
    )
    assert np.isnan(table.loc["b", "low"])
    with pytest.raises(DataError, match="no simulation"):
        over_seeds(rows.iloc[:0])


@pytest.fixture(scope="module")
def study(judged: pd.DataFrame) -> Study:
    return Study(judged, LAW, SMALL, TIMES, 5)


def test_a_study_draws_the_frontier_and_knows_what_goes_wrong(study: Study) -> None:
    frontier = study.frontier().set_index("way")
    assert set(frontier["policy"]) == set(POLICIES)
    assert (frontier["low"] <= frontier["value"]).all()
    assert frontier.loc["random 0.3", "from_llm"] > frontier.loc["random 0.05", "from_llm"]
    assert frontier.loc["least sure 50%", "from_llm"] >= frontier.loc["least sure 10%", "from_llm"]
    trouble = study.trouble()
    assert trouble.loc["changed items keep their scores", "stale"] > trouble.loc["as planned", "stale"] == 0
    assert trouble.loc["LLM 3 times slower", "p99_ms"] > trouble.loc["as planned", "p99_ms"]
    assert trouble.loc["LLM down for 0.1 day", "fallback"] > trouble.loc["as planned", "fallback"]


def test_a_study_shows_what_the_knobs_do(study: Study) -> None:
    knobs = study.sensitivity().set_index(["knob", "metric", "setting"])["value"].sort_index()
    assert knobs["Zipf exponent", "from_cache"].is_monotonic_increasing
    noise = knobs["error of the counts (sigma)", "misplaced"]
    assert noise.iloc[-1] > noise.iloc[0]
    assert "drift per day" in knobs.index.get_level_values("knob")


def test_a_study_looks_at_one_plan(study: Study, judged: pd.DataFrame) -> None:
    past, strata = study.past(RNG(0))
    assert past.is_monotonic_decreasing
    assert strata.index.equals(past.index)
    assert set(strata) == set(STRATA)
    rows, tally = study.glance(head_share=0.0, torso_share=0.0)
    assert rows["stratum"].tolist() == ["tail", "all"]
    assert tally.requests == pytest.approx(1500, rel=0.2)
    table = study.table({"stratified": tally}, 20, RNG(0))
    sizes = {metric["name"]: metric["n"] for metric in study.metrics(table)}
    assert sizes["macro-F1 | stratified"] == len(judged)  # doubles are no more evidence
    assert sizes["p95 latency (ms) | stratified"] == tally.requests
    first = overview(table.set_index("stratum"))
    assert first.columns.tolist() == ["tail", "all"]
    end = table.iloc[-1]
    assert first.at["macro-F1", "all"].startswith(f"{end['macro_f1']:.3f} [{end['macro_f1_low']:.3f}, ")
    assert first.at["LLM load", "all"] == f"{end['llm_load']:.2f}"
    gains = study.gains(run(study.population)[0], judged["label"], 20, RNG(0))
    assert gains.query("part == 'all' and metric == 'acc@2'")["value"].item() < 0  # gold is hard to beat
    with pytest.raises(DataError, match="one population"):
        study.way("stratified", queries=7)


def test_the_published_account_comes_out_as_its_source_says() -> None:
    preset = read_preset("instacart-2025")
    table = preset.account(seed=0, requests=10**9, llm_ms=(300, 700))
    reach, latency = list(preset.published.values())[:2]
    assert table["from_llm"].tolist() == pytest.approx([reach] * 2, abs=0.003)
    assert table.loc[300, "p99_ms"] == pytest.approx(latency, rel=0.02)
    spent = table["gpu_s_per_million"]
    assert spent[700] / spent[300] == pytest.approx(7 / 3, rel=0.03)
    assert (table["fallback"] < 0.005).all()
    with pytest.raises(DataError, match="did you mean 'instacart-2025'"):
        read_preset("instacart")
