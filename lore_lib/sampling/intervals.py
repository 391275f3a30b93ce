"""95 % intervals by a bootstrap that resamples queries, because the pairs of one query fail together."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from lore_lib.errors import DataError

Floats = NDArray[np.float64]
TAILS = (0.025, 0.975)  # of the percentile interval
BLOCK_CELLS = 2_000_000  # resamples x clusters held in memory at once


def cluster_totals(rows: Floats, clusters: ArrayLike) -> Floats:
    """Sum the rows of each cluster.

    Args:
        rows: (rows, columns).
        clusters: one cluster name per row, such as query_id.

    Returns:
        (clusters, columns), clusters in sorted order.
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.zeros((len(names), rows.shape[1]))
    np.add.at(totals, index, rows)
    return totals


def resample_totals(totals: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Grand totals of bootstrap resamples of the clusters.

    Any statistic that is a function of sums (a mean, an accuracy, macro-F1 from a confusion matrix) follows
    from these without touching a row again.

    Args:
        totals: (clusters, columns), one row per cluster.

    Returns:
        (resamples, columns).
    """
    count = len(totals)
    block = max(1, BLOCK_CELLS // count)
    parts = [
        rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start)) @ totals
        for start in range(0, resamples, block)
    ]
    return np.concatenate(parts)


def mean(totals: Floats) -> Floats:
    """Mean per row from totals whose last column counts the rows: (..., 2) -> (...)."""
    return np.asarray(totals[..., 0] / totals[..., -1], dtype=float)


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """Low and high end of the 95 % percentile interval of bootstrap draws, (resamples,)."""
    low, high = np.quantile(draws, TAILS)
    return float(low), float(high)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    resamples: int,
    rng: np.random.Generator,
    statistic: Callable[[Floats], Floats] = mean,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of `values`, resampling whole clusters.

    Args:
        values: (rows,) or (rows, columns) numbers.
        clusters: (rows,) the cluster of each row.
        resamples: how many bootstrap draws.
        rng: source of the draws.
        statistic: maps totals (resamples, columns + 1), the last column counting rows, to (resamples,).

    Returns:
        (low, high); both NaN when there is one cluster only, for nothing can then be said about its spread.

    Raises:
        DataError: nothing to resample, lengths differ, or a value is not a number.

    Example:
        >>> cluster_bootstrap([1, 1, 0, 0], ["a", "a", "b", "b"], 500, np.random.default_rng(0))
        (0.0, 1.0)
    """
    rows = _rows(values)
    names = np.asarray(clusters)
    if len(rows) == 0 or len(names) != len(rows):
        raise DataError(
            f"found {len(rows)} values and {len(names)} clusters; give one cluster to each of 1 or more."
        )
    if not np.isfinite(rows).all():
        raise DataError(f"{int((~np.isfinite(rows)).sum())} values are not finite; score or drop them first.")
    totals = cluster_totals(np.column_stack([rows, np.ones(len(rows))]), names)
    if len(totals) < 2:
        return float("nan"), float("nan")
    return percentile_interval(statistic(resample_totals(totals, resamples, rng)))


def cluster_intervals(
    rows: pd.DataFrame, value: str, groups: list[str], resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The mean of a column in each group, with its 95 % interval from a bootstrap over queries.

    Args:
        rows: the columns named, and query_id.
        value: column of numbers.
        groups: columns to group by.

    Returns:
        Columns of ``groups`` (in the order in which they first appear), value, low, high, n (rows).
    """
    found = []
    for names, part in rows.groupby(groups, sort=False):
        low, high = cluster_bootstrap(part[value], part["query_id"], resamples, rng)
        found.append((*names, part[value].mean(), low, high, len(part)))
    return pd.DataFrame(found, columns=[*groups, "value", "low", "high", "n"])


def interval_texts(table: pd.DataFrame, digits: int) -> list[str]:
    """Each row's value and interval for a table to be read.

    >>> interval_texts(pd.DataFrame({"value": [0.5], "low": [0.41], "high": [0.6]}), digits=2)
    ['0.50 [0.41, 0.60]']
    """
    columns = (table[name] for name in ("value", "low", "high"))
    return [
        f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        for value, low, high in zip(*columns, strict=True)
    ]


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Mean of a - b over the same rows, with its 95 % interval from a bootstrap over clusters.

    Args:
        a: (rows,) scores of the first system.
        b: (rows,) scores of the second system on the same rows in the same order.
        clusters: (rows,) the cluster of each row.

    Returns:
        (difference, low, high).

    Raises:
        DataError: the systems differ in length, or as in `cluster_bootstrap`.
    """
    first, second = _rows(a), _rows(b)
    if first.shape != second.shape:
        raise DataError(
            f"found {len(first)} scores against {len(second)}; pair both systems on the same rows."
        )
    gap = first - second
    low, high = cluster_bootstrap(gap, clusters, resamples, rng)
    return float(gap.mean()), low, high


class Spread(NamedTuple):
    """A mean over trainings that were scored on the same rows, and how far it may be trusted."""

    value: float
    low: float
    high: float
    n: int  # rows
    seeds: int  # trainings
    lowest: float
    highest: float


def over_trainings(
    values: ArrayLike, clusters: ArrayLike, resamples: int, rng: np.random.Generator
) -> Spread:
    """Mean over trainings and rows, the lowest and highest training, and a 95 % interval over clusters.

    The interval says how far other queries would move the mean, not how far other trainings would: for both
    at once there is :func:`crossed_bootstrap`.

    Args:
        values: (trainings, rows) numbers.
        clusters: (rows,) the cluster of each row.
        resamples: how many bootstrap draws.
        rng: source of the draws.

    Raises:
        DataError: as in `cluster_bootstrap`.

    Example:
        >>> over_trainings([[1, 1], [1, 0]], ["a", "b"], 500, np.random.default_rng(0))
        Spread(value=0.75, low=0.5, high=1.0, n=2, seeds=2, lowest=0.5, highest=1.0)
    """
    table = np.asarray(values, dtype=float)
    low, high = cluster_bootstrap(table.mean(axis=0), clusters, resamples, rng)
    each = table.mean(axis=1)
    ends = float(each.min()), float(each.max())
    return Spread(float(each.mean()), low, high, table.shape[1], len(table), *ends)


def t_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of independent numbers, one per seed or run, with Student's 95 % interval; for one, NaN ends.

    Example:
        >>> tuple(round(each, 3) for each in t_interval([0.5, 0.6, 0.7]))
        (0.6, 0.352, 0.848)
    """
    numbers = pd.Series(np.asarray(values, dtype=float))
    mean, count = float(numbers.mean()), len(numbers)
    reach = (
        float(student_t.ppf(0.975, count - 1) * numbers.std() / math.sqrt(count)) if count > 1 else math.nan
    )
    return mean, mean - reach, mean + reach


def crossed_bootstrap(
    values: ArrayLike, clusters: ArrayLike, resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Mean over trainings and rows, with a 95 % interval that resamples both trainings and whole clusters.

    All trainings are scored on the same rows, so a resample draws trainings and clusters independently (Owen
    2007, "The pigeonhole bootstrap"). Resampling S trainings shows (S - 1) / S of the variance of their mean,
    two thirds of it for three; so the deviations of the trainings from their mean are scaled by
    sqrt(S / (S - 1)), which makes the variance unbiased (the "narrowness bias" of Hesterberg 2015, "What
    teachers should know about the bootstrap"; Davison & Hinkley 1997, section 3.8). What is not mended: a
    spread estimated from three numbers is itself uncertain. Where trainings differ far more than clusters do,
    three of them cover about 75 times in 100 (69 without the scaling), not 95. One training has no spread.

    Args:
        values: (trainings, rows) numbers.
        clusters: (rows,) the cluster of each row.
        resamples: how many bootstrap draws.
        rng: source of the draws.

    Returns:
        (mean, low, high).

    Example:
        >>> crossed_bootstrap([[1, 0], [1, 0]], ["a", "b"], 500, np.random.default_rng(0))
        (0.5, 0.0, 1.0)
    """
    table = np.asarray(values, dtype=float)
    totals = cluster_totals(np.column_stack([table.T, np.ones(table.shape[1])]), clusters)
    drawn = resample_totals(totals, resamples, rng)
    count = len(table)
    shift = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count - 1 / count
    weights = 1 / count + shift * np.sqrt(count / max(1, count - 1))
    draws = (drawn[:, :-1] * weights).sum(1) / drawn[:, -1]
    return float(table.mean()), *percentile_interval(draws)


def _rows(values: Any) -> Floats:
    array = np.asarray(values, dtype=float)
    return array[:, None] if array.ndim == 1 else array
