"""Scores of judgements: acc@4, acc@2, macro-F1, kappa, parse rate, with intervals and paired tests.

Every number here is a function of one confusion matrix: gold L1..L4 in rows; predicted L1..L4 and, last,
unparsable in columns. An answer that could not be parsed ("") is always wrong and never dropped.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.metrics import precision_recall_fscore_support
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats, percentile_interval, resample_totals
from lore_lib.vertical.schema import LABELS, RELEVANT

METRICS = ("acc@4", "acc@2", "macro_f1", "kappa", "parse_rate")
UNPARSED = ""  # the predicted label of an answer that could not be parsed
_COLUMNS = (*LABELS, UNPARSED)
_SHAPE = (len(LABELS), len(_COLUMNS))
_SIDE = np.array([label in RELEVANT for label in LABELS])


def align(predictions: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """Put predictions beside gold labels, one row per gold pair.

    Args:
        predictions: pair_id, label ("" when not parsed).
        gold: pair_id, query_id, label, and any columns to slice by.

    Returns:
        A copy of gold in its order, label renamed to gold, with the column predicted.

    Raises:
        DataError: pairs repeated, without prediction, or without gold; or a label that is none of the four.
    """
    for name, table in (("predictions", predictions), ("gold", gold)):
        _refuse(f"pairs stand twice in {name}", table.loc[table["pair_id"].duplicated(), "pair_id"])
    asked, answered = set(gold["pair_id"]), set(predictions["pair_id"])
    _refuse("pairs have no prediction (give '' to those that failed)", asked - answered)
    _refuse("predicted pairs are not in gold (another split?)", answered - asked)
    _refuse("gold labels are none of L1..L4", set(gold["label"]) - set(LABELS))
    _refuse("predicted labels are neither L1..L4 nor ''", set(predictions["label"]) - set(_COLUMNS))
    labels = predictions.set_index("pair_id")["label"].rename("predicted")
    return gold.rename(columns={"label": "gold"}).join(labels, on="pair_id").reset_index(drop=True)


def confusion(gold: ArrayLike, predicted: ArrayLike) -> NDArray[np.int64]:
    """Counts (4, 5): gold label by predicted label, the last column unparsable."""
    cells = np.bincount(_cells(gold, predicted), minlength=_SHAPE[0] * _SHAPE[1])
    return cells.reshape(_SHAPE).astype(np.int64)


def scores(matrix: ArrayLike) -> dict[str, Floats]:
    """All metrics of one confusion matrix, or of a stack of them.

    - acc@4: share with the very label; acc@2: share on the right side of L2|L3.
    - macro_f1: mean F1 over the labels that stand in gold (f1_score of scikit-learn with just these labels).
      A wrong answer costs its gold label's recall whatever it says. A label without a gold pair has no F1 and
      is left out, so that a perfect judge has 1 in any slice; a whole subset that lacks a label says so in
      its counts.
    - kappa: Cohen's, quadratic weights; an unparsable answer counts as the label farthest from gold; 0
      where it is undefined (gold and answers all one label).
    - parse_rate: share that could be parsed.

    Args:
        matrix: (..., 4, 5) counts, not all zero.

    Returns:
        metric -> (...) values; a plain number each for one matrix.
    """
    counts = np.asarray(matrix, dtype=float)
    parsed, unparsed = counts[..., :4], counts[..., 4]
    total = counts.sum(axis=(-2, -1))
    support = counts.sum(axis=-1)
    right = np.diagonal(parsed, axis1=-2, axis2=-1)
    same_side = parsed[..., _SIDE[:, None] == _SIDE[None, :]].sum(axis=-1)
    f1 = _divide(2 * right, support + parsed.sum(axis=-2))

    worst = parsed.copy()
    for level, relevant in enumerate(_SIDE):
        worst[..., level, 0 if relevant else 3] += unparsed[..., level]
    gap = np.square(np.subtract.outer(np.arange(4.0), np.arange(4.0)))
    by_chance = support[..., :, None] * worst.sum(axis=-2)[..., None, :] / total[..., None, None]
    disagreement, expected = (gap * worst).sum(axis=(-2, -1)), (gap * by_chance).sum(axis=(-2, -1))
    values = {
        "acc@4": right.sum(axis=-1) / total,
        "acc@2": same_side / total,
        "macro_f1": _divide(f1.sum(axis=-1), (support > 0).sum(axis=-1).astype(float)),
        "kappa": np.where(expected > 0, 1 - _divide(disagreement, expected), 0.0),
        "parse_rate": 1 - unparsed.sum(axis=-1) / total,
    }
    return {name: np.asarray(value)[()] for name, value in values.items()}  # [()] makes a number of 0-d


def evaluate(judged: pd.DataFrame, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """Every metric with its 95 % interval from a bootstrap over queries.

    Args:
        judged: query_id, gold, predicted, as `align` gives them.

    Returns:
        metric, value, low, high, n (pairs), queries. Low and high are NaN for a single query.

    Raises:
        DataError: no rows.
    """
    if judged.empty:
        raise DataError("no pairs to judge; check the subset's filter.")
    totals = _query_matrices(judged)
    values = scores(totals.sum(axis=0).reshape(_SHAPE))
    ends = {name: (float("nan"), float("nan")) for name in METRICS}
    if len(totals) > 1:
        draws = scores(resample_totals(totals, resamples, rng).reshape(-1, *_SHAPE))
        ends = {name: percentile_interval(draws[name]) for name in METRICS}
    return pd.DataFrame(
        [
            {
                "metric": name,
                "value": float(values[name]),
                "low": ends[name][0],
                "high": ends[name][1],
                "n": len(judged),
                "queries": len(totals),
            }
            for name in METRICS
        ]
    )


def evaluate_by(judged: pd.DataFrame, column: str, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """`evaluate` for each value of a column (subset, kind, intent ...), which comes first in the result."""
    parts = [
        evaluate(part, resamples, rng).assign(**{column: name})
        for name, part in judged.groupby(column, sort=True)
    ]
    if not parts:
        raise DataError(f"no pairs to judge by {column}; check the subset's filter.")
    table = pd.concat(parts, ignore_index=True)
    return table[[column, *table.columns.drop(column)]]


def score_table(judged: pd.DataFrame, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """`evaluate` on all pairs (subset "all"), then on each subset, in one table."""
    whole = evaluate(judged, resamples, rng).assign(subset="all")
    table = pd.concat([whole, evaluate_by(judged, "subset", resamples, rng)], ignore_index=True)
    return table[["subset", *table.columns.drop("subset")]]


def evaluate_slices(
    judged: pd.DataFrame, columns: Sequence[str], resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """`evaluate_by` for several columns, one below the other.

    Returns:
        by (the column), slice (its value), then the columns of `evaluate`.
    """
    parts = [
        evaluate_by(judged, column, resamples, rng).rename(columns={column: "slice"}).assign(by=column)
        for column in columns
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[["by", *table.columns.drop("by")]]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Systems in rows, metrics in columns, each cell "0.858 [0.815, 0.895]", or "0.858" without an interval.

    Args:
        table: system, metric, value, low, high; one row per couple.
    """
    cells = [
        f"{value:.3f} [{low:.3f}, {high:.3f}]" if low <= high else f"{value:.3f}"
        for value, low, high in zip(table["value"], table["low"], table["high"], strict=True)
    ]
    wide = table.assign(cell=cells).pivot(index="system", columns="metric", values="cell")
    return wide.loc[list(dict.fromkeys(table["system"])), list(dict.fromkeys(table["metric"]))]


def class_report(judged: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall, F1 and support of each label (sklearn; 0 where undefined)."""
    precision, recall, f1, support = precision_recall_fscore_support(
        judged["gold"], judged["predicted"], labels=list(LABELS), zero_division=0
    )
    return pd.DataFrame(
        {"label": LABELS, "precision": precision, "recall": recall, "f1": f1, "support": support.astype(int)}
    )


def compare(a: pd.DataFrame, b: pd.DataFrame, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """Differences a - b of two systems on the same pairs.

    The interval resamples queries, the same ones for both systems. ``p_value`` is McNemar's exact test on
    paired correctness, which takes pairs as independent; ``p_bootstrap`` comes from the same draws as the
    interval and does not: twice the share of draws on the far side of 0, the observed one counted in. Where
    the two disagree believe the second. It cannot fall below 2 / (resamples + 1): with few resamples and many
    comparisons a correction leaves nothing significant, however large the difference.

    Args:
        a: the first system, aligned.
        b: the second system, aligned; any row order.

    Returns:
        metric, difference, low, high, p_value (acc@4 and acc@2 only, else NaN), p_bootstrap, n, queries.

    Raises:
        DataError: the systems did not judge the same pairs.
    """
    _refuse("pairs were judged by one system only", set(a["pair_id"]) ^ set(b["pair_id"]))
    pairs = a.merge(
        b[["pair_id", "gold", "predicted"]], on="pair_id", suffixes=("", "_b"), validate="one_to_one"
    )
    _refuse("pairs have two gold labels", pairs.loc[pairs["gold"] != pairs["gold_b"], "pair_id"])
    both = np.hstack([_query_matrices(pairs), _query_matrices(pairs.assign(predicted=pairs["predicted_b"]))])
    point, draws = both.sum(axis=0)[None], resample_totals(both, resamples, rng)
    first, second, first_draws, second_draws = (
        scores(block.reshape(-1, *_SHAPE)) for part in (point, draws) for block in np.split(part, 2, axis=1)
    )
    tests = {
        "acc@4": _mcnemar(pairs["predicted"] == pairs["gold"], pairs["predicted_b"] == pairs["gold"]),
        "acc@2": _mcnemar(_same_side(pairs, "predicted"), _same_side(pairs, "predicted_b")),
    }
    rows = []
    for name in METRICS:
        gaps = first_draws[name] - second_draws[name]
        low, high = percentile_interval(gaps)
        rows.append(
            {
                "metric": name,
                "difference": float(first[name][0] - second[name][0]),
                "low": low if len(both) > 1 else float("nan"),
                "high": high if len(both) > 1 else float("nan"),
                "p_value": tests.get(name, float("nan")),
                "p_bootstrap": bootstrap_p(gaps) if len(both) > 1 else float("nan"),
                "n": len(pairs),
                "queries": len(both),
            }
        )
    return pd.DataFrame(rows)


def bootstrap_p(gaps: Floats) -> float:
    """Two-sided p-value of "no difference" from bootstrap draws of the difference, (resamples,).

    >>> bootstrap_p(np.array([0.1, 0.2, 0.3]))
    0.5
    """
    sides = (np.sum(gaps <= 0), np.sum(gaps >= 0))
    return float(min(1.0, 2 * (min(sides) + 1) / (len(gaps) + 1)))


def compare_all(
    judged: Mapping[str, pd.DataFrame],
    steps: Iterable[tuple[str, str]],
    resamples: int,
    rng: np.random.Generator,
    metrics: Sequence[str] = ("acc@4", "acc@2"),
) -> pd.DataFrame:
    """`compare` for several couples of systems, with p-values corrected for all that were looked at.

    ``p_holm`` (Holm) bounds the chance of one false alarm in the whole table, ``p_fdr`` (Benjamini and
    Hochberg) the share of false ones among the alarms; both adjust ``p_bootstrap``, by statsmodels.

    Args:
        judged: system -> aligned answers.
        steps: (from, to): the difference is to - from.

    Returns:
        step ("from -> to"), then the columns of `compare`, then p_holm, p_fdr.

    Raises:
        DataError: no steps, or as in `compare`.
    """
    parts = [compare(judged[b], judged[a], resamples, rng).assign(step=f"{a} -> {b}") for a, b in steps]
    if not parts:
        raise DataError("no two systems to compare; give at least one step.")
    table = pd.concat(parts, ignore_index=True)
    table = table[table["metric"].isin(metrics)].reset_index(drop=True)
    for column, method in (("p_holm", "holm"), ("p_fdr", "fdr_bh")):
        known = table["p_bootstrap"].notna()
        table.loc[known, column] = multipletests(table.loc[known, "p_bootstrap"], method=method)[1]
    return table[["step", *table.columns.drop("step")]]


def detectable(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least true difference that a two-sided test at level `alpha` finds with probability `power`.

    (z of 1 - alpha / 2 + z of power) x standard error of the difference: 2.80 of them for 80 % at 5 %.

    >>> round(detectable(0.01), 4)
    0.028
    """
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_error)


def power_table(tested: pd.DataFrame, wanted: float = 0.01) -> pd.DataFrame:
    """The least difference that each comparison could have found, and how many queries find `wanted`.

    The standard error is that of the interval over queries. Two systems that answer alike tell nothing about
    it and are left out.

    Args:
        tested: from `compare_all`.
        wanted: a difference worth finding.

    Returns:
        step, metric, difference, least_detectable, n, queries, queries_needed.
    """
    rows = tested[tested["high"] > tested["low"]].reset_index(drop=True)
    least = [
        detectable((high - low) / (2 * norm.ppf(0.975)))
        for low, high in zip(rows["low"], rows["high"], strict=True)
    ]
    needed = [queries_needed(q, found, wanted) for q, found in zip(rows["queries"], least, strict=True)]
    rows = rows.assign(least_detectable=least, queries_needed=needed)
    return rows[["step", "metric", "difference", "least_detectable", "n", "queries", "queries_needed"]]


def queries_needed(queries: int, found: float, wanted: float) -> int:
    """How many queries find a difference of `wanted` where `queries` find one of `found`: by the square.

    >>> queries_needed(100, 0.04, 0.01)
    1600
    """
    return int(np.ceil(queries * (found / wanted) ** 2))


def _cells(gold: ArrayLike, predicted: ArrayLike) -> NDArray[np.intp]:
    rows = pd.Index(LABELS).get_indexer(pd.Index(np.asarray(gold)))
    columns = pd.Index(_COLUMNS).get_indexer(pd.Index(np.asarray(predicted)))
    if (rows < 0).any() or (columns < 0).any():
        raise DataError(f"found labels outside {LABELS} (predictions may also be ''); map them first.")
    return np.asarray(rows * _SHAPE[1] + columns)


def _query_matrices(judged: pd.DataFrame) -> Floats:
    """One flattened confusion matrix per query: (queries, 20)."""
    query, names = pd.factorize(judged["query_id"], sort=True)
    width = _SHAPE[0] * _SHAPE[1]
    cells = query * width + _cells(judged["gold"], judged["predicted"])
    return np.bincount(cells, minlength=len(names) * width).reshape(-1, width).astype(float)


def _same_side(pairs: pd.DataFrame, column: str) -> pd.Series:
    return (pairs[column].isin(RELEVANT) == pairs["gold"].isin(RELEVANT)) & (pairs[column] != UNPARSED)


def _mcnemar(a: pd.Series, b: pd.Series) -> float:
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(mcnemar(table, exact=True).pvalue)


def _divide(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _refuse(what: str, found: set[str] | pd.Series) -> None:
    names = sorted(set(map(str, found)))
    if names:
        more = ", ..." if len(names) > 3 else ""
        raise DataError(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
