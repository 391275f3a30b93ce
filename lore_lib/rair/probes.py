"""Questions that the paper leaves open, as tables: what drops where, whether length helps, what transfers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import pointbiserialr

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import cluster_bootstrap, paired_difference

NEEDS: dict[str, str] = {"knowledge": "knowledge", "vision": "visual", "rules": "boundary"}
"""Capability -> the kind of pair that cannot be judged without it."""


def drop_table(
    whole: pd.DataFrame,
    without: Mapping[str, pd.DataFrame],
    groups: Sequence[str],
    resamples: int,
    rng: np.random.Generator,
    by: str = "kind",
) -> pd.DataFrame:
    """What is lost, and where, when something is taken away: accuracy with it minus accuracy without.

    If capabilities are independent, each removal hurts the pairs that need it and no others: a diagonal.

    Args:
        whole: pair_id, query_id, right (bool) and the column ``by``, with everything there.
        without: what was removed -> the same pairs' pair_id and right.
        groups: values of ``by``, in the order to show; those without a pair are left out.
        resamples: bootstrap resamples of queries.
        rng: source of the draws.
        by: column that groups the pairs.

    Returns:
        removed, group, drop, low, high, n (pairs).

    Raises:
        DataError: other pairs with than without.
    """
    rows = []
    for removed, less in without.items():
        if set(less["pair_id"]) != set(whole["pair_id"]) or less["pair_id"].duplicated().any():
            raise DataError(
                f"without {removed}: {len(less)} pairs against {len(whole)}; judge the same pairs"
            )
        both = whole.merge(less[["pair_id", "right"]], on="pair_id", suffixes=("", "_without"))
        for group in groups:
            part = both[both[by] == group]
            if len(part):
                change = paired_difference(
                    part["right"], part["right_without"], part["query_id"], resamples, rng
                )
                rows.append((removed, group, *change, len(part)))
    return pd.DataFrame(rows, columns=["removed", "group", "drop", "low", "high", "n"])


def diagonal_table(
    whole: pd.DataFrame,
    without: Mapping[str, pd.DataFrame],
    needs: Mapping[str, str],
    resamples: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Whether each loss is larger on the pairs that need what was taken than on all others.

    Args:
        whole: pair_id, query_id, kind, right (0 to 1), with everything there.
        without: what was removed -> the same pairs' pair_id and right.
        needs: what was removed -> the kind of pair that needs it, such as ``NEEDS``.
        resamples: bootstrap resamples of queries.
        rng: source of the draws.

    Returns:
        removed, needs, own and others (drops), n_own and n_others (pairs), lead (own - others), low, high,
        and verdict: "diagonal" where the interval of the lead lies above 0, "not" where it lies below, else
        "cannot tell". Removals without a pair of their kind are left out.
    """
    rows = []
    for removed, less in without.items():
        both = whole.merge(less[["pair_id", "right"]], on="pair_id", suffixes=("", "_without"))
        lost = both["right"].astype(float) - both["right_without"].astype(float)
        own = both["kind"] == needs[removed]
        if not own.any() or own.all():
            continue
        low, high = cluster_bootstrap(
            np.column_stack([lost * own, own, lost * ~own]), both["query_id"], resamples, rng, _lead
        )
        verdict = "diagonal" if low > 0 else "not" if high < 0 else "cannot tell"
        parts = lost[own].mean(), lost[~own].mean()
        rows.append(
            (
                removed,
                needs[removed],
                *parts,
                own.sum(),
                (~own).sum(),
                parts[0] - parts[1],
                low,
                high,
                verdict,
            )
        )
    names = ["removed", "needs", "own", "others", "n_own", "n_others", "lead", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=names)


def _lead(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """From sums of own losses, own pairs, other losses, all pairs; a resample without either has no say."""
    own, n_own, others, n = np.moveaxis(totals, -1, 0)
    some = (n_own > 0) & (n_own < n)
    lead: NDArray[np.float64] = own / n_own.clip(1) - others / (n - n_own).clip(1)
    return np.asarray(lead[some])


def wide_drops(table: pd.DataFrame) -> pd.DataFrame:
    """Removed in rows, groups in columns, each cell "+0.31 [+0.22, +0.40]"; n stands in the header."""
    cells = [
        f"{drop:+.2f} [{low:+.2f}, {high:+.2f}]"
        for drop, low, high in zip(table["drop"], table["low"], table["high"], strict=True)
    ]
    named = table.assign(cell=cells, group=table["group"] + " (n=" + table["n"].astype(str) + ")")
    wide = named.pivot(index="removed", columns="group", values="cell")
    return wide.loc[list(dict.fromkeys(named["removed"])), list(dict.fromkeys(named["group"]))]


def length_table(
    judged: pd.DataFrame, by: str, resamples: int, rng: np.random.Generator, parts: int = 3
) -> pd.DataFrame:
    """Accuracy by length of the completion, in equal parts from short to long, within each group.

    Which pairs get long chains is not chosen by lot: hard pairs may simply have more to say. The table shows
    what goes together, not what length does.

    Args:
        judged: query_id, right (bool), tokens, and the column ``by``.
        by: column that groups the pairs.
        resamples: bootstrap resamples of queries.
        rng: source of the draws.
        parts: lengths per group; ties at a boundary fall into the shorter part.

    Returns:
        group, length ("1 of 3" is the shortest), tokens (mean), value (accuracy), low, high, n; and for the
        group correlation (point-biserial, of tokens and being right; NaN where all are equal).
    """
    rows = []
    for group, pairs in judged.groupby(by, sort=True):
        ends = np.quantile(pairs["tokens"], np.arange(1, parts) / parts)
        place = np.searchsorted(ends, pairs["tokens"])
        varied = pairs["tokens"].nunique() > 1 and pairs["right"].nunique() > 1
        together = pointbiserialr(pairs["right"], pairs["tokens"]).statistic if varied else np.nan
        for at in range(parts):
            part = pairs[place == at]
            if len(part):
                ends_of = cluster_bootstrap(part["right"], part["query_id"], resamples, rng)
                mean = part["tokens"].mean(), part["right"].mean()
                rows.append((group, f"{at + 1} of {parts}", *mean, *ends_of, len(part), together))
    names = ["group", "length", "tokens", "value", "low", "high", "n", "correlation"]
    return pd.DataFrame(rows, columns=names)
