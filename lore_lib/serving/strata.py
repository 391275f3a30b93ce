"""Head, torso and tail by how often a query was asked in the past, never by the traffic it then meets."""

from collections.abc import Iterable
from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lore_lib.errors import DataError

STRATA = ("head", "torso", "tail")


def past_counts(log: Iterable[pd.DataFrame], pairs: pd.DataFrame) -> pd.Series:
    """Requests per query in a warm-up log, read chunk by chunk.

    Args:
        log: chunks with the column pair (row number in `pairs`), as `traffic.request_stream` yields them.
        pairs: query_id of every pair.

    Returns:
        Counts by query_id, only of queries that were asked; most asked first, ties by query_id.
    """
    per_pair = np.zeros(len(pairs), dtype=np.int64)
    for chunk in log:
        per_pair += np.bincount(chunk["pair"], minlength=len(pairs))
    counts = pd.Series(per_pair, index=pd.Index(pairs["query_id"]), name="count").groupby(level=0).sum()
    return counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")


def frequency_strata(past: pd.Series, head_share: float, torso_share: float) -> pd.Series:
    """Name the stratum of each query of the past log.

    Of the distinct queries seen, the most asked ceil(head_share) part is head, the next part up to
    ceil(head_share + torso_share) torso, the rest tail. Whatever the log never saw is tail: see `stratum_of`.

    Args:
        past: requests by query_id, most asked first, as `past_counts` gives them.
        head_share: share of distinct queries, not of requests.
        torso_share: likewise.

    Returns:
        Stratum by query_id, in the order given.

    Raises:
        DataError: the log is empty, or not ordered from most to least asked.

    Example:
        >>> frequency_strata(pd.Series([9, 4, 1, 1], index=list("abcd")), 0.25, 0.25).to_dict()
        {'a': 'head', 'b': 'torso', 'c': 'tail', 'd': 'tail'}
    """
    if past.empty or not past.is_monotonic_decreasing:
        raise DataError(f"found {len(past)} past counts; give 1 or more, most asked first (past_counts).")
    head = ceil(
        head_share * len(past) - 1e-9
    )  # the 1e-9 undoes binary rounding such as 0.07 * 100 = 7.000..1
    torso = ceil((head_share + torso_share) * len(past) - 1e-9)
    names = np.repeat(STRATA, [head, torso - head, len(past) - torso])
    return pd.Series(names, index=past.index, name="stratum")


def stratum_of(query_ids: pd.Series, strata: pd.Series) -> NDArray[np.str_]:
    """The stratum of each query, tail for those that the past log never saw."""
    return query_ids.map(strata).fillna("tail").to_numpy(dtype=str)
