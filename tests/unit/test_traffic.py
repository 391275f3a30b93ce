"""Popularity fitted and given, and the stream: rate over the day, bursts, drift, changes, bounded memory."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.serving.traffic import (
    CHUNK_REQUESTS,
    Chunk,
    ZipfMandelbrot,
    arrival_rate,
    fit_zipf,
    law_of,
    popularity,
    request_stream,
)

CALM = {
    "daily_swing": 0.0,
    "bursts_per_day": 0.0,
    "drift_per_day": 0.0,
    "changed_per_day": 0.0,
    "replaced_per_day": 0.0,
}


def stream(
    config: ServingConfig, shares: np.ndarray, requests: int, day_s: float = 1000.0, seed: int = 0
) -> list[Chunk]:
    rng, pairs = np.random.default_rng(seed), 1 + np.arange(len(shares)) % 3
    return list(request_stream(shares, pairs, config, requests, 50.0, day_s, rng))


def joined(chunks: list[Chunk], field: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, field) for chunk in chunks])


@settings(max_examples=12)
@given(st.floats(0.7, 1.4), st.floats(0, 12), st.integers(0, 1000))
def test_a_fit_gives_back_the_law_that_was_drawn_from(exponent: float, shift: float, seed: int) -> None:
    shares = ZipfMandelbrot(exponent, shift).shares(3000)
    counts = np.random.default_rng(seed).multinomial(1_000_000, shares)
    fit = fit_zipf(np.random.default_rng(seed).permutation(counts))
    assert fit.law.exponent == pytest.approx(exponent, abs=0.05)
    assert fit.law.shift == pytest.approx(shift, abs=0.1 + 0.12 * shift)
    assert fit.misfit < 0.01
    assert fit.exponent_interval[0] < fit.law.exponent < fit.exponent_interval[1]


def test_an_exact_log_is_fitted_exactly_and_its_interval_covers_samples() -> None:
    law = ZipfMandelbrot(1.1, 2.0)
    exact = fit_zipf(1e7 * law.shares(500))
    assert exact.law.exponent == pytest.approx(1.1, abs=1e-3)
    assert exact.law.shift == pytest.approx(2.0, abs=1e-2)
    rng, inside = np.random.default_rng(3), 0
    for _ in range(25):  # few queries, asked often: no rank is out of order
        low, high = fit_zipf(rng.multinomial(200_000, law.shares(30))).exponent_interval
        inside += low <= 1.1 <= high
    assert inside >= 21  # 20 or fewer of 25 has a chance below 1 %


@pytest.mark.parametrize("counts", [[], [7], [30, 30, 30], [1, 1, 1, 2], [0, 0, 0]])
def test_a_log_that_tells_nothing_is_refused_with_a_remedy(counts: list[int]) -> None:
    with pytest.raises(DataError, match=r"set serving\.zipf_exponent"):
        fit_zipf(pd.Series(counts, dtype=float))


def test_a_broken_log_is_refused() -> None:
    for counts in ([5, -1, 90], [5, np.nan, 90]):
        with pytest.raises(DataError, match="negative or not finite"):
            fit_zipf(np.array(counts))


def test_the_config_or_the_log_names_the_law() -> None:
    log = pd.Series(1e5 * ZipfMandelbrot(0.9, 1.0).shares(200))
    assert law_of(log, ServingConfig(zipf_exponent=1.2, zipf_shift=3.0))[0] == ZipfMandelbrot(1.2, 3.0)
    law, told = law_of(log, ServingConfig())
    assert law.exponent == pytest.approx(0.9, abs=0.01)
    assert "200 queries" in told


@pytest.mark.parametrize(("exponent", "shift"), [(0, 0), (-1, 0), (np.nan, 0), (1, -1)])
def test_what_is_no_law_is_refused(exponent: float, shift: float) -> None:
    with pytest.raises(DataError, match="exponent"):
        ZipfMandelbrot(exponent, shift)


def test_popularity_by_frequency_and_by_law() -> None:
    queries = pd.DataFrame({"query_id": ["b", "a", "c"], "frequency": [5, 5, 90]})
    assert popularity(queries).to_dict() == {"c": 0.9, "a": 0.05, "b": 0.05}
    zipf = popularity(queries, ZipfMandelbrot(1.0))
    assert zipf.index.tolist() == ["c", "a", "b"]
    assert zipf.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_popularity_refuses_bad_counts() -> None:
    for frequency in ([0, 0], [-1, 2]):
        with pytest.raises(DataError, match="frequencies"):
            popularity(pd.DataFrame({"query_id": ["a", "b"], "frequency": frequency}))
    with pytest.raises(DataError, match="stand twice"):
        popularity(pd.DataFrame({"query_id": ["a", "a"], "frequency": [1, 1]}))


def test_arrivals_load_the_workers_as_asked() -> None:
    assert arrival_rate(0.5, share=0.25, service_s=2.0, workers=4) == 4
    with pytest.raises(DataError, match="no query is tail"):
        arrival_rate(0.7, 0.0, 0.2, 3)


def test_a_calm_stream_is_poisson_and_follows_popularity() -> None:
    shares = ZipfMandelbrot(1.0).shares(40)
    chunks = stream(ServingConfig(**CALM), shares, 60_000)
    times = joined(chunks, "time_s")
    assert len(times) == 60_000
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    asked = np.bincount(joined(chunks, "query"), minlength=40) / 60_000
    assert asked == pytest.approx(shares, abs=0.01)
    assert (joined(chunks, "rank") == joined(chunks, "query")).all()
    first = np.concatenate([[0], np.cumsum(1 + np.arange(40) % 3)])
    place = joined(chunks, "pair") - first[joined(chunks, "query")]
    assert (place >= 0).all()
    assert (place < (1 + joined(chunks, "query") % 3)).all()
    assert not len(joined(chunks, "changed"))


def test_the_day_swings_between_night_and_noon() -> None:
    chunks = stream(ServingConfig(**{**CALM, "daily_swing": 0.6}), np.array([1.0]), 102_000)
    times = joined(chunks, "time_s")
    hour = times[times < 2000] % 1000 // (1000 / 24)
    per_hour = np.bincount(hour.astype(int), minlength=24) / 2 / (50 * 1000 / 24)  # two days
    expected = 1 - 0.6 * np.cos(2 * np.pi * (np.arange(24) + 0.5) / 24)
    assert per_hour == pytest.approx(expected, abs=0.08)


def test_a_burst_multiplies_the_rate_for_one_query() -> None:
    config = ServingConfig(**{**CALM, "bursts_per_day": 3.0, "burst_factor": 5.0, "burst_minutes": 60.0})
    chunks = stream(config, np.full(200, 1 / 200), 100_000, seed=1)
    sizes = np.array([len(chunk.time_s) for chunk in chunks[:-1]])
    calm = np.median(sizes)
    rush = [chunk for chunk, size in zip(chunks, sizes, strict=False) if size > 4 * calm]
    assert rush
    for chunk in rush:
        assert np.bincount(chunk.query).max() / len(chunk.query) == pytest.approx(0.8, abs=0.03)


def test_drift_moves_popularity_at_its_pace() -> None:
    shares = ZipfMandelbrot(1.0).shares(1000)
    config = ServingConfig(**{**CALM, "drift_per_day": 0.2})
    chunks = stream(config, shares, 150_000)
    times, rank, query = (joined(chunks, name) for name in ("time_s", "rank", "query"))
    for day in (1, 2):
        seen = (times > 1000 * day - 40) & (times < 1000 * day)
        at_rank = pd.Series(query[seen], rank[seen]).groupby(level=0).first()
        moved = (at_rank.to_numpy() != at_rank.index.to_numpy()).mean()
        assert moved == pytest.approx(1 - 0.8**day, abs=0.07)


def test_items_change_and_vanish_at_their_pace() -> None:
    config = ServingConfig(**{**CALM, "changed_per_day": 0.3, "replaced_per_day": 0.1})
    chunks = stream(config, np.full(2000, 1 / 2000), 100_000)
    pairs = int((1 + np.arange(2000) % 3).sum())
    assert len(joined(chunks, "changed")) / pairs == pytest.approx(0.6, rel=0.1)  # two days
    assert len(joined(chunks, "replaced")) / pairs == pytest.approx(0.2, rel=0.15)


def test_memory_does_not_grow_with_the_stream() -> None:
    shares, pairs, requests = ZipfMandelbrot(1.0).shares(5000), np.ones(5000, dtype=int), 20 * CHUNK_REQUESTS
    made = request_stream(shares, pairs, ServingConfig(), requests, 1.0, 1e6, np.random.default_rng(0))
    tracemalloc.start()
    assert sum(len(chunk.time_s) for chunk in made) == requests
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 8 * requests / 4  # a quarter of what the four columns of the whole would take


def test_a_single_query_streams() -> None:
    (chunk, *_) = stream(ServingConfig(), np.array([1.0]), 10)
    assert set(chunk.query) <= {0}


@pytest.mark.parametrize(
    ("shares", "pairs", "words"),
    [
        ([], [], "0 queries have traffic"),
        ([0.5, 0.5], [1, 0], "2 queries have traffic and 1 have pairs"),
        ([0.5, 0.5], [1], "give each"),
        ([0.5, 0.9], [1, 1], "sum to 1.4"),
        ([-0.5, 1.5], [1, 1], "0 or more"),
    ],
)
def test_a_stream_of_nothing_is_refused(shares: list[float], pairs: list[int], words: str) -> None:
    made = request_stream(
        np.array(shares), np.array(pairs, dtype=int), ServingConfig(), 5, 1.0, 1.0, np.random.default_rng(0)
    )
    with pytest.raises(DataError, match=words):
        next(made)


@pytest.mark.parametrize(("rate", "day"), [(0.0, 1.0), (np.inf, 1.0), (1.0, 0.0), (np.nan, 1.0)])
def test_a_stream_without_pace_is_refused(rate: float, day: float) -> None:
    one = np.ones(1)
    made = request_stream(one, one.astype(int), ServingConfig(), 5, rate, day, np.random.default_rng(0))
    with pytest.raises(DataError, match="finite and above 0"):
        next(made)
