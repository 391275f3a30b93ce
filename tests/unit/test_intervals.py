"""Intervals by a bootstrap over clusters."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import (
    cluster_bootstrap,
    cluster_intervals,
    cluster_totals,
    crossed_bootstrap,
    paired_difference,
    resample_totals,
)


def test_cluster_totals_by_hand() -> None:
    totals = cluster_totals(np.array([[1.0, 1], [2, 1], [4, 1]]), ["b", "a", "b"])
    assert totals.tolist() == [[2, 1], [5, 2]]


def test_resamples_keep_the_number_of_clusters_and_the_block_size_changes_nothing_but_the_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    totals = np.ones((10, 1))
    assert (resample_totals(totals, 37, np.random.default_rng(0)) == 10).all()
    monkeypatch.setattr("lore_lib.sampling.intervals.BLOCK_CELLS", 25)
    assert resample_totals(totals, 37, np.random.default_rng(0)).shape == (37, 1)


def test_with_one_row_per_cluster_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(2, 1, 200)
    ours = cluster_bootstrap(values, np.arange(200), 4000, np.random.default_rng(2))
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_rows_that_fail_together_widen_the_interval() -> None:
    by_query = np.random.default_rng(0).random(50) < 0.5
    values, clusters = np.repeat(by_query, 8), np.repeat(np.arange(50), 8)
    low, high = cluster_bootstrap(values, clusters, 2000, np.random.default_rng(1))
    row_low, row_high = cluster_bootstrap(values, np.arange(400), 2000, np.random.default_rng(1))
    assert (high - low) > 2 * (row_high - row_low)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        chance = rng.beta(2, 2, 60)
        values = rng.random((60, 4)) < chance[:, None]
        low, high = cluster_bootstrap(values.ravel(), np.repeat(np.arange(60), 4), 400, rng)
        hits += low <= 0.5 <= high
    assert 178 <= hits <= 200


def test_order_of_rows_does_not_matter() -> None:
    values, clusters = np.arange(30.0), np.repeat(np.arange(10), 3)
    order = np.random.default_rng(0).permutation(30)
    first = cluster_bootstrap(values, clusters, 300, np.random.default_rng(1))
    assert cluster_bootstrap(values[order], clusters[order], 300, np.random.default_rng(1)) == pytest.approx(
        first
    )


def test_a_statistic_of_several_columns() -> None:
    rows = np.column_stack([np.arange(1.0, 21), np.full(20, 2.0)])
    low, high = cluster_bootstrap(
        rows, np.arange(20), 500, np.random.default_rng(0), lambda t: t[..., 1] / t[..., 2]
    )
    assert (low, high) == (2.0, 2.0)


def test_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(300)
    difference, low, high = paired_difference(base + 0.1, base, np.repeat(np.arange(100), 3), 500, rng)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_one_cluster_says_nothing_about_spread() -> None:
    assert np.isnan(cluster_bootstrap([1, 0], ["q", "q"], 100, np.random.default_rng(0))).all()


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1.0], ["a", "b"]), ([1.0, float("nan")], ["a", "b"])]
)
def test_refuses_what_cannot_be_resampled(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(DataError):
        cluster_bootstrap(values, clusters, 10, np.random.default_rng(0))


def test_paired_difference_refuses_unpaired_rows() -> None:
    with pytest.raises(DataError, match="pair both systems"):
        paired_difference([1, 0], [1], ["a", "b"], 10, np.random.default_rng(0))


def test_fifty_thousand_rows_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    cluster_bootstrap(rng.random(50_000), rng.integers(0, 5_000, 50_000), 1000, rng)
    assert time.perf_counter() - started < 5


def test_three_trainings_are_spread_by_the_root_of_three_halves() -> None:
    """One resample in 27 draws the highest training alone, so the ends are the outer trainings, scaled."""
    trainings = np.repeat([[-0.1], [0.0], [0.1]], 2, axis=1)
    found = crossed_bootstrap(trainings, ["a", "b"], 4000, np.random.default_rng(0))
    assert found == pytest.approx((0, -0.1 * 1.5**0.5, 0.1 * 1.5**0.5))
    assert crossed_bootstrap(trainings[2:], ["a", "b"], 100, np.random.default_rng(0)) == pytest.approx(
        (0.1, 0.1, 0.1)
    )


@pytest.mark.parametrize(("of_trainings", "least", "most"), [(1.0, 0.70, 0.80), (0.1, 0.90, 0.98)])
def test_three_trainings_cover_as_the_docstring_says(of_trainings: float, least: float, most: float) -> None:
    """The truth is 0; 40 queries have a deviation of 0.01 where trainings dominate, else of 1."""
    rng, of_queries, hits = np.random.default_rng(5), 0.01 if of_trainings == 1 else 1.0, 0
    for _ in range(400):
        trainings = rng.normal(0, of_trainings, (3, 1)) + rng.normal(0, of_queries, 40)
        _, low, high = crossed_bootstrap(trainings, np.arange(40), 300, rng)
        hits += low <= 0 <= high
    assert least <= hits / 400 <= most


def test_groups_have_their_means_and_the_intervals_of_a_bootstrap_over_their_own_queries() -> None:
    rows = pd.DataFrame(
        {"query_id": list("aabbcc"), "arm": list("xyxyxy"), "kind": "k", "right": [1, 0, 1, 1, 0, 1]}
    )
    table = cluster_intervals(rows, "right", ["arm", "kind"], 200, np.random.default_rng(3))
    assert table[["arm", "kind", "n"]].values.tolist() == [["x", "k", 3], ["y", "k", 3]]
    assert table["value"].tolist() == pytest.approx([2 / 3, 2 / 3])
    rng = np.random.default_rng(3)
    for row in table.itertuples():
        part = rows[rows.arm == row.arm]
        assert (row.low, row.high) == cluster_bootstrap(part.right, part.query_id, 200, rng)
