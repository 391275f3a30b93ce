"""The trace that is asked of the real service: as long as it should be, at whatever rate."""

import numpy as np
import pandas as pd
import pytest

from lore_lib.config import Config, load_config
from lore_lib.errors import DataError
from lore_lib.serving.check import PAST_REQUESTS, Check, plan
from lore_lib.serving.latency import ServiceTimes

QUERIES = 200


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("smoke")


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    rows = pd.DataFrame({"query_id": np.repeat(np.arange(QUERIES), 2)})
    rows["query"] = "query " + rows["query_id"].astype(str)
    rows["item_id"] = [f"i{number}" for number in range(len(rows))]
    return rows.assign(label="L1", llm_label="L3", student_label="L2")


def planned(judged: pd.DataFrame, config: Config, llm_ms: float, seed: int = 0) -> Check:
    weights = 1 / np.arange(1, QUERIES + 1)
    shares = pd.Series(weights / weights.sum(), index=np.arange(QUERIES).astype(str))
    times = ServiceTimes(np.array([1.0]), np.array([2.0]), np.array([llm_ms]), hardware="made up")
    return plan(judged, shares, config, times, np.random.default_rng(seed))


def rate(check: Check) -> float:
    return PAST_REQUESTS / check.day_s


@pytest.mark.parametrize("seed", range(40))
def test_a_past_longer_than_expected_leaves_the_trace_whole(
    judged: pd.DataFrame, config: Config, seed: int
) -> None:
    check = planned(judged, config, llm_ms=300.0 + 7 * seed, seed=seed)
    past = sum(len(chunk.pair) for chunk in check.past)
    assert abs(past - PAST_REQUESTS) < 5 * PAST_REQUESTS**0.5
    expected = rate(check) * config.serving.check_seconds
    assert abs(len(check.trace) - expected) < 5 * expected**0.5


@pytest.mark.parametrize("llm_ms", [1.0, 50.0, 2000.0])
def test_a_trace_starts_at_0_and_ends_in_time(judged: pd.DataFrame, config: Config, llm_ms: float) -> None:
    moments = planned(judged, config, llm_ms).trace["time_s"].to_numpy()
    assert moments[0] >= 0
    assert (np.diff(moments) >= 0).all()
    assert 0.5 * config.serving.check_seconds < moments[-1] < config.serving.check_seconds


def test_a_trace_without_requests_names_the_knob(judged: pd.DataFrame, config: Config) -> None:
    short = config.model_copy(update={"serving": config.serving.model_copy(update={"check_seconds": 1e-6})})
    with pytest.raises(DataError, match=r"no request came in 1e-06 s .* raise check_seconds"):
        planned(judged, short, llm_ms=100.0)


def test_only_pairs_that_were_asked_often_are_scored_beforehand(judged: pd.DataFrame, config: Config) -> None:
    check = planned(judged, config, llm_ms=100.0)
    head = set(check.counts.index[:3])
    scores = check.scores(head)
    assert list(scores.columns) == ["query", "item_id", "label"]
    assert set(scores["query"]) == head
    assert (scores["label"] == "L3").all()  # what the LLM says, not what is right
    assert len(scores) <= check.config.cache_pairs
